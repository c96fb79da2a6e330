"""The command line with AutoGen: `halo run`, `halo explain` and `halo exec` on teams and scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = """
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

INFO = {"vision": False, "function_calling": True, "json_output": True, "family": "unknown", "structured_output": True}


def team():
    client = OpenAIChatCompletionClient(
        model="gpt-4o-mini", api_key="x", base_url="http://127.0.0.1:9/v1", temperature=0, model_info=INFO
    )
    people = [AssistantAgent(name, client, system_message=f"You are the {name}.") for name in ("writer", "critic")]
    return RoundRobinGroupChat(people, max_turns=3)


made = team()
"""

SCRIPT = """
import asyncio
from app import team


async def main():
    results = await asyncio.gather(*(team().run(task=task) for task in ["one", "two", "one"]))
    for result in results:
        print(result.messages[-1].content)


asyncio.run(main())
"""

CONFIG = """
[[engines]]
kind = "simulated"
model = "sim"

[models]
"*" = "sim"
"""

ROWS = [{"task": "one"}, {"task": "two"}, {"tusk": "bad"}, {"task": "one"}, {"task": ["hello", {"content": "more"}]}]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "halo.toml").write_text(CONFIG)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def halo(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "halo_core.cli", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("target", ["app:team", "app:made"])
def test_run_and_resume(project: Path, target: str) -> None:
    done = halo(project, "run", target, "-i", "rows.jsonl", "-o", "out.jsonl")
    assert done.returncode == 1, done.stderr
    assert "row 2 (rows.jsonl, line 3): ConfigError: the row has no 'task'" in done.stderr
    lines = [json.loads(line) for line in (project / "out.jsonl").read_text().splitlines()]
    assert lines[2]["error"]["type"] == "ConfigError"
    assert [len(line["messages"]) for i, line in enumerate(lines) if i != 2] == [4, 4, 4, 5]
    texts = [[m["content"] for m in line["messages"]] for i, line in enumerate(lines) if i != 2]
    assert texts[0] == texts[2] != texts[1]
    assert "executed  " in done.stdout and "shared" in done.stdout
    rows = [row if "task" in row else {"task": "cured"} for row in ROWS]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = halo(project, "run", target, "-i", "rows.jsonl", "-o", "out.jsonl", "--resume")
    assert again.returncode == 0, again.stderr
    assert "4 of 5 rows are finished" in again.stderr
    assert [
        json.loads(line)["messages"][0]["content"] for line in (project / "out.jsonl").read_text().splitlines()
    ] == [
        "one",
        "two",
        "cured",
        "one",
        "hello",
    ]


def test_explain(project: Path) -> None:
    rows = [row for row in ROWS if "task" in row]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = halo(project, "explain", "app:team", "--input", "rows.jsonl")
    assert told.returncode == 0, told.stderr
    assert "writer: llm gpt-4o-mini" in told.stdout and "pool: sim" in told.stdout
    assert "rows: 4, 3 of them distinct" in told.stdout
    analyzed = halo(project, "explain", "app:team", "--input", "rows.jsonl", "--analyze")
    assert "rows: 4 done, 0 failed" in analyzed.stdout, analyzed.stderr
    document = json.loads(halo(project, "explain", "app:team", "--json").stdout)
    assert [operator["name"] for operator in document["plan"]["operators"]][:2] == ["writer", "critic"]


def test_explain_refuses_a_row_without_a_task(project: Path) -> None:
    told = halo(project, "explain", "app:team", "--input", "rows.jsonl")
    assert told.returncode != 0 and "has no 'task'" in told.stderr and "Traceback" not in told.stderr


def test_exec_runs_an_unmodified_script_on_the_pool(project: Path) -> None:
    done = halo(project, "exec", "script.py")
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("\n")
    assert answers[0] == answers[2] != answers[1]
    assert "9 calls seen in 3 runs: 6 executed, 3 shared, 0 left alone" in done.stderr


def test_exec_resumes_calls(project: Path) -> None:
    first = halo(project, "exec", "--journal", "calls.db", "script.py")
    second = halo(project, "exec", "--journal", "calls.db", "--resume", "script.py")
    assert second.stdout == first.stdout
    assert "0 executed, 3 shared, 6 replayed" in second.stderr


def test_doctor_knows_the_adapter(project: Path) -> None:
    told = halo(project, "doctor")
    assert "adapter autogen" in told.stdout and "autogen-agentchat" in told.stdout
