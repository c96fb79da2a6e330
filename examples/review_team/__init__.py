"""A small AutoGen app with three agents and two tools that write release notes, and the same under Halo."""
