"""KV events: the wire forms of several vLLM versions, gaps, and the end of the publisher."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from halo_core.pool.engine import CacheEvent
from halo_core.pool.kv_events import read_batch, subscribe


def test_events_as_maps() -> None:
    stored = {"type": "BlockStored", "block_hashes": [b"x", b"y"], "parent_block_hash": b"p", "token_ids": [1, 2, 3, 4]}
    removed = {"type": "BlockRemoved", "block_hashes": [b"x"], "medium": "GPU"}
    assert list(read_batch([0.5, [stored, removed, {"type": "AllBlocksCleared"}], 0])) == [
        CacheEvent("stored", (b"x", b"y"), b"p", (1, 2, 3, 4)),
        CacheEvent("removed", (b"x",)),
        CacheEvent("cleared"),
    ]


def test_events_as_arrays_and_unknown_ones() -> None:
    batch = [0.5, [["BlockStored", [7], None, [1, 2], 2, None], ["BlockRemoved", [7]], ["Novel", 1]]]
    assert list(read_batch(batch)) == [CacheEvent("stored", (7,), None, (1, 2)), CacheEvent("removed", (7,))]


async def test_gaps_and_the_end_clear_what_is_known(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/kv"
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.PUB)
    publisher.bind(address)
    stopped = asyncio.Event()

    async def publish(number: int, block: int) -> None:
        event = {"type": "BlockRemoved", "block_hashes": [block]}
        await publisher.send_multipart([b"", number.to_bytes(8, "big"), msgspec.msgpack.encode([0.0, [event], 0])])

    events = subscribe(address, stopped)
    assert await anext(events) == CacheEvent("cleared")
    number = 0
    first = asyncio.ensure_future(anext(events))
    while not first.done():  # the publisher learns of a subscription a moment after the subscriber's handshake
        await publish(number, 1)
        number += 1
        await asyncio.wait((first,), timeout=0.05)
    assert await first == CacheEvent("removed", (1,))
    await publish(number + 5, 2)
    seen = [await anext(events)]
    while seen[-1] != CacheEvent("removed", (2,)):
        seen.append(await anext(events))
    assert seen[-2] == CacheEvent("cleared")
    stopped.set()
    assert [event async for event in events] == [CacheEvent("cleared")]
    context.destroy(linger=0)


async def test_a_stopped_engine_that_never_answered_has_no_events(tmp_path: Path) -> None:
    stopped = asyncio.Event()
    events = subscribe(f"ipc://{tmp_path}/nobody", stopped)
    asyncio.get_running_loop().call_later(0.05, stopped.set)
    assert [event async for event in events] == []
