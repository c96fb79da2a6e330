"""The block store: what is saved comes back, never anything else; it stays within its cap and outlives killed users."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from halo_core.kv import BlockStore, Counters

SIZE = 1000
HEADER = 64


def key(number: int) -> bytes:
    return sha256(str(number).encode()).digest()


def data(number: int) -> list[memoryview]:
    """A block of two layers."""
    return [memoryview(bytes([number % 256]) * (SIZE - 100)), memoryview(bytes([number % 251]) * 100)]


def empty() -> list[memoryview]:
    return [memoryview(bytearray(SIZE - 100)), memoryview(bytearray(100))]


def room(blocks: int) -> int:
    return blocks * (SIZE + HEADER)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockStore]:
    made = BlockStore(tmp_path / "store", "kind", room(10), check=True)
    yield made
    made.close()


def test_blocks_come_back_layer_by_layer(store: BlockStore) -> None:
    assert store.save(key(1), data(1))
    into = empty()
    assert store.load(key(1), into)
    assert into == data(1)
    assert store.holds(key(1))
    assert store.depth([key(1), key(2), key(1)]) == 1
    assert not store.load(key(2), into)
    assert store.blocks() == 1
    assert store.used_bytes == SIZE + HEADER


def test_saving_twice_takes_room_once(store: BlockStore) -> None:
    assert store.save(key(1), data(1))
    assert store.save(key(1), data(1))
    assert store.used_bytes == SIZE + HEADER


def test_many_layers_are_more_than_one_system_call_takes(store: BlockStore) -> None:
    layers = [memoryview(bytes([i % 256])) for i in range(2500)]
    assert store.save(key(1), layers)
    into = [memoryview(bytearray(1)) for _ in layers]
    assert store.load(key(1), into)
    assert into == layers


def test_what_was_used_longest_ago_goes_first(store: BlockStore) -> None:
    for number in range(10):
        assert store.save(key(number), data(number))
        os.utime(store.folder / key(number).hex(), ns=(number, number))
    assert store.load(key(0), empty())  # used now
    assert store.save(key(10), data(10))
    assert store.holds(key(0))
    assert not store.holds(key(1))
    assert store.holds(key(10))
    assert store.used_bytes <= room(10)


def test_of_a_prompt_the_end_goes_first(store: BlockStore) -> None:
    for number in range(10):
        store.save(key(number), data(number), position=number)
    store.save(key(10), data(10))
    assert store.depth([key(number) for number in range(10)]) == 9
    assert store.load(key(10), empty())


def test_what_is_pinned_outlives_what_is_used_later(store: BlockStore) -> None:
    for number in range(5):
        store.save(key(number), data(number), pin_s=60.0)
    for number in range(10, 40):
        assert store.save(key(number), data(number))
    assert all(store.holds(key(number)) for number in range(5))
    assert sum(store.holds(key(number)) for number in range(10, 40)) == 5


def test_a_pin_ends_with_its_time_and_not_because_others_use_the_block(store: BlockStore) -> None:
    for number in range(4):
        store.save(key(number), data(number), pin_s=0.01 if number == 0 else 60.0)
    assert store.load(key(1), empty())
    assert store.save(key(2), data(2))
    store.drop([key(3)])
    store.save(key(4), data(4))
    assert store.use(key(4), pin_s=60.0) and not store.use(key(5), pin_s=60.0)
    time.sleep(0.02)
    for number in range(10, 30):
        store.save(key(number), data(number))
    assert [store.holds(key(number)) for number in range(5)] == [False, True, True, False, True]


def test_a_store_full_of_pinned_blocks_lets_the_oldest_go(store: BlockStore) -> None:
    for number in range(12):
        assert store.save(key(number), data(number), pin_s=60.0)
    assert not store.holds(key(0)) and store.holds(key(11)) and store.refused == 0


def test_a_torn_block_is_not_used_and_goes(store: BlockStore) -> None:
    store.save(key(1), data(1))
    os.truncate(store.folder / key(1).hex(), SIZE // 2)
    assert not store.load(key(1), empty())
    assert not store.holds(key(1))


def test_a_block_of_another_name_is_not_used(store: BlockStore) -> None:
    store.save(key(1), data(1))
    os.rename(store.folder / key(1).hex(), store.folder / key(2).hex())
    assert not store.load(key(2), empty())


def test_flipped_bytes_are_found_with_checksums(store: BlockStore) -> None:
    store.save(key(1), data(1))
    with (store.folder / key(1).hex()).open("r+b") as file:
        file.seek(HEADER + 5)
        file.write(b"\xff")
    assert not store.load(key(1), empty())


def test_a_full_file_system_refuses_and_leaves_nothing(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, buffers: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    assert not store.save(key(1), data(1))
    assert store.refused == 1
    assert store.used_bytes == 0
    assert list(store.folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system")
def test_a_file_system_that_really_is_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        store = BlockStore(small / "store", "kind", 1 << 30)
        saved = [store.save(key(n), [memoryview(os.urandom(8000))]) for n in range(12)]
        assert saved[0] and not saved[-1]
        held = [n for n in range(12) if store.holds(key(n))]
        assert held == [n for n in range(12) if saved[n]]
        store.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_folder_that_is_removed_under_it_costs_only_blocks(store: BlockStore) -> None:
    store.save(key(1), data(1))
    (store.folder / key(1).hex()).unlink()
    store.folder.rmdir()
    assert not store.load(key(1), empty())
    assert not store.save(key(2), data(2))
    assert store.save(key(3), data(3))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        BlockStore(tmp_path / "file" / "store", "kind", 1)


def test_dropped_blocks_give_their_room_back(store: BlockStore) -> None:
    store.save(key(1), data(1))
    store.drop([key(1), key(2)])
    assert store.used_bytes == 0
    assert not store.holds(key(1))


def test_the_last_user_empties_it_and_others_do_not(tmp_path: Path) -> None:
    one, two = (BlockStore(tmp_path, "kind", room(10)) for _ in range(2))
    one.save(key(1), data(1))
    one.close()
    assert two.holds(key(1))
    assert two.used_bytes == SIZE + HEADER
    two.close()
    assert list((tmp_path / "kind").iterdir()) == []


def test_kinds_share_the_cap(tmp_path: Path) -> None:
    one, two = BlockStore(tmp_path, "one", room(4)), BlockStore(tmp_path, "two", room(4))
    for number in range(4):
        one.save(key(number), data(number))
    assert two.save(key(9), data(9))
    assert one.used_bytes <= room(4)
    assert one.blocks() < 4
    one.close()
    two.close()


def _saves_for_ever(root: Path, first: int) -> None:
    store = BlockStore(root, "kind", room(50))
    number = first
    while True:
        store.save(key(number), data(number))
        number += 1


def test_killed_writers_leave_nothing_that_is_used(tmp_path: Path) -> None:
    """Several processes write, and evict each other's blocks, until they are killed."""
    store = BlockStore(tmp_path, "kind", room(50), check=True)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_saves_for_ever, args=(tmp_path, n * 10**6), daemon=True) for n in range(2)]
    for writer in writers:
        writer.start()
    deadline = time.monotonic() + 60
    while store.blocks() < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    names = [entry.name for entry in os.scandir(store.folder) if not entry.name.startswith(".")]
    assert len(names) >= 20
    for name in names:
        into = empty()
        assert store.load(bytes.fromhex(name), into), name
        assert len(set(bytes(into[0]))) == 1
    for number in range(60):
        assert store.save(key(-number - 1), data(number))
    assert not [entry.name for entry in os.scandir(store.folder) if entry.name.startswith(".")]
    assert sum(entry.stat().st_size for entry in os.scandir(store.folder)) == store.used_bytes <= room(50)
    store.close()


def test_what_a_killed_owner_left_is_emptied_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from halo_core.kv import BlockStore\n"
        f"store = BlockStore({str(tmp_path)!r}, 'kind', 1 << 20)\n"
        "store.save(bytes(32), [memoryview(b'old')])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "kind").iterdir())) == 1
    store = BlockStore(tmp_path, "kind", 1 << 20)
    assert store.blocks() == store.used_bytes == 0
    store.close()


def test_counters_can_be_read_while_they_count(tmp_path: Path) -> None:
    counting, reading = Counters(tmp_path / "c"), Counters(tmp_path / "c")
    counting.add(saved_blocks=2, saved_bytes=2000)
    counting.add(saved_blocks=1)
    assert reading.read()["saved_blocks"] == 3
    assert reading.read()["loaded_blocks"] == 0


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    """Whatever folder somebody names: `HALO_KV_STORE=~` too."""
    foreign = [tmp_path / ".ssh" / "id_rsa", tmp_path / "documents" / "thesis.tex"]
    for file in foreign:
        file.parent.mkdir()
        file.write_bytes(b"x" * 600)
    store = BlockStore(tmp_path, "kind", 1000)
    assert store.save(bytes(32), [memoryview(bytes(600))]) and store.save(bytes([1] * 32), [memoryview(bytes(600))])
    assert not store.holds(bytes(32)), "it had to make room"
    store.clear()
    store.close()
    assert all(file.read_bytes() == b"x" * 600 for file in foreign)
