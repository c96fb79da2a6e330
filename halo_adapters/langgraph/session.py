"""What a row of a graph is, and which node of the graph makes a call."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.load.dump import dumps
from langchain_core.runnables.config import var_child_runnable_config

from halo_core.pool import CallOrigin
from halo_core.runtime import Run, digest


def row_content(row: Any, *, inner: bool = False) -> str:
    """A short text that is equal for equal inputs across processes; identifies a row for the journal.

    `inner`: it is made by a graph's code, so that the ids of messages in it are new in every process: they do not
    count.
    """
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        try:
            text = dumps(row)  # messages and other LangChain objects
            if inner:
                text = json.dumps(json.loads(text, object_hook=_without_id), sort_keys=True)
        except (TypeError, ValueError):
            text = repr(row)
    return digest(text)


def _without_id(found: dict[str, Any]) -> dict[str, Any]:
    """An object as `dumps` writes it, a message without its id."""
    kwargs = found.get("kwargs")
    if found.get("type") == "constructor" and isinstance(kwargs, dict) and "content" in kwargs:
        kwargs.pop("id", None)
    return found


def origin_of(run: Run, run_manager: Any = None) -> CallOrigin:
    """Attribution of a model call that is being made now: the graph's node, its superstep and attempt.

    Inside LCEL chains no config stands in the context; `run_manager`, which LangChain hands to the model, has the node
    there too. The attempt is not in it, but a retry is a repetition within its run, never answered from before.
    """
    config = var_child_runnable_config.get()
    attempt = 1
    if config is None:
        metadata = getattr(run_manager, "metadata", None) or {}
    else:
        metadata = config.get("metadata") or {}
        runtime = (config.get("configurable") or {}).get("__pregel_runtime")
        info = getattr(runtime, "execution_info", None)
        if info is not None:
            attempt = int(getattr(info, "node_attempt", 1) or 1)
    return run.origin(
        str(metadata.get("langgraph_node", "(no node)")), int(metadata.get("langgraph_step", 0) or 0), attempt
    )
