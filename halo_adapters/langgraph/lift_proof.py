"""Proofs, read from a node's source, that its code changes nothing outside its row; and which state keys it reads.

Nothing is run. The code is walked as an abstract interpreter would, knowing of a value only whether it was made here
(and may be changed), came from elsewhere, or is made of LangChain's models and prompts. What is not on a list of
harmless things ends the proof: an unknown function, an attribute that may be a property, a change to a foreign value.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from langchain_core.runnables.config import run_in_executor
from langchain_core.tools import BaseTool

from halo_adapters.langgraph.lift_code import LIBRARIES
from halo_adapters.langgraph.lift_harmless import (
    CALLED,
    CALLING,
    CALLS,
    FACTORIES,
    FIELDS,
    GIVEN,
    MAKERS,
    OF_OWN,
    OF_TEXT,
    OF_VIEWS,
    SAMPLING,
    TYPED,
    VARIANTS,
    WIRED,
    is_harmless,
    is_harmless_class,
)
from halo_adapters.langgraph.lift_returns import Function, definition, source_of
from halo_core.lift import NOTHING, all_code, fields, is_a, is_library, lookup, static_attribute
from halo_core.plan import Effect
from halo_core.tools import spec_of
from halo_core.tools.http import Http
from halo_core.tools.sql import Sql
from halo_core.tools.sql_effect import SqlError

DEPTH = 8
"""Functions of the user's inside one another, at most."""


@dataclass(slots=True, frozen=True)
class Proof:
    """What the code of a node does, or why nobody knows."""

    effect: Effect = Effect.WRITE
    reads: frozenset[str] | None = None
    """Keys of the state that it asks for; None = it may ask for any."""
    doubt: str = ""
    """What in the code may change the world outside; empty where nothing does."""


class _Unproven(Exception):
    """The message is what the code does."""


class _Kind(Enum):
    FOREIGN = auto()
    """Somebody else may hold it as well: it is only looked at."""
    OWN = auto()
    """Made by this code, or without contents that could change."""
    RUNNABLE = auto()
    """Made of LangChain's models, prompts and parsers alone."""


def prove(target: Any, composed: Callable[[Any], bool], tool_effect: Callable[[Any], Effect]) -> Proof:
    """What calling `target` with a state may do, its synchronous and its asynchronous form taken together.

    composed: whether an object is made of models, prompts and parsers of LangChain alone.
    tool_effect: what a tool says of itself.
    """
    prover = _Prover(composed, tool_effect)
    try:
        for function, bound in _entries(target):
            prover.node(function, bound)
    except _Unproven as error:
        return Proof(doubt=f"its code {error}")
    except RecursionError:
        return Proof(doubt="its code is nested too deeply")
    return Proof(prover.effect, None if prover.whole else frozenset(prover.keys))


def _entries(target: Any) -> list[tuple[FunctionType | MethodType, dict[str, Any]]]:
    """The functions that are called when `target` is, with the keywords that partials bind. Raises `_Unproven`."""
    if is_a(target, FunctionType | MethodType):
        return [(target, {})]
    if is_a(target, functools.partial):
        if target.func is run_in_executor:  # LangChain's way to call a function without an asynchronous form
            return [entry for part in target.args if callable(part) for entry in _entries(part)]
        if target.args:
            raise _Unproven("is bound to arguments by their place")
        return [(function, {**bound, **target.keywords}) for function, bound in _entries(target.func)]
    if is_library(type(target), LIBRARIES):
        own = fields(target)
        found = [entry for key in ("func", "afunc") if own.get(key) for entry in _entries(own[key])]
    else:
        call = static_attribute(type(target), "__call__")
        found = [(MethodType(call, target), {})] if is_a(call, FunctionType) else []
    if not found:
        raise _Unproven("is not a Python function")
    return found


_ENDS: tuple[type[ast.AST], ...] = (
    *(ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom, ast.ClassDef, ast.Delete, ast.With, ast.AsyncWith),
    *(ast.Yield, ast.YieldFrom, ast.Match),
)
"""Parts of the language that no proof needs."""


@functools.lru_cache(maxsize=64)
def _compiled(source: str, name: str) -> frozenset[CodeType]:
    return frozenset(all_code(compile(source, name, "exec", dont_inherit=True)))


def _tree(function: FunctionType) -> Function:
    """The function's source. Raises `_Unproven` unless it is surely what was loaded."""
    node, code = definition(function), function.__code__
    if node is not None:
        try:
            if code in _compiled(source_of(function), code.co_filename):
                return node
        except (SyntaxError, ValueError):
            pass
    raise _Unproven(f"cannot be read: {function.__qualname__} has no source that is certain")


class _Prover:
    """Walks the functions that one node calls."""

    def __init__(self, composed: Callable[[Any], bool], tool_effect: Callable[[Any], Effect]) -> None:
        self.composed = composed
        self.tool_effect = tool_effect
        self.effect = Effect.PURE
        self.keys: set[str] = set()
        self.whole = False
        """Whether the state is handed on or gone through."""
        self._seen: set[tuple[FunctionType, int, frozenset[str]]] = set()
        self._depth = 0

    def node(self, function: FunctionType | MethodType, bound: dict[str, Any]) -> None:
        """The node's own function, called with the state as its first argument and with what is `bound` by keyword."""
        plain = function.__func__ if isinstance(function, MethodType) else function
        if not isinstance(plain, FunctionType):
            raise _Unproven("is not a Python function")
        names = plain.__code__.co_varnames[: plain.__code__.co_argcount]
        first = names[1 if isinstance(function, MethodType) else 0 :][:1]
        self.whole |= not first
        owner = function.__self__ if isinstance(function, MethodType) else NOTHING
        _Walk(self, plain, _tree(plain), owner, frozenset(first), bound).run()

    def function(self, function: FunctionType, owner: Any, states: frozenset[str]) -> None:
        """A function that the user's code calls; `states` are its parameters that are the state."""
        key = (function, id(owner), states)
        if key in self._seen:
            return
        self._seen.add(key)
        if self._depth >= DEPTH:
            raise _Unproven(f"goes deeper than {DEPTH} functions")
        self._depth += 1
        _Walk(self, function, _tree(function), owner, states).run()
        self._depth -= 1

    def looks(self) -> None:
        """Take note that the code depends on something outside the row."""
        self.effect = Effect.READ

    def does(self, effect: Effect, what: str) -> None:
        """Take note of something that the code does. Raises `_Unproven` for a write."""
        if effect is Effect.WRITE:
            raise _Unproven(what)
        if effect is Effect.READ:
            self.looks()


class _Walk:
    """Walks one function."""

    def __init__(
        self,
        prover: _Prover,
        function: FunctionType,
        tree: Function,
        owner: Any,
        states: frozenset[str],
        bound: dict[str, Any] | None = None,
    ) -> None:
        """`bound`: where LangGraph calls the function, the arguments that it always gets by keyword."""
        self.prover = prover
        self.function = function
        self.tree = tree
        self.states = set(states)
        self.assigned: defaultdict[str, list[ast.expr | None]] = defaultdict(list)
        """Local name, of inner functions too -> what it is assigned; None = not an expression of its own."""
        self.inner: set[str] = set()
        """Functions defined inside."""
        self.fixed: dict[str, Any] = {}
        """Parameters whose value is known: the owner of a method, defaults that nobody replaces."""
        self.handed: set[str] = set()
        """Parameters that LangGraph fills with more than the state."""
        self._kinds: dict[str, _Kind] = {}
        self._under_way: set[str] = set()
        self._collect()
        self._parameters(owner, bound)

    def _collect(self) -> None:
        known: set[int] = set()
        """Targets whose value is an expression of its own, and those of `+=`, which is checked where it stands."""
        for part in ast.walk(self.tree):  # parents come before their children
            if isinstance(part, _ENDS):
                raise _Unproven(f"has a part of kind {type(part).__name__}")
            if isinstance(part, ast.Assign) and len(part.targets) == 1 and isinstance(part.targets[0], ast.Name):
                self.assigned[part.targets[0].id].append(part.value)
                known.add(id(part.targets[0]))
            elif isinstance(part, ast.AnnAssign | ast.NamedExpr) and isinstance(part.target, ast.Name):
                self.assigned[part.target.id] += [] if part.value is None else [part.value]
                known.add(id(part.target))
            elif isinstance(part, ast.AugAssign):
                known.add(id(part.target))
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and id(part) not in known:
                self.assigned[part.id].append(None)
            elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part is not self.tree:
                self.inner.add(part.name)
            elif isinstance(part, ast.ExceptHandler) and part.name:
                self.assigned[part.name].append(None)
            elif isinstance(part, ast.arg):
                self.assigned[part.arg].append(None)
        if any(len(self.assigned[name]) > 1 for name in self.states):
            self.prover.whole = True  # the name of the state stands for something else as well
            self.states = set()
        if self.inner & self.assigned.keys():
            raise _Unproven("defines a function under the name of a variable")

    def _parameters(self, owner: Any, bound: dict[str, Any] | None) -> None:
        code = self.function.__code__
        names = code.co_varnames[: code.co_argcount]
        defaults = self.function.__defaults__ or ()
        known = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
        known |= self.function.__kwdefaults__ or {}
        if bound is not None:  # LangGraph leaves the parameters alone that it does not know
            self.fixed = {name: value for name, value in known.items() if name not in GIVEN | self.states} | bound
        if owner is not NOTHING and names:
            self.fixed[names[0]] = owner
        self.fixed = {name: value for name, value in self.fixed.items() if self.assigned[name] == [None]}
        if bound is not None:
            self.handed = {*code.co_varnames[: _parameters(code)]} - self.states - self.fixed.keys()

    def run(self) -> None:
        """Walk everything. Raises `_Unproven`."""
        if isinstance(self.tree, ast.Lambda):
            self.value(self.tree.body)
        else:
            self.block(self.tree.body)

    # -- statements ----------------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        """One statement. Raises `_Unproven`."""
        match node:
            case ast.Assign():
                self.value(node.value)
                for target in node.targets:
                    self.target(target)
            case ast.AnnAssign():
                if node.value is not None:
                    self.value(node.value)
                self.target(node.target)
            case ast.AugAssign():
                self.value(node.value)
                if not (isinstance(node.target, ast.Name) and self.kind_of(node.target.id) is _Kind.OWN):
                    raise _Unproven(f"changes {ast.unparse(node.target)}, which may be someone else's, in place")
            case ast.For() | ast.AsyncFor():
                self.value(node.iter)
                self.target(node.target)
                self.block([*node.body, *node.orelse])
            case ast.If() | ast.While():
                self.value(node.test)
                self.block([*node.body, *node.orelse])
            case ast.Try():
                for handler in node.handlers:
                    self.types(handler.type)
                    self.block(handler.body)
                self.block([*node.body, *node.orelse, *node.finalbody])
            case ast.Expr() | ast.Return():
                if node.value is not None:
                    self.value(node.value)
            case ast.Raise():
                self.values(node.exc, node.cause)
            case ast.Assert():
                self.values(node.test, node.msg)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if node.decorator_list:
                    raise _Unproven(f"decorates {node.name}")
                self.values(*node.args.defaults, *node.args.kw_defaults)
                self.block(node.body)
            case ast.Pass() | ast.Break() | ast.Continue():
                pass
            case _:
                raise _Unproven(f"has a statement of kind {type(node).__name__}")

    def target(self, node: ast.expr) -> None:
        """Something assigned to: names, and items of what was made here."""
        match node:
            case ast.Name():
                pass
            case ast.Tuple() | ast.List():
                for element in node.elts:
                    self.target(element)
            case ast.Starred():
                self.target(node.value)
            case ast.Subscript(value=ast.Name(id=name)) if self.kind_of(name) is _Kind.OWN:
                self.value(node.slice)
            case _:
                raise _Unproven(f"assigns to {ast.unparse(node)}")

    def values(self, *nodes: ast.expr | None) -> None:
        for node in nodes:
            if node is not None:
                self.value(node)

    # -- expressions ---------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> _Kind:
        """What an expression gives. Raises `_Unproven`."""
        match node:
            case ast.Constant():
                return _Kind.OWN
            case ast.Name():
                return self.name(node)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Subscript():
                return self.subscript(node)
            case ast.Call():
                return self.call(node)
            case ast.Await() | ast.Starred() | ast.FormattedValue() | ast.UnaryOp():
                inner = node.operand if isinstance(node, ast.UnaryOp) else node.value
                self.value(inner)
                if isinstance(node, ast.FormattedValue):
                    self.values(node.format_spec)
                return _Kind.FOREIGN
            case ast.BinOp():
                kinds = {self.value(node.left), self.value(node.right)}
                if _Kind.RUNNABLE not in kinds:
                    return _Kind.FOREIGN
                if kinds == {_Kind.RUNNABLE} and isinstance(node.op, ast.BitOr):
                    return _Kind.RUNNABLE
                raise _Unproven(f"makes a chain that is not only models and prompts: {_short(node)}")
            case ast.Compare():
                return self.compare(node)
            case ast.Lambda():
                self.values(*node.args.defaults, *node.args.kw_defaults)
                self.value(node.body)
                return _Kind.FOREIGN
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                for generator in node.generators:
                    self.value(generator.iter)
                    self.target(generator.target)
                    self.values(*generator.ifs)
                self.values(*([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]))
                return _Kind.OWN
            case ast.NamedExpr():
                return self.value(node.value)
            case ast.List() | ast.Tuple() | ast.Set() | ast.Dict() | ast.JoinedStr():
                self.values(*(part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)))
                return _Kind.OWN
            case ast.IfExp() | ast.BoolOp() | ast.Slice():
                self.values(*(part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)))
                return _Kind.FOREIGN
        raise _Unproven(f"has an expression of kind {type(node).__name__}")

    def name(self, node: ast.Name) -> _Kind:
        if node.id in self.states:
            self.prover.whole = True
            return _Kind.FOREIGN
        if node.id in self.handed:
            raise _Unproven(f"uses {node.id!r}, in which there may be anything")
        if node.id in self.fixed or not self._is_local(node.id):
            return self.static(self.resolve(node), node)
        return self.kind_of(node.id)

    def kind_of(self, name: str) -> _Kind:
        """What all that a local name is assigned has in common."""
        if name in self.inner or name not in self.assigned or name in self._under_way:
            return _Kind.FOREIGN
        if name not in self._kinds:
            self._under_way.add(name)
            kinds = {_Kind.FOREIGN if value is None else self.value(value) for value in self.assigned[name]}
            self._under_way.remove(name)
            self._kinds[name] = kinds.pop() if len(kinds) == 1 else _Kind.FOREIGN
        return self._kinds[name]

    def _is_local(self, name: str) -> bool:
        return name in self.assigned or name in self.inner

    def resolve(self, node: ast.expr) -> Any:
        """The object that a name, or a plain attribute of it, stands for; `NOTHING` where only running tells."""
        if isinstance(node, ast.Name):
            if node.id in self.fixed:
                return self.fixed[node.id]
            return NOTHING if self._is_local(node.id) else lookup(self.function, node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            return NOTHING if base is NOTHING else static_attribute(base, node.attr)
        return NOTHING

    def static(self, value: Any, node: ast.expr) -> _Kind:
        """An object from outside the function, used as a value."""
        if is_a(value, str | bytes | int | float | complex | type(None) | Enum | re.Pattern):
            self.prover.looks()  # somebody may assign the name anew
            return _Kind.FOREIGN
        if type(value) in (dict, list, set, frozenset, tuple):
            self.prover.looks()
            return _Kind.FOREIGN
        if value is not NOTHING and self._is_runnable(value):
            return _Kind.RUNNABLE
        if is_harmless(value) or is_harmless_class(value):
            return _Kind.FOREIGN
        if is_a(value, FunctionType):
            self._user_function(value, node)
            return _Kind.FOREIGN
        raise _Unproven(f"uses {_short(node)}, of which nothing is known")

    def _is_runnable(self, value: Any) -> bool:
        return not is_a(value, type | FunctionType | ModuleType) and self.prover.composed(value)

    def attribute(self, node: ast.Attribute) -> _Kind:
        found = self.resolve(node)
        if found is not NOTHING:
            return self.static(found, node)
        if isinstance(node.value, ast.Name) and node.value.id in self.states:
            self.prover.whole = True  # a state that is an object
            return _Kind.FOREIGN
        if self.value(node.value) is _Kind.RUNNABLE or node.attr not in FIELDS:
            raise _Unproven(f"asks for {_short(node)}, which may be code")
        return _Kind.FOREIGN

    def _of_state(self, node: ast.expr, key: ast.expr) -> bool:
        """Whether this is a look at one literal key of the state."""
        if not (isinstance(node, ast.Name) and node.id in self.states and isinstance(key, ast.Constant)):
            return False
        if not isinstance(key.value, str):
            return False
        self.prover.keys.add(key.value)
        return True

    def subscript(self, node: ast.Subscript) -> _Kind:
        if not self._of_state(node.value, node.slice):
            base = self.resolve(node.value)
            if is_a(base, type):  # list[str]
                return _Kind.FOREIGN
            if self.value(node.value) is _Kind.RUNNABLE:
                raise _Unproven(f"takes a chain apart: {_short(node)}")
            self.value(node.slice)
        return _Kind.FOREIGN

    def compare(self, node: ast.Compare) -> _Kind:
        inside = len(node.ops) == 1 and isinstance(node.ops[0], ast.In | ast.NotIn)
        if inside and self._of_state(node.comparators[0], node.left):
            return _Kind.FOREIGN
        self.values(node.left, *node.comparators)
        return _Kind.FOREIGN

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, node: ast.Call) -> _Kind:
        """A call of something harmless, of a tool that says what it does, or of the user's own provable code."""
        callee = node.func
        if isinstance(callee, ast.Name) and callee.id in self.inner:
            self._arguments(node)
            return _Kind.FOREIGN
        found = self.resolve(callee)
        if found is not NOTHING:
            return self._known(node, found)
        if isinstance(callee, ast.Attribute):
            return self._method(node, callee)
        raise _Unproven(f"calls {_short(callee)}, of which nothing is known")

    def _arguments(self, node: ast.Call, *, types: bool = False) -> None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            if types:
                self.types(argument)
            else:
                self.value(argument)

    def types(self, node: ast.expr | None) -> None:
        """A value that may be a class, or a tuple of classes, which nobody calls."""
        if isinstance(node, ast.Tuple):
            for element in node.elts:
                self.types(element)
        elif node is not None and not is_a(self.resolve(node), type):
            self.value(node)

    def _called(self, node: ast.Call, found: Any) -> None:
        """The arguments that a harmless function, or a method of that name, calls must be known, too."""
        places = [place for known, place in CALLING if found is known] + [0] * (found in ("sub", "subn"))
        called = [node.args[place] for place in places if place < len(node.args)]
        called += [keyword.value for keyword in node.keywords if keyword.arg in CALLED]
        if places and any(isinstance(argument, ast.Starred) for argument in node.args):
            raise _Unproven(f"calls {_short(node)}, which calls what it is given")
        for argument in called:
            inner = isinstance(argument, ast.Name) and argument.id in self.inner
            made = isinstance(argument, ast.Call) and self.resolve(argument.func) is operator.itemgetter
            known = isinstance(argument, ast.Lambda | ast.Constant | ast.JoinedStr)
            if not (inner or made or known or self.resolve(argument) is not NOTHING):
                raise _Unproven(f"may have {_short(argument)} called, of which nothing is known")

    def _known(self, node: ast.Call, found: Any) -> _Kind:
        if is_harmless(found) or is_harmless_class(found):
            self._called(node, found)
            self._arguments(node, types=any(found is known for known in TYPED))
            return _Kind.OWN if any(found is maker for maker in MAKERS) else _Kind.FOREIGN
        if is_a(found, type) and issubclass(found, WIRED) and is_library(found, LIBRARIES):
            self._arguments(node)
            return _Kind.RUNNABLE
        spec = spec_of(found)
        if spec is not None:
            self._arguments(node)
            self.prover.does(spec.effect, f"calls the tool {spec.name!r}, which may write")
            return _Kind.FOREIGN
        if is_a(found, FunctionType):
            self._user_function(found, node.func, node)
            return _Kind.FOREIGN
        if is_a(found, MethodType) and is_a(found.__func__, FunctionType):
            self._user_function(found.__func__, node.func, node, owner=found.__self__)
            return _Kind.FOREIGN
        raise _Unproven(f"calls {_short(node.func)}, of which nothing is known")

    def _user_function(
        self, function: FunctionType, node: ast.expr, call: ast.Call | None = None, owner: Any = NOTHING
    ) -> None:
        """A function of the user's: its own code must be provable, and it may be handed the state."""
        if is_library(function, LIBRARIES):
            raise _Unproven(f"calls {_short(node)}, of which nothing is known")
        states: set[str] = set()
        if call is not None:
            names = function.__code__.co_varnames[: function.__code__.co_argcount][owner is not NOTHING :]
            for i, argument in enumerate(call.args):
                if isinstance(argument, ast.Name) and argument.id in self.states and i < len(names):
                    states.add(names[i])
                else:
                    self.value(argument)
            self.values(*(keyword.value for keyword in call.keywords))
        self.prover.function(function, owner, frozenset(states))

    def _method(self, node: ast.Call, callee: ast.Attribute) -> _Kind:
        owner, name = self.resolve(callee.value), callee.attr
        if owner is not NOTHING and (kind := self._of_object(node, owner, name)) is not None:
            return kind
        if is_a(owner, type) and issubclass(owner, WIRED) and is_library(owner, LIBRARIES) and name in FACTORIES:
            self._arguments(node)
            return _Kind.RUNNABLE
        if name == "get" and node.args and self._of_state(callee.value, node.args[0]):
            self.values(*node.args[1:], *(keyword.value for keyword in node.keywords))
            return _Kind.FOREIGN
        kind = self.value(callee.value)
        if kind is _Kind.RUNNABLE:
            return self._asked(node, name)
        self._called(node, name)
        self._arguments(node)
        if name in OF_TEXT or name in OF_VIEWS or (kind is _Kind.OWN and name in OF_OWN):
            return _Kind.FOREIGN
        raise _Unproven(f"calls {_short(callee)}, of which nothing is known")

    def _asked(self, node: ast.Call, name: str) -> _Kind:
        """A method of a runnable, which may be handed the config."""
        if not name.startswith("format") and (sampling := {keyword.arg for keyword in node.keywords} & SAMPLING):
            raise _Unproven(f"may sample: {_short(node.func)} is given {' and '.join(sorted(map(str, sampling)))}")
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            if not (isinstance(argument, ast.Name) and argument.id == "config" and argument.id in self.handed):
                self.types(argument)
        if name in CALLS:
            return _Kind.FOREIGN
        if name in VARIANTS:
            return _Kind.RUNNABLE
        raise _Unproven(f"calls {_short(node.func)}, of which nothing is known")

    def _of_object(self, node: ast.Call, owner: Any, name: str) -> _Kind | None:
        """A method of a known object; None where its kind decides."""
        if type(owner) in (dict, list, set, frozenset, tuple, str):
            if name not in OF_TEXT | OF_VIEWS | {"get", "copy"}:
                raise _Unproven(f"calls {_short(node.func)}, which changes it")
        elif is_a(owner, re.Pattern):
            self._called(node, name)
        elif is_a(owner, BaseTool) and name in ("invoke", "ainvoke"):
            self.prover.does(self.prover.tool_effect(owner), f"calls the tool {owner.name!r}, which may write")
        elif is_a(owner, Sql) and name in ("query", "aquery"):
            self.prover.does(self._statement(owner, node), f"calls {_short(node.func)} with a text that may write")
        elif is_a(owner, Http) and name in ("get", "aget"):
            self.prover.looks()
        elif self._is_runnable(owner) or is_a(owner, type | ModuleType):
            return None
        else:
            method = static_attribute(type(owner), name)
            if not is_a(method, FunctionType) or is_library(type(owner), LIBRARIES):
                raise _Unproven(f"calls {_short(node.func)}, of which nothing is known")
            self.prover.looks()
            self._user_function(method, node.func, node, owner=owner)
            return _Kind.FOREIGN
        self.prover.looks()
        self._arguments(node)
        return _Kind.FOREIGN

    def _statement(self, database: Sql, node: ast.Call) -> Effect:
        text = node.args[0] if node.args else None
        given = text.value if isinstance(text, ast.Constant) else self.resolve(text) if text is not None else None
        if not isinstance(given, str):
            return Effect.WRITE
        try:
            return database.classify(given).effect
        except SqlError:
            return Effect.WRITE


def _parameters(code: CodeType) -> int:
    """How many of the code's variables are parameters."""
    more = bool(code.co_flags & CO_VARARGS) + bool(code.co_flags & CO_VARKEYWORDS)
    return code.co_argcount + code.co_kwonlyargcount + more


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."
