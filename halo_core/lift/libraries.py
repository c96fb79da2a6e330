"""Whose a class or function is: the user's, or a library's."""

from __future__ import annotations

import functools
import sys
from typing import Any

from halo_core.lift.code import is_a

CLIENTS = frozenset(
    """
    openai anthropic httpx httpx2 httpcore requests aiohttp boto3 botocore google grpc pydantic pydantic_core numpy
    torch transformers pandas polars pyarrow sqlalchemy tiktoken networkx typing_extensions
    """.split()  # noqa: SIM905
)
"""Packages whose objects no adapter looks into: clients of services, and libraries of data."""


def package_of(value: Any) -> str:
    """Top-level package of a class or function."""
    module: Any = vars(value).get("__module__") if is_a(value, type) else getattr(value, "__module__", None)
    return module.partition(".")[0] if is_a(module, str) else ""


def is_library(value: Any, known: frozenset[str], home: frozenset[str] = frozenset()) -> bool:
    """Whether a class or function is a library's, not the user's.

    Libraries are the standard library, the packages in `known` and what is installed; but for those in `home`, which
    are the user's even where they are installed.
    """
    package = package_of(value)
    if package in sys.stdlib_module_names or package in known:
        return True
    return package not in home and _installed(package)


@functools.lru_cache(maxsize=4096)
def _installed(package: str) -> bool:
    place = getattr(getattr(sys.modules.get(package), "__spec__", None), "origin", None) or ""
    return "site-packages" in place or "dist-packages" in place
