"""The block store: KV blocks in a host's shared memory, which all engines of the host reach.

One file per block, named by the block's hash in a folder per kind of KV, so that the file system is the index: a block
is there when its file is, writing ends with a rename (nobody ever sees half a block), and a process that is killed
leaves at most a temporary file. The bytes go between file and KV cache in one system call per block (`preadv`,
`pwritev`), layer by layer, without a copy in between.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_HEADER = struct.Struct("<8s32sQII8x")
_MAGIC = b"halo-kv1"
_CHECKED = 1
_IOV_MAX = 1000
_KEPT = 0.9
"""Share of the cap that is left in use when blocks had to go: evicting looks at every file, so it is done in bulk."""
_OWN = re.compile(r"[0-9a-f]{64}|\.\d+-\d+-\d+")
"""Names of blocks, and of those being written: nothing else is removed, whatever folder the root may be."""
_STEP_NS = 1_000_000
"""Of a prompt's blocks, each counts as used so much earlier than the one before it."""


class BlockStore:
    """The blocks of one kind (`namespace`) below `root`; all kinds of a root share its cap.

    Any number of processes use one root at once. Blocks live as long as somebody has the root open: whoever opens it
    first and whoever closes it last empties it.
    """

    def __init__(self, root: Path | str, namespace: str, cap_bytes: int, *, check: bool = False) -> None:
        """`cap_bytes` bounds the files of the root; `check` adds checksums to what is saved and verifies them.

        Raises `OSError` where the folder cannot be made or written.
        """
        self.root = Path(root)
        self.folder = self.root / namespace
        self.cap_bytes = cap_bytes
        self.check = check
        self.refused = 0
        """Blocks that were not saved: the store is too small for one, or the file system is full."""
        self._numbers = itertools.count()
        self._in_process = threading.Lock()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.root.stat().st_uid != os.getuid():  # in a folder that all may write, anybody could have made it
            raise PermissionError(errno.EPERM, "it belongs to another user", str(self.root))
        self._users = os.open(self.root / "users", os.O_RDWR | os.O_CREAT, 0o600)
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if self._alone():
            self._empty()
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._prefix = f"{self.folder}/"
        with self._locked():
            if os.fstat(self._lock).st_size < 8:
                os.ftruncate(self._lock, 8)
        self._used = mmap.mmap(self._lock, 8)

    def close(self) -> None:
        """Let go of the root, and empty it if nobody else has it open."""
        if self._users < 0:
            return
        if self._alone():
            self._empty()
        os.close(self._users)
        os.close(self._lock)
        self._used.close()
        self._users = -1

    # -- blocks --------------------------------------------------------------------------------------------------

    def holds(self, key: bytes) -> bool:
        """Whether the block is there now."""
        return os.access(self._prefix + key.hex(), os.F_OK)

    def depth(self, keys: Sequence[bytes]) -> int:
        """How many leading blocks of a chain are there."""
        for i, key in enumerate(keys):
            if not self.holds(key):
                return i
        return len(keys)

    def save(self, key: bytes, buffers: Sequence[memoryview], position: int = 0, pin_s: float = 0.0) -> bool:
        """Keep a block, whose bytes are those of the buffers; False where there is no room for it.

        `position`: its place in its prompt; of a prompt, what stands last goes first, since the rest is of use without.
        `pin_s`: for so many seconds all that is not pinned goes before it.
        """
        if self.use(key, position, pin_s):
            return True
        path = self._prefix + key.hex()
        length = sum(map(len, buffers))
        if not self._reserve(length + _HEADER.size):
            self.refused += 1
            return False
        temporary = f"{self._prefix}.{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
        crc = _crc(buffers) if self.check else 0
        header = _HEADER.pack(_MAGIC, key[:32].ljust(32, b"\0"), length, crc, _CHECKED if self.check else 0)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                _write_all(fd, [memoryview(header), *buffers])
                _use(fd, position, pin_s, new=True)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            self._account(-length - _HEADER.size)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOMEM):
                raise
            self.refused += 1  # shared memory is full, or somebody removed the folder: only speed is lost
            if error.errno == errno.ENOENT:
                with contextlib.suppress(OSError):
                    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return False
        return True

    def load(self, key: bytes, buffers: Sequence[memoryview], position: int = 0, pin_s: float = 0.0) -> bool:
        """Fill the buffers with a block; False where it is gone, torn or another one (then the file goes too).

        After False the buffers may hold anything. `position` and `pin_s` count from now on, as those of `save`.
        """
        path = self._prefix + key.hex()
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            header = bytearray(_HEADER.size)
            length = sum(map(len, buffers))
            whole = _read_all(fd, [memoryview(header), *buffers]) and os.fstat(fd).st_size == length + _HEADER.size
            magic, own, said, crc, flags = _HEADER.unpack(header)
            whole = whole and magic == _MAGIC and own == key[:32].ljust(32, b"\0") and said == length
            if whole and self.check and flags & _CHECKED:
                whole = _crc(buffers) == crc
            if whole:
                _use(fd, position, pin_s)
        except OSError:
            whole = False
        finally:
            os.close(fd)
        if not whole:
            self.drop([key])
        return whole

    def use(self, key: bytes, position: int = 0, pin_s: float = 0.0) -> bool:
        """Count a block as used now, and pin it for so many seconds; False where it is not there."""
        try:
            _use(self._prefix + key.hex(), position, pin_s)
        except FileNotFoundError:
            return False
        return True

    def drop(self, keys: Iterable[bytes]) -> None:
        """Nobody needs these blocks any more."""
        for key in keys:
            path = self._prefix + key.hex()
            with contextlib.suppress(OSError):
                size = os.stat(path).st_size
                os.unlink(path)
                self._account(-size)

    def clear(self) -> None:
        """Forget all blocks of the root."""
        with self._locked():
            self._empty()

    # -- room ----------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks of the root."""
        used: int = struct.unpack("<q", self._used[:8])[0]
        return max(used, 0)

    def blocks(self) -> int:
        """Blocks of this kind."""
        try:
            return sum(not entry.name.startswith(".") for entry in os.scandir(self.folder))
        except FileNotFoundError:
            return 0

    def _reserve(self, size: int) -> bool:
        with self._locked():
            used = self.used_bytes
            if used + size > self.cap_bytes:
                used = self._evict(size)
                if used + size > self.cap_bytes:
                    return False
            self._used[:8] = struct.pack("<q", used + size)
        return True

    def _account(self, change: int) -> None:
        with self._locked():
            self._used[:8] = struct.pack("<q", max(self.used_bytes + change, 0))

    def _evict(self, size: int) -> int:
        """Remove what was used longest ago; the bytes that are left."""
        found: list[tuple[int, str, int]] = []
        total = 0
        for entry in self._files():
            try:
                info = entry.stat()
            except FileNotFoundError:
                continue
            if entry.name.startswith("."):
                if not _alive(entry.name):
                    _unlink(entry.path)
                    continue
            else:
                found.append((info.st_mtime_ns, entry.path, info.st_size))
            total += info.st_size
        target = min(_KEPT * self.cap_bytes, self.cap_bytes - size)
        for _, path, length in sorted(found):
            if total <= target:
                break
            if _unlink(path):
                total -= length
        self._used[:8] = struct.pack("<q", total)
        return total

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for namespace in list(os.scandir(self.root)):
            if namespace.is_dir(follow_symlinks=False):
                yield from (file for file in list(os.scandir(namespace.path)) if _OWN.fullmatch(file.name))

    def _empty(self) -> None:
        for entry in self._files():
            _unlink(entry.path)
        if os.fstat(self._lock).st_size >= 8:
            os.pwrite(self._lock, struct.pack("<q", 0), 0)

    def _alone(self) -> bool:
        """Whether no other process has the root open; it stays locked if so."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._in_process:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


COUNTERS = (
    "loaded_blocks",
    "loaded_bytes",
    "load_us",
    "hidden_us",
    "saved_blocks",
    "saved_bytes",
    "save_us",
    "failed_blocks",
    "refused_blocks",
    "preemptions",
)
"""What an engine's connector counts: `load_us` all time spent on loading, `hidden_us` that part beside which it
computed; `failed_blocks` were gone or torn and were recomputed; `refused_blocks` found no room; `preemptions` are of
the engine's scheduler, which took the KV of running requests, whoever asked for them."""


class Counters:
    """An engine's counters, in a file that others may read while it counts."""

    def __init__(self, file: Path | str) -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = 8 * len(COUNTERS)
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
            self._map: Any = memoryview(mmap.mmap(fd, size)).cast("q")
        finally:
            os.close(fd)

    def add(self, **more: int) -> None:
        """Count more of something."""
        for name, number in more.items():
            self._map[COUNTERS.index(name)] += number

    def read(self) -> dict[str, int]:
        """All counters now."""
        return dict(zip(COUNTERS, self._map.tolist(), strict=True))


def _use(file: int | str, position: int, pin_s: float, *, new: bool = False) -> None:
    """Set when a block counts as used: now, or with a pin then; a pin that somebody else set stays."""
    used = time.time_ns() + int(pin_s * 1e9) - position * _STEP_NS
    if new or os.stat(file).st_mtime_ns < used:
        os.utime(file, ns=(used, used))


def _write_all(fd: int, buffers: Sequence[memoryview]) -> None:
    for start in range(0, len(buffers), _IOV_MAX):
        part = [buffer for buffer in buffers[start : start + _IOV_MAX] if len(buffer)]
        while part:
            part = _rest(part, os.writev(fd, part))


def _read_all(fd: int, buffers: Sequence[memoryview]) -> bool:
    for start in range(0, len(buffers), _IOV_MAX):
        part = [buffer for buffer in buffers[start : start + _IOV_MAX] if len(buffer)]
        while part:
            got = os.readv(fd, part)
            if not got:
                return False
            part = _rest(part, got)
    return True


def _rest(buffers: list[memoryview], done: int) -> list[memoryview]:
    """What is left of the buffers behind the first `done` bytes."""
    for i, buffer in enumerate(buffers):
        if done < len(buffer):
            return [buffer[done:], *buffers[i + 1 :]]
        done -= len(buffer)
    return []


def _crc(buffers: Sequence[memoryview]) -> int:
    crc = 0
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    return crc


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True


def _alive(temporary: str) -> bool:
    """Whether the process that writes the temporary file `.PID-...` still exists."""
    try:
        os.kill(int(temporary[1:].split("-")[0]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True
