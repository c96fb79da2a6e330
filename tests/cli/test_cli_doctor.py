"""`halo doctor`: what is configured is looked at, and what cannot work is said."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Halo, Project
from tests.cli.gated_stub import GatedStub


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lines long enough for what is looked for, and a cache of the test's own."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))


def line(text: str, subject: str) -> str:
    """The line about `subject`."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    found = [line for line in lines if subject in line]
    assert found, text
    return found[0]


def test_what_is_there(project: Project, halo: Halo) -> None:
    (project.path / "cache" / "calibrations").mkdir(parents=True)
    project.write("cache/calibrations/cpu.json", "x" * 1024)
    result = halo("doctor", "--models", "gpt=small")
    assert result.code == 0, result.out
    for subject in ("python", "halo", "langgraph", "openai", "adapter langgraph", "cores", "memory"):
        assert line(result.out, subject).startswith("ok"), subject
    assert line(result.out, "file") == "ok file halo.toml"
    assert line(result.out, "name gpt") == "ok name gpt small"
    assert line(result.out, "simulated small").startswith("ok")
    assert line(result.out, "calibrations") == "ok calibrations 1 files, 0.0 MiB"


def test_nothing_configured_is_off_not_wrong(project: Project, halo: Halo) -> None:
    (project.path / "halo.toml").unlink()
    result = halo("doctor")
    assert result.code == 0, result.out
    assert (
        line(result.out, "off engines")
        == "off engines none configured: only servers that the app itself names are used"
    )


def test_endpoints_are_asked(project: Project, halo: Halo) -> None:
    with GatedStub().threaded() as stub:
        project.endpoint(stub.url)
        assert f"{stub.url} answers in" in line(halo("doctor").out, "endpoint small")

        started = halo("doctor", "--start")
        assert started.code == 0, started.out
        assert line(started.out, "start small").startswith("ok start small 1 of 1 up")
        assert "answered 4 tokens" in line(started.out, f"small@{stub.url}")

        project.endpoint(stub.url, model="large")
        wrong = halo("doctor")
        assert wrong.code == 1 and "does not list 'large' but small" in line(wrong.out, "fail endpoint large")
        project.endpoint(stub.url, model="large", more='served_as = "small"\n')
        assert halo("doctor").code == 0

        project.endpoint(stub.url, more='api_key_env = "NOT_SET_ANYWHERE"\n')
        assert "NOT_SET_ANYWHERE is not set" in line(halo("doctor").out, "fail endpoint small")


def test_what_cannot_work(project: Project, halo: Halo) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        project.write(
            "halo.toml",
            f'[models]\ngpt = "none"\n[[engines]]\nkind = "endpoint"\nmodel = "small"\nurl = "{url}"\n'
            '[[engines]]\nkind = "vllm"\nmodel = "gone"\npath = "/nowhere/gone"\n'
            f'[[engines]]\nkind = "vllm"\nmodel = "empty"\npath = "{project.path}"\n',
        )
        result = halo("doctor")
    assert result.code == 1
    assert "which no engine serves" in line(result.out, "fail name gpt")
    assert "does not answer" in line(result.out, "fail endpoint small")
    assert "there is no folder /nowhere/gone" in line(result.out, "fail vllm gone")
    assert "has no config.json" in line(result.out, "fail vllm empty")
    assert "4 problems" in result.out


def test_vllm_in_an_interpreter_of_its_own(project: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked, not this one; and weights are looked for where the engine looks."""
    cache = project.path / "cache"
    (cache / "models" / "tiny").mkdir(parents=True)
    (cache / "models" / "tiny" / "config.json").write_text("{}")
    monkeypatch.setenv("HALO_CACHE", str(cache))
    project.write("halo.toml", '[[engines]]\nkind = "vllm"\nmodel = "tiny"\npath = "someone/tiny"\n')
    answers = project.path / "python"
    for status, said in ((0, False), (1, True)):
        answers.write_text(f"#!/bin/sh\nexit {status}\n")
        answers.chmod(0o755)
        monkeypatch.setenv("HALO_VLLM_PYTHON", str(answers))
        out = halo("doctor").out
        assert (f"vLLM is not installed for {answers}" in out.replace("\n", "")) == said
        assert f"weights in {cache}/models/tiny" in line(out, "ok vllm tiny")


@pytest.mark.parametrize("text", ["engines = 3", "[[engines]\n", '[[engines]]\nkind = "vlm"\nmodel = "x"\n'])
def test_a_broken_configuration(project: Project, halo: Halo, text: str) -> None:
    project.write("halo.toml", text)
    result = halo("doctor")
    assert result.code == 1
    assert "halo.toml" in line(result.out, "fail configuration")


def test_models_that_take_turns(project: Project, halo: Halo) -> None:
    models = "".join(f'[[engines]]\nkind = "simulated"\nmodel = "{name}"\n' for name in "abc")
    project.write("halo.toml", f"places = 2\n{models}")
    result = halo("doctor")
    assert result.code == 0, result.out
    assert line(result.out, "places") == "ok places 2 for 3 models (a, b, c), which take turns"
    result = halo("doctor", "--start")
    assert result.code == 0, result.out
    assert line(result.out, "start c").startswith("ok start c 1 of 1 up")
    assert "1 in" in line(result.out, "switches")
    assert "loads" in line(result.out, "place 0")


def test_more_places_than_cores(project: Project, halo: Halo) -> None:
    project.write("halo.toml", 'places = 9999\n[[engines]]\nkind = "vllm"\nmodel = "a"\n')
    result = halo("doctor", "--start")
    assert result.code == 1
    assert "places = 9999, but this process may use" in line(result.out, "fail places")
