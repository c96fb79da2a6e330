"""Where the command line writes: results to stdout, everything about them to stderr."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def out() -> Console:
    """Standard output as it is now (tests and scripts replace it)."""
    return Console(highlight=False)


def err() -> Console:
    """Standard error as it is now."""
    return Console(stderr=True, highlight=False)


def say(text: str, style: str = "") -> None:
    """A line on stderr, as it is: no markup, no wrapping."""
    err().print(Text(text, style=style), soft_wrap=True)


def fail(message: str) -> None:
    """An error, as one red line on stderr."""
    say("error: " + " ".join(message.split()), "bold red")


def command_line(*, add: str = "", after: str | None = None) -> str:
    """The command that this process was started with, ready for a shell, with the option `add` in it.

    The option goes to the end, or right behind the argument `after` where what follows is not ours.
    """
    arguments = sys.argv[1:]
    if add and add not in arguments:
        arguments.insert(arguments.index(after) + 1 if after in arguments else len(arguments), add)
    name = Path(sys.argv[0]).name
    program = [Path(sys.executable).name, "-m", "halo_core.cli"] if name == "__main__.py" else [name]
    return shlex.join([*program, *arguments])
