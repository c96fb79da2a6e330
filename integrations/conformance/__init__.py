"""Runs other projects' own test suites with Halo underneath; `python -m integrations.conformance --help`."""
