"""What a row of a graph is, and which node of the graph makes a call."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.load.dump import dumps
from langchain_core.runnables.config import var_child_runnable_config

from halo_core.pool import CallOrigin
from halo_core.runtime import Run, digest


def row_content(row: Any) -> str:
    """A short text that is equal for equal inputs across processes; identifies a row for the journal."""
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        try:
            text = dumps(row)  # messages and other LangChain objects
        except (TypeError, ValueError):
            text = repr(row)
    return digest(text)


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
