"""What Python code and objects say of themselves: attributes, closures, globals, bytecode. Nothing is run.

Values are looked up in `__dict__`s only, never with `getattr`: properties, descriptors and lazy modules stay asleep.
"""

from __future__ import annotations

import builtins
import dis
import functools
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType, UnionType
from typing import Any, cast

NOTHING: Any = object()
"""Stands for a name that has no value."""

_NAMES = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


def is_a(value: Any, kind: type | UnionType) -> bool:
    """`isinstance` without asking the value: an object can lie about its `__class__`, or run code to tell it."""
    return issubclass(type(value), kind)


def fields(value: object) -> dict[str, Any]:
    """An object's own attributes, from its `__dict__` and slots, without running any of its code.

    Of a pydantic object these are its fields, its extra fields and its private attributes.
    """
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
    found.pop("__pydantic_fields_set__", None)  # differs between objects that are equal
    beside = [found.pop(name, None) for name in ("__pydantic_extra__", "__pydantic_private__")]
    with suppress(AttributeError):
        found.update(object.__getattribute__(value, "__dict__"))
    for attributes in beside:
        found.update(attributes if isinstance(attributes, dict) else {})
    return found


def static_attribute(value: object, name: str) -> Any:
    """`value.name` where that runs no code (modules, classes, plain attributes), else `NOTHING`."""
    if is_a(value, ModuleType):
        return vars(value).get(name, NOTHING)
    if is_a(value, type):
        return next((vars(cls)[name] for cls in type.mro(cast(type, value)) if name in vars(cls)), NOTHING)
    return fields(value).get(name, NOTHING)


def all_code(code: CodeType) -> Iterator[CodeType]:
    """The code object and those of the functions, lambdas and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from all_code(constant)


@functools.lru_cache(maxsize=4096)
def global_paths(code: CodeType) -> dict[tuple[str, ...], None]:
    """Global names that the code uses, each with the attributes it takes of it: `("settings", "MODEL")`."""
    paths: dict[tuple[str, ...], None] = {}
    for part in all_code(code):
        path: tuple[str, ...] = ()
        for instruction in dis.get_instructions(part):
            if instruction.opname in _ATTRIBUTES and path:
                path = (*path, str(instruction.argval))
                continue
            if path:
                paths[path] = None
            path = (str(instruction.argval),) if instruction.opname in _NAMES else ()
        if path:
            paths[path] = None
    return paths


def lookup(function: FunctionType, name: str) -> Any:
    """The value of a name that is free in the function: closure, global or builtin; `NOTHING` where unbound."""
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if free == name:
            try:
                return cell.cell_contents
            except ValueError:
                return NOTHING
    return function.__globals__.get(name, vars(builtins).get(name, NOTHING))


def closure(function: FunctionType | MethodType) -> dict[str, Any]:
    """The function's filled closure cells by name."""
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType):
        return {}
    values = ((name, lookup(plain, name)) for name in plain.__code__.co_freevars)
    return {name: value for name, value in values if value is not NOTHING}


def references(
    function: FunctionType, *, globals_too: bool = True, through: type | UnionType = ModuleType
) -> Iterator[tuple[str, Any]]:
    """What the function can reach, each with how: `("closure 'llm'", ...)`, `("global 'settings.MODEL'", ...)`.

    The attributes that it takes of a global are followed `through` values of those types; beyond, the value counts.
    """
    for name, value in closure(function).items():
        yield f"closure '{name}'", value
    code = function.__code__
    arguments = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    for name, value in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
        yield f"default '{name}'", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default '{name}'", value
    for path in global_paths(code) if globals_too else ():
        value = function.__globals__.get(path[0], NOTHING)
        shown = path[0]
        for attribute in path[1:]:
            if not is_a(value, through):
                break
            value = static_attribute(value, attribute)
            shown = f"{shown}.{attribute}"
        if value is not NOTHING and not is_a(value, ModuleType):
            yield f"global '{shown}'", value


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
