"""Halo's KV connector for vLLM: KV blocks come from the host's block store and go there, for calls that ask for it.

A call asks by `kv_transfer_params={"halo": {"save": N, "load": true, "last": false, "pin_s": 0}}`: what the store has
of its prompt is loaded, and its first N tokens are saved (-1: all, its answer included); `last` says that nobody will
ask for what lies behind those, `pin_s` that somebody will, within so many seconds. A call that does not ask is served
as if there were no store.

Saving is done when a step ends, before anything else can take its blocks. Short loads are done before the step that
needs them, since copying is far cheaper than a step; long ones beside other requests' steps, by a thread. A block that
is gone or torn when it is to be loaded is reported to vLLM, which computes it (`kv_load_failure_policy="recompute"`).
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.version import __version__ as vllm_version

from .store import BlockStore, Counters

logger = logging.getLogger("vllm.halo_kv")
NEEDED = (
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "request_finished",
    "register_kv_caches",
    "start_load_kv",
    "wait_for_save",
    "get_finished",
    "get_block_ids_with_load_errors",
)
ASYNC_BYTES = 64 << 20
"""Loads of more than this go beside other requests' steps."""
DOUBTFUL_STEPS = 4
"""Steps from a failed load on in which nothing is saved: what follows lost blocks is wrong until vLLM computes them."""


def interface_problem() -> str:
    """What this vLLM's connector interface lacks for us; empty where nothing."""
    ours, wanted = vars(HaloConnector), getattr(KVConnectorBase_V1, "__abstractmethods__", ())
    what = [f"it has no {name}" for name in NEEDED if not hasattr(KVConnectorBase_V1, name)]
    what += [f"it wants {name}, which Halo does not know" for name in wanted if name not in ours]
    if "kv_connector_block_state" not in getattr(SchedulerOutput, "__dataclass_fields__", {}):
        what.append("its scheduler does not offer block ids")
    return f"the KV connector interface of vLLM {vllm_version} differs: {'; '.join(what)}" if what else ""


Copy = tuple[int, bytes, int, float]
"""A block of the engine's KV cache, its hash in the store, its place in its prompt, and for how long it is pinned."""


@dataclass
class Load:
    """Blocks that a request waits for."""

    request: str
    copies: list[Copy]
    beside: bool
    """Beside the steps of others; else before the next step."""


@dataclass
class Copies(KVConnectorMetadata):  # type: ignore[misc]
    """What a step's worker copies."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Copy] = field(default_factory=list)


@dataclass
class _Served:
    """A request that asked for the store, from its admission until it has finished."""

    request: Any
    save_blocks: int
    ends: bool
    """Whether nobody comes back to the blocks behind those."""
    pin_s: float
    """For how long the store keeps what is saved and loaded for it before all else."""
    saved: int = 0
    """Leading blocks that were saved, or need not be."""
    moved_tokens: int = 0


class HaloConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """See the module's text. One instance lives in the engine's scheduler, one in each worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        cache = vllm_config.cache_config
        self._block_tokens: int = cache.block_size
        check = bool(extra.get("check"))
        root, cap = Path(extra["root"]), int(extra["cap_bytes"])
        self._store = BlockStore(root, namespace(vllm_config), cap, check=check)
        self._counters = Counters(extra["counters"]) if extra.get("counters") else None
        # scheduler
        self._served: dict[str, _Served] = {}
        self._matched: dict[str, tuple[int, bool]] = {}
        """Request -> the first block that the store was asked for, and whether the rest is loaded beside steps."""
        self._loads: list[Load] = []
        self._block_bytes = int(extra.get("token_bytes", 0)) * self._block_tokens
        # worker
        self._layers: list[_Layer] = []
        self._bytes = 0
        """Of a block, all layers."""
        self._thread: ThreadPoolExecutor | None = None
        self._loading: dict[str, Future[list[int]]] = {}
        self._failed: set[int] = set()
        self._doubtful = 0
        self._off = self._problem(cache, kv_cache_config)
        if self._off:
            logger.warning("Halo shares no KV of this model: %s", self._off)

    def _problem(self, cache: Any, kv_cache_config: Any) -> str:
        """Why blocks of this model cannot be shared one by one; empty where they can."""
        groups = getattr(kv_cache_config, "kv_cache_groups", None) or [None]
        if len(groups) != 1:
            return f"it has {len(groups)} kinds of KV blocks"
        spec = getattr(groups[0], "kv_cache_spec", None)
        if getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None):
            return "its attention sees a window only: blocks behind that are dropped, but keep their names"
        hashed = getattr(cache, "hash_block_size", None) or self._block_tokens
        if hashed != self._block_tokens:
            return f"its blocks have {self._block_tokens} tokens, and are named by {hashed}"
        return ""

    # -- scheduler -----------------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens behind the `num_computed_tokens` that the store has."""
        asked = self._asked(request)
        if asked is None or not asked.get("load", True):
            return 0, False
        size = self._block_tokens
        first = num_computed_tokens // size
        # The last token of a prompt is always computed: its logits are the answer's first token.
        last = min((request.num_tokens - 1) // size, len(request.block_hashes))
        found = self._store.depth([_key(h) for h in request.block_hashes[first:last]])
        others = any(served.request is not request for served in self._served.values())
        beside = bool(found and others and found * self._block_bytes > ASYNC_BYTES)
        self._matched[request.request_id] = first, beside
        return found * size, beside

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The request has its blocks: `num_external_tokens` of them are to be loaded."""
        asked = self._asked(request)
        if asked is None:
            return
        served = self._served.get(request.request_id)
        if served is None:
            save = int(asked.get("save", 0))
            blocks_to_save = (1 << 60) if save < 0 else save // self._block_tokens
            ends = bool(asked.get("last")) and save >= 0
            pin_s = float(asked.get("pin_s", 0.0))
            served = self._served[request.request_id] = _Served(request, blocks_to_save, ends, pin_s)
        if not num_external_tokens:
            return
        ids = blocks.get_block_ids()[0]
        first, beside = self._matched[request.request_id]
        last = first + num_external_tokens // self._block_tokens
        copies = [(ids[i], _key(request.block_hashes[i]), i, served.pin_s) for i in range(first, last)]
        served.moved_tokens += num_external_tokens
        self._loads.append(Load(request.request_id, copies, beside))

    def build_connector_meta(self, scheduler_output: Any) -> Copies:
        """All that the step's worker is to copy."""
        made = Copies(loads=self._loads)
        self._loads = []
        if preempted := getattr(scheduler_output, "preempted_req_ids", None):
            self._count(preemptions=len(preempted))
        state = scheduler_output.kv_connector_block_state
        for request_id, tokens in scheduler_output.num_scheduled_tokens.items():
            served = self._served.get(request_id)
            if served is None or served.saved >= served.save_blocks or state is None:
                continue
            request = served.request
            full = min(
                (request.num_computed_tokens + tokens) // self._block_tokens,
                len(request.block_hashes),
                served.save_blocks,
            )
            if full <= served.saved:
                continue
            ids = state.get_block_ids(request_id)
            for i in range(served.saved, full):
                key = _key(request.block_hashes[i])
                held = self._store.use(key, i, served.pin_s) if served.pin_s else self._store.holds(key)
                if not held:
                    made.saves.append((ids[0][i], key, i, served.pin_s))
            served.saved = full
        return made

    def request_finished(self, request: Any, block_ids: Sequence[int]) -> tuple[bool, dict[str, Any] | None]:
        """Tell the caller what came from the store, and how the engine names the blocks of prompt and answer."""
        self._matched.pop(request.request_id, None)
        served = self._served.pop(request.request_id, None)
        if served is None:
            return False, None
        if served.ends:
            self._store.drop(map(_key, request.block_hashes[served.save_blocks :]))
        told: dict[str, Any] = {"moved_tokens": served.moved_tokens}
        blocks = request.block_hashes[: request.num_computed_tokens // self._block_tokens]
        if all(isinstance(block, bytes) for block in blocks):
            told["blocks"] = " ".join(block.hex() for block in blocks)
        return False, {"halo": told}

    def _asked(self, request: Any) -> Mapping[str, Any] | None:
        """What the call asks of the store; None where it asks nothing, or in vain."""
        asked = (request.kv_transfer_params or {}).get("halo")
        return asked if isinstance(asked, Mapping) and not self._off else None

    # -- worker --------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Learn where the engine's KV cache lies."""
        if self._off:
            return
        blocks = int(self._vllm_config.cache_config.num_gpu_blocks)
        self._layers = [_Layer(name, tensor, blocks) for name, tensor in sorted(kv_caches.items())]
        self._bytes = sum(layer.block_bytes for layer in self._layers)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load what the step needs; begin to load what a later one needs."""
        for load in self._get_connector_metadata().loads:
            if load.beside:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, "halo-kv")
                self._loading[load.request] = self._thread.submit(self._load, load.copies, True)
            else:
                self._note(self._load(load.copies, False))

    def _note(self, failed: Sequence[int]) -> None:
        """Blocks that vLLM is to compute; what is computed behind them meanwhile must not be kept."""
        if failed:
            self._failed.update(failed)
            self._doubtful = DOUBTFUL_STEPS

    def _load(self, copies: Sequence[Copy], beside: bool) -> list[int]:
        """The blocks that could not be loaded: the first that failed and all behind it, which depend on it."""
        began = time.perf_counter()
        done = 0
        for block, key, position, pin_s in copies:
            if not self._store.load(key, self._buffers(block), position, pin_s):
                break
            done += 1
        took_us = round(1e6 * (time.perf_counter() - began))
        self._count(
            loaded_blocks=done,
            loaded_bytes=done * self._bytes,
            failed_blocks=len(copies) - done,
            load_us=took_us,
            hidden_us=took_us if beside else 0,
        )
        return [block for block, *_ in copies[done:]]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: loads are whole blocks, done before the step or beside it."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: blocks are saved with all their layers when the step ends."""

    def wait_for_save(self) -> None:
        """Save the blocks that the step has filled."""
        saves = self._get_connector_metadata().saves
        if self._doubtful:
            self._doubtful -= 1
            return
        if not saves:
            return
        began = time.perf_counter()
        saved = sum(self._store.save(key, self._buffers(block), place, pin_s) for block, key, place, pin_s in saves)
        self._count(
            saved_blocks=saved,
            saved_bytes=saved * self._bytes,
            refused_blocks=len(saves) - saved,
            save_us=round(1e6 * (time.perf_counter() - began)),
        )

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose blocks have been loaded beside the steps, well or not."""
        done = {request for request, loading in self._loading.items() if loading.done()}
        for request in done:
            self._note(self._loading.pop(request).result())
        return None, done or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that vLLM has to compute after all."""
        failed, self._failed = self._failed, set()
        return failed

    def shutdown(self) -> None:
        """Let go of the store."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._store.close()

    def _buffers(self, block: int) -> list[memoryview]:
        return [layer.block(block) for layer in self._layers]

    def _count(self, **more: int) -> None:
        if self._counters is not None:
            self._counters.add(**more)


class _Layer:
    """The KV cache of one layer as bytes: `block(i)` is where block i lies."""

    def __init__(self, name: str, tensor: Any, blocks: int) -> None:
        if tensor.device.type != "cpu":
            raise RuntimeError(f"Halo's block store copies host memory only; {name} lies on {tensor.device}")
        pieces, rest = divmod(tensor.shape[0], blocks)  # the attention kernel may cut a block into several
        width = tensor.element_size()
        dense = width + width * sum(
            (n - 1) * step for n, step in zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
        )
        step = tensor.stride(0) * width
        if rest or dense != tensor[0].numel() * width or (pieces > 1 and step != dense):
            raise RuntimeError(
                f"Halo's block store needs the bytes of a block together; {name} has shape {tuple(tensor.shape)} "
                f"and strides {tensor.stride()} for {blocks} blocks"
            )
        self.block_bytes = dense * pieces
        self._step = step * pieces
        size = self._step * (blocks - 1) + self.block_bytes
        self._tensor = tensor  # keeps the memory
        self._bytes = memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")

    def block(self, number: int) -> memoryview:
        start = number * self._step
        return self._bytes[start : start + self.block_bytes]


def namespace(vllm_config: Any) -> str:
    """Names a kind of KV: equal names mean that equal block hashes stand for equal bytes."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    parts = [
        str(model.model),
        str(getattr(model, "revision", None)),
        str(model.dtype),
        str(getattr(model, "quantization", None)),
        str(getattr(model, "hf_overrides", None)),
        str(getattr(model, "max_model_len", None)),  # some rotary embeddings (LongRoPE) depend on it
        str(cache.cache_dtype),
        str(cache.block_size),
        str(getattr(cache, "prefix_caching_hash_algo", "")),
        os.environ.get("PYTHONHASHSEED", ""),
        str(parallel.tensor_parallel_size),
        str(getattr(parallel, "rank", 0)),
        str(getattr(vllm_config.load_config, "load_format", "")),
        vllm_version,
    ]
    folder = Path(str(model.model))
    if folder.is_dir():  # the same path may hold other weights later
        for file in sorted(folder.iterdir()):
            if file.suffix in (".safetensors", ".bin", ".json", ".gguf", ".pt"):
                info = file.stat()
                parts.append(f"{file.name} {info.st_size} {info.st_mtime_ns}")
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _key(block_hash: Any) -> bytes:
    """A block's hash as 32 bytes."""
    data = block_hash if isinstance(block_hash, bytes) else str(block_hash).encode()
    return data if len(data) == 32 else blake2b(data, digest_size=32).digest()
