"""The app that a command names as `package.module:attribute`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from typing import Any

from halo_core.cli.adapter import Adapter, adapter_for, adapters
from halo_core.errors import ConfigError, HaloError


def path_first(folder: str) -> None:
    """Make `folder` the first place to import from, in place of the folder of the `halo` script itself."""
    if sys.flags.safe_path:
        sys.path.insert(0, folder)
    else:
        sys.path[0] = folder


def load_target(name: str) -> tuple[Adapter, Any]:
    """The adapter of `package.module:attribute` and the graph, builder or app that the name stands for.

    Imports from the current folder first, as `python -m` does. A callable without required arguments is called once
    and stands for what it returns. Raises `ConfigError` that says which part of the name is wrong.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"the target {name!r} is not of the form package.module:attribute, such as my_app.graph:app")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"the target {name!r} names a file: name the module, {dotted}:{attribute}")
    path_first(os.getcwd())
    target = _attribute(_import(module_name), module_name, attribute)
    if not any(adapter.accepts(target) for adapter in adapters()) and _is_factory(target):
        try:
            target = target()
        except HaloError:
            raise
        except Exception as error:
            raise ConfigError(f"calling {name}() raised {_reason(error)}") from error
        name = f"{name}()"
    return adapter_for(target, name), target


def _import(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"there is no module {missing!r} in {os.getcwd()} or on the Python path: run halo from the folder that "
                "holds it, or correct the name"
            ) from error
        raise ConfigError(f"importing {module_name} raised {_reason(error)}") from error
    except HaloError:
        raise
    except Exception as error:
        raise ConfigError(f"importing {module_name} raised {_reason(error)}") from error


def _attribute(module: Any, module_name: str, path: str) -> Any:
    target = module
    walked = module_name
    for part in path.split("."):
        if not hasattr(target, part):
            names = [name for name in vars(target) if not name.startswith("_")] if hasattr(target, "__dict__") else []
            apps = [name for name in names if any(adapter.accepts(getattr(target, name)) for adapter in adapters())]
            hint = f"; its apps: {', '.join(apps)}" if apps else ""
            raise ConfigError(f"{walked} ({getattr(module, '__file__', '?')}) has no attribute {part!r}{hint}")
        target = getattr(target, part)
        walked = f"{walked}.{part}"
    return target


def _is_factory(target: Any) -> bool:
    if not callable(target) or isinstance(target, type):
        return False
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return False
    return all(
        parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )


def _reason(error: Exception) -> str:
    """What was raised and where in the user's code, without the frames above it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}; halo --debug shows the traceback"
