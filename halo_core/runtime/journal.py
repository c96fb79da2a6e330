"""The journal: every finished call and row in SQLite, so that nothing is computed twice after a crash.

A call is committed before its callers hear of it. Write-ahead logging makes a commit survive the death of any process
(not of the machine: that would need a sync to disk per commit, see `synchronous`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from halo_core.errors import JournalError
from halo_core.pool.call import Completion, Usage
from halo_core.runtime.flight import JournalKey

logger = logging.getLogger(__name__)

FORMAT = 1
_SCHEMA = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists calls (
    scope text not null, fingerprint text not null, n integer not null,
    prompt_tokens integer not null, cached_tokens integer not null, generated_tokens integer not null,
    engine text not null, raw blob not null,
    primary key (scope, fingerprint, n)
) without rowid;
create table if not exists writes (
    row text not null, tool text not null, signature text not null, n integer not null, result blob,
    primary key (row, tool, signature, n)
) without rowid;
create table if not exists rows (
    key text primary key, position integer not null, output text, error text
) without rowid;
"""


WriteKey = tuple[str, str, str, int]
"""A call of a writing tool: its row, the tool, its arguments as canonical text, and their n-th time in the row."""


@dataclass(slots=True, frozen=True)
class RowResult:
    """A finished row."""

    key: str
    position: int
    output: str | None
    """JSON text of the result; None for a failed row."""
    error: str | None = None


class Journal:
    """One SQLite file, written by one thread, read from any."""

    def __init__(self, path: str | Path, *, app: str, resume: bool, redo: bool = False) -> None:
        """Open or create. `app` identifies the program; a journal of another program is refused.

        `redo`: make tools' writes again of which an earlier run did not live to see the end.

        Raises `JournalError` when the file exists and `resume` is False, another process writes it just now, it is not
        a journal, or it cannot be written.
        """
        self.path = Path(path)
        self.redo = redo
        if self.path.exists() and self.path.stat().st_size and not resume:
            raise JournalError(
                f"the journal {self.path} already exists: continue that run with --resume (in Python: resume=True), or "
                "remove the file"
            )
        with contextlib.ExitStack() as undo:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = undo.enter_context(self.path.open("ab"))
                self._claim()
                self._db = undo.enter_context(contextlib.closing(self._connect()))
                self._db.executescript(_SCHEMA)
                self._check("format", str(FORMAT), "was written by another version of Halo")
                self._check("app", app, "belongs to another program or graph")
                self._db.commit()
            except (sqlite3.Error, OSError) as error:
                raise JournalError(f"cannot use {self.path} as a journal: {error}") from error
            undo.pop_all()
        self._read_lock = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._queue: queue.SimpleQueue[tuple[str, tuple[object, ...], Callable[[BaseException | None], None]] | None]
        self._queue = queue.SimpleQueue()
        self.failed: JournalError | None = None
        """Set when a write failed; the batch goes on without the journal."""
        self._thread = threading.Thread(target=self._write, name="halo-journal", daemon=True)
        self._thread.start()

    def _claim(self) -> None:
        """Two runs that resumed one journal would both make the calls that are missing. The lock ends with the process.

        The file must stay open longer than the database: closing it drops SQLite's own locks on it too.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"another run is writing the journal {self.path}: wait for it, end it, or choose another file"
            ) from None
        except OSError:
            pass  # a file system without such locks: as before

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, check_same_thread=False, timeout=30)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=normal")
        return db

    def _check(self, key: str, expected: str, trouble: str) -> None:
        row = self._db.execute("select value from meta where key = ?", (key,)).fetchone()
        if row is None:
            self._db.execute("insert into meta values (?, ?)", (key, expected))
        elif row[0] != expected:
            raise JournalError(f"the journal {self.path} {trouble} ({row[0]!r}, not {expected!r}): use another file")

    # -- reading -------------------------------------------------------------------------------------------------

    def call(self, key: JournalKey) -> Completion | None:
        """The finished call under `key`, if there is one; where that cannot be read, it is made again."""
        try:
            with self._read_lock:
                row = self._db.execute(
                    "select raw, prompt_tokens, cached_tokens, generated_tokens, engine from calls"
                    " where scope = ? and fingerprint = ? and n = ?",
                    key,
                ).fetchone()
        except sqlite3.Error as error:
            logger.warning("the journal %s cannot be read: %s", self.path, error)
            return None
        return Completion(bytes(row[0]), Usage(row[1], row[2], row[3]), row[4]) if row else None

    def write(self, key: WriteKey) -> tuple[bytes | None] | None:
        """A tool's write that an earlier run began: its pickled result, or `(None,)` where its end is not known."""
        with self._read_lock:
            row: tuple[bytes | None] | None = self._db.execute(
                "select result from writes where row = ? and tool = ? and signature = ? and n = ?", key
            ).fetchone()
        return row

    def rows(self) -> Iterator[RowResult]:
        """All finished rows, failed ones included."""
        with self._read_lock:
            found = self._db.execute("select key, position, output, error from rows").fetchall()
        return (RowResult(*row) for row in found)

    def count_calls(self) -> int:
        """How many calls are finished."""
        with self._read_lock:
            return int(self._db.execute("select count(*) from calls").fetchone()[0])

    # -- writing -------------------------------------------------------------------------------------------------

    def put_call(
        self, key: JournalKey, completion: Completion, committed: Callable[[BaseException | None], None]
    ) -> None:
        """Write a finished call; `committed(error)` is called on the writer's thread after the commit."""
        usage = completion.usage
        values = (*key, usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens, completion.engine)
        statement = "insert or ignore into calls values (?,?,?,?,?,?,?,?)"
        try:
            self._enqueue(statement, (*values, completion.raw), committed)
        except JournalError as error:
            committed(error)

    def put_write(self, key: WriteKey, result: bytes | None) -> Future[None]:
        """Note that a tool's write begins (None) or what it gave; the future ends with the commit.

        It fails only where the journal is closed: the run is over, and a row that it left behind must not write.
        """
        return self._put("insert or replace into writes values (?,?,?,?,?)", (*key, result), raising=False)

    def drop_write(self, key: WriteKey) -> Future[None]:
        """The write failed, and its caller knows: it never happened."""
        return self._put(
            "delete from writes where row = ? and tool = ? and signature = ? and n = ?", key, raising=False
        )

    def put_row(self, row: RowResult) -> Future[None]:
        """Write a finished row; the future ends with the commit, or with `JournalError`."""
        values = (row.key, row.position, row.output, row.error)
        return self._put("insert or replace into rows values (?,?,?,?)", values)

    def _put(self, statement: str, values: tuple[object, ...], *, raising: bool = True) -> Future[None]:
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # whoever waits for it may be cancelled: it is written all the same

        def committed(error: BaseException | None) -> None:
            if error is None or not raising:
                future.set_result(None)
            else:
                future.set_exception(error)

        try:
            self._enqueue(statement, values, committed)
        except JournalError as error:
            future.set_exception(error)
        return future

    def _enqueue(
        self, statement: str, values: tuple[object, ...], committed: Callable[[BaseException | None], None]
    ) -> None:
        """Have it written. Raises `JournalError` where nobody writes any more."""
        with self._closing:
            if self._closed:
                raise JournalError(f"the journal {self.path} is closed: the run that wrote it is over")
            self._queue.put((statement, values, committed))

    def _write(self) -> None:
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():  # all that is waiting shares one commit
                batch.append(self._queue.get_nowait())
            writes = [item for item in batch if item is not None]
            error = self._commit(writes) if writes else None
            for _, _, committed in writes:
                try:
                    committed(error)
                except Exception:  # a caller's loop that is closed, say: the others must hear
                    logger.exception("telling that %s has written", self.path)
            if len(writes) < len(batch):
                return

    def _commit(
        self, writes: list[tuple[str, tuple[object, ...], Callable[[BaseException | None], None]]]
    ) -> JournalError | None:
        if self.failed is None:
            try:
                with self._read_lock, self._db:
                    for statement, values, _ in writes:
                        self._db.execute(statement, values)
            except Exception as error:
                self.failed = JournalError(
                    f"the journal {self.path} cannot be written any more ({error}): the run goes on without it, "
                    f"what was written before can be resumed; free some space or choose another file"
                )
        return self.failed

    def close(self) -> None:
        """Write what is queued and close the file; idempotent."""
        with self._closing:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        self._thread.join()
        self._db.close()
        self._file.close()
