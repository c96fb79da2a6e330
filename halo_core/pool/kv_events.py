"""KV events: what vLLM publishes over ZMQ of its prefix cache, read as the engine protocol's cache events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from halo_core.pool.engine import CacheEvent

logger = logging.getLogger(__name__)

_CLEARED = CacheEvent("cleared")
# Positions in the array form that vLLM used before it sent maps, after the event's type.
_STORED_FIELDS = ("block_hashes", "parent_block_hash", "token_ids", "block_size")
_REMOVED_FIELDS = ("block_hashes",)


async def subscribe(address: str, stopped: asyncio.Event) -> AsyncIterator[CacheEvent]:
    """Events published at `address` until `stopped` is set.

    The first is always `cleared`: it says that the subscription stands, and that nothing before it is known. So does
    every gap in the publisher's numbers (a slow reader loses messages), and the last one, for a stopped engine holds
    nothing. Without pyzmq and msgspec (the `vllm` extra) it ends at once.
    """
    try:
        import msgspec
        import zmq
        import zmq.asyncio
    except ImportError as error:
        logger.warning("no cache events: %s. Install halo-agents[vllm]", error)
        return
    decoder = msgspec.msgpack.Decoder()
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    ended = asyncio.ensure_future(stopped.wait())
    try:
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe(b"")
        socket.connect(address)
        if await _first(monitor.recv_multipart(), ended) is None:
            return
        yield _CLEARED
        expected: int | None = None
        while (frames := await _first(socket.recv_multipart(), ended)) is not None:
            number = int.from_bytes(frames[1], "big")
            if expected is not None and number != expected:
                logger.warning("%d batches of cache events from %s were lost", number - expected, address)
                yield _CLEARED
            expected = number + 1
            for event in read_batch(decoder.decode(frames[2])):
                yield event
        yield _CLEARED
    finally:
        ended.cancel()
        socket.disable_monitor()
        context.destroy(linger=0)


async def _first(message: Any, ended: asyncio.Future[Any]) -> list[bytes] | None:
    """The message, or None where the end comes first."""
    receiving = asyncio.ensure_future(message)
    try:
        await asyncio.wait((receiving, ended), return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            frames: list[bytes] = receiving.result()
            return frames
        return None
    finally:
        if not receiving.done():
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving


def read_batch(batch: Any) -> Iterator[CacheEvent]:
    """The events of a decoded message `[timestamp, events, rank]`: maps or, from older vLLM, arrays."""
    for event in batch[1]:
        if isinstance(event, Mapping):
            kind, fields = event.get("type"), event
        else:
            kind = event[0]
            names = _STORED_FIELDS if kind == "BlockStored" else _REMOVED_FIELDS
            fields = dict(zip(names, event[1:], strict=False))
        if kind == "BlockStored":
            yield CacheEvent(
                "stored", _hashes(fields), fields.get("parent_block_hash"), tuple(fields.get("token_ids") or ())
            )
        elif kind == "BlockRemoved":
            yield CacheEvent("removed", _hashes(fields))
        elif kind == "AllBlocksCleared":
            yield _CLEARED
        else:
            logger.debug("unknown cache event %r", kind)


def _hashes(fields: Mapping[str, Any]) -> tuple[int | bytes, ...]:
    hashes: Sequence[int | bytes] = fields.get("block_hashes") or ()
    return tuple(hashes)
