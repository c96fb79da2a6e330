"""A project folder with an app in it, and the `halo` command inside this process or as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from halo_adapters.langgraph import patch
from halo_core.cli import main
from halo_core.pool import pool

REPOSITORY = Path(__file__).parents[2]

APP = """
import os
import sys
from pathlib import Path
from typing import TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

Path("imported").touch()


class State(TypedDict, total=False):
    question: str
    draft: str
    answer: str


llm = ChatOpenAI(
    model="small", temperature=0, max_tokens=8, max_retries=0, api_key="x",
    base_url=os.environ.get("STUB_URL", "http://127.0.0.1:9/v1"),
)


def draft(state):
    with open("drafts", "a") as file:
        file.write(state["question"] + "\\n")
    return {"draft": llm.invoke("Draft an answer: " + state["question"]).content}


def answer(state):
    if state["question"] == "bad" and not Path("cured").exists():
        raise ValueError("a bad question\\nof two lines")
    if state["question"] == "exit":
        sys.exit(7)
    return {"answer": llm.invoke("Improve " + state["draft"] + " for " + state["question"]).content}


async def adraft(state):
    return {"draft": (await llm.ainvoke("Draft an answer: " + state["question"])).content}


async def aanswer(state):
    return {"answer": (await llm.ainvoke("Improve " + state["draft"] + " for " + state["question"])).content}


def build(draft=draft, answer=answer):
    builder = StateGraph(State)
    builder.add_node("draft", draft)
    builder.add_node("answer", answer)
    builder.add_edge(START, "draft")
    builder.add_edge("draft", "answer")
    builder.add_edge("answer", END)
    return builder


builder = build()
graph = builder.compile()
agraph = build(adraft, aanswer).compile()


def broken():
    raise RuntimeError("no database")


def needs_an_argument(path):
    return graph


class Holder:
    inner = build().compile()
"""

SIMULATED = """
[[engines]]
kind = "simulated"
model = "small"
"""


@dataclass(slots=True, frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass(slots=True, frozen=True)
class Project:
    """The folder that commands run in."""

    path: Path

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text, "utf-8")
        return path

    def rows(self, *questions: str, name: str = "rows.jsonl") -> None:
        self.write(name, "".join(json.dumps({"question": question}) + "\n" for question in questions))

    def output(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / name).read_text("utf-8").splitlines()]

    def drafts(self) -> list[str]:
        """The rows whose first node was run, in any run so far."""
        return (self.path / "drafts").read_text().splitlines()

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def endpoint(self, url: str, *, model: str = "small", more: str = "") -> None:
        self.write("halo.toml", f'[[engines]]\nkind = "endpoint"\nmodel = "{model}"\nurl = "{url}"\n{more}')

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """`halo ARGUMENTS` as a process of its own."""
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [sys.executable, "-m", "halo_core.cli", *arguments],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        """`halo ARGUMENTS` as a process of its own, to its end."""
        process = self.start(*arguments, env=env)
        out, err = process.communicate(timeout=240)
        return Result(process.returncode, out, err)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """An empty folder but for `app.py` and a simulated pool, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("HALO_CONFIG", "HALO_DEBUG", "HALO_LANGGRAPH_BACKEND", "STUB_URL"):
        monkeypatch.delenv(name, raising=False)
    made = Project(tmp_path)
    made.write("app.py", APP)
    made.write("halo.toml", SIMULATED)
    yield made


Halo = Callable[..., Result]


@pytest.fixture
def halo(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Halo]:
    """The `halo` command inside this process."""
    path, modules = list(sys.path), set(sys.modules)

    def call(*arguments: str) -> Result:
        _forget(modules)
        monkeypatch.setattr(sys, "argv", ["halo", *arguments])
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
        finally:
            if pool._pool is not None:
                pool._pool.close()
            sys.path[:] = path
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    patch.uninstall()
    _forget(modules)


def _forget(known: Sequence[str] | set[str]) -> None:
    """Unload what a test's project folder brought in."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name not in known and "pytest" in file:
            del sys.modules[name]
