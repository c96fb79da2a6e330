"""`StateGraph` with a typed `compile(backend=...)`, for code that is type-checked: no patch needed."""

from __future__ import annotations

from typing import Any, Literal

from langgraph.graph.state import CompiledStateGraph
from langgraph.graph.state import StateGraph as LangGraphStateGraph
from langgraph.typing import ContextT, InputT, OutputT, StateT

from halo_adapters.langgraph.compiled import accelerate


class StateGraph(LangGraphStateGraph[StateT, ContextT, InputT, OutputT]):
    """LangGraph's own `StateGraph`; only `compile` takes one keyword more."""

    def compile(
        self, *args: Any, backend: Literal["halo", "langgraph"] | None = None, **kwargs: Any
    ) -> CompiledStateGraph[StateT, ContextT, InputT, OutputT]:
        """As LangGraph's, plus `backend`. Raises `ConfigError` for an unknown backend."""
        from halo_adapters.langgraph.patch import _lookup

        apply = accelerate if backend == "halo" else _lookup(backend or "langgraph")
        app: CompiledStateGraph[StateT, ContextT, InputT, OutputT] = super().compile(*args, **kwargs)
        apply(app)
        return app
