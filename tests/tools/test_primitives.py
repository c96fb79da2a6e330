"""The seven primitives: their shapes, sizes and rows, and that Halo's answers are those of unmerged runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from autogen_agentchat.base import TaskResult
from langchain_core.messages import BaseMessage
from langchain_openai import ChatOpenAI

import halo_adapters.langgraph as halo
from benchmarks.workloads import autogen_apps
from benchmarks.workloads.primitives import CHARS_PER_TOKEN, PRIMITIVES, ROLES
from benchmarks.workloads.shape import Step, Workload, build
from halo_adapters.autogen import HaloChatCompletionClient, run_batch
from halo_core.pool import PoolConfig, SimulatedSpec, configure

CALLS = {
    "mapreduce-qa": 15,
    "mapreduce-qa-once": 8,
    "mapreduce-doc": 8,
    "debate-qa": 6,
    "debate-doc": 6,
    "reflect-doc": 4,
    "iterative": 6,
    "parallel": 50,
}
TABLE = {
    "mapreduce-qa": {"historian_a": (165, 294), "teacher_b": (165, 294), "summariser": (4380, 168)},
    "mapreduce-doc": {"historian": (578, 400), "teacher": (578, 400), "summariser": (3400, 250)},
    "debate-qa": {"believer_1": (156, 298), "counter_2": (1128, 360)},
    "debate-doc": {"believer_1": (570, 370), "counter_2": (1780, 402)},
    "reflect-doc": {"analyst": (728, 120), "facts": (767, 258), "logic": (1035, 512), "final": (1660, 139)},
    "iterative": {"part_1": (1082, 216), "part_6": (1421, 401)},
    "parallel": {"historian_1": (1550, 432), "teacher_6": (1550, 432), "historian": (3365, 512), "writer": (4458, 512)},
}
"""Tokens in and out of the paper's table."""


@pytest.fixture
def simulated() -> Iterator[None]:
    pool = configure(PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield
    pool.close()


def prompts(workload: Workload, row: Any, answer: str | None = None) -> dict[str, list[BaseMessage]]:
    """What the steps ask: where earlier answers are `answer`, by default as many characters as the table's tokens."""
    answers = {step.name: answer or "x" * (step.tokens * CHARS_PER_TOKEN) for step in workload.steps}
    return {
        step.name: step.ask(step, row["row"], [], {name: answers[name] for name in step.needs})
        for step in workload.steps
    }


def needs(workload: Workload) -> dict[str, tuple[str, ...]]:
    return {step.name: step.needs for step in workload.steps}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_calls(name: str) -> None:
    workload = PRIMITIVES[name]()
    assert workload.calls == CALLS[name] and len(needs(workload)) == CALLS[name]
    known: set[str] = set()
    for step in workload.steps:
        assert set(step.needs) <= known
        known.add(step.name)


def test_map_reduce() -> None:
    for name, copies in (("mapreduce-qa", 2), ("mapreduce-qa-once", 1), ("mapreduce-doc", 1)):
        workload = PRIMITIVES[name]()
        *experts, last = workload.steps
        assert all(not step.needs for step in experts)
        assert last.needs == tuple(step.name for step in experts)
        asked = prompts(workload, workload.rows(1, False, 0)[0])
        assert len({str(asked[step.name]) for step in experts}) == len(experts) / copies == len(ROLES)


def test_the_role_of_a_doc_expert_comes_last() -> None:
    workload = PRIMITIVES["mapreduce-doc"]()
    row = workload.rows(1, False, 0)[0]
    asked = prompts(workload, row)
    for role in ROLES:
        system, human = asked[role]
        assert system.content == asked["historian"][0].content
        before, _, after = human.text.rpartition("\n\n")
        assert row["row"]["context"] in before and before.endswith(row["row"]["question"]) and role in after


@pytest.mark.parametrize("name", ["debate-qa", "debate-doc"])
def test_debate_goes_on_from_its_own_history(name: str) -> None:
    workload = PRIMITIVES[name]()
    asked = prompts(workload, workload.rows(1, False, 0)[0], "I say so.")
    edges = needs(workload)
    for who in ("believer", "doubter", "counter"):
        own, *others = edges[f"{who}_2"]
        assert own == f"{who}_1" and len(others) == 2
        second = asked[f"{who}_2"]
        assert [message.type for message in second] == ["system", "human", "ai", "human"]
        assert second[:2] == asked[own]
        assert second[2].content == "I say so."
        assert all(f"{other} wrote:\nI say so." in second[3].text for other in others)


def test_reflect_is_a_chain_that_ends_with_the_analyst() -> None:
    workload = PRIMITIVES["reflect-doc"]()
    assert needs(workload) == {
        "analyst": (),
        "facts": ("analyst",),
        "logic": ("analyst", "facts"),
        "final": ("analyst", "facts", "logic"),
    }
    asked = prompts(workload, workload.rows(1, False, 0)[0])
    assert [message.type for message in asked["final"]] == ["system", "human", "ai", "human"]
    assert asked["final"][:2] == asked["analyst"]


def test_iterative_carries_a_summary_through_all_chunks() -> None:
    workload = PRIMITIVES["iterative"]()
    names = [step.name for step in workload.steps]
    assert [step.needs for step in workload.steps] == [(), *((name,) for name in names[:-1])]
    row = workload.rows(1, False, 0)[0]
    asked = prompts(workload, row, "So far so good.")
    for i, name in enumerate(names):
        assert asked[name][1].text.endswith(row["row"]["chunks"][i])
        assert ("Summary so far:\nSo far so good." in asked[name][1].text) == (i > 0)


def test_parallel_fans_out_and_in() -> None:
    workload = PRIMITIVES["parallel"]()
    edges = needs(workload)
    assert edges["writer"] == tuple(ROLES)
    assert all(edges[role] == tuple(f"{role}_{i}" for i in range(1, 7)) for role in ROLES)
    row = workload.rows(1, False, 0)[0]
    asked = prompts(workload, row)
    for role in ROLES:
        for i, chunk in enumerate(row["row"]["chunks"], 1):
            assert edges[f"{role}_{i}"] == () and asked[f"{role}_{i}"][1].text.endswith(chunk)


@pytest.mark.parametrize("name", TABLE)
def test_sizes_are_near_the_tables(name: str) -> None:
    """The mean of some rows, at four characters a token, answers of the length that the table gives them."""
    workload = PRIMITIVES[name](1.0)
    asked = [prompts(workload, row) for row in workload.rows(12, False, 0)]
    for step, (tokens_in, tokens_out) in TABLE[name].items():
        chars = sum(len(message.text) for messages in asked for message in messages[step]) / len(asked)
        assert chars / CHARS_PER_TOKEN == pytest.approx(tokens_in, rel=0.15), step
        assert next(each for each in workload.steps if each.name == step).tokens == tokens_out


@pytest.mark.parametrize("name", PRIMITIVES)
def test_texts_scale(name: str) -> None:
    def size(scale: float) -> int:
        workload = PRIMITIVES[name](scale)
        asked = (prompts(workload, row, "x") for row in workload.rows(12, False, 0))
        return sum(len(message.text) for of_row in asked for messages in of_row.values() for message in messages)

    assert size(0.25) < 0.45 * size(1.0) and size(0.5) < 0.7 * size(1.0)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_rows(name: str) -> None:
    rows = PRIMITIVES[name]().rows
    assert rows(14, False, 1) == rows(14, False, 1) != rows(14, False, 2)
    assert rows(14, False, 1)[:5] == rows(5, False, 1)
    for distinct in (False, True):
        assert len({str(row) for row in rows(200, distinct, 0)}) == 200
    if name.endswith("-doc"):
        contexts = [row["row"]["context"] for row in rows(14, False, 0)]
        assert [contexts.count(context) for context in dict.fromkeys(contexts)] == [6, 6, 2]
        assert len({row["row"]["context"] for row in rows(14, True, 0)}) == 14


@pytest.mark.parametrize("name", PRIMITIVES)
def test_answers_are_those_of_an_unmerged_run(name: str, simulated: None) -> None:
    halo.install()
    workload = PRIMITIVES[name]()
    three = workload.rows(3, False, 0)
    rows = [*three, three[0]]

    def models(step: Step) -> ChatOpenAI:
        return ChatOpenAI(model=f"model-{step.model}", api_key="unused", temperature=0, max_tokens=8)  # type: ignore[arg-type,call-arg]

    app: Any = build(workload, models).compile(backend="halo")  # type: ignore[call-arg]
    ours = [workload.answers(out) for out in asyncio.run(app.abatch(rows))]
    total = app.last_run.stats.total
    assert (total.planned, total.executed) == (4 * CALLS[name], 3 * CALLS[name])  # copies within a row are not merged
    alone = halo.accelerate(build(workload, models).compile(), merge=False)
    assert [workload.answers(out) for out in asyncio.run(alone.abatch(rows))] == ours
    assert len({str(answers) for answers in ours}) == len(three)
    halo.uninstall()


def transcript(result: TaskResult) -> list[tuple[str, str]]:
    return [(message.source, message.to_model_text()) for message in result.messages]  # type: ignore[union-attr]


def test_autogen_debate(simulated: None) -> None:
    team = autogen_apps.debate(HaloChatCompletionClient(model="m", temperature=0))
    tasks = autogen_apps.debate_tasks(3, 0)
    assert tasks == autogen_apps.debate_tasks(3, 0) != autogen_apps.debate_tasks(3, 1)
    merged, each = run_batch(team, [*tasks, *tasks]), run_batch(team, [*tasks, *tasks], dedup="off")
    said = [transcript(run.unwrap()) for run in merged]
    assert said == [transcript(run.unwrap()) for run in each]
    assert [source for source, _ in said[0]] == ["user", *["believer", "doubter", "counter"] * 2]
    assert (merged.stats.total.executed, each.stats.total.executed) == (18, 36)


def test_autogen_parallel(simulated: None) -> None:
    team = autogen_apps.parallel(HaloChatCompletionClient(model="m", temperature=0), chunks=2)
    tasks = autogen_apps.parallel_tasks(3, 0, chunks=2)
    merged, each = run_batch(team, [*tasks, *tasks]), run_batch(team, [*tasks, *tasks], dedup="off")
    said = [transcript(run.unwrap()) for run in merged]
    assert said == [transcript(run.unwrap()) for run in each]
    sources = [source for source, _ in said[0]]
    assert sources[:2] == ["chunk_1", "chunk_2"] and sources[-1] == "writer"
    assert sorted(sources[2:16]) == sorted(f"{role}_{i}" for role in ROLES for i in (1, 2))
    assert sorted(sources[16:23]) == sorted(ROLES)
    assert (merged.stats.total.executed, each.stats.total.executed) == (3 * 22, 6 * 22)
