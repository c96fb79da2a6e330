"""The plan as text: a tree that reads top to bottom as the workflow runs (EXPLAIN's first form).

An operator stands under the one that every path to it passes through. `[label]` and `∥` begin a branch of the operator
that they are indented under: taken on that answer, or always. A line without a mark follows the line above it on the
same level, or what `after a, b` names. `↺` goes back into a loop; `[?]` may happen; `[each]` runs once per item sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

from halo_core.plan.edges import END, START, Edge, StateKey
from halo_core.plan.graph import Graph, framed_graph, ordered
from halo_core.plan.operators import (
    AdvisedCall,
    Keys,
    LLMOperator,
    Loop,
    OpaqueStep,
    Operator,
    Route,
    Source,
    ToolOperator,
    ToolSchema,
)
from halo_core.plan.prompt import Message, PromptTemplate

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan

LITERAL_SHOWN = 60
"""Characters of a message's line beyond which it is cut short."""

Note = Callable[[str], str]
"""What to add to an operator's line, given its name; empty for nothing."""


def to_text(plan: Plan, note: Note | None = None) -> str:
    """The plan as a tree; `note` adds to operators' lines (counts, costs, measurements)."""
    runnable = [o for o in plan.operators if not isinstance(o, Loop)]
    models = {o.model for o in runnable if isinstance(o, LLMOperator)}
    title = f"plan {plan.name!r}: {_count(len(runnable), 'operator')}"
    lines = [title + (f", models {', '.join(sorted(models))}" if models else "")]
    if plan.state:
        lines.append("state: " + ", ".join(map(_state_key, plan.state)))
    if plan.output is not None:
        lines.append("output: " + _keys(plan.output, bare=True))
    tree = _Tree(plan, note or (lambda _: ""))
    lines += tree.lines()
    for loop in (o for o in plan.operators if isinstance(o, Loop)):
        bound = "any number of turns" if loop.bound is None else f"at most {_count(loop.bound, 'turn')}"
        lines.append(f"loop {loop.name}: {', '.join(loop.body)} ({bound})")
    for barrier in plan.barriers:
        lines.append(f"barrier: {', '.join(barrier.after)} | {', '.join(barrier.before)} ({barrier.reason})")
    lines += [f"found: {fact}" for fact in plan.facts]
    return "\n".join(lines)


@dataclass(slots=True)
class _Line:
    """An operator, the arrow that led to it, and the lines of its indented branches."""

    name: str
    arrow: str
    after: Sequence[str]
    branches: list[_Line]
    back: bool = False


class _Tree:
    def __init__(self, plan: Plan, note: Note) -> None:
        self.plan = plan
        self.note = note
        self.graph: Graph = framed_graph(plan)
        self.order = {name: i for i, name in enumerate(ordered(self.graph))}
        self.under: dict[str, list[str]] = {name: [] for name in self.graph}
        for name, above in nx.immediate_dominators(self.graph, START).items():
            if name != START and above is not None:
                self.under[above].append(name)
        for names in self.under.values():
            names.sort(key=self.order.__getitem__)

    def lines(self) -> Iterator[str]:
        """The tree's lines; iterative, for a workflow may be longer than Python's stack."""
        start = self._sequence(START, "")
        yield "START"
        stack = [(iter([*start[0].branches, *start[1:]]), "")]
        upcoming = [next(stack[0][0], None)]
        while stack:
            level, indent = stack[-1]
            line = upcoming[-1]
            if line is None:
                stack.pop()
                upcoming.pop()
                continue
            upcoming[-1] = next(level, None)
            last = upcoming[-1] is None
            yield indent + ("└─ " if last else "├─ ") + self._head(line)
            deeper = indent + ("   " if last else "│  ")
            if not line.back and line.name != END:
                bar = deeper + ("│  " if line.branches else "   ")
                yield from (bar + detail for detail in details(self.plan[line.name]))
            stack.append((iter(line.branches), deeper))
            upcoming.append(next(stack[-1][0], None))

    def _sequence(self, first: str, arrow: str) -> list[_Line]:
        """`first` and, level with it, all that follows once its branches have come together or ended."""
        lines: list[_Line] = []
        pending = [first]
        while pending:
            name = pending.pop()
            sources = self._sources(name)
            plain = not lines or sources == [lines[-1].name]
            after = [] if plain else [s + self._arrow(s, name).rstrip() for s in sources]
            line = _Line(name, arrow if not lines else "", after, [])
            branches, rest = self._split(name)
            for branch in branches:
                line.branches += self._sequence(branch, self._arrow(name, branch) or "∥ ")
            line.branches += [_Line(back, self._arrow(name, back), (), [], back=True) for back in self._backs(name)]
            lines.append(line)
            pending += reversed(rest)
        return lines

    def _split(self, name: str) -> tuple[list[str], list[str]]:
        """The operators under `name` that are its branches, and those that follow level with it."""
        own = [c for c in self.under[name] if self._sources(c) == [name]]
        plain = len(own) == 1 and all(e.certain for e in self._edges(name, own[0])) and not self._backs(name)
        if plain and self._forward(name) == own:
            return [], self.under[name]
        return own, [c for c in self.under[name] if c not in own]

    def _forward(self, name: str) -> list[str]:
        return [t for t in self.graph.successors(name) if self.order[t] > self.order[name]]

    def _backs(self, name: str) -> list[str]:
        targets = [t for t in self.graph.successors(name) if self.order[t] <= self.order[name]]
        return sorted(targets, key=self.order.__getitem__)

    def _sources(self, name: str) -> list[str]:
        sources = [s for s in self.graph.predecessors(name) if self.order[s] < self.order[name]]
        return sorted(sources, key=self.order.__getitem__)

    def _edges(self, source: str, target: str) -> list[Edge]:
        edges: list[Edge] = self.graph.edges[source, target]["edges"]
        return edges

    def _arrow(self, source: str, target: str) -> str:
        """`[label]`, `[?]` for may, `[each]` for fan-out, `[order]` for control edges; empty for a plain edge."""
        marks: list[str] = []
        for edge in self._edges(source, target):
            mark = [edge.guard.label] if edge.guard else []
            mark += ["?"] if edge.may else []
            mark += ["each"] if edge.fan_out else []
            mark += ["order"] if edge.kind == "control" else []
            marks += [" ".join(mark)] if mark else []
        return f"[{' | '.join(marks)}] " if marks else ""

    def _head(self, line: _Line) -> str:
        if line.back:
            return f"{line.arrow}↺ {line.name}"
        after = f"  (after {', '.join(line.after)})" if line.after else ""
        if line.name == END:
            return f"{line.arrow}END{after}"
        note = self.note(line.name)
        return f"{line.arrow}{head(self.plan[line.name])}{after}" + (f"  [{note}]" if note else "")


def head(operator: Operator) -> str:
    """One line that says what the operator is, what it reads and what it writes."""
    name = operator.name
    if isinstance(operator, Route):
        answers = " | ".join(operator.labels) if operator.labels is not None else "?"
        return f"{name}: route {_keys(operator.reads)} -> {answers}"
    if isinstance(operator, Loop):
        return f"{name}: loop"
    flow = f"{_keys(operator.inputs)} -> {_keys(operator.writes, bare=True)}"
    if isinstance(operator, LLMOperator):
        return f"{name}: llm {operator.model} {flow}"
    if isinstance(operator, ToolOperator):
        return f"{name}: tool {operator.tool} [{operator.effect}] {flow}"
    if isinstance(operator, OpaqueStep):
        return f"{name}: opaque [{operator.effect}] {flow}"
    return f"{name}: join" if operator.reads == () and operator.writes == () else f"{name}: join {flow}"


def details(operator: Operator) -> Iterator[str]:
    """The lines below an operator's own: sampling, prompt, advised calls, what the framework promises."""
    if isinstance(operator, LLMOperator):
        yield from _call(operator)
        if operator.response_format is not None:
            yield f"format: {operator.response_format.get('type', 'given')}"
    elif isinstance(operator, OpaqueStep):
        for call in operator.advised_calls:
            yield f"may call {call.model}" + (f" ({call.found_in})" if call.found_in else "")
            yield from ("  " + line for line in _call(call))
        for tool in operator.advised_tools:
            effect = tool.effect.value if tool.effect is not None else "reads or writes"
            yield f"may use {tool.name} [{effect}]" + (f" ({tool.found_in})" if tool.found_in else "")
    elif isinstance(operator, ToolOperator) and operator.arguments:
        yield "with " + ", ".join(f"{k}={v!r}" for k, v in operator.arguments.items())
    if facts := _facts(operator.name, operator.source):
        yield facts


def _call(call: LLMOperator | AdvisedCall) -> Iterator[str]:
    if sampling := str(call.sampling):
        yield sampling
    if call.tools:
        yield "tools: " + ", ".join(map(_tool, call.tools))
    if call.prompt is not None:
        yield from _prompt(call.prompt)


def _prompt(prompt: PromptTemplate) -> Iterator[str]:
    for part in prompt.parts:
        text = str(part)
        if isinstance(part, Message) and len(text) > LITERAL_SHOWN:
            pieces = [str(s) for s in part.segments]
            budget = max(8, LITERAL_SHOWN // max(1, len(pieces)))
            text = f"{part.role}: " + " ".join(_cut(p, budget) for p in pieces)
        yield text


def _cut(piece: str, budget: int) -> str:
    if not piece.startswith('"') or len(piece) <= budget:
        return piece
    return f'{piece[:budget]}…" (+{len(piece) - 1 - budget})'


def _facts(name: str, source: Source) -> str:
    facts = [f"node {source.node}"] if source.node and source.node != name else []
    facts += [f"code {source.code}"] if source.code else []
    facts += [f"up to {source.retries} attempts"] if source.retries is not None else []
    facts += ["cached"] if source.cached else []
    facts += [f"timeout {source.timeout_s:g} s"] if source.timeout_s is not None else []
    facts += ["deferred"] if source.deferred else []
    facts += [f"on error {source.error_handler}"] if source.error_handler else []
    facts += [f"{key}={value!r}" for key, value in source.hints.items()]
    return "source: " + ", ".join(facts) if facts else ""


def _tool(tool: ToolSchema) -> str:
    return tool.name


def _state_key(key: StateKey) -> str:
    marks = [key.reducer] if key.reducer else []
    marks += ["any order"] if key.commutative else []
    marks += [] if key.input else ["not given"]
    return key.name + (f" [{', '.join(marks)}]" if marks else "")


def _keys(keys: Keys | None, bare: bool = False) -> str:
    shown = "*" if keys is None else ", ".join(keys)
    if bare:
        return shown or "nothing"
    return f"({shown})"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
