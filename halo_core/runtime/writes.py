"""Writes of tools in the journal: made once, whatever dies. Their beginning is noted too, so that none is guessed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from halo_core.errors import InDoubtError
from halo_core.runtime.journal import Journal, WriteKey

if TYPE_CHECKING:
    from halo_core.runtime.batch import Run
    from halo_core.runtime.tool_call import ToolCall


_AROUND: ContextVar[str] = ContextVar("halo_write", default="")
"""Which write the current code is inside of. What it writes there is counted apart: once that one is known, a resumed
row asks for none of it."""


def row_of(run: Run) -> str:
    """The row of a `WriteKey` for what the current code writes."""
    return run.key + _AROUND.get()


class WriteRecord:
    """One write of one row: what an earlier run left of it, and what this one notes."""

    __slots__ = ("_forgotten", "_journal", "_key", "known", "result")

    def __init__(
        self, journal: Journal, key: WriteKey, call: ToolCall, forgotten: Callable[[], None], *, fresh: bool = False
    ) -> None:
        """`forgotten` hears that the write failed, so that the next one takes its place; that one is `fresh`: what the
        journal has there is of the first, if it is not dropped yet.

        Raises `InDoubtError` where an earlier run began the write and nobody knows whether it was made.
        """
        self._journal = journal
        self._key = key
        self._forgotten = forgotten
        self.known = False
        """Whether an earlier run made it."""
        self.result: Any = None
        found = None if fresh else journal.write(key)
        if found is None:
            return
        if found[0] is not None:
            self.known, self.result = True, pickle.loads(found[0])
        elif not call.retries and not journal.redo:
            raise InDoubtError(
                f"the tool {call.tool!r} was called with {call.signature or 'unknown arguments'} when an earlier run "
                "was cut off: nobody knows whether it was done. See whether it was; to have such calls made again, "
                "resume with --redo-writes, or declare the tool with retries= if repeating it does no harm"
            )

    def begins(self) -> Future[None]:
        """Note that the write begins; done when that is on disk."""
        return self._journal.put_write(self._key, None)

    def ends(self, result: Any) -> Future[None]:
        """Note what the write gave; one that cannot be kept stays in doubt."""
        try:
            kept = pickle.dumps(result)
        except Exception:  # whatever the user's objects raise
            kept = None
        return self._journal.put_write(self._key, kept)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Forget the write if it fails: its caller has heard. One cancelled or too slow stays in doubt."""
        token = _AROUND.set(f"{_AROUND.get()}/{blake2b(repr(self._key[1:]).encode(), digest_size=12).hexdigest()}")
        try:
            yield
        except TimeoutError:
            raise
        except Exception as error:
            if getattr(error, "in_doubt", False):  # a request that was sent and not answered, say
                raise
            self._journal.drop_write(self._key)
            self._forgotten()
            raise
        finally:
            _AROUND.reset(token)
