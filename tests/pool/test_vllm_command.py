"""How a vLLM engine is started: number format, memory, tools, paths, and what is made of a failed start's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from halo_core.errors import EngineStartError
from halo_core.pool import vllm_command
from halo_core.pool.machine import GPU, Machine, machine
from halo_core.pool.vllm_command import (
    Placement,
    StoreSettings,
    VLLMSettings,
    check_path,
    default_placement,
    engine_command,
    engine_dtype,
    engine_environment,
    find_model,
    tool_parser,
)
from halo_core.pool.vllm_failure import start_failure


def command(settings: VLLMSettings, placement: Placement) -> str:
    """The command line as one string."""
    return " ".join(engine_command(settings, placement, ("m",), python="python", listen_fd=9, scratch=Path("/tmp/s")))


def test_bfloat16_only_where_the_cores_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "auto"), (False, "float32")):
        hardware = Machine(((0,),), (), 8.0, "test CPU", has)
        monkeypatch.setattr(vllm_command, "machine", lambda hardware=hardware: hardware)
        assert engine_dtype(VLLMSettings("p"), gpu=False) == expected
        assert engine_dtype(VLLMSettings("p"), gpu=True) == "auto"
        assert engine_dtype(VLLMSettings("p", dtype="bfloat16"), gpu=False) == "bfloat16"


def test_on_cores() -> None:
    line = command(VLLMSettings("owner/name", dtype="float32", kv_cache_gib=1.5), Placement(cores=(2, 3)))
    assert "--cores 2,3" in line
    assert "--fork" in line
    assert "--enforce-eager" in line
    assert "--kv-cache-memory-bytes 1610612736" in line
    assert "--block-size 32" in line
    assert "--tensor-parallel-size" not in line


def test_on_gpus(tmp_path: Path) -> None:
    settings = VLLMSettings("owner/name")
    line = command(settings, Placement(gpus=(1, 3)))
    assert "--tensor-parallel-size 2" in line
    for absent in ("--fork", "--enforce-eager", "--kv-cache-memory-bytes", "--block-size", "--cores"):
        assert absent not in line
    env = engine_environment(settings, Placement(gpus=(1, 3)), python="python", scratch=tmp_path)
    assert env["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert "PYTHONPATH" not in env, "another interpreter must not see this one's packages"


@pytest.mark.parametrize(("installed", "backend"), [(None, "native"), (object(), "lmcache")])
def test_on_gpus_kv_goes_to_host_memory_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, installed: object, backend: str
) -> None:
    monkeypatch.setattr(vllm_command, "find_spec", lambda name: installed if name == "lmcache" else None)
    asked = StoreSettings("/store", 3 << 29, required=True)
    line = command(VLLMSettings("owner/name", store=asked), Placement(gpus=(0,)))
    assert f"--kv-offloading-size 1.500 --kv-offloading-backend {backend}" in line
    assert "--kv-store" not in line
    left = command(VLLMSettings("owner/name", store=StoreSettings("/store", 1 << 30)), Placement(gpus=(0,)))
    assert "--kv-offloading" not in left
    assert "--kv-offloading" not in command(VLLMSettings("owner/name", store=asked), Placement(cores=(0,)))


def test_default_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_placement().cores or machine().gpus
    hardware = Machine(((0, 1),), (GPU(5, "H100", 1), GPU(6, "H100", 1)), 8.0, "test CPU", True)
    monkeypatch.setattr(vllm_command, "machine", lambda: hardware)
    assert default_placement() == Placement(gpus=(5,))


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{{ '<|im_start|>' }}", "hermes"),
        ("... <tool_call> ...", "hermes"),
        ("... <|python_tag|> ...", "llama3_json"),
        ("[TOOL_CALLS]", "mistral"),
        ("<tool_call>\n<function=f>", "qwen3_coder"),
        ("{{ messages }}", ""),
    ],
)
def test_the_tool_parser_follows_the_chat_template(tmp_path: Path, template: str, parser: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    assert tool_parser(VLLMSettings(str(tmp_path))) == parser
    assert tool_parser(VLLMSettings(str(tmp_path), tool_parser="none")) == ""
    assert tool_parser(VLLMSettings(str(tmp_path), tool_parser="pythonic")) == "pythonic"


def test_a_fetched_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "Some-Model"
    assert find_model("owner/Some-Model") == "owner/Some-Model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert find_model("Some-Model") == find_model("owner/Some-Model") == find_model(str(folder)) == str(folder)
    assert find_model("") == ""


@pytest.mark.parametrize("path", ["/nowhere", "./nowhere", "~/nowhere", "not a model", "a/b/c", ""])
def test_what_cannot_be_a_model_is_refused(path: str) -> None:
    with pytest.raises(EngineStartError, match="folder"):
        check_path(path)


def test_hub_names_pass() -> None:
    check_path("HuggingFaceTB/SmolLM2-135M-Instruct")
    check_path("gpt2")


@pytest.mark.parametrize(
    ("log", "ending", "said"),
    [
        ("x\nModuleNotFoundError: No module named 'vllm'", "exit status 1", "set HALO_VLLM_PYTHON"),
        ("vllm: error: argument --dtype: invalid choice: 'x'", "exit status 2", "Give a dtype"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "exit status 1", "lower kv_cache_gib"),
        ("INFO loading", "signal SIGKILL", "lower kv_cache_gib"),
        (
            "ValueError: 9 GiB KV cache is needed, above available memory",
            "exit status 1",
            "raise kv_cache_gib",
        ),
        (
            "OSError: owner/x is no valid model; see https://huggingface.co",
            "exit status 1",
            "Check the model's name",
        ),
        ("", "exit status 3", "it ended with exit status 3"),
    ],
)
def test_a_failed_start_is_explained(log: str, ending: str, said: str) -> None:
    assert said in start_failure(log, ending)


def test_the_root_cause_counts_not_its_consequences() -> None:
    log = "ValueError: the cause.\nRuntimeError: Engine core initialization failed. See root cause above."
    assert start_failure(log, "exit status 1") == "ValueError: the cause"
