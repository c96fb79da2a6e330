"""What a node or a conditional edge can return, read from its source: state keys, labels, `Send`s, `Command(goto=)`s.

The source is parsed, never run. Whatever is not literally there counts as unknown.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any

from langgraph.types import Command, Send

from halo_adapters.langgraph.lift_code import constants, functions_of
from halo_core.lift import NOTHING, lookup

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
"""Source of a function."""
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass(slots=True)
class Returns:
    """Everything that a function's `return`s can mean to LangGraph."""

    keys: dict[str, None] = field(default_factory=dict)
    """State keys of the updates that it returns."""
    labels: dict[Hashable, None] = field(default_factory=dict)
    """Plain values, which choose a branch."""
    sends: dict[str, None] = field(default_factory=dict)
    """Nodes that it sends items to."""
    gotos: dict[str, None] = field(default_factory=dict)
    """Nodes that its commands go to."""
    updates: int = 0
    """In how many places it returns a dict of updates."""
    unknown: bool = False
    """It can return something that the source does not show."""
    unknown_keys: bool = False
    """A command's update is not literally there."""
    unknown_send: bool = False
    """It sends to nodes that are not literally there."""
    unknown_goto: bool = False
    """A command goes to nodes that are not literally there."""


def returns(function: FunctionType | MethodType) -> Returns:
    """What `function` can return; `unknown` where its source is missing, ambiguous or shows too little."""
    plain = function.__func__ if isinstance(function, MethodType) else function
    found = Returns()
    node = definition(plain) if isinstance(plain, FunctionType) else None
    if node is None or not isinstance(plain, FunctionType):
        found.unknown = True
        return found
    reader = _Reader(plain, node, found)
    if isinstance(node, ast.Lambda):
        reader.read(node.body)
        return found
    for inner in _own(node):
        if isinstance(inner, ast.Yield | ast.YieldFrom):
            found.unknown = True
        elif isinstance(inner, ast.Return) and inner.value is not None:
            reader.read(inner.value)
    return found


def returns_of(target: Any) -> Returns:
    """What a callable can return, its synchronous and its asynchronous form taken together."""
    parts = [returns(function) for function in functions_of(target)]
    whole = Returns(unknown=not parts)
    for part in parts:
        for mapping in ("keys", "labels", "sends", "gotos"):
            getattr(whole, mapping).update(getattr(part, mapping))
        for flag in ("unknown", "unknown_keys", "unknown_send", "unknown_goto"):
            setattr(whole, flag, getattr(whole, flag) or getattr(part, flag))
        whole.updates = max(whole.updates, part.updates)
    return whole


class _Reader:
    """Sorts the expressions that one function returns."""

    def __init__(self, function: FunctionType, node: Function, found: Returns) -> None:
        self.function = function
        self.found = found
        self.constants = {value for value in constants(function.__code__) if isinstance(value, str)}
        stored = (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
        self.locals = {*function.__code__.co_varnames, *function.__code__.co_cellvars, *stored}
        self.assigned = _assigned_once(node)

    def read(self, expression: ast.expr) -> None:
        """Add what `expression` can be."""
        found = self.found
        if isinstance(expression, ast.IfExp):
            self.read(expression.body)
            self.read(expression.orelse)
        elif isinstance(expression, ast.Dict):
            self._update(expression)
        elif isinstance(expression, ast.List | ast.Tuple):
            for element in expression.elts:
                self.read(element)
        elif isinstance(expression, ast.ListComp):
            self.read(expression.elt)
        elif isinstance(expression, ast.Call) and (callee := self._value(expression.func)) in (Send, Command):
            self._send(expression) if callee is Send else self._command(expression)
        elif isinstance(expression, ast.Name) and expression.id in self.assigned:
            self.read(self.assigned[expression.id])
        else:
            value = self._value(expression)
            if isinstance(value, str | bool | int):
                found.labels[value] = None
            elif value is not None:  # None is "no update"
                found.unknown = True

    def _update(self, expression: ast.expr | None) -> None:
        """A dict of updates: its keys, if all of them are literally there."""
        if isinstance(expression, ast.Name):
            expression = self.assigned.get(expression.id, expression)
        if isinstance(expression, ast.Dict):
            keys = [None if key is None else self._value(key) for key in expression.keys]
            self.found.keys.update(dict.fromkeys(key for key in keys if isinstance(key, str)))
            self.found.updates += 1
            self.found.unknown_keys |= not all(isinstance(key, str) for key in keys)
        else:
            self.found.unknown_keys = True

    def _send(self, call: ast.Call) -> None:
        arguments = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "node")]
        target = self._value(arguments[0]) if arguments else NOTHING
        if isinstance(target, str):
            self.found.sends[target] = None
        else:
            self.found.unknown_send = True

    def _command(self, call: ast.Call) -> None:
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if call.args or None in keywords:
            self.found.unknown = True
            return
        if "update" in keywords:
            self._update(keywords["update"])
        if "goto" in keywords and "graph" not in keywords:  # with graph= it goes on in the parent graph
            self._goto(keywords["goto"])

    def _goto(self, expression: ast.expr) -> None:
        if isinstance(expression, ast.IfExp):
            self._goto(expression.body)
            self._goto(expression.orelse)
        elif isinstance(expression, ast.List | ast.Tuple):
            for element in expression.elts:
                self._goto(element)
        elif isinstance(expression, ast.ListComp):
            self._goto(expression.elt)
        elif isinstance(expression, ast.Call) and self._value(expression.func) is Send:
            self._send(expression)
        elif isinstance(expression, ast.Name) and expression.id in self.assigned:
            self._goto(self.assigned[expression.id])
        elif isinstance(value := self._value(expression), str):
            self.found.gotos[value] = None
        else:
            self.found.unknown_goto = True

    def _value(self, expression: ast.expr) -> Any:
        """The value of a constant, or of a name or module attribute that the function does not assign itself."""
        if isinstance(expression, ast.Constant):
            value = expression.value
            # The file may have changed since it was loaded: believe it only where the loaded code agrees.
            return NOTHING if isinstance(value, str) and value not in self.constants else value
        if isinstance(expression, ast.Name) and expression.id not in self.locals:
            return lookup(self.function, expression.id)
        if isinstance(expression, ast.Attribute):
            module = self._value(expression.value)
            return vars(module).get(expression.attr, NOTHING) if isinstance(module, ModuleType) else NOTHING
        return NOTHING


def source_of(function: FunctionType) -> str:
    """The whole file of the function; empty where it is not known."""
    return "".join(linecache.getlines(function.__code__.co_filename, function.__globals__))


def definition(function: FunctionType) -> Function | None:
    """The function's node in the tree of its file, if there is exactly one candidate."""
    code = function.__code__
    candidates = [
        node
        for node, name, line in _definitions(source_of(function))
        if (name, line) == (code.co_name, code.co_firstlineno)
    ]
    return candidates[0] if len(candidates) == 1 else None


@functools.lru_cache(maxsize=64)
def _definitions(source: str) -> tuple[tuple[Function, str, int], ...]:
    """All functions of a source file with their names and first lines (decorators included)."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    found: list[tuple[Function, str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((node, node.name, min([node.lineno, *(d.lineno for d in node.decorator_list)])))
        elif isinstance(node, ast.Lambda):
            found.append((node, "<lambda>", node.lineno))
    return tuple(found)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes inside a function without those of the functions and classes inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _SCOPES):
            yield child
            yield from _own(child)


def _assigned_once(node: Function) -> dict[str, ast.expr]:
    """Local names that are assigned once and used for nothing but being returned."""
    if isinstance(node, ast.Lambda):
        return {}
    uses: Counter[str] = Counter(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
    returned: Counter[str] = Counter()
    assigned: dict[str, ast.expr] = {}
    for inner in _own(node):
        if isinstance(inner, ast.Return) and inner.value is not None:
            returned.update(part.id for part in ast.walk(inner.value) if isinstance(part, ast.Name))
        elif isinstance(inner, ast.Assign) and len(inner.targets) == 1 and isinstance(inner.targets[0], ast.Name):
            assigned[inner.targets[0].id] = inner.value
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            assigned.pop(argument.arg, None)
    return {name: value for name, value in assigned.items() if returned[name] and uses[name] == returned[name] + 1}
