"""`halo run`: a file of rows through an app, journaled, resumable."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from halo_core.cli.console import command_line, err, fail, out, say
from halo_core.cli.interrupt import EXIT_CODE, Interrupted, Interruption
from halo_core.cli.job import Job
from halo_core.cli.options import Config, Models, Target, configured_pool
from halo_core.cli.rows import SHOWN, check_output, read_rows
from halo_core.cli.summary import run_table
from halo_core.cli.target import load_target
from halo_core.cli.verify import Verification
from halo_core.errors import HaloError, JournalError
from halo_core.pool import get_pool
from halo_core.runtime import BatchStats, Journal

EXAMPLES = """Examples:

`halo run my_app.graph:app --input rows.jsonl --output out.jsonl`

`halo run my_app.graph:app --input rows.jsonl --output out.jsonl --resume`  (after an interruption)

`halo run my_app.graph:app --input rows.jsonl --output out.jsonl --verify 8`  (and compare with plain execution)

`halo run my_app.graph:build --input rows.jsonl --output out.jsonl --config gpu.toml --models gpt-4o-mini=qwen3-8b`
"""

REASON_CHARS = 300
"""Of a failed row's reason, on the terminal; the output has all of it."""


def run(
    target: Target,
    input: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="Rows: one JSON object a line.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Results in the rows' order, written at the end.")
    ],
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an earlier run: finished rows and finished calls are not repeated, failed rows are tried "
            "again.",
        ),
    ] = False,
    redo_writes: Annotated[
        bool,
        typer.Option(
            "--redo-writes",
            help="With --resume: call tools again whose writes were under way when the run was cut off. Without it "
            "their rows fail, for nobody knows whether they were done.",
        ),
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Where to keep what is finished; OUTPUT.halo.db by default."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, metavar="N", help="At most so many rows at a time.", show_default=False),
    ] = None,
    models: Models = None,
    config: Config = None,
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Execute every call, also those that are equal to another.")
    ] = False,
    verify: Annotated[
        int,
        typer.Option(
            "--verify",
            min=0,
            metavar="K",
            help="Then run K of the rows again on the plain framework, and fail where a state key or a side effect "
            "differs. Repeats what the rows' own code does to the world.",
            show_default=False,
        ),
    ] = 0,
    allow_writes: Annotated[
        bool,
        typer.Option(
            "--allow-writes", help="With --verify: tools that may write do it again; else such rows are left."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary; errors only.")] = False,
) -> None:
    """Run every row of a file through an app.

    Each line of the output is the result of the row on the same line of the input, or
    {"error": {"type", "message", "row"}}. Exits 1 when a row failed or --verify found a difference,
    130 when interrupted.
    """
    rows = read_rows(input)
    journal_path = journal or output.with_name(output.name + ".halo.db")
    check_output(output, input, journal_path)
    _refuse_old_journal(journal_path, resume)
    configured_pool(config, models)
    adapter, found = load_target(target)
    app = adapter.prepare(found, merge=not no_merge)
    record = Journal(journal_path, app=adapter.fingerprint(app), resume=resume, redo=redo_writes)
    job = Job(adapter, app, rows, record)
    verification = Verification(job, verify, allow_writes=allow_writes) if verify else None
    if not quiet:
        _say_what_is_left(job, resume)
    try:
        with verification.watch if verification is not None else nullcontext():
            finished = job.run(concurrency=concurrency, quiet=quiet)
    except BaseException:
        record.close()
        get_pool().close()  # else the interpreter waits for threads that wait for their calls
        raise
    record.close()
    if not finished:
        _leave(job, journal_path)
    trouble = job.trouble
    try:
        job.write(output)
    except HaloError as error:
        trouble.append(f"{error}. What is finished is in {journal_path}: {command_line(add='--resume')}")
    else:
        if not quiet:
            _show(job)
            say(f"{len(rows)} results in {output}")
    if job.errors:
        _tell_failures(job)
    for line in trouble:
        fail(line)
    differs = verification is not None and not _verified(verification, output, quiet)
    if job.errors or trouble or differs:
        raise typer.Exit(1)


def _refuse_old_journal(path: Path, resume: bool) -> None:
    if not resume and path.exists() and path.stat().st_size:
        raise JournalError(
            f"{path} holds an earlier run. To continue it without repeating what is finished: "
            f"{command_line(add='--resume')}    To start over: rm {path}, or name another file with --journal"
        )


def _say_what_is_left(job: Job, resume: bool) -> None:
    if not resume:
        return
    if not job.known and not job.journal.count_calls():
        say(f"nothing to resume: {job.journal.path} is new; running all {len(job.rows)} rows")
        return
    again = f", {job.retried} that failed are tried again" if job.retried else ""
    say(
        f"resuming: {len(job.known)} of {len(job.rows)} rows are finished and not run again{again}; "
        f"{len(job.pending)} to run, with {job.journal.count_calls()} finished calls at hand"
    )


def _show(job: Job) -> None:
    stats = job.progress.batch.stats if job.progress.batch is not None else BatchStats()
    out().print(
        run_table(
            rows=len(job.rows),
            done=job.progress.done,
            failed=job.progress.failed,
            replayed=len(job.known),
            stats=stats,
            wall_s=job.wall_s,
        )
    )


def _tell_failures(job: Job) -> None:
    fail(f"{len(job.errors)} of {len(job.rows)} rows failed:")
    for position, error in sorted(job.errors.items())[:SHOWN]:
        reason = " ".join(error.message.split())
        reason = reason if len(reason) <= REASON_CHARS else f"{reason[:REASON_CHARS]}..."
        say(f"  {job.rows.place(position)}: {error.kind}: {reason}", "red")
    if len(job.errors) > SHOWN:
        say(f"  and {len(job.errors) - SHOWN} more, each with its reason in the output", "red")
    say(f"to try the failed rows again: {command_line(add='--resume')}")


def _verified(verification: Verification, output: Path, quiet: bool) -> bool:
    """Run the chosen rows again, tell what differs, and say whether all is well."""
    if not quiet:
        verification.announce()
    interrupted = False
    try:
        with Interruption() as interruption:
            for _ in interruption.items(verification.run()):
                pass
    except Interrupted:
        interrupted = True
    verification.report(quiet=quiet)
    if interrupted:
        get_pool().close()
        say(f"interrupted while verifying; the results of all rows are in {output}")
        _end()
    return not verification.failed


def _leave(job: Job, journal: Path) -> None:
    """End an interrupted run."""
    for line in job.trouble:
        fail(line)
    get_pool().close()
    say(f"interrupted: {job.progress.ended} of {len(job.rows)} rows are finished and kept in {journal}; continue with")
    say(f"  {command_line(add='--resume')}")
    _end()


def _end() -> NoReturn:
    """The process ends here: threads may be inside the app's own code for any time."""
    sys.stdout.flush()
    err().file.flush()
    os._exit(EXIT_CODE)
