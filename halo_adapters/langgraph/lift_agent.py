"""The model nodes of LangChain's ready-made agents, whose closures hold model, system prompt and tools.

Recognised by module and qualified name; an agent whose closure looks different is scanned like any other function.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import FunctionType
from typing import Any

from langchain_core.messages import SystemMessage
from langchain_core.runnables import RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase

from halo_adapters.langgraph.lift_code import functions_of
from halo_adapters.langgraph.lift_prompts import fixed_messages
from halo_core.lift import closure, fields
from halo_core.plan import MessagesSlot, PromptTemplate

_NAMES = {
    ("langchain.agents.factory", "create_agent.<locals>.model_node"),
    ("langchain.agents.factory", "create_agent.<locals>.amodel_node"),
    ("langgraph.prebuilt.chat_agent_executor", "create_react_agent.<locals>.call_model"),
    ("langgraph.prebuilt.chat_agent_executor", "create_react_agent.<locals>.acall_model"),
}


@dataclass(frozen=True, slots=True)
class AgentModel:
    """What an agent's model node calls."""

    model: Any
    """The chat model; None where only running tells."""
    bound: dict[str, Any]
    """Arguments of the call, tools among them."""
    prompt: PromptTemplate | None
    rest: tuple[Any, ...]
    """Middleware and dynamic models, to be scanned."""
    plain: bool
    """Whether the node does nothing but call this model."""
    found_in: str
    structured: bool
    """Whether the agent ends with a structured response."""


def agent_model(function: FunctionType) -> AgentModel | None:
    """What the model node of `create_agent` or `create_react_agent` calls; None for any other function."""
    if (function.__module__, function.__qualname__) not in _NAMES:
        return None
    cells = closure(function)
    if "static_model" in cells:
        return _react_agent(cells)
    if not cells.keys() >= {"model", "default_tools", "system_message"}:
        return None
    wrapper = cells.get("wrap_model_call_handler", cells.get("awrap_model_call_handler"))
    structured = cells.get("initial_response_format") is not None
    return AgentModel(
        model=cells["model"],
        bound={"tools": cells["default_tools"]},
        prompt=_prompt(cells["system_message"]),
        rest=() if wrapper is None else (wrapper,),
        plain=wrapper is None,
        found_in="create_agent",
        structured=structured,
    )


def _react_agent(cells: dict[str, Any]) -> AgentModel:
    """`create_react_agent`: a sequence of a function that puts the system prompt in front, and the model."""
    chain = cells["static_model"]
    steps = chain.steps if isinstance(chain, RunnableSequence) else []
    model: Any = steps[-1] if len(steps) == 2 else None
    bound: dict[str, Any] = {}
    while issubclass(type(model), RunnableBindingBase):
        own = fields(model)
        model, bound = own.get("bound"), {**own.get("kwargs", {}), **bound}
    prompt = None
    head = functions_of(steps[0]) if steps else []
    if head and head[0].__qualname__.startswith("_get_prompt_runnable.<locals>"):
        texts = [value for value in closure(head[0]).values() if isinstance(value, SystemMessage)]
        prompt = _prompt(texts[0] if texts else None)
    rest = () if model is not None and prompt is not None else (chain, cells.get("_resolve_model"))
    return AgentModel(model, bound, prompt, rest, prompt is not None, "create_react_agent", structured=False)


def _prompt(system: SystemMessage | None) -> PromptTemplate | None:
    fixed = fixed_messages([system] if system is not None else [])
    return None if fixed is None else PromptTemplate(parts=(*fixed, MessagesSlot(path="messages")))
