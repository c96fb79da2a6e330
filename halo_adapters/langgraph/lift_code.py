"""The functions behind LangGraph's and LangChain's callables, and what those functions use. Nothing is run."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from halo_core.lift import (
    CLIENTS,
    NOTHING,
    all_code,
    fields,
    global_paths,
    is_a,
    is_library,
    references,
    static_attribute,
)

CLOSED = CLIENTS | {"langsmith", "halo_core"}
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
LIBRARIES = CLOSED | FRAMEWORKS
"""Packages that are never the user's."""


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


def reachable(function: FunctionType, *, globals_too: bool = True) -> Iterator[tuple[str, Any]]:
    """The function's `references`, followed through classes too, and what it imports inside its body."""
    yield from references(function, globals_too=globals_too, through=ModuleType | type)
    if globals_too:
        yield from imported(function.__code__)


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
    for _, value in reachable(function):
        if is_a(value, type):
            fine = issubclass(value, classes)
        elif is_a(value, FunctionType):
            fine = not is_library(value, LIBRARIES) and _only_computes(value, classes, seen)
        else:
            fine = is_a(value, str | int | float | bool | type(None) | tuple | frozenset)
        if not fine:
            return False
    names = {path[0] for path in global_paths(function.__code__)} - set(function.__globals__)
    stores = {i.opname for code in all_code(function.__code__) for i in dis.get_instructions(code)}
    return names <= _PURE_BUILTINS and not stores & {"STORE_GLOBAL", "IMPORT_NAME"}


def mentions(target: Any, cls: type) -> bool:
    """Whether code behind `target`, or a function of the user's that it refers to, uses the class."""
    pending = [f.__func__ if isinstance(f, MethodType) else f for f in functions_of(target)]
    seen: set[int] = set()
    while pending and len(seen) < 100:
        function = pending.pop()
        if id(function) in seen or not isinstance(function, FunctionType):
            continue
        seen.add(id(function))
        for _, value in reachable(function):
            if value is cls:
                return True
            if is_a(value, FunctionType) and not is_library(value, LIBRARIES):
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
