"""How a run is getting on: a live line on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import datetime
import threading
import time
from types import TracebackType
from typing import Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarTask
from rich.table import Column
from rich.text import Text

from halo_core.cli.console import err, say
from halo_core.runtime import Batch

LOG_EVERY_S = 10.0
REFRESHES_PER_S = 4.0


class Display(Protocol):
    """Shows a `Progress`."""

    def open(self) -> None:
        """Begin to show."""

    def row(self) -> None:
        """Another row has ended."""

    def close(self) -> None:
        """Stop showing."""


class Progress:
    """What has been done so far of `rows` rows; written by the run, read by the display's thread."""

    def __init__(self, rows: int, *, replayed: int = 0, quiet: bool = False) -> None:
        self.rows = rows
        self.replayed = replayed
        """Rows that an earlier run had finished."""
        self.done = replayed
        self.failed = 0
        self.batch: Batch | None = None
        self.started_s = time.monotonic()
        self._display: Display | None = None
        if not quiet:
            self._display = _LiveDisplay(self) if err().is_terminal else _LogDisplay(self)

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.close()

    def changed(self, batch: Batch) -> None:
        """The batch has counted something; called on the pool's loop, so it only takes a note."""
        if self.batch is None:
            batch.stats.rows_replayed = self.replayed
        self.batch = batch

    def row(self, *, failed: bool) -> None:
        """A row has ended and is journaled."""
        if failed:
            self.failed += 1
        else:
            self.done += 1
        if self._display is not None:
            self._display.row()

    @property
    def ended(self) -> int:
        """Rows that are done or failed."""
        return self.done + self.failed

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started_s

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the pace so far; None before the first row has ended."""
        own = self.ended - self.replayed
        return (self.rows - self.ended) * self.elapsed_s / own if own else None

    def calls(self) -> str:
        """Calls so far, in words."""
        if self.batch is None:
            return "no calls yet"
        total = self.batch.stats.total
        parts = [f"{total.executed} executed", f"{total.shared} shared"]
        if total.replayed:
            parts.append(f"{total.replayed} replayed")
        return "calls " + ", ".join(parts)

    def pace(self) -> str:
        """Generated tokens per second."""
        if self.batch is None:
            return "- tokens/s"
        return f"{self.batch.stats.total.generated_tokens / max(self.elapsed_s, 1e-3):.0f} tokens/s"


class _FiguresColumn(ProgressColumn):
    """Failed rows, calls and pace; read when the line is drawn."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(Column(no_wrap=True))
        self._progress = progress

    def render(self, task: BarTask) -> Text:
        """The figures as text."""
        failed = self._progress.failed
        text = Text(f"{failed} failed  ", style="red") if failed else Text()
        return text.append(f"{self._progress.calls()}  {self._progress.pace()}", style="default")


class _LiveDisplay:
    """One line that is redrawn."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = Bar(
            TextColumn("rows"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            _FiguresColumn(progress),
            TimeRemainingColumn(),
            console=err(),
            refresh_per_second=REFRESHES_PER_S,
        )
        self._task = self._bar.add_task("rows", total=progress.rows, completed=progress.ended)

    def open(self) -> None:
        self._bar.start()

    def row(self) -> None:
        self._bar.update(self._task, completed=self._progress.ended)

    def close(self) -> None:
        self._bar.stop()


class _LogDisplay:
    """A line every few seconds, while something happens."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="halo-progress", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def row(self) -> None:
        pass

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._line()

    def _run(self) -> None:
        while not self._closed.wait(LOG_EVERY_S):
            self._line()

    def _line(self) -> None:
        progress = self._progress
        failed = f", {progress.failed} failed" if progress.failed else ""
        left_s = progress.left_s
        eta = f"; {datetime.timedelta(seconds=round(left_s))} left" if left_s else ""
        say(f"halo: {progress.done} of {progress.rows} rows done{failed}; {progress.calls()}; {progress.pace()}{eta}")
