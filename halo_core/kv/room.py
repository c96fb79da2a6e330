"""Where the block store lives, and how much it may hold."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

import psutil

SHARE_OF_MEMORY = 1 / 8
SHARE_OF_FREE = 1 / 2


def store_root() -> Path:
    """The folder of this user's block store: one in `$HALO_KV_STORE`, else one in the host's shared memory.

    Always a folder of its own: what lies in it is removed.
    """
    named = os.environ.get("HALO_KV_STORE")
    return Path(named).expanduser().absolute() / "halo-kv" if named else Path(f"/dev/shm/halo-kv-{os.getuid()}")


def default_cap_bytes(root: Path) -> int:
    """Bytes that the store may take: an eighth of the memory, and at most half of what its file system has free.

    Raises `OSError` where there is no such file system.
    """
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free + used_bytes(root)
    return int(min(SHARE_OF_MEMORY * psutil.virtual_memory().total, SHARE_OF_FREE * free))


def used_bytes(root: Path) -> int:
    """Bytes that a store takes now, also while its engines save and evict."""
    used = 0
    for file in root.glob("*/*"):
        with suppress(FileNotFoundError):  # evicted meanwhile
            found = file.stat()
            used += found.st_size if S_ISREG(found.st_mode) else 0
    return used
