"""What a Python function refers to, read from its bytecode: closures, defaults, globals, imports. Nothing is run.

Values are looked up in `__dict__`s only, never with `getattr`: properties, descriptors and lazy modules stay asleep.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
from collections.abc import Iterator
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
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return found
    private = found.pop("__pydantic_private__", None)  # pydantic keeps private attributes beside the fields
    found.pop("__dict__", None)
    return {**found, **own, **(private if isinstance(private, dict) else {})}


def static_attribute(value: object, name: str) -> Any:
    """`value.name` where that runs no code (modules, classes, plain attributes), else `NOTHING`."""
    if is_a(value, ModuleType):
        return vars(value).get(name, NOTHING)
    if is_a(value, type):
        return next((vars(cls)[name] for cls in type.mro(cast(type, value)) if name in vars(cls)), NOTHING)
    return fields(value).get(name, NOTHING)


def method_of(cls: type, name: str) -> FunctionType | None:
    """The function behind `cls.name`, be it a method, a property's getter or a class or static method."""
    for base in cls.__mro__:
        member: Any = vars(base).get(name)
        if member is not None:
            member = member.fget if type(member) is property else member
            member = member.__func__ if is_a(member, classmethod | staticmethod) else member
            return member if is_a(member, FunctionType) else None
    return None


def functions_of(target: Any) -> list[FunctionType | MethodType]:
    """The Python functions behind something callable: unwraps partials, LangGraph's and LangChain's own wrappers."""
    if is_a(target, FunctionType | MethodType):
        return [target]
    if is_a(target, functools.partial):
        inner = [target.func, *(a for a in target.args if is_a(a, FunctionType | MethodType))]
        return [f for part in inner for f in functions_of(part) if f.__name__ != "run_in_executor"]
    own = fields(target)
    found = [f for key in ("func", "afunc", "coroutine") if own.get(key) for f in functions_of(own[key])]
    if not found and is_a(own.get("__wrapped__"), FunctionType):
        found = [own["__wrapped__"]]
    if not found and (call := method_of(type(target), "__call__")) is not None:
        found = [MethodType(call, target)]
    return list(dict.fromkeys(found))


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


def imported(code: CodeType) -> Iterator[tuple[str, Any]]:
    """What the code imports inside its body `from` modules that are loaded already."""
    for part in all_code(code):
        module: ModuleType | None = None
        for instruction in dis.get_instructions(part):
            if instruction.opname == "IMPORT_NAME":
                module = sys.modules.get(str(instruction.argval))
            elif instruction.opname == "IMPORT_FROM" and module is not None:
                value = vars(module).get(str(instruction.argval), NOTHING)
                if value is not NOTHING:
                    yield f"import '{instruction.argval}'", value


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


def references(function: FunctionType, *, globals_too: bool = True) -> Iterator[tuple[str, Any]]:
    """What the function can reach, each with how: `("closure 'llm'", ...)`, `("global 'settings.MODEL'", ...)`."""
    for name, value in closure(function).items():
        yield f"closure '{name}'", value
    code = function.__code__
    arguments = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    for name, value in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
        yield f"default '{name}'", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default '{name}'", value
    if not globals_too:
        return
    for path in global_paths(code):
        value = function.__globals__.get(path[0], NOTHING)
        shown = path[0]
        for attribute in path[1:]:
            if not is_a(value, ModuleType | type):
                break
            value = static_attribute(value, attribute)
            shown = f"{shown}.{attribute}"
        if value is not NOTHING and not is_a(value, ModuleType):
            yield f"global '{shown}'", value
    yield from imported(code)


def own_members(function: FunctionType, cls: type) -> Iterator[tuple[str, Any]]:
    """The methods and class attributes of `cls` that its method `function` names (`self.helper()`, `self.MODEL`)."""
    for name in dict.fromkeys(name for code in all_code(function.__code__) for name in code.co_names):
        method = method_of(cls, name)
        member = method if method is not None else static_attribute(cls, name)
        if member is not NOTHING and member is not function:
            yield name, member


_PURE_BUILTINS = frozenset(
    {
        "abs",
        "all",
        "any",
        "bool",
        "dict",
        "enumerate",
        "filter",
        "float",
        "frozenset",
        "getattr",
        "int",
        "isinstance",
        "len",
        "list",
        "map",
        "max",
        "min",
        "next",
        "range",
        "reversed",
        "round",
        "set",
        "sorted",
        "str",
        "sum",
        "tuple",
        "type",
        "zip",
        "ValueError",
        "KeyError",
        "TypeError",
        "RuntimeError",
    }
)
"""Builtins whose answer depends on nothing but their arguments."""


def only_computes(target: Any, classes: tuple[type, ...] = ()) -> bool:
    """Whether calling `target` depends on nothing but its arguments and changes nothing, as far as its names tell.

    In reach are only constants, pure builtins, functions of the same kind and (sub)classes of `classes`.
    """
    functions = functions_of(target)
    return bool(functions) and all(_only_computes(function, classes, set()) for function in functions)


def _only_computes(function: FunctionType | MethodType, classes: tuple[type, ...], seen: set[Any]) -> bool:
    if isinstance(function, MethodType):
        return False
    if function in seen:
        return True
    seen.add(function)
    for _, value in references(function):
        if is_a(value, type):
            fine = issubclass(value, classes)
        elif is_a(value, FunctionType):
            fine = not is_library(value) and _only_computes(value, classes, seen)
        else:
            fine = is_a(value, str | int | float | bool | type(None) | tuple | frozenset)
        if not fine:
            return False
    names = {path[0] for path in global_paths(function.__code__)} - set(function.__globals__)
    stores = {i.opname for code in all_code(function.__code__) for i in dis.get_instructions(code)}
    return names <= _PURE_BUILTINS and not stores & {"STORE_GLOBAL", "IMPORT_NAME"}


def package_of(value: Any) -> str:
    """Top-level package of a class or function."""
    module = vars(value).get("__module__") if is_a(value, type) else value.__module__
    return module.partition(".")[0] if is_a(module, str) else ""


CLIENTS = frozenset(
    {
        "openai",
        "anthropic",
        "httpx",
        "httpx2",
        "httpcore",
        "requests",
        "aiohttp",
        "boto3",
        "botocore",
        "google",
        "grpc",
        "pydantic",
        "pydantic_core",
        "langsmith",
        "numpy",
        "torch",
        "transformers",
        "pandas",
        "polars",
        "pyarrow",
        "sqlalchemy",
        "tiktoken",
        "networkx",
        "typing_extensions",
        "halo_core",
    }
)
"""Packages whose objects are not looked into."""
FRAMEWORKS = frozenset(
    {
        "langchain",
        "langchain_core",
        "langchain_openai",
        "langchain_community",
        "langgraph",
        "langgraph_sdk",
        "halo_adapters",
    }
)
"""Packages whose objects hold what the user put there."""


def is_library(value: Any, home: frozenset[str] = frozenset()) -> bool:
    """Whether a class or function is a library's, not the user's; `home` are installed packages that are the user's."""
    package = package_of(value)
    if package in sys.stdlib_module_names or package in CLIENTS or package in FRAMEWORKS:
        return True
    return package not in home and _installed(package)


@functools.lru_cache(maxsize=4096)
def _installed(package: str) -> bool:
    place = getattr(getattr(sys.modules.get(package), "__spec__", None), "origin", None) or ""
    return "site-packages" in place or "dist-packages" in place


def mentions(target: Any, cls: type) -> bool:
    """Whether code behind `target`, or a function of the user's that it refers to, uses the class."""
    pending = [f.__func__ if isinstance(f, MethodType) else f for f in functions_of(target)]
    seen: set[int] = set()
    while pending and len(seen) < 100:
        function = pending.pop()
        if id(function) in seen or not isinstance(function, FunctionType):
            continue
        seen.add(id(function))
        for _, value in references(function):
            if value is cls:
                return True
            if is_a(value, FunctionType) and not is_library(value):
                pending.append(value)
    return False


def constants(code: CodeType) -> Iterator[Any]:
    """All constants in the code, those inside tuples and inner functions too."""
    for part in all_code(code):
        stack = list(part.co_consts)
        while stack:
            value = stack.pop()
            if isinstance(value, tuple | frozenset):
                stack.extend(value)
            elif not isinstance(value, CodeType):
                yield value


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
