"""Where the block store lives, and how much it may hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

SHARE_OF_MEMORY = 1 / 8
SHARE_OF_FREE = 1 / 2


def store_root() -> Path:
    """The folder of this user's block store: `$HALO_KV_STORE`, else one in the host's shared memory."""
    named = os.environ.get("HALO_KV_STORE")
    return Path(named).expanduser().absolute() if named else Path(f"/dev/shm/halo-kv-{os.getuid()}")


def default_cap_bytes(root: Path) -> int:
    """Bytes that the store may take: an eighth of the memory, and at most half of what its file system has free.

    Raises `OSError` where there is no such file system.
    """
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free + (sum(_sizes(root)) if root.is_dir() else 0)
    return int(min(SHARE_OF_MEMORY * psutil.virtual_memory().total, SHARE_OF_FREE * free))


def _sizes(root: Path) -> list[int]:
    return [file.stat().st_size for file in root.glob("*/*") if file.is_file()]
