"""How a vLLM engine is started: its settings, and the command line and environment that they become."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from halo_core.errors import EngineStartError
from halo_core.pool.machine import machine

MAIN = Path(__file__).with_name("vllm_main.py")

# The CPU backend's own executor starts a worker process in order to set OpenMP up; `vllm_main` has done that already.
_CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_CPU_KV_GIB = 2.0
_CPU_BLOCK_SIZE = 32
"""vLLM's default on a CPU is 128, which wastes up to 127 tokens of every shared prefix."""


@dataclass(slots=True, frozen=True)
class Placement:
    """Where one engine runs: on GPUs (as many as its tensor-parallel degree), or on CPU cores."""

    cores: tuple[int, ...] = ()
    """Ids of the CPU cores that it is kept on; empty on a GPU."""
    gpus: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.gpus:
            return f"GPU {','.join(map(str, self.gpus))}"
        return f"core {','.join(map(str, self.cores))}"


@dataclass(slots=True, frozen=True)
class StoreSettings:
    """The host's block store, as an engine is told of it."""

    root: str
    cap_bytes: int
    required: bool = False
    """Whether an engine that cannot use it must not start; else it works without, and says why."""
    check: bool = False
    """Whether blocks have checksums, which are verified."""
    token_bytes: int = 0
    """KV of one token; 0 where it is not known."""

    @property
    def cap_tokens(self) -> int:
        """KV of so many tokens fits into the store; 0 where the model's KV is not known."""
        return self.cap_bytes // self.token_bytes if self.token_bytes else 0


@dataclass(slots=True, frozen=True)
class VLLMSettings:
    """What vLLM is told about the model and its own limits."""

    path: str
    """Folder with safetensors, or a hub name."""
    dtype: str = "auto"
    """`auto` is the model's own, except on CPUs without bfloat16 arithmetic, where it is float32."""
    max_num_seqs: int = 32
    max_model_len: int | None = None
    """None is the model's own."""
    max_num_batched_tokens: int | None = None
    """Tokens of one scheduler step; None is vLLM's choice."""
    kv_cache_gib: float | None = None
    """KV cache of the engine, GiB. None: what vLLM finds free on a GPU; 2 GiB, or less on a small machine, on a CPU."""
    block_size: int | None = None
    """Tokens per KV block. None: vLLM's choice on a GPU, 32 on a CPU."""
    eager: bool | None = None
    """Skip torch.compile and CUDA graphs. None: on a CPU only, where compiling costs a minute."""
    tool_parser: str = "auto"
    """vLLM's parser for tool calls; `auto` looks at the chat template, `none` leaves tool calls in the text."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of vLLM's server; they come last, so they win."""
    store: StoreSettings | None = None
    """Where it shares KV with the other engines of the host; None: it does not."""


def engine_dtype(settings: VLLMSettings, *, gpu: bool) -> str:
    """What `dtype` means on this machine."""
    if settings.dtype == "auto" and not gpu and not machine().bfloat16:
        return "float32"
    return settings.dtype


def engine_python(python: str | None) -> str:
    """The interpreter that has vLLM: the argument, `$HALO_VLLM_PYTHON`, or this one."""
    return python or os.environ.get("HALO_VLLM_PYTHON") or sys.executable


def cache_dir() -> Path:
    """Halo's folder for models, layouts and logs: `$HALO_CACHE`, else `~/.cache/halo`."""
    return Path(os.environ.get("HALO_CACHE") or Path.home() / ".cache" / "halo").expanduser().absolute()


def find_model(path: str) -> str:
    """The folder that `path` names, also as the name of a fetched model; a hub name stays as it is."""
    for folder in (Path(path).expanduser(), cache_dir() / "models" / path.rpartition("/")[2]):
        if path and (folder / "config.json").is_file():
            return str(folder)
    return path


def default_placement() -> Placement:
    """The first GPU where there is one, else all cores."""
    hardware = machine()
    if hardware.gpus:
        return Placement(gpus=(hardware.gpus[0].index,))
    return Placement(cores=tuple(core for node in hardware.cores for core in node))


def check_path(path: str) -> None:
    """Refuse a folder that holds no model before vLLM has been imported for it. Raises `EngineStartError`."""
    local = path.startswith(("/", "./", "../", "~")) or Path(path).exists()
    if local and not (Path(path).expanduser() / "config.json").is_file():
        raise EngineStartError(
            f"{path} is not a model's folder: it has no config.json. Give a folder with config.json, the tokenizer and "
            "safetensors, or a hub name; `python scripts/fetch_model.py` makes the default model and prints its folder"
        )
    if not local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise EngineStartError(f"{path!r} is neither a folder nor a hub name (owner/name)")


def engine_command(
    settings: VLLMSettings,
    placement: Placement,
    served_names: tuple[str, ...],
    *,
    python: str,
    listen_fd: int,
    scratch: Path,
    events_address: str = "",
) -> list[str]:
    """The command line of one engine."""
    gpu = bool(placement.gpus)
    eager = settings.eager if settings.eager is not None else not gpu
    own = ["--fd", str(listen_fd), "--parent", str(os.getpid()), "--scratch", str(scratch)]
    args = ["--model", find_model(settings.path)]
    args += ["--served-model-name", *served_names, "--dtype", engine_dtype(settings, gpu=gpu)]
    args += ["--max-num-seqs", str(settings.max_num_seqs), "--scheduling-policy", "priority"]
    args += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    if settings.max_model_len is not None:
        args += ["--max-model-len", str(settings.max_model_len)]
    if settings.max_num_batched_tokens is not None:
        args += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    if eager:
        args += ["--enforce-eager"]
    if parser := tool_parser(settings):
        args += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if events_address:
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": events_address}
        args += ["--kv-events-config", json.dumps(events)]
    kv_gib = settings.kv_cache_gib
    block_size = settings.block_size
    if gpu:
        args += ["--tensor-parallel-size", str(len(placement.gpus))] if len(placement.gpus) > 1 else []
    else:
        own += ["--fork"]
        args += ["--distributed-executor-backend", _CPU_EXECUTOR]
        # Left to itself the CPU backend takes most of the machine's memory.
        kv_gib = kv_gib or min(_CPU_KV_GIB, psutil.virtual_memory().available / 2**30 / 4)
        block_size = block_size or _CPU_BLOCK_SIZE
    if settings.store is not None and not gpu:
        own += ["--kv-store", json.dumps(asdict(settings.store))]
    elif settings.store is not None and settings.store.required:
        args += _offloading(settings.store)
    if placement.cores:
        own += ["--cores", ",".join(map(str, placement.cores))]
    if kv_gib:
        args += ["--kv-cache-memory-bytes", str(int(kv_gib * 2**30))]
    if block_size:
        args += ["--block-size", str(block_size)]
    return [python, str(MAIN), *own, "--", *args, *settings.extra_args]


def _offloading(store: StoreSettings) -> list[str]:
    """On GPUs: KV goes to host memory by LMCache where it is installed, else by vLLM's own connector."""
    backend = "lmcache" if find_spec("lmcache") is not None else "native"
    return ["--kv-offloading-size", f"{store.cap_bytes / 2**30:.3f}", "--kv-offloading-backend", backend]


def engine_environment(settings: VLLMSettings, placement: Placement, *, python: str, scratch: Path) -> dict[str, str]:
    """The environment of one engine: the user's, plus what makes it quiet, offline where it can be, and alone."""
    env = dict(os.environ)
    if python != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            env.pop(name, None)
    env |= {
        "TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache; the server listens on loopback only
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",  # equal prefixes get equal block hashes in all engines
        "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",  # whole hashes, as answers name the blocks
        "PYTHONUNBUFFERED": "1",
    }
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    env.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    if Path(settings.path).expanduser().is_dir():
        env.setdefault("HF_HUB_OFFLINE", "1")
    if placement.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, placement.gpus))
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts
    return env


_PARSERS = (
    ("<|python_tag|>", "llama3_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("<|im_start|>", "hermes"),
)


def tool_parser(settings: VLLMSettings) -> str:
    """vLLM's tool-call parser for the model; empty where there is none to be found."""
    if settings.tool_parser != "auto":
        return "" if settings.tool_parser == "none" else settings.tool_parser
    folder = Path(settings.path).expanduser()
    template = ""
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if (folder / name).is_file():
            template += (folder / name).read_text("utf-8", "replace")
    if not template:
        return "hermes" if re.search(r"qwen|hermes|smollm", settings.path, re.IGNORECASE) else ""
    return next((parser for mark, parser in _PARSERS if mark in template), "")
