"""The life of an engine's program: start, failures, death of any part of it, restart, and nothing left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from halo_core.errors import EngineDiedError, EngineStartError
from halo_core.pool import vllm as vllm_module
from halo_core.pool.call import LLMCall
from halo_core.pool.vllm import VLLMEngine
from halo_core.pool.vllm_command import Placement, StoreSettings, VLLMSettings

_ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("fake_vllm", Path(__file__).with_name("fake_vllm.py"))
assert _spec is not None
assert _spec.loader is not None
fake_vllm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_vllm)

HELLO = LLMCall("m", {"messages": [{"role": "user", "content": "hello"}]}, priority=5)
FOREVER = LLMCall("m", {"messages": [{"role": "user", "content": "forever"}]})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a model, with the stand-in for vLLM in the engines' way."""
    fake_vllm.install(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("HALO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HALO_VLLM_PYTHON", raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[VLLMEngine]:
    """An engine on the stand-in, closed at the end."""
    engine = VLLMEngine("e", "m", VLLMSettings(str(model)), start_timeout_s=60)
    yield engine
    await engine.close()


async def ask(engine: VLLMEngine) -> dict[str, Any]:
    """What the stand-in says of itself."""
    document = (await engine.complete(HELLO)).parse()
    said: dict[str, Any] = json.loads(document["choices"][0]["message"]["content"])
    return said


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether no live process has this id."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_it_learns_its_limits_and_answers(engine: VLLMEngine) -> None:
    await engine.start()
    await engine.start()
    assert engine.health.state == "ready"
    capacity = engine.capacity
    assert (capacity.slots, capacity.kv_tokens, capacity.block_size, capacity.max_model_len) == (32, 320, 32, 77)
    said = await ask(engine)
    assert said["body"]["priority"] == 5
    assert said["body"]["model"] == "m"
    assert engine.counters.calls == 1
    assert engine.counters.prompt_tokens == 3


async def test_the_program_gets_its_arguments_and_environment(model: Path) -> None:
    core = min(os.sched_getaffinity(0))
    settings = VLLMSettings(str(model), dtype="float32", max_num_seqs=7, max_model_len=99, extra_args=("--seed", "3"))
    engine = VLLMEngine("e", "m", settings, Placement(cores=(core,)), aliases=("gpt-x",))
    await engine.start()
    said = await ask(engine)
    pid = engine.pid
    assert pid is not None
    assert psutil.Process(pid).cpu_affinity() == [core]
    await engine.close()
    args = " ".join(said["args"])
    for wanted in ("--served-model-name m gpt-x", "--dtype float32", "--max-num-seqs 7", "--max-model-len 99"):
        assert wanted in args
    assert said["args"].index("--seed") > said["args"].index("--max-num-seqs")
    env = said["env"]
    assert (env["OMP_NUM_THREADS"], env["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", str(core))
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["VLLM_SERVER_DEV_MODE"] == "1"
    assert not Path(env["TMPDIR"]).exists(), "its scratch folder is removed with it"


async def test_a_start_that_finds_no_port_leaves_no_folder(
    engine: VLLMEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"

    def make() -> Path:
        scratch.mkdir()
        return scratch

    def bind(port: int) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(vllm_module, "scratch_folder", make)
        patch.setattr(vllm_module, "_bound_socket", bind)
        with pytest.raises(EngineStartError, match="Too many open files"):
            await engine.start()
    assert not scratch.exists()
    await engine.start()
    assert engine.health.state == "ready"


async def test_close_leaves_no_process(engine: VLLMEngine) -> None:
    await engine.start()
    child, pid = (await ask(engine))["child"], engine.pid
    assert pid is not None
    await engine.close()
    assert gone(pid)
    assert gone(child)
    assert engine.health.state == "closed"
    with pytest.raises(EngineStartError, match="was closed"):
        await engine.start()


async def test_a_killed_program_fails_its_calls_at_once_and_restarts(engine: VLLMEngine) -> None:
    await engine.start()
    url, pid, child = engine.base_url, engine.pid, (await ask(engine))["child"]
    assert pid is not None
    calls = [asyncio.create_task(engine.complete(FOREVER)) for _ in range(3)]
    await eventually(lambda: len(psutil.Process(pid).net_connections()) >= 4)
    os.kill(pid, signal.SIGKILL)
    for call in calls:
        with pytest.raises(EngineDiedError):
            await call
    assert engine.health.state == "dead"
    await eventually(lambda: "SIGKILL" in engine.health.detail)
    assert gone(child), "the engine core must not outlive its server"
    with pytest.raises(EngineDiedError):
        await engine.complete(HELLO)
    await engine.start()
    assert engine.base_url == url
    assert (await ask(engine))["child"] != child


async def test_restart_replaces_a_live_program(engine: VLLMEngine) -> None:
    await engine.start()
    child = (await ask(engine))["child"]
    await engine.restart()
    assert gone(child)
    assert (await ask(engine))["child"] != child
    assert engine.counters.restarts == 1


async def test_close_during_start(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "hang")
    starting = asyncio.create_task(engine.start())
    await eventually(lambda: engine.pid is not None)
    pid = engine.pid
    assert pid is not None
    await engine.close()
    with pytest.raises(EngineStartError, match="closed while it started"):
        await starting
    assert gone(pid)


async def test_a_cancelled_start_leaves_nothing_and_can_be_repeated(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "hang")
    starting = asyncio.create_task(engine.start())
    await eventually(lambda: engine.pid is not None)
    pid = engine.pid
    assert pid is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: gone(pid))
    monkeypatch.delenv("FAKE_VLLM")
    await engine.start()
    assert engine.health.state == "ready"


async def test_a_start_that_takes_too_long_is_given_up(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "hang")
    engine = VLLMEngine("e", "m", VLLMSettings(str(model)), start_timeout_s=1)
    with pytest.raises(EngineStartError, match="raise start_timeout_s"):
        await engine.start()
    await engine.close()
    assert engine.pid is None


@pytest.mark.parametrize(
    ("behaviour", "cause", "cure"),
    [
        ("raise", "ValueError: Unknown model architecture FakeForCausalLM", "The end of"),
        ("memory", "ValueError: Available memory on node 0", "lower kv_cache_gib"),
    ],
)
async def test_a_failed_start_names_cause_cure_and_log(
    engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch, behaviour: str, cause: str, cure: str
) -> None:
    monkeypatch.setenv("FAKE_VLLM", behaviour)
    with pytest.raises(EngineStartError) as failure:
        await engine.start()
    first = str(failure.value).splitlines()[0]
    assert cause in first
    assert cure in str(failure.value)
    assert str(engine.log) in str(failure.value)
    assert engine.health.state == "dead"
    monkeypatch.delenv("FAKE_VLLM")
    await engine.start()


async def test_a_folder_without_a_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    engine = VLLMEngine("e", "m", VLLMSettings(str(tmp_path)))
    with pytest.raises(EngineStartError, match=r"no config\.json"):
        await engine.start()
    assert engine.pid is None


@pytest.mark.parametrize("python", ["/nowhere/python", "empty"])
async def test_an_interpreter_without_vllm_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    if python == "empty":
        (model.parent / "packages" / "vllm" / "__init__.py").unlink()
        python = sys.executable
        monkeypatch.setenv("PYTHONPATH", str(_empty_vllm(model.parent)))
    engine = VLLMEngine("e", "m", VLLMSettings(str(model)), python=python)
    with pytest.raises(EngineStartError, match="HALO_VLLM_PYTHON"):
        await engine.start()
    await engine.close()


def _empty_vllm(folder: Path) -> Path:
    """A path entry that hides an installed vLLM."""
    blocker = folder / "blocker"
    blocker.mkdir()
    (blocker / "vllm.py").write_text("raise ModuleNotFoundError(\"No module named 'vllm'\", name='vllm')")
    return blocker


@pytest.mark.parametrize("forked_sibling", [False, True])
async def test_the_engine_dies_with_a_killed_parent(model: Path, forked_sibling: bool) -> None:
    """Also where a forked worker of the parent, which holds the engine's pipe open, lives on."""
    script = f"""
        import asyncio, json, os, sys, time
        from halo_core.pool.call import LLMCall
        from halo_core.pool.vllm import VLLMEngine
        from halo_core.pool.vllm_command import VLLMSettings

        async def main():
            engine = VLLMEngine("e", "m", VLLMSettings({str(model)!r}))
            await engine.start()
            call = LLMCall("m", {{"messages": [{{"role": "user", "content": "hello"}}]}})
            said = json.loads((await engine.complete(call)).parse()["choices"][0]["message"]["content"])
            sibling = os.fork() if {forked_sibling} else 0
            if {forked_sibling} and sibling == 0:
                os.close(1)
                time.sleep(60)
                os._exit(0)
            print(json.dumps([engine.pid, said["child"], sibling, said["env"]["TMPDIR"]]), flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=_ROOT)
    assert parent.stdout is not None
    pid, child, sibling, scratch = json.loads(await asyncio.to_thread(parent.stdout.readline))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await eventually(lambda: gone(pid) and gone(child))
    await eventually(lambda: not Path(scratch).exists())
    if sibling:
        os.kill(sibling, signal.SIGKILL)


async def test_an_exiting_interpreter_takes_its_engines_along(model: Path) -> None:
    script = f"""
        import asyncio
        from halo_core.pool.vllm import VLLMEngine
        from halo_core.pool.vllm_command import VLLMSettings

        engine = VLLMEngine("e", "m", VLLMSettings({str(model)!r}))
        loop = asyncio.new_event_loop()
        loop.run_until_complete(engine.start())
        print(engine.pid)
    """
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid = int(done.stdout)
    await eventually(lambda: gone(pid))
    assert "Traceback" not in done.stderr


# -- shared KV ---------------------------------------------------------------------------------------------------------


def connectors(folder: Path, methods: str) -> None:
    """Give the stand-in a connector interface with these abstract methods."""
    base = folder / "vllm" / "distributed" / "kv_transfer" / "kv_connector" / "v1"
    base.mkdir(parents=True)
    (base / "base.py").write_text(
        "import abc\nclass KVConnectorMetadata: pass\nclass KVConnectorRole: pass\n"
        f"class KVConnectorBase_V1(abc.ABC):\n{textwrap.indent(methods, '    ')}\n"
    )
    output = folder / "vllm" / "v1" / "core" / "sched"
    output.mkdir(parents=True)
    (output / "output.py").write_text("class SchedulerOutput: pass\n")
    (folder / "vllm" / "version.py").write_text("__version__ = '0.99'\n")


NOVEL = "@abc.abstractmethod\ndef beam_kv(self): ...\n"


@pytest.mark.parametrize(
    ("methods", "why"),
    [
        ("", "this vLLM has no KV connectors (No module named 'vllm.distributed')"),
        (NOVEL, "the KV connector interface of vLLM 0.99 differs: it has no get_num_new_matched_tokens"),
    ],
)
async def test_a_vllm_whose_connectors_differ_shares_no_kv(model: Path, tmp_path: Path, methods: str, why: str) -> None:
    if methods:
        connectors(tmp_path / "packages", methods)
    store = StoreSettings(str(tmp_path / "store"), 1 << 20)
    engine = VLLMEngine("e", "m", VLLMSettings(str(model), store=store), start_timeout_s=60)
    await engine.start()
    assert engine.sharing is None
    assert why in engine.not_sharing
    said = await ask(engine)
    assert "--kv-transfer-config" not in said["args"]
    assert "kv_transfer_params" not in said["body"]
    await engine.close()
    required = VLLMSettings(str(model), store=StoreSettings(str(tmp_path / "store"), 1 << 20, required=True))
    engine = VLLMEngine("e", "m", required, start_timeout_s=60)
    with pytest.raises(EngineStartError, match="Set kv_sharing = 'auto' or 'off'"):
        await engine.start()
    await engine.close()


async def test_a_store_that_cannot_be_made_shares_no_kv(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = VLLMSettings(str(model), store=StoreSettings(str(tmp_path / "file" / "store"), 1 << 20))
    connectors(tmp_path / "packages", _WHOLE)
    (tmp_path / "packages" / "vllm" / "v1" / "core" / "sched" / "output.py").write_text(
        "class SchedulerOutput:\n    __dataclass_fields__ = {'kv_connector_block_state': None}\n"
    )
    engine = VLLMEngine("e", "m", settings, start_timeout_s=60)
    await engine.start()
    assert "store cannot be used: Not a directory" in engine.not_sharing
    await engine.close()


async def test_a_program_that_shares_kv_is_told_of_the_store(model: Path, tmp_path: Path) -> None:
    connectors(tmp_path / "packages", _WHOLE)
    (tmp_path / "packages" / "vllm" / "v1" / "core" / "sched" / "output.py").write_text(
        "class SchedulerOutput:\n    __dataclass_fields__ = {'kv_connector_block_state': None}\n"
    )
    store = StoreSettings(str(tmp_path / "store"), 1 << 20, check=True)
    engine = VLLMEngine("e", "m", VLLMSettings(str(model), store=store), start_timeout_s=60)
    await engine.start()
    assert engine.not_sharing == ""
    said = await ask(engine)
    config = json.loads(said["args"][said["args"].index("--kv-transfer-config") + 1])
    assert config["kv_connector"] == "HaloConnector"
    assert config["kv_load_failure_policy"] == "recompute"
    assert config["kv_connector_extra_config"]["root"] == str(tmp_path / "store")
    assert said["body"]["kv_transfer_params"] == {"halo": {"save": 0, "load": True, "last": False, "pin_s": 0.0}}
    assert engine.sharing is not None
    assert engine.sharing.counters()["saved_blocks"] == 0
    await engine.close()


_HOOKS = (
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "request_finished",
    "register_kv_caches",
    "start_load_kv",
    "wait_for_save",
    "get_block_ids_with_load_errors",
    "get_finished",
)
_WHOLE = "\n".join(f"def {name}(self): ..." for name in _HOOKS)
