"""The journal: what is finished stays finished."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from halo_core.errors import JournalError
from halo_core.pool import LLMCall
from halo_core.pool.call import Completion, Usage
from halo_core.runtime import Executor, Journal, RowResult
from tests.runtime.scripted import ScriptedEngine, answer, ask, text_of


async def ask_all(executor: Executor, journal: Journal, calls: list[tuple[str, LLMCall]]) -> list[str]:
    batch = executor.open_batch("b", journal=journal)
    runs = {key: executor.begin(batch, key, key) for key, _ in calls}
    answers = await asyncio.gather(*(executor.call(runs[key], call) for key, call in calls))
    executor.close_batch(batch)
    return [text_of(a) for a in answers]


async def test_a_second_run_repeats_no_finished_call(
    executor: Executor, engine: ScriptedEngine, tmp_path: Path
) -> None:
    sampled = ask("dice", temperature=1.0)
    calls = [("r0", ask("a")), ("r1", ask("a")), ("r1", ask("a")), ("r0", sampled), ("r1", sampled)]
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    first = await ask_all(executor, journal, calls)
    journal.close()
    executed = len(engine.seen)
    assert executed == 4  # a, a again, and the sampled one of each row

    journal = Journal(tmp_path / "j.db", app="x", resume=True)
    assert journal.count_calls() == 4
    assert await ask_all(executor, journal, calls) == first
    assert len(engine.seen) == executed
    assert executor.last_batch is not None and executor.last_batch.stats.total.replayed >= 4
    new = await ask_all(executor, journal, [*calls, ("r2", sampled)])
    assert new[-1] == "DICE" and len(engine.seen) == executed + 1
    journal.close()


async def test_a_streamed_call_replays_its_chunks(executor: Executor, engine: ScriptedEngine, tmp_path: Path) -> None:
    call = replace(ask("ab"), stream=True)
    seen: list[list[bytes]] = []
    for resume in (False, True):
        journal = Journal(tmp_path / "j.db", app="x", resume=resume)
        batch = executor.open_batch("b", journal=journal)
        seen.append([chunk async for chunk in executor.stream(executor.begin(batch, "r"), call)])
        journal.close()
    assert len(engine.seen) == 1
    assert [c.count(b"content") for c in seen[1]] == [c.count(b"content") for c in seen[0]]


def test_an_existing_journal_needs_resume(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", app="x", resume=False).close()
    with pytest.raises(JournalError, match="--resume"):
        Journal(tmp_path / "j.db", app="x", resume=False)


def test_a_journal_has_one_writer_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j.db", app="x", resume=False)
    program = "import sys\nfrom halo_core.runtime import Journal\nJournal(sys.argv[1], app='x', resume=True).close()\n"
    command = [sys.executable, "-c", program, str(tmp_path / "j.db")]
    second = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "another run is writing the journal" in second.stderr
    with pytest.raises(JournalError, match="another run is writing"):
        Journal(tmp_path / "j.db", app="x", resume=True)
    first.close()
    Journal(tmp_path / "j.db", app="x", resume=True).close()


def test_a_foreign_journal_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.db", app="x", resume=False).close()
    with pytest.raises(JournalError, match="belongs to another program"):
        Journal(tmp_path / "j.db", app="y", resume=True)
    (tmp_path / "text.db").write_text("no database at all, but long enough to look at" * 10)
    with pytest.raises(JournalError, match="cannot use"):
        Journal(tmp_path / "text.db", app="x", resume=True)


def test_rows_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    journal.put_row(RowResult("k", 0, '{"a":1}')).result(10)
    journal.put_row(RowResult("l", 1, None, "ValueError: no")).result(10)
    journal.close()
    journal = Journal(tmp_path / "j.db", app="x", resume=True)
    assert sorted(journal.rows(), key=lambda row: row.position) == [
        RowResult("k", 0, '{"a":1}'),
        RowResult("l", 1, None, "ValueError: no"),
    ]
    journal.close()


async def test_a_full_disk_does_not_stop_the_batch(executor: Executor, engine: ScriptedEngine, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    pages = journal._db.execute("pragma page_count").fetchone()[0]
    journal._db.execute(f"pragma max_page_count = {pages + 2}")  # SQLite answers as on a full disk
    calls = [(f"r{n}", ask(f"{n} " + "long " * 400)) for n in range(20)]
    batch = executor.open_batch("b", journal=journal)
    answers = await asyncio.gather(*(executor.call(executor.begin(batch, key, key), call) for key, call in calls))
    executor.close_batch(batch)
    assert len(answers) == 20
    assert len(batch.errors) == 1 and "full" in batch.errors[0] and "j.db" in batch.errors[0]
    journal.close()
    kept = sqlite3.connect(tmp_path / "j.db").execute("select count(*) from calls").fetchone()[0]
    assert kept < 20  # what was written before the disk was full can still be read


def test_a_commit_survives_kill_9(tmp_path: Path) -> None:
    program = f"""
import os, signal, threading
from halo_core.runtime import Journal
from tests.runtime.scripted import answer
journal = Journal({str(tmp_path / "j.db")!r}, app="x", resume=False)
done = threading.Event()
for n in range(50):
    journal.put_call(("", f"call {{n}}", 0), answer(str(n)), lambda error: None)
journal.put_call(("", "last", 0), answer("last"), lambda error: done.set())
done.wait(20)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], timeout=60)
    assert killed.returncode == -9
    journal = Journal(tmp_path / "j.db", app="x", resume=True)
    assert journal.count_calls() == 51
    found = journal.call(("", "call 7", 0))
    assert found is not None and text_of(found) == "7" and found.usage == answer("7").usage
    journal.close()


def test_a_row_that_outlives_its_journal_writes_nothing_and_does_not_wait(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", app="x", resume=False)
    journal.close()
    journal.close()
    for late in (journal.put_write(("r", "t", "s", 0), None), journal.put_row(RowResult("k", 0, "1"))):
        with pytest.raises(JournalError, match="closed"):
            late.result(timeout=10)
    told: list[BaseException | None] = []
    journal.put_call(("", "f", 0), Completion(b"{}", Usage(1, 0, 1), "e0"), told.append)
    assert [type(error) for error in told] == [JournalError]
