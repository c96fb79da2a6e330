"""Runs of calls that are made outside any, and what identifies a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from halo_core.runtime.batch import Run
from halo_core.runtime.executor import get_executor


def digest(text: str) -> str:
    """A short text that is equal for equal texts across processes; identifies a row for the journal."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


@contextmanager
def ambient_run(content: str, repeats: Counter[tuple[str, str]] | None = None) -> Iterator[Run]:
    """A run of the ambient batch for a call that is made outside any run; it is never made to wait.

    `repeats` are the repetition counts to go on from, where several such calls are known to belong together.
    """
    executor = get_executor()
    run = executor.begin(executor.ambient(), content)
    if repeats is not None:
        run.repeats = repeats
    failed = True
    try:
        yield run
        failed = False
    finally:
        executor.end(run, failed=failed)
