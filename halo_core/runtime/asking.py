"""How a caller waits for its answer: as a task of its own loop or blocking a thread, at once or chunk by chunk.

Each form submits a call and is told the outcome on the pool's loop, from where it goes to the caller's side.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Protocol

from halo_core.pool.call import Completion
from halo_core.pool.loop import mailbox_of
from halo_core.runtime.flight import How, Waiter

OnDone = Callable[[Completion | None, BaseException | None], None]
"""Is told the answer, or what the engine raised, on the pool's loop."""
GiveUp = Callable[[Waiter], None]
"""Nobody waits for the answer any more."""
Link = Callable[[asyncio.Future[Any]], object]
Told = Callable[[How], None]

_END = b""


class Submit(Protocol):
    """Hands a call to the executor."""

    def __call__(self, on_done: OnDone, on_chunk: Callable[[bytes], None] | None = None) -> Waiter:
        """The caller that now waits; `on_chunk` gets what is streamed, on the pool's loop."""


async def answer(submit: Submit, give_up: GiveUp, link: Link | None, told: Told | None) -> Completion:
    """The answer, on the caller's loop. Raises what the engine raised.

    `link` gets a future whose cancellation gives the call up; `told` hears how the answer was got.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Completion] = loop.create_future()
    if link is not None:
        link(future)
    mailbox = mailbox_of(loop)

    def resolve(completion: Completion | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif completion is not None:
            future.set_result(completion)

    def on_done(completion: Completion | None, error: BaseException | None) -> None:
        mailbox.post(resolve, completion, error)

    waiter = submit(on_done)
    try:
        completion = await future
        if told is not None:
            told(waiter.how)
        return completion
    except asyncio.CancelledError:
        give_up(waiter)
        raise


def answer_blocking(submit: Submit, give_up: GiveUp) -> Completion:
    """The answer, blocking the calling thread. Raises what the engine raised."""
    future: concurrent.futures.Future[Completion] = concurrent.futures.Future()

    def on_done(completion: Completion | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        elif completion is not None:
            future.set_result(completion)

    waiter = submit(on_done)
    try:
        return future.result()
    except KeyboardInterrupt:
        give_up(waiter)
        raise


async def chunks(submit: Submit, give_up: GiveUp, link: Link | None, told: Told | None) -> AsyncGenerator[bytes, None]:
    """The chunks of a streamed call as raw JSON objects, on the caller's loop; arguments as of `answer`."""
    loop = asyncio.get_running_loop()
    mailbox = mailbox_of(loop)
    received: asyncio.Queue[bytes | BaseException] = asyncio.Queue()
    if link is not None:
        given_up: asyncio.Future[None] = loop.create_future()
        given_up.add_done_callback(lambda _: received.put_nowait(asyncio.CancelledError()))
        link(given_up)

    def on_done(completion: Completion | None, error: BaseException | None) -> None:
        mailbox.post(received.put_nowait, error if error is not None else _END)

    waiter = submit(on_done, lambda data: mailbox.post(received.put_nowait, data))
    finished = False
    try:
        while True:
            item = await received.get()
            if isinstance(item, BaseException):
                finished = not isinstance(item, asyncio.CancelledError)
                raise item
            if item is _END:
                finished = True
                if told is not None:
                    told(waiter.how)
                return
            yield item
    finally:
        if not finished:
            give_up(waiter)


def chunks_blocking(submit: Submit, give_up: GiveUp) -> Iterator[bytes]:
    """The chunks of a streamed call as raw JSON objects, blocking the calling thread."""
    received: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

    def on_done(completion: Completion | None, error: BaseException | None) -> None:
        received.put(error if error is not None else _END)

    waiter = submit(on_done, received.put)
    finished = False
    try:
        while True:
            item = received.get()
            if isinstance(item, BaseException):
                finished = True
                raise item
            if item is _END:
                finished = True
                return
            yield item
    finally:
        if not finished:
            give_up(waiter)
