"""The pool's own thread and loop."""

from __future__ import annotations

import asyncio

from halo_core.pool.loop import LoopThread


def test_what_still_waits_ends_with_the_loop() -> None:
    thread, ended = LoopThread("test"), list[str]()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleanly")

    thread.submit(wait())
    thread.run(asyncio.sleep(0))
    thread.close()
    assert ended == ["cleanly"]
    assert thread.loop.is_closed()


def test_a_task_that_does_not_end_does_not_hold_the_loop() -> None:
    thread = LoopThread("test")

    async def refuse() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    thread.submit(refuse())
    thread.run(asyncio.sleep(0))
    thread.close()
    assert thread.loop.is_closed()
