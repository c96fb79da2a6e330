"""`halo exec`: an unmodified script whose model calls go to the pool."""

from __future__ import annotations

import atexit
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from halo_core.cli import default_executor
from halo_core.cli.adapter import adapters
from halo_core.cli.console import command_line, fail, say
from halo_core.cli.interrupt import EXIT_CODE
from halo_core.cli.options import Config, Models, configured_pool
from halo_core.cli.script import Script
from halo_core.cli.summary import reasons
from halo_core.errors import ConfigError
from halo_core.pool import get_pool
from halo_core.runtime import Batch, BatchStats, Executor, Journal, get_executor

EXAMPLES = """Examples:

`halo exec app.py --rows 100`  (everything behind the script's name is its own)

`halo exec --models gpt-4o-mini=qwen3-8b -m my_app.nightly`

`halo exec --journal nightly.db --resume app.py`
"""


def exec_script(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A Python file; with -m, a module.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's own arguments.", show_default=False)
    ] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as in python -m.")] = False,
    openai_sdk: Annotated[
        bool, typer.Option(help="Also route direct use of the OpenAI SDK inside a graph's nodes.")
    ] = True,
    journal: Annotated[
        Path | None,
        typer.Option("--journal", metavar="FILE", help="Keep finished calls, so that --resume need not repeat them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Answer calls that the journal has from it.")] = False,
    models: Models = None,
    config: Config = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary at the end.")] = False,
) -> None:
    """Run an unmodified script: every graph and team that it runs has its model calls on the pool, all as one batch.

    Exits with the script's own code. The summary goes to stderr.
    """
    if resume and journal is None:
        raise ConfigError("--resume needs the journal to resume from: --journal FILE")
    try:
        program = Script.from_module(script) if module else Script.from_file(script)
    except SyntaxError as error:
        sys.excepthook(SyntaxError, error.with_traceback(None), None)  # as Python shows it: no frames of ours
        raise typer.Exit(1) from None
    installed = adapters()
    if not installed:
        raise ConfigError(
            "no framework that Halo knows is installed: pip install 'halo-agents[langgraph]' or 'halo-agents[autogen]'"
        )
    configured_pool(config, models)
    record = None
    if journal is not None:
        identity = f"exec:{program.spec.name if program.spec is not None else Path(program.file).resolve()}"
        record = Journal(journal, app=identity, resume=resume)
    again = command_line(add="--resume", after="exec")  # before the script gets its own sys.argv
    for adapter in installed:
        adapter.install(openai_sdk=openai_sdk)
    default_executor.uncap()
    executor = get_executor()
    batches = executor.share(record)
    ambient = executor.ambient(pin=True)
    # At exit, not after the last line: threads that the script started are waited for in between.
    atexit.register(_end, executor, ambient, batches, record, quiet=quiet)
    code = program.run(arguments or [])
    if code == EXIT_CODE:
        get_pool().close()  # else the interpreter waits for threads that wait for their calls
    if record is not None and code:
        say(f"halo: finished calls are kept in {record.path}; to continue without repeating them: {again}")
    sys.exit(code)


def _end(executor: Executor, ambient: Batch, batches: list[Batch], record: Journal | None, *, quiet: bool) -> None:
    """Close the ambient batch and say what became of the calls."""
    with suppress(RuntimeError):  # the pool's loop is closed already
        executor.close_batch(ambient)
    if record is not None:
        record.close()
    stats = BatchStats()
    for batch in batches:
        _add(stats, batch.stats)
    if not quiet:
        say(describe(stats))
    for trouble in dict.fromkeys(error for batch in batches for error in batch.errors):
        fail(trouble)


def _add(stats: BatchStats, other: BatchStats) -> None:
    stats.rows += other.rows
    stats.outside += other.outside
    for name, operator in list(other.operators.items()):
        if name in stats.operators:
            stats.operators[name].add(operator)
        else:
            stats.operators[name] = operator
    for reason, count in list(other.outside_reasons.items()):
        stats.outside_reasons[reason] = stats.outside_reasons.get(reason, 0) + count


def describe(stats: BatchStats) -> str:
    """What became of a script's calls, in a line or two."""
    total = stats.total
    seen = total.planned + stats.outside
    if not seen:
        return "halo: no model call was seen: does the script run a graph or a team?"
    parts = [f"{total.executed:,} executed", f"{total.shared:,} shared"]
    if total.replayed:
        parts.append(f"{total.replayed:,} replayed")
    if total.failed or total.cancelled:
        parts.append(f"{total.failed + total.cancelled:,} failed")
    parts.append(f"{stats.outside:,} left alone")
    line = (
        f"halo: {seen:,} calls seen in {stats.rows:,} runs: {', '.join(parts)}; "
        f"{total.computed_tokens:,} prompt tokens computed, {total.cached_tokens:,} cached, "
        f"{total.generated_tokens:,} generated"
    )
    return f"{line}\nhalo: left alone: {reasons(stats)}" if stats.outside else line
