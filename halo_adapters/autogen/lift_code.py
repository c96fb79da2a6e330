"""What AutoGen's objects and the user's functions say of themselves. Nothing of the user's is run to tell."""

from __future__ import annotations

import functools
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any

from halo_core.lift import CLIENTS, NOTHING, fields, package_of

CLOSED = CLIENTS | {"mcp", "docker", "opentelemetry", "PIL"}
"""Packages whose objects are not looked into."""
FRAMEWORKS = frozenset({"autogen_core", "autogen_agentchat", "autogen_ext", "halo_adapters", "halo_core"})
"""Packages whose objects hold what the user put there, and whose properties only compute."""
LIBRARIES = CLOSED | FRAMEWORKS
"""Packages that are never the user's."""


def attribute(value: object, name: str, default: Any = None) -> Any:
    """`value.name` where that runs no code of the user's, else `default`."""
    found = fields(value).get(name, NOTHING)
    if found is not NOTHING:
        return found
    member = next((vars(cls)[name] for cls in type(value).__mro__ if name in vars(cls)), NOTHING)
    if isinstance(member, property):
        own = package_of(member.fget) in FRAMEWORKS if member.fget is not None else False
        return getattr(value, name, default) if own else default
    return default if member is NOTHING else member


def is_framework(value: Any) -> bool:
    """Whether a class or function is AutoGen's or Halo's own."""
    return package_of(value) in FRAMEWORKS


def described(target: Any) -> str:
    """A callable in words: a function's name, `lambda at file:line`, an object's class."""
    if isinstance(target, functools.partial):
        return described(target.func)
    if isinstance(target, MethodType):
        return described(target.__func__)
    if isinstance(target, FunctionType):
        code = target.__code__
        anonymous = target.__name__ == "<lambda>"
        return f"lambda at {PurePath(code.co_filename).name}:{code.co_firstlineno}" if anonymous else target.__name__
    return type(target).__name__
