"""A job: the rows of one file through one app, each finished row journaled before it counts."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo_core.cli.adapter import Adapter
from halo_core.cli.interrupt import Interrupted, Interruption
from halo_core.cli.progress import Progress
from halo_core.cli.rows import Rows, to_line, write_lines
from halo_core.errors import HaloError, JournalError
from halo_core.runtime import Journal, RowResult, row_keys


@dataclass(slots=True, frozen=True)
class RowError:
    """Why a row failed."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> RowError:
        """The error that a row raised."""
        told = [note for note in getattr(error, "__notes__", ()) if note.startswith("Halo: ")]
        return cls(type(error).__name__, "; ".join([str(error) or repr(error), *told]))

    def line(self, position: int) -> str:
        """The row's line of output."""
        return to_line({"error": {"type": self.kind, "message": self.message, "row": position}})


def line_of(adapter: Adapter, position: int, result: Any) -> tuple[str, RowError | None]:
    """The line of output for what a row came to (a result or an exception), and the error that it tells of."""
    if isinstance(result, BaseException):
        error = RowError.of(result)
        return error.line(position), error
    try:
        return to_line(adapter.encode(result)), None
    except Exception as failure:  # whatever the user's objects raise: it is this row's own failure
        error = RowError(type(failure).__name__, f"the result cannot be written as JSON: {failure}")
        return error.line(position), error


class Job:
    """Rows, what an earlier run finished of them, and what has become of the others."""

    def __init__(self, adapter: Adapter, app: Any, rows: Rows, journal: Journal) -> None:
        self.adapter = adapter
        self.app = app
        self.rows = rows
        self.journal = journal
        self.keys = row_keys(adapter.row_content(row) for row in rows.values)
        finished = {row.key: row for row in journal.rows()}
        self.known: dict[int, str] = {}
        """Lines of output of the rows that an earlier run finished."""
        self.retried = 0
        """Rows that failed in an earlier run."""
        for position, key in enumerate(self.keys):
            row = finished.get(key)
            if row is not None and row.output is not None:
                self.known[position] = row.output
            elif row is not None:
                self.retried += 1
        self.pending = [position for position in range(len(rows)) if position not in self.known]
        self.lines: dict[int, str] = dict(self.known)
        self.errors: dict[int, RowError] = {}
        self.progress = Progress(len(rows), quiet=True)
        self.wall_s = 0.0

    def run(self, *, concurrency: int | None = None, quiet: bool = False) -> bool:
        """Run what is pending. Returns False when the user interrupted it."""
        self.progress = Progress(len(self.rows), replayed=len(self.known), quiet=quiet)
        try:
            with Interruption() as interruption, self.progress:
                if self.pending:
                    self._run(interruption, concurrency)
        except Interrupted:
            return False
        finally:
            self.wall_s = self.progress.elapsed_s
        return True

    def _run(self, interruption: Interruption, concurrency: int | None) -> None:
        results = self.adapter.run(
            self.app,
            [self.rows.values[position] for position in self.pending],
            journal=self.journal,
            on_change=self.progress.changed,
            keys=[self.keys[position] for position in self.pending],
            concurrency=concurrency,
        )
        try:
            for index, result in interruption.items(results):
                self._finish(self.pending[index], result)
        except SystemExit as error:
            message = f"the app called sys.exit({error.code!r}), which ended the run: raise an error instead"
            raise HaloError(message) from error
        finally:
            if isinstance(results, Generator):
                results.close()  # an interrupted batch is cancelled here and now

    def _finish(self, position: int, result: Any) -> None:
        line, error = line_of(self.adapter, position, result)
        key = self.keys[position]
        row = RowResult(key, position, line) if error is None else RowResult(key, position, None, line)
        # Once the journal has failed the run goes on without it, see `trouble`.
        with contextlib.suppress(JournalError):
            self.journal.put_row(row).result()
        self.lines[position] = line
        if error is not None:
            self.errors[position] = error
        self.progress.row(failed=error is not None)

    @property
    def trouble(self) -> list[str]:
        """What went wrong besides rows."""
        batch = self.progress.batch
        found = dict.fromkeys(batch.errors if batch is not None else ())
        if self.journal.failed is not None:
            found[str(self.journal.failed)] = None
        return list(found)

    def write(self, path: Path) -> None:
        """Write a line for each row, in the rows' order. Raises `HaloError`."""
        missing = [position for position in range(len(self.rows)) if position not in self.lines]
        if missing:
            raise HaloError(f"{len(missing)} rows have no result ({self.rows.place(missing[0])} is the first)")
        write_lines(path, (self.lines[position] for position in range(len(self.rows))))
