"""A workload as data: steps, each a model call over the row, its tools' results and earlier steps' answers.

From the same steps come the LangGraph app (async, or sync as most users write it) and the hand-written asyncio program
without barriers (B7).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph

Row = dict[str, Any]

Models = Callable[["Step"], Any]
"""The chat model of a step."""


@dataclass(frozen=True)
class Tool:
    """A tool that a step calls before its model, with what the row says."""

    name: str
    call: Callable[[Row], Any]
    acall: Callable[[Row], Awaitable[Any]]


def prompt(step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, Any]) -> list[BaseMessage]:
    """What a step asks its model unless it says otherwise: the row, what its tools found, what earlier steps wrote."""
    parts = [f"{key.capitalize()}: {value}" for key, value in row.items()]
    parts += [f"{tool.name}: {json.dumps(value, default=str)}" for tool, value in zip(step.tools, found, strict=True)]
    parts += [f"{name} wrote: {answers[name]}" for name in step.needs]
    return [SystemMessage(step.role), HumanMessage("\n".join(parts))]


@dataclass(frozen=True)
class Step:
    """One node."""

    name: str
    model: str
    """A, B or C: which of the workload's models."""
    role: str
    """The system prompt."""
    needs: tuple[str, ...] = ()
    """Steps whose answers it reads; none = it begins with the row."""
    tools: tuple[Tool, ...] = ()
    tokens: int = 0
    """Tokens that the call generates in the source of the workload; 0 = as the benchmark is told."""
    ask: Callable[[Step, Row, Sequence[Any], Mapping[str, Any]], list[BaseMessage]] = prompt
    """(step, row, what its tools found in their order, answers by step) -> messages."""


@dataclass(frozen=True)
class Workload:
    """A benchmark's app and rows."""

    name: str
    steps: tuple[Step, ...]
    """In an order in which a step's needs come before it."""
    rows: Callable[[int, bool, int], list[Row]]
    """(count, every row distinct, seed) -> the graph's inputs: {"input": text} with a rule, {"row": ...} without."""
    rule: Callable[[str], Row] | None = None
    """Reads the row out of the input, as a node before all others."""

    @property
    def calls(self) -> int:
        """Model calls of a row."""
        return len(self.steps)

    @property
    def tool_calls(self) -> int:
        """Tool calls of a row, without the rule."""
        return sum(len(step.tools) for step in self.steps)

    def row(self, given: Row) -> Row:
        """What the steps know of the graph's input `given`."""
        known: Row = self.rule(given["input"]) if self.rule is not None else given["row"]
        return known

    def answers(self, out: Mapping[str, Any]) -> dict[str, str]:
        """The steps' answers out of a run's final state."""
        return {step.name: out[step.name] for step in self.steps}


def build(workload: Workload, models: Models, *, sync: bool = False) -> StateGraph[Any]:
    """The LangGraph app: a state key for every step's answer, of which a node is given those that it needs."""
    rule = workload.rule
    keys: dict[str, Any] = {"row": Row, **({"input": str} if rule is not None else {})}
    state: Any = TypedDict("State", {**keys, **{step.name: str for step in workload.steps}}, total=False)  # type: ignore[misc]
    builder: StateGraph[Any] = StateGraph(state)
    first = START
    if rule is not None:
        first = "rule"
        builder.add_node(first, lambda state: {"row": rule(state["input"])})
        builder.add_edge(START, first)
    read = {name for step in workload.steps for name in step.needs}
    for step in workload.steps:
        given: Any = TypedDict(f"Of_{step.name}", {"row": Row, **dict.fromkeys(step.needs, str)}, total=False)  # type: ignore[misc]
        node: Any = (_node if sync else _anode)(step, models(step))
        # Beside asking its model, a node only looks things up.
        builder.add_node(step.name, node, input_schema=given, metadata={"halo": {"effect": "read"}})
        builder.add_edge([*step.needs] if len(step.needs) > 1 else (step.needs or (first,))[0], step.name)
        if step.name not in read:
            builder.add_edge(step.name, END)
    return builder


def _node(step: Step, model: Any) -> Callable[[Any], Any]:
    key = step.name

    def node(state: Any) -> Any:
        found = [tool.call(state["row"]) for tool in step.tools]
        answer = model.invoke(step.ask(step, state["row"], found, state))
        return {key: answer.content}

    return node


def _anode(step: Step, model: Any) -> Callable[[Any], Awaitable[Any]]:
    key = step.name

    async def node(state: Any) -> Any:
        found = await asyncio.gather(*(tool.acall(state["row"]) for tool in step.tools))
        answer = await model.ainvoke(step.ask(step, state["row"], found, state))
        return {key: answer.content}

    return node


async def by_hand(workload: Workload, rows: Sequence[Row], models: Models) -> list[dict[str, str]]:
    """B7: every step as soon as what it needs is there; tools, too, begin at once."""
    chat = {step.name: models(step) for step in workload.steps}

    async def run(given: Row) -> dict[str, str]:
        row = workload.row(given)
        tasks: dict[str, asyncio.Task[str]] = {}

        async def one(step: Step) -> str:
            found = asyncio.gather(*(tool.acall(row) for tool in step.tools))
            answers = {name: await tasks[name] for name in step.needs}
            said = await chat[step.name].ainvoke(step.ask(step, row, await found, answers))
            return str(said.content)

        for step in workload.steps:
            tasks[step.name] = asyncio.create_task(one(step))
        return {name: await task for name, task in tasks.items()}

    return list(await asyncio.gather(*map(run, rows)))


def levels(workload: Workload) -> list[list[Step]]:
    """The steps by how many others they come after, at most."""
    depth: dict[str, int] = {}
    found: list[list[Step]] = []
    for step in workload.steps:
        depth[step.name] = at = max((depth[need] + 1 for need in step.needs), default=0)
        found += [[]] if at == len(found) else []
        found[at].append(step)
    return found


async def by_operator(workload: Workload, rows: Sequence[Row], models: Models) -> list[dict[str, str]]:
    """B6: level by level, all rows' tools and then all rows' calls of the level at once."""
    chat = {step.name: models(step) for step in workload.steps}
    known = [workload.row(given) for given in rows]
    answers: list[dict[str, str]] = [{} for _ in rows]
    for level in levels(workload):
        work = [(step, i) for step in level for i in range(len(known))]
        found = await asyncio.gather(
            *(asyncio.gather(*(tool.acall(known[i]) for tool in step.tools)) for step, i in work)
        )
        prompts = [step.ask(step, known[i], got, answers[i]) for (step, i), got in zip(work, found, strict=True)]
        said = await asyncio.gather(
            *(chat[step.name].ainvoke(messages) for (step, _), messages in zip(work, prompts, strict=True))
        )
        for (step, i), answer in zip(work, said, strict=True):
            answers[i][step.name] = str(answer.content)
    return answers
