"""Ctrl-C and SIGTERM during a run: the first ends it in good order, the second at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

STOPPING = (signal.SIGINT, signal.SIGTERM)

EXIT_CODE = 130
"""What shells expect of a program that Ctrl-C ended."""


class Interrupted(BaseException):
    """The user asked the run to end. Not an `Exception`: a row's own error handling must not swallow it."""


class Interruption:
    """Within the block, signals end the iteration of `items` with `Interrupted`, and nothing else.

    Use it on the main thread.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup: tuple[int, socket.socket] | None = None

    def __enter__(self) -> Self:
        # The kernel may hand a second signal to any thread; a main thread that waits for a lock then never runs its
        # handler. The interpreter writes every signal's number here at once, whoever got it.
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False), writer
        threading.Thread(target=_exit_at_second, args=(reader,), name="halo-signals", daemon=True).start()
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._wakeup is not None:
            before_fd, writer = self._wakeup
            signal.set_wakeup_fd(before_fd)
            writer.close()  # ends the watching thread

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(EXIT_CODE)
        self.asked = True
        if self._waiting:
            self._waiting = False
            raise Interrupted

    def items(self, iterator: Iterator[T]) -> Iterator[T]:
        """The items of `iterator`. A signal never strikes while the consumer works on one. Raises `Interrupted`."""
        while True:
            try:
                self._waiting = True  # before the question: a signal in between must not be slept through
                if self.asked:
                    raise Interrupted
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item


def _exit_at_second(reader: socket.socket) -> None:
    """End the process when a second stopping signal comes."""
    count = 0
    with reader:
        while numbers := reader.recv(64):
            count += sum(number in STOPPING for number in numbers)
            if count > 1:
                os._exit(EXIT_CODE)
