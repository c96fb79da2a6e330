"""A workload as data: steps, each a model call over the row, its tools' results and earlier steps' answers.

From the same steps come the LangGraph app (async, or sync as most users write it) and the hand-written asyncio program
without barriers (B7).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph

Row = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A tool that a step calls before its model, with what the row says."""

    name: str
    call: Callable[[Row], Any]
    acall: Callable[[Row], Awaitable[Any]]


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


@dataclass(frozen=True)
class Workload:
    """A benchmark's app and rows."""

    name: str
    steps: tuple[Step, ...]
    rows: Callable[[int, bool, int], list[Row]]
    """(count, every row distinct, seed) -> rows."""
    rule: Callable[[Row], Row] = dict
    """Computed of the row before anything else."""

    @property
    def calls(self) -> int:
        """Model calls of a row."""
        return len(self.steps)

    @property
    def tool_calls(self) -> int:
        """Tool calls of a row, without the rule."""
        return sum(len(step.tools) for step in self.steps)


def prompt(step: Step, row: Row, found: Sequence[Any], answers: Mapping[str, str]) -> list[BaseMessage]:
    """What a step asks its model."""
    parts = [f"Input: {row['input']}"]
    parts += [f"{tool.name}: {json.dumps(value, default=str)}" for tool, value in zip(step.tools, found, strict=True)]
    parts += [f"{name} wrote: {answers[name]}" for name in step.needs]
    return [SystemMessage(step.role), HumanMessage("\n".join(parts))]


def _merge(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    return {**old, **new}


class State(TypedDict, total=False):
    """The graph's state."""

    input: str
    row: Row
    answers: Annotated[dict[str, str], _merge]


def build(workload: Workload, models: Mapping[str, Any], *, sync: bool = False) -> StateGraph[Any]:
    """The LangGraph app; `models` are chat models for A, B and C."""
    builder: StateGraph[Any] = StateGraph(State)

    def rule(state: State) -> Any:
        return {"row": workload.rule({"input": state["input"]})}

    builder.add_node("rule", rule)
    builder.add_edge(START, "rule")
    read = {name for step in workload.steps for name in step.needs}
    for step in workload.steps:
        builder.add_node(step.name, (_node if sync else _anode)(step, models[step.model]))
        builder.add_edge([*step.needs] if step.needs else "rule", step.name)
        if step.name not in read:
            builder.add_edge(step.name, END)
    return builder


def _node(step: Step, model: Any) -> Callable[[State], Any]:
    def node(state: State) -> Any:
        found = [tool.call(state["row"]) for tool in step.tools]
        answer = model.invoke(prompt(step, state["row"], found, state.get("answers", {})))
        return {"answers": {step.name: answer.content}}

    return node


def _anode(step: Step, model: Any) -> Callable[[State], Awaitable[Any]]:
    async def node(state: State) -> Any:
        found = await asyncio.gather(*(tool.acall(state["row"]) for tool in step.tools))
        answer = await model.ainvoke(prompt(step, state["row"], found, state.get("answers", {})))
        return {"answers": {step.name: answer.content}}

    return node


async def by_hand(workload: Workload, rows: Sequence[Row], models: Mapping[str, Any]) -> list[dict[str, str]]:
    """B7: every step as soon as what it needs is there; tools, too, begin at once."""

    async def run(row: Row) -> dict[str, str]:
        known = workload.rule({"input": row["input"]})
        tasks: dict[str, asyncio.Task[str]] = {}

        async def one(step: Step) -> str:
            found = asyncio.gather(*(tool.acall(known) for tool in step.tools))
            answers = {name: await tasks[name] for name in step.needs}
            said = await models[step.model].ainvoke(prompt(step, known, await found, answers))
            return str(said.content)

        for step in workload.steps:  # in an order in which needs come first
            tasks[step.name] = asyncio.create_task(one(step))
        return {name: await task for name, task in tasks.items()}

    return list(await asyncio.gather(*map(run, rows)))
