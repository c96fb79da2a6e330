"""Wrapping a framework's classes on first use."""

from __future__ import annotations

import threading
import time
from typing import Any

from halo_adapters.hooks import Hooks


class Base:
    """A framework's class, its entry calls the contract."""

    def run(self) -> int:
        return self._run()

    def _run(self) -> int:
        return 0


class Own(Base):
    """A user's."""

    def _run(self) -> int:
        return 1


def test_threads_that_meet_a_class_first_wrap_it_once() -> None:
    wrapped = []

    def wrap(owner: type, name: str, method: Any) -> Any:
        time.sleep(0.02)  # the other threads get here before this one is done
        wrapped.append(owner)

        def wrapper(self: Base) -> int:
            return 10 + int(method(self))

        wrapper.__halo__ = True  # type: ignore[attr-defined]
        return wrapper

    hooks = Hooks(Base, ("run",), ("_run",), wrap)
    threads = [threading.Thread(target=hooks.ensure, args=(Own,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrapped == [Own]
    assert Own().run() == 11
    hooks.uninstall()
    assert Own().run() == 1
    assert not hooks.installed
