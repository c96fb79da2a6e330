"""The AutoGen examples from end to end: on a simulated engine, and beside plain AutoGen on the stub server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import examples.document_flow.__main__ as document_flow
import examples.review_team.__main__ as review_team
import halo_adapters.autogen as halo
from examples.review_team.report import SERVED, Example, compare, on_autogen, on_halo, transcript
from halo_adapters.autogen import intercept
from halo_adapters.autogen.report import explain
from halo_adapters.autogen.wire import canonical_ids
from halo_core.pool import EndpointSpec, EnginePool, PoolConfig, SimulatedSpec, simulated_model
from tests.stub_server import StubServer

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = {"review_team": review_team.example, "document_flow": document_flow.example}
SIMULATED = f'[models]\n"*" = "{SERVED}"\n\n[[engines]]\nkind = "simulated"\nmodel = "{SERVED}"\n'


@pytest.fixture
def simulated() -> Iterator[EnginePool]:
    pool = halo.configure(PoolConfig(models={"*": SERVED}, engines=(SimulatedSpec(model=SERVED),)))
    yield pool
    pool.close()
    intercept.uninstall()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """A server that does not look at the ids of tool calls, as most chat templates do not; Halo numbers them."""
    answer = simulated_model.answer

    def blind(model: str, body: Mapping[str, Any], **options: Any) -> simulated_model.Answer:
        return answer(model, {**body, "messages": canonical_ids(body["messages"])}, **options)

    monkeypatch.setattr(simulated_model, "answer", blind)
    with StubServer().threaded() as server:
        pool = halo.configure(
            PoolConfig(models={"*": SERVED}, engines=(EndpointSpec(model=SERVED, url=f"{server.url}/v1"),))
        )
        yield server
        pool.close()
        intercept.uninstall()
        review_team.client_of.cache_clear()
        document_flow.client_of.cache_clear()


@pytest.mark.parametrize("name", EXAMPLES)
def test_half_of_the_tasks_are_free_and_all_end_by_their_bounds(
    name: str, simulated: EnginePool, capsys: pytest.CaptureFixture[str]
) -> None:
    example = EXAMPLES[name]()
    assert len(example.tasks) == 24 and len(set(example.tasks)) == 12

    assert compare(example, simulated, plain=False) == 0

    shown = capsys.readouterr().out
    assert f"plan '{name}'" in shown and "24 done, 0 failed" in shown and "calls shared" in shown
    result, _ = on_halo(example.team(), example.tasks)
    by_task: dict[str, list[tuple[str, str, str]]] = {}
    for run in result:
        assert by_task.setdefault(run.task, transcript(run.result)) == transcript(run.result)
    total = result.stats.total
    # Other sums would mean that some repeated task was not answered from its first occurrence, or too much was.
    once, _ = on_halo(example.team(), list(dict.fromkeys(example.tasks)))
    assert total.executed == once.stats.total.executed == once.stats.total.planned
    assert total.planned == total.executed + total.shared


def test_the_checker_really_uses_its_tool(simulated: EnginePool) -> None:
    result, _ = on_halo(review_team.team(), review_team.read_tasks(1))
    kinds = [kind for _, kind, _ in transcript(result[0].result)]
    assert kinds[1:4] == ["ToolCallRequestEvent", "ToolCallExecutionEvent", "TextMessage"]
    assert "is not in the glossary" in transcript(result[0].result)[2][2]  # a simulated model asks for nonsense


def test_the_flow_takes_both_branches_and_the_loop(simulated: EnginePool) -> None:
    result, _ = on_halo(document_flow.flow(), document_flow.read_documents())
    said = [[source for source, _, _ in transcript(run.result)] for run in result]
    assert all(names[:4] == ["user", "summary", "facts", "tone"] for names in said)
    endings = {tuple(names[4:]) for names in said}
    assert ("editor", "headline") in endings and ("editor", "cutter", "editor", "headline") in endings


@pytest.mark.parametrize("name", EXAMPLES)
def test_transcripts_equal_those_of_plain_autogen(name: str, stub: StubServer) -> None:
    example: Example = EXAMPLES[name](4)
    result, _ = on_halo(example.team(), example.tasks)
    seen = stub.chats
    plain, _ = on_autogen(example.plain, example.tasks, [f"{stub.url}/v1"])
    assert stub.chats - seen == result.stats.total.planned > result.stats.total.executed
    for run, other in zip(result, plain, strict=True):
        assert transcript(run.result, example.side_by_side) == transcript(other, example.side_by_side)
        assert len(transcript(run.result)) > 4


@pytest.mark.parametrize("make", [review_team.team, document_flow.flow])
def test_explain_has_a_plan(make: Callable[[], object], simulated: EnginePool) -> None:
    text = explain(make(), ["one", "two", "one"])  # type: ignore[arg-type]
    assert "rows: 3, 2 of them distinct" in text and f"pool: {SERVED}" in text and "no plan" not in text


def _start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_as_a_program(name: str, tmp_path: Path) -> None:
    done = _start(tmp_path, "-m", f"examples.{name}", "--simulated", "--rows", "6")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 rows done" in done.stdout + done.stderr and "calls executed" in done.stdout
    refused = _start(tmp_path, "-m", f"examples.{name}", "--simulated", "--plain")
    assert refused.returncode == 2 and "--plain needs engines with an address" in refused.stderr


def test_halo_run_of_the_review_team(tmp_path: Path) -> None:
    (tmp_path / "halo.toml").write_text(SIMULATED)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"task": task}) + "\n" for task in review_team.read_tasks(6)))
    command = ("-m", "halo_core.cli", "run", "examples.review_team.team:team", "--input", "tasks.jsonl")

    done = _start(tmp_path, *command, "--output", "out.jsonl")

    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == review_team.read_tasks(6)
    assert {row["stop_reason"] for row in rows} == {"Maximum number of turns 6 reached."}

    again = _start(tmp_path, *command, "--output", "out.jsonl", "--resume")
    assert again.returncode == 0 and "6 of 6 rows are finished" in again.stderr
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows


def test_the_configuration_of_the_review_team_is_that_of_the_reading_desk() -> None:
    """Both examples use the model that `make model` fetches."""
    examples = REPOSITORY / "examples"
    assert PoolConfig.from_file(examples / "review_team" / "halo.toml") == PoolConfig.from_file(
        examples / "reading_desk" / "halo.toml"
    )
