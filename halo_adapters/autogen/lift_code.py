"""What Python code says of itself: attributes, names, bytecode. Nothing of the user's is run to tell."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import PurePath
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

NOTHING: Any = object()
"""Stands for a name that has no value."""

FRAMEWORKS = frozenset({"autogen_core", "autogen_agentchat", "autogen_ext", "halo_adapters", "halo_core"})
"""Packages whose objects hold what the user put there, and whose properties only compute."""

CLIENTS = frozenset(
    """
    openai anthropic httpx httpx2 httpcore requests aiohttp boto3 botocore google grpc mcp docker pydantic
    pydantic_core opentelemetry numpy torch transformers pandas polars pyarrow sqlalchemy tiktoken networkx PIL
    typing_extensions
    """.split()  # noqa: SIM905
)
"""Packages whose objects are not looked into."""


def fields(value: object) -> dict[str, Any]:
    """An object's own attributes, from its `__dict__` and slots, without running any of its code."""
    found: dict[str, Any] = {}
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = cls.__dict__.get(name)
            if isinstance(member, MemberDescriptorType):
                try:
                    found[name] = member.__get__(value)
                except AttributeError:
                    continue
    private = found.pop("__pydantic_private__", None)  # pydantic keeps private attributes beside the fields
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    named = {name: member for name, member in found.items() if not name.startswith("__")}
    return {**named, **own, **(private if isinstance(private, dict) else {})}


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


def package_of(value: Any) -> str:
    """Top-level package of a class or function."""
    module = vars(value).get("__module__") if isinstance(value, type) else getattr(value, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else ""


def is_framework(value: Any) -> bool:
    """Whether a class or function is AutoGen's or Halo's own."""
    return package_of(value) in FRAMEWORKS


def is_library(value: Any) -> bool:
    """Whether a class or function is a library's, not the user's."""
    package = package_of(value)
    return package in sys.stdlib_module_names or package in CLIENTS or package in FRAMEWORKS or _installed(package)


@functools.lru_cache(maxsize=4096)
def _installed(package: str) -> bool:
    place = getattr(getattr(sys.modules.get(package), "__spec__", None), "origin", None) or ""
    return "site-packages" in place or "dist-packages" in place


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


def references(function: FunctionType, *, globals_too: bool) -> Iterator[Any]:
    """The values that the function can reach: closure, defaults, and the globals that its code names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for path in global_paths(function.__code__) if globals_too else ():
        value = function.__globals__.get(path[0], NOTHING)
        for name in path[1:]:
            if not isinstance(value, ModuleType):
                break
            value = vars(value).get(name, NOTHING)
        if value is not NOTHING and not isinstance(value, ModuleType):
            yield value


@functools.lru_cache(maxsize=4096)
def global_paths(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """Global names that the code uses, each with the attributes it takes of it: `("settings", "MODEL")`."""
    paths: dict[tuple[str, ...], None] = {}
    for part in all_code(code):
        path: tuple[str, ...] = ()
        for instruction in dis.get_instructions(part):
            if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and path:
                path = (*path, str(instruction.argval))
                continue
            if path:
                paths[path] = None
            path = (str(instruction.argval),) if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
        if path:
            paths[path] = None
    return tuple(paths)


def all_code(code: CodeType) -> Iterator[CodeType]:
    """The code object and those of the functions, lambdas and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from all_code(constant)


def code_digest(code: CodeType) -> bytes:
    """A digest of what the code does, equal across processes of one Python version; ignores file and line."""
    digest = blake2b(digest_size=16)
    for part in (code.co_code, repr(code.co_names).encode(), repr(code.co_freevars).encode()):
        digest.update(len(part).to_bytes(4, "little") + part)
    for constant in code.co_consts:
        digest.update(_constant_digest(constant))
    return digest.digest()


def _constant_digest(value: Any) -> bytes:
    if isinstance(value, CodeType):
        return code_digest(value)
    if isinstance(value, tuple | frozenset):
        members = [_constant_digest(member) for member in value]
        # The order of a frozenset of strings differs from process to process.
        members = sorted(members) if isinstance(value, frozenset) else members
        return blake2b(type(value).__name__.encode() + b"".join(members), digest_size=16).digest()
    return blake2b(f"{type(value).__name__}:{value!r}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
