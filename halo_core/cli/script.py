"""A Python script or module, run in this process exactly as `python` would run it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from halo_core.cli.target import path_first
from halo_core.errors import ConfigError


@dataclass(slots=True, frozen=True)
class Script:
    """Code that is to become `__main__`."""

    code: CodeType
    name: str
    """Its own `sys.argv[0]`."""
    file: str
    folder: str
    """Where it imports from first."""
    spec: ModuleSpec | None = None

    @classmethod
    def from_file(cls, path: str) -> Script:
        """The script at `path`. Raises `ConfigError`, and `SyntaxError` as Python does."""
        try:
            source = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot open the script {path}: {error.strerror or error}") from error
        file = os.path.abspath(path)
        folder = os.path.dirname(os.path.realpath(path))
        return cls(compile(source, file, "exec", dont_inherit=True), path, file, folder)

    @classmethod
    def from_module(cls, name: str) -> Script:
        """The module `name`, or the `__main__` of the package `name`. Raises `ConfigError`."""
        path_first(os.getcwd())
        spec = _find(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = _find(f"{name}.__main__")
            if spec is None:
                raise ConfigError(f"{name} is a package without a __main__ module: name a module of it")
        if spec is None:
            raise ConfigError(f"there is no module {name!r} in {os.getcwd()} or on the Python path")
        code = getattr(spec.loader, "get_code", lambda name: None)(spec.name)
        if code is None:
            raise ConfigError(f"the module {name!r} has no Python code to run")
        file = spec.origin or name
        return cls(code, file, file, os.getcwd(), spec)

    def run(self, arguments: Sequence[str]) -> int:
        """Run it and return its exit code; an uncaught exception is shown as Python shows it."""
        sys.argv = [self.name, *arguments]
        path_first(self.folder)
        # The module stays: threads, pickles and multiprocessing look for it after the last line has run.
        main = ModuleType("__main__")
        main.__dict__.update(
            __builtins__=__builtins__,
            __file__=self.file,
            __spec__=self.spec,
            __loader__=self.spec.loader if self.spec is not None else None,
            __package__=self.spec.parent if self.spec is not None else None,
            __cached__=None,
        )
        sys.modules["__main__"] = main
        try:
            exec(self.code, main.__dict__)
        except SystemExit as leaving:
            return _exit_code(leaving)
        except BaseException as error:
            trace = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without this frame
            sys.excepthook(type(error), error.with_traceback(trace), trace)
            return 130 if isinstance(error, KeyboardInterrupt) else 1
        return 0


def _find(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot find the module {name!r}: {error}") from error


def _exit_code(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    sys.stderr.write(f"{leaving.code}\n")
    return 1
