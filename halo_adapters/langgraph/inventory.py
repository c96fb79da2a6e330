"""The inventory: which models, prompts and tools each node of a graph can reach, found without running anything.

A static scan of functions (closures, defaults, globals), objects and LangChain's composites. It is advice for planning:
a model that is made while a node runs is not found, and one that is found may never be called.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import FunctionType, MappingProxyType, MethodType, SimpleNamespace
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableParallel, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.tools import BaseTool
from langgraph.constants import START
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from halo_adapters.langgraph.lift_agent import agent_model
from halo_adapters.langgraph.lift_code import CLOSED, LIBRARIES, functions_of, method_of, own_members, reachable
from halo_adapters.langgraph.lift_models import ModelUse, model_use, unpaired
from halo_adapters.langgraph.lift_prompts import prompt_template
from halo_core.lift import NOTHING, code_digest, fields, is_a, is_library, package_of
from halo_core.plan import Effect, PromptTemplate
from halo_core.tools import spec_of
from halo_core.tools.http import Http
from halo_core.tools.sql import Sql

DEPTH = 12
"""References followed from a node to a model, at most."""
OBJECTS = 2_000
"""Objects looked at per node, at most."""

_SCALARS = (str, bytes, bytearray, int, float, complex, bool, type(None), range, Enum)
_ASIDE = frozenset({"callbacks", "config", "metadata", "tags"})
"""Attributes of LangChain objects that hold no model of the user's."""
_WRAPPED = frozenset({"func", "afunc", "coroutine", "bound", "runnable"})
"""Attributes that hold what their object stands for."""
_SDK = frozenset({"OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI"})
"""Client classes of the OpenAI SDK."""


@dataclass(slots=True)
class NodeInventory:
    """What one node can reach."""

    models: list[ModelUse] = field(default_factory=list)
    templates: list[tuple[str, PromptTemplate | None]] = field(default_factory=list)
    """Prompt templates with how they were found; None for one that the plan's language cannot say."""
    tools: dict[str, BaseTool] = field(default_factory=dict)
    """By name."""
    declared: dict[str, tuple[Effect | None, str]] = field(default_factory=dict)
    """Functions under `halo_core.tool`, databases and HTTP clients, by name: effect (None: call by call), how found."""
    subgraphs: list[tuple[str, Pregel[Any, Any, Any, Any]]] = field(default_factory=list)
    """Compiled graphs with how they were found."""
    digests: list[bytes] = field(default_factory=list)
    """Of the code, the models and the texts, in the order of the scan; equal across processes."""


def inventory(app: Pregel[Any, Any, Any, Any]) -> dict[str, NodeInventory]:
    """The inventory of each node, in the graph's own order; conditional edges count to the node that they leave.

    Model calls that the edges out of START make are listed under `__start__`.
    """
    builder = getattr(app, "builder", None)
    if builder is None:
        return {name: scan(node.bound) for name, node in app.nodes.items()}
    found = {name: scan(spec.runnable) for name, spec in builder.nodes.items()}
    for source in sorted(builder.branches):
        for name, branch in builder.branches[source].items():
            scan(branch.path, found.setdefault(source, NodeInventory()), scope=f"branch {name!r}: ")
    if START in found and not (found[START].models or found[START].subgraphs):
        del found[START]
    return found


def scan(target: Any, into: NodeInventory | None = None, scope: str = "") -> NodeInventory:
    """Everything that `target` (a node's runnable, a function) can reach; added to `into` where that is given.

    `scope` begins every `found_in`.
    """
    found = into if into is not None else NodeInventory()
    _Scan(found, scope, frozenset(map(package_of, functions_of(target)))).run(target)
    if len(found.models) == 1 and len(found.templates) == 1 and found.models[0].prompt is None:
        found.models[0] = unpaired(found.models[0], found.templates[0][1])
    return found


class _Scan:
    """One walk over object references, nearest first; every object is looked at once."""

    def __init__(self, found: NodeInventory, scope: str, home: frozenset[str]) -> None:
        self.found = found
        self.scope = scope
        self.home = home
        """Packages of the node's own functions: the user's, even where they are installed."""
        self.seen: dict[int, Any] = {}  # keeps what it has seen alive, so that ids stay unique
        self.pending: deque[tuple[_Visit, Any, str, int, str]] = deque()

    def run(self, target: Any) -> None:
        """Look at everything that `target` reaches."""
        self.visit(target, "", 0)
        while self.pending:
            look, value, label, depth, self.scope = self.pending.popleft()
            look(self, value, label, depth)

    def visit(self, value: Any, label: str, depth: int) -> None:
        """Take note of `value`, which was reached by way of `label`, and look at it when its turn comes."""
        kind = type(value)
        if issubclass(kind, str):
            self._text(value)
        if issubclass(kind, _SCALARS) or depth > DEPTH or id(value) in self.seen or len(self.seen) > OBJECTS:
            return
        if issubclass(kind, BaseLanguageModel):
            self._model(value, {}, None, label)  # not marked as seen: each chain that holds it is another call
            return
        self.seen[id(value)] = value
        look = next((look for types, look in _VISITS if issubclass(kind, types)), _Scan._object)
        self.pending.append((look, value, label, depth, self.scope))

    # -- what is looked for --------------------------------------------------------------------------------------

    def _model(self, model: Any, bound: Mapping[str, Any], prompt: PromptTemplate | None, label: str) -> None:
        use = model_use(model, bound, prompt, self.scope + label)
        if not any(_same_call(use, known) for known in self.found.models):
            self.found.models.append(use)
            self._digest(repr((use.kind, use.name, use.sampling, use.tools, use.prompt)))

    def _template(self, template: BasePromptTemplate[Any], label: str, depth: int) -> None:
        prompt = prompt_template(template)
        self.found.templates.append((self.scope + label, prompt))
        self._digest(repr(prompt))
        if prompt is None:
            self._values(fields(template), label, depth)

    def _message(self, message: BaseMessage, label: str, depth: int) -> None:
        self._digest(f"{message.type}: {fields(message).get('content')!r}")

    def _tool(self, tool: BaseTool, label: str, depth: int) -> None:
        own = fields(tool)
        self.found.tools.setdefault(str(own.get("name")), tool)
        self._digest(f"tool {own.get('name')}: {own.get('description')}")
        self._values(own, f"tool {own.get('name')!r}", depth)

    def _graph(self, graph: Pregel[Any, Any, Any, Any], label: str, depth: int) -> None:
        self.found.subgraphs.append((self.scope + label, graph))
        outer = self.scope
        builder = getattr(graph, "builder", None)
        specs = {name: spec.runnable for name, spec in builder.nodes.items()} if builder is not None else {}
        for name, runnable in (specs or {name: node.bound for name, node in graph.nodes.items()}).items():
            self.scope = f"{outer}subgraph node {name!r}: "
            self.visit(runnable, "", depth + 1)
        for source, branches in sorted(builder.branches.items()) if builder is not None else ():
            for name, branch in branches.items():
                self.scope = f"{outer}subgraph node {source!r}: branch {name!r}: "
                self.visit(branch.path, "", depth + 1)
        self.scope = outer

    # -- what is looked through ----------------------------------------------------------------------------------

    def _sequence(self, chain: RunnableSequence[Any, Any], label: str, depth: int) -> None:
        prompt: PromptTemplate | None = None
        for step in chain.steps:
            model, bound = unbind(step)
            if issubclass(type(step), BasePromptTemplate):
                prompt = prompt_template(step)
                self._digest(repr(prompt))
                if prompt is None:
                    self.visit(step, label, depth + 1)
            elif issubclass(type(model), BaseLanguageModel):
                self._model(model, bound, prompt, label)
                prompt = None
            else:
                self.visit(step, label, depth + 1)

    def _binding(self, binding: Any, label: str, depth: int) -> None:
        inner, bound = unbind(binding)
        if issubclass(type(inner), BaseLanguageModel):
            self._model(inner, bound, None, label)
        else:
            self.visit(inner, label, depth + 1)
            self._values(bound, label, depth)

    def _parallel(self, parallel: RunnableParallel[Any], label: str, depth: int) -> None:
        for name, step in parallel.steps__.items():
            self.visit(step, f"{label}[{name!r}]", depth + 1)

    def _tool_node(self, node: ToolNode, label: str, depth: int) -> None:
        for tool in node.tools_by_name.values():
            self.visit(tool, label, depth + 1)
        self._values({k: v for k, v in fields(node).items() if k.endswith("wrap_tool_call")}, label, depth)

    def _runnable(self, runnable: Any, label: str, depth: int) -> None:
        own = fields(runnable)
        configured = own.get("_default_config")  # init_chat_model with configurable fields
        if type(runnable).__name__ == "_ConfigurableModel" and isinstance(configured, dict):
            self._model(runnable, configured, None, label)
        self._values({k: v for k, v in own.items() if k not in _ASIDE}, label, depth)

    def _function(self, function: FunctionType, label: str, depth: int) -> None:
        spec = spec_of(function)
        if spec is not None:
            self.found.declared.setdefault(spec.name, (spec.effect, self.scope + label))
        agent = agent_model(function)
        if agent is not None:
            self._digest(f"agent {agent.prompt!r}")
            if agent.model is not None:
                self._model(agent.model, agent.bound, agent.prompt, agent.found_in)
            self._items(agent.rest, agent.found_in, depth)
            return
        library = is_library(function, LIBRARIES, self.home)
        if library:
            self._digest(f"{function.__module__}.{function.__qualname__}")
        else:
            self.found.digests.append(code_digest(function.__code__))
        inside = f" in {function.__name__}" if label else ""  # told for all but the node's own function
        for how, value in reachable(function, globals_too=not library):
            if is_a(value, type):
                self._made_inside(value, f"made{inside or ' inside'}")
            else:
                self.visit(value, how + inside, depth + 1)

    def _method(self, method: MethodType, label: str, depth: int) -> None:
        owner: Any = method.__self__
        if isinstance(method.__func__, FunctionType):
            self._function(method.__func__, label, depth)
            for name, member in own_members(method.__func__, owner if is_a(owner, type) else type(owner)):
                if not is_a(member, FunctionType) or not is_library(member, LIBRARIES, self.home):
                    self.visit(member, f"self.{name}", depth + 1)
        if not is_a(owner, type):
            self.visit(owner, "self", depth + 1)

    def _partial(self, partial: functools.partial[Any], label: str, depth: int) -> None:
        self.visit(partial.func, label, depth)
        for n, value in enumerate(partial.args):
            self.visit(value, f"argument {n}", depth + 1)
        for name, value in partial.keywords.items():
            self.visit(value, f"argument '{name}'", depth + 1)

    def _mapping(self, mapping: Any, label: str, depth: int) -> None:
        items = dict.items(mapping) if is_a(mapping, dict) else mapping.items()
        for key, value in list(items)[:OBJECTS]:
            self.visit(value, f"{label}[{key!r}]" if is_a(key, str | int) else label, depth + 1)

    def _items(self, items: Any, label: str, depth: int) -> None:
        for n, value in enumerate(list(items)[:OBJECTS]):
            self.visit(value, f"{label}[{n}]", depth + 1)

    def _set(self, items: Any, label: str, depth: int) -> None:
        for text in sorted(value for value in items if is_a(value, str)):
            self._text(text)
        self._items([value for value in items if not is_a(value, str)], label, depth)

    def _object(self, value: Any, label: str, depth: int) -> None:
        """An object of the user's own class (or a framework's): its attributes, and what calling it runs."""
        kind = type(value)
        package = package_of(kind)
        if issubclass(kind, Sql | Http):
            name = value.name or getattr(value, "base_url", "") or "http"
            self.found.declared.setdefault(name, (None, self.scope + label))
        if package == "openai" and kind.__name__ in _SDK:
            server = str(fields(value).get("_base_url") or "").rstrip("/")
            where = self.scope + label
            self.found.models.append(ModelUse(kind.__name__, "", server or None, found_in=where, client=True))
            return
        if issubclass(kind, type) or package in sys.stdlib_module_names or package in CLOSED:
            wrapped = fields(value).get("__wrapped__")  # lru_cache and the like
            self.visit(wrapped, label, depth)
            return
        self._values(fields(value), label, depth)
        call = method_of(kind, "__call__")
        if call is not None and not is_library(call, LIBRARIES, self.home):
            self.visit(MethodType(call, value), label, depth + 1)

    def _values(self, values: Mapping[str, Any], label: str, depth: int) -> None:
        """Attributes; their texts are data (keys, ids, paths), so they do not count as the program's."""
        for name, value in values.items():
            if not issubclass(type(value), str):
                inner = label if name in _WRAPPED else f"{label}.{name}".lstrip(".")
                self.visit(value, inner, depth + 1)

    def _made_inside(self, cls: type, label: str) -> None:
        if issubclass(cls, BaseLanguageModel):
            self.found.models.append(ModelUse(cls.__name__, "", found_in=self.scope + label))

    def _text(self, text: str) -> None:
        """A text that code refers to. Those without white space (ids, addresses, paths) differ from one deployment
        of a program to the next; prompts do not."""
        if len(text.split(maxsplit=1)) > 1:
            self._digest(text)

    def _digest(self, text: str) -> None:
        self.found.digests.append(text.encode("utf-8", "surrogatepass"))


_Visit = Callable[[_Scan, Any, str, int], None]
_VISITS: tuple[tuple[type | tuple[type, ...], _Visit], ...] = (
    (FunctionType, _Scan._function),
    (MethodType, _Scan._method),
    (functools.partial, _Scan._partial),
    (dict, _Scan._mapping),
    (MappingProxyType, _Scan._mapping),
    ((list, tuple, deque), _Scan._items),
    ((set, frozenset), _Scan._set),
    (BasePromptTemplate, _Scan._template),
    (BaseMessage, _Scan._message),
    (BaseTool, _Scan._tool),
    (Pregel, _Scan._graph),
    (RunnableSequence, _Scan._sequence),
    (RunnableBindingBase, _Scan._binding),
    (RunnableParallel, _Scan._parallel),
    (ToolNode, _Scan._tool_node),
    (Runnable, _Scan._runnable),
    (SimpleNamespace, lambda scan, value, label, depth: scan._values(fields(value), label, depth)),
)
"""How each kind of object is looked through; the first that fits decides."""


def unbind(runnable: Any) -> tuple[Any, dict[str, Any]]:
    """What a binding (`bind`, `bind_tools`, `with_retry`, `with_config`) wraps, and the arguments that it adds."""
    bound: dict[str, Any] = {}
    while issubclass(type(runnable), RunnableBindingBase):
        own = fields(runnable)
        bound = {**own.get("kwargs", {}), **bound}
        runnable = own.get("bound", NOTHING)
    return runnable, bound


def _same_call(one: ModelUse, other: ModelUse) -> bool:
    return (one.kind, one.name, one.base_url, one.sampling, one.tools, one.prompt) == (
        other.kind,
        other.name,
        other.base_url,
        other.sampling,
        other.tools,
        other.prompt,
    )


def models(found: Mapping[str, NodeInventory]) -> Iterator[tuple[str, ModelUse]]:
    """All (node, model) pairs of an inventory."""
    for node, inside in found.items():
        for use in inside.models:
            yield node, use
