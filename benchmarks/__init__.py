"""Benchmarks: the same apps on Halo and on baselines, written to JSON. Run from a source checkout."""
