"""The host's block store as the pool sees it: how engines are told of it, and what they did with it."""

from __future__ import annotations

import contextlib
import os
from collections import Counter as CountOf
from collections.abc import Mapping
from pathlib import Path

from halo_core.errors import ConfigError
from halo_core.kv import BlockStore, Counters, default_cap_bytes, store_root
from halo_core.pool.config import VLLMSpec
from halo_core.pool.kv_speed import kv_bytes_per_token
from halo_core.pool.vllm_command import StoreSettings, find_model

ON_GPUS = "on GPUs kv_sharing = 'on' lets LMCache or vLLM itself keep KV in host memory; extra_args can name others"
OFFLOADED = "each engine keeps what its GPUs evict in host memory, by LMCache or vLLM's own connector"


def wanted_sharing(spec: VLLMSpec) -> str:
    """`auto`, `on` or `off`: what somebody has decided for the engines of a specification. Raises `ConfigError`."""
    wanted = os.environ.get("HALO_KV_SHARING") or spec.kv_sharing
    if wanted not in ("auto", "on", "off"):
        raise ConfigError(f"HALO_KV_SHARING takes auto, on or off, not {wanted!r}")
    return wanted


def store_settings(spec: VLLMSpec, dtype: str) -> StoreSettings | None:
    """What the engines of a specification (of this `dtype`) are told of the store; None where they are not to share KV.

    Raises `ConfigError` for a store that is required and cannot be.
    """
    wanted = wanted_sharing(spec)
    if wanted == "off":
        return None
    root = store_root()
    try:
        cap = int(spec.kv_store_gib * 2**30) if spec.kv_store_gib else default_cap_bytes(root)
    except OSError as error:
        if wanted == "on":
            raise ConfigError(f"kv_sharing = 'on' needs a folder for the store, and {root}: {error}") from error
        return None
    token_bytes = kv_bytes_per_token(find_model(spec.path or spec.model), dtype, spec.extra_args)
    return StoreSettings(
        str(root), cap, required=wanted == "on", check=os.environ.get("HALO_KV_CHECK") == "1", token_bytes=token_bytes
    )


class SharedStore:
    """An engine's end of the block store. Keeps the store alive while the engine is restarted."""

    def __init__(self, settings: StoreSettings, counters: Path) -> None:
        self.root = Path(settings.root)
        self.cap_bytes = settings.cap_bytes
        self.cap_tokens = settings.cap_tokens
        self._store = BlockStore(settings.root, "pool", settings.cap_bytes)
        self._earlier: CountOf[str] = CountOf()
        self._counters = Counters(counters)

    @property
    def used_bytes(self) -> int:
        """Bytes in the store now, of all engines."""
        return self._store.used_bytes

    def counters(self) -> Mapping[str, int]:
        """What the engine has loaded and saved, restarts included."""
        return {name: count + self._earlier[name] for name, count in self._counters.read().items()}

    def counts_in(self, file: Path) -> None:
        """The engine was started again, and counts in another file."""
        self._earlier.update(self._counters.read())
        self._counters = Counters(file)

    def clear(self) -> None:
        """Forget all blocks, those of other engines too."""
        self._store.clear()

    def close(self) -> None:
        """Let go; the last one empties the store."""
        with contextlib.suppress(OSError):
            self._store.close()
