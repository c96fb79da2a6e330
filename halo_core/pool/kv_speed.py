"""What KV weighs, and how fast the host copies it."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SHARED_MEMORY = Path("/dev/shm")
_BYTES = 48 << 20
_COPIES = 5
_WIDTHS = {"float32": 4, "float16": 2, "half": 2, "bfloat16": 2, "float": 4}


def copy_bytes_per_s() -> float:
    """Bytes per second from memory into the host's shared memory and out of it again; 0 where there is none.

    The fastest of some copies, each of tens of MB: more than the caches hold.
    """
    if not os.access(_SHARED_MEMORY, os.W_OK):
        return 0.0
    source, target = bytearray(os.urandom(1 << 16) * (_BYTES >> 16)), bytearray(_BYTES)
    best_s = 0.0
    try:
        with tempfile.TemporaryFile(dir=_SHARED_MEMORY) as file:
            file.truncate(_BYTES)
            with mmap.mmap(file.fileno(), _BYTES) as shared, memoryview(shared) as view, memoryview(target) as out:
                for _ in range(_COPIES):
                    began = time.perf_counter()
                    view[:] = source
                    out[:] = view
                    took_s = time.perf_counter() - began
                    best_s = min(best_s or took_s, took_s)
    except OSError:  # /dev/shm is full, or smaller than that
        return 0.0
    return _BYTES / best_s


def kv_bytes_per_token(model: str, dtype: str, extra_args: Sequence[str] = ()) -> int:
    """Bytes of KV per token, from the config.json of a folder or of a hub name in the local cache; 0 if unknown."""
    config = _config(model)
    # Multi-head latent attention stores something else, and so does a quantised cache.
    if not config or "kv_lora_rank" in config or any("kv-cache-dtype" in arg for arg in extra_args):
        return 0
    heads = config.get("num_attention_heads") or 0
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or ((config.get("hidden_size") or 0) // heads if heads else 0)
    own = str(config.get("dtype") or config.get("torch_dtype") or "")
    width = _WIDTHS.get(own if dtype == "auto" else dtype, 0)
    return 2 * int(config.get("num_hidden_layers") or 0) * int(kv_heads) * int(head_size) * width


def _config(model: str) -> dict[str, Any]:
    """The language model's part of its configuration; empty where it cannot be read."""
    folder = Path(model).expanduser()
    files = [folder / "config.json"]
    if not folder.is_dir():
        files = sorted(hub_folder(model).glob("snapshots/*/config.json"))
    for file in files:
        try:
            config = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            part = config.get("text_config")
            return {**config, **part} if isinstance(part, dict) else config
    return {}


def hub_folder(name: str) -> Path:
    """Where the hub's client keeps a model."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return hub.expanduser() / f"models--{name.replace('/', '--')}"
