"""The pool's own event loop, in a thread of its own, and cheap ways in and out of it."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Mailbox:
    """Runs callables on one loop from any thread; many posts cost one wake-up of the loop."""

    __slots__ = ("_context", "_loop", "_posted", "_queue")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Without a context of its own, each wake-up would run in (and tasks made there would keep) the poster's.
        self._context = contextvars.Context()
        self._queue: collections.deque[tuple[Callable[..., object], tuple[Any, ...]]] = collections.deque()
        self._posted = False

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have the loop call `function(*args)` soon, in posting order. Raises `RuntimeError` on a closed loop."""
        self._queue.append((function, args))
        if not self._posted:  # a lost race only costs one wake-up too many, never a lost message: see _drain
            self._posted = True
            try:
                self._loop.call_soon_threadsafe(self._drain, context=self._context)
            except RuntimeError:
                self._posted = False  # the next one must hear it too
                raise

    def _drain(self) -> None:
        self._posted = False  # before emptying: whoever appends after this posts a new wake-up
        while self._queue:
            function, args = self._queue.popleft()
            try:
                function(*args)
            except Exception as error:  # one bad message must not lose those behind it
                self._loop.call_exception_handler({"message": "error in a message to the loop", "exception": error})


LAST_WORDS_S = 1.0
"""Tasks that are cancelled with their loop have so long to end."""


class LoopThread:
    """An event loop that runs in a daemon thread until `close`."""

    def __init__(self, name: str = "halo-pool", loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.new_event_loop()
        self.mailbox = Mailbox(self.loop)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(self._last_mail())
        if waiting := asyncio.all_tasks(self.loop):  # for the events of engines, say
            for task in waiting:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(waiting, timeout=LAST_WORDS_S))

    async def _last_mail(self) -> None:
        """What was posted while the loop came to its end is heard too."""
        self.mailbox._drain()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this very thread."""
        return threading.get_ident() == self._thread.ident

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Schedule a coroutine from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine to its end from another thread. Raises `RuntimeError` when called on the loop itself."""
        if self.is_current:
            coroutine.close()
            raise RuntimeError("LoopThread.run would block the pool's own loop: await the coroutine instead")
        return self.submit(coroutine).result(timeout_s)

    def close(self) -> None:
        """Stop the loop and join the thread; idempotent."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_current:
            self._thread.join(timeout=5)
        if not self.loop.is_running():
            self.loop.close()


_mailboxes: dict[int, tuple[asyncio.AbstractEventLoop, Mailbox]] = {}


def now_s() -> float:
    """Seconds of the running loop, which is all the runtime takes its time from: a simulation's loop has its own."""
    return asyncio.get_running_loop().time()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """The mailbox of a user's loop; one per loop, forgotten when the loop is closed."""
    known = _mailboxes.get(id(loop))
    if known is not None and known[0] is loop:
        return known[1]
    for key in [key for key, (other, _) in _mailboxes.items() if other.is_closed()]:
        _mailboxes.pop(key, None)
    mailbox = Mailbox(loop)
    _mailboxes[id(loop)] = (loop, mailbox)
    return mailbox
