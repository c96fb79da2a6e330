"""Lifting: what adapters share to read a program as a plan without running it. Knows no framework."""

from halo_core.lift.code import (
    NOTHING,
    all_code,
    closure,
    code_digest,
    fields,
    global_paths,
    is_a,
    lookup,
    references,
    static_attribute,
)
from halo_core.lift.libraries import CLIENTS, is_library, package_of
from halo_core.lift.supersteps import barriers

__all__ = [
    "CLIENTS",
    "NOTHING",
    "all_code",
    "barriers",
    "closure",
    "code_digest",
    "fields",
    "global_paths",
    "is_a",
    "is_library",
    "lookup",
    "package_of",
    "references",
    "static_attribute",
]
