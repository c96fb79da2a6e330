"""What the current code belongs to. Frameworks copy contexts into the tasks and threads that they start."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halo_core.runtime.batch import Run

SESSION: ContextVar[Run | None] = ContextVar("halo_run", default=None)
"""The run of the current task or thread."""


class NotYet(BaseException):
    """Code that looks ahead has come to what only its real run may do. No `except Exception` of an app swallows it."""


class Look:
    """A step's code, run before its time to begin its lookups; whatever it returns is thrown away.

    Its tool calls are made if they may be shared: the real run finds them under way or done. It ends where it asks for
    something that is not known yet, a model's answer, or a write.
    """

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0
        """Tool calls that it was the first to make."""


LOOKING: ContextVar[Look | None] = ContextVar("halo_look", default=None)
"""The look ahead that the current code is part of."""


def not_ahead() -> None:
    """End a look ahead here; does nothing in a real run. Raises `NotYet`."""
    if LOOKING.get() is not None:
        raise NotYet
