"""Waiting for something that may take too long."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, make: Callable[[], T], name: str) -> T:
    """The result of `make`, called in a thread of its own (`name`) that is left behind if it takes too long.

    Raises what `make` raises, and `TimeoutError`.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    context = copy_context()

    def call() -> None:
        try:
            future.set_result(context.run(make))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return future.result(seconds)
