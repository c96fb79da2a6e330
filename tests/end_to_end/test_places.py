"""Three models on two places, on the real engine: the loads are the plan's, the answers those of plain LangGraph."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import psutil
import pytest
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

import halo_adapters.langgraph as halo
from halo_core.optimize.switching import SwitchPlan
from halo_core.pool import EnginePool, PoolConfig, VLLMSpec
from halo_core.runtime import foresight, get_executor
from halo_core.stats import DecodePoint, EngineCurve
from tests.conftest import MODEL_PATH
from tests.runtime.places import Step, fewest_loads

pytestmark = pytest.mark.engine

STEPS = [Step("draft", "small-a"), Step("judge", "small-c", ("draft",)), Step("edit", "small-b", ("judge",))]
CURVE = EngineCurve(
    prefill_step_s=0.0, prefill_token_s=0.004, attention_pair_s=0.0, decode=(DecodePoint(batch=1, step_s=0.1),)
)
TOPICS = ["rain", "bread", "the sea", "a dog", "winter", "ships"]


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    """One model under three names, of which two fit at a time."""
    if not (MODEL_PATH / "config.json").is_file():
        pytest.fail(f"the model is not at {MODEL_PATH}: run `make model` (make test does)")
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two places need two cores")
    halo.install()
    specs = (
        VLLMSpec(model=step.model, path=str(MODEL_PATH), dtype="float32", max_model_len=2048, kv_cache_gib=0.5)
        for step in STEPS
    )
    pool = halo.configure(PoolConfig(engines=tuple(specs), places=2))
    yield pool
    pool.close()
    halo.uninstall()


class Text(TypedDict, total=False):
    topic: str
    draft: str
    judge: str
    edit: str


PROMPTS = {
    "draft": "Write one sentence about {topic}.",
    "judge": "What is wrong with this sentence? {draft}",
    "edit": "Write it better: {draft} Advice: {judge}",
}


def app(llms: dict[str, Any]) -> Any:
    """draft -> judge -> edit, each with a model of its own."""

    def node(name: str) -> Any:
        async def run(state: Text) -> dict[str, str]:
            return {name: (await llms[name].ainvoke(PROMPTS[name].format(**state))).content}

        return run

    builder: Any = StateGraph(Text)
    for name in PROMPTS:
        builder.add_node(name, node(name))
    for before, after in [(START, "draft"), ("draft", "judge"), ("judge", "edit"), ("edit", END)]:
        builder.add_edge(before, after)
    return builder


@contextmanager
def most_engines(counts: list[int]) -> Iterator[None]:
    """Count the engines' programs below this process again and again, beyond those that were there."""

    def running() -> set[int]:
        found = set()
        for process in psutil.Process().children():
            try:
                if any("vllm_main.py" in part for part in process.cmdline()):
                    found.add(process.pid)
            except psutil.Error:
                continue
        return found

    before, over = running(), threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            counts.append(len(running() - before))

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


def test_the_run_follows_the_plan_and_so_does_the_next_which_plans_by_what_the_first_taught(
    pool: EnginePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALO_CATALOG", str(tmp_path))
    rows = [{"topic": topic} for topic in TOPICS]
    plan = fewest_loads(STEPS, 2, len(rows))
    assert sum(map(len, plan.places)) == 3  # the least there can be
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 16, "api_key": "unused"}
    ours = app({step.name: ChatOpenAI(model=step.model, **settings) for step in STEPS}).compile(backend="halo")
    counts: list[int] = []
    with most_engines(counts):
        get_executor().follow(plan)
        outs = asyncio.run(ours.abatch(rows))
    places = pool.places
    assert places is not None
    assert [place.loads for place in places.all] == [[phase.model for phase in phases] for phases in plan.places]
    assert places.switches == 1 and max(counts) == 2
    report = ours.last_run.explain_analyze()
    assert "places: 2, 1 switch" in report

    # The next run: the catalog has the steps, the places know how long loading takes, other curves are not asked for.
    monkeypatch.setattr(foresight, "remembered", lambda specs: SimpleNamespace(curve=CURVE, slots=32, kv_tokens=0))
    planned: list[SwitchPlan] = []
    follow = get_executor().follow
    monkeypatch.setattr(get_executor(), "follow", lambda made: (planned.append(made), follow(made))[1])
    before = [(place.model, len(place.loads)) for place in places.all]
    again = asyncio.run(ours.abatch(rows))
    assert again == outs
    made = planned[0]
    assert made is not None
    loaded = [place.loads[count:] for place, (_, count) in zip(places.all, before, strict=True)]
    wanted = [[phase.model for phase in phases] for phases in made.places]
    assert loaded == [w[1:] if w[:1] == [model] else w for w, (model, _) in zip(wanted, before, strict=True)]
    # draft needs the one model that is not there; whichever it replaces is needed again. Fewer cannot be.
    assert sum(map(len, loaded)) == 2

    # The plain app, on one of the engines that are loaded now: the three names stand for the same weights.
    engine: Any = places.all[0].engine
    straight = ChatOpenAI(model=engine.model, base_url=engine.base_url, **settings)
    assert asyncio.run(app(dict.fromkeys(PROMPTS, straight)).compile().abatch(rows)) == outs
    assert all(out["edit"].strip() for out in outs)
    print({model: round(seconds, 1) for model, seconds in places.load_s.items()})
    print(report)
