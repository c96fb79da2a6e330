"""One participant of a team as an operator of the plan: a model call where that is certain, else an opaque step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autogen_agentchat.agents import AssistantAgent, CodeExecutorAgent, MessageFilterAgent, SocietyOfMindAgent
from autogen_agentchat.base import ChatAgent, Handoff, Team
from autogen_agentchat.teams import BaseGroupChat
from autogen_agentchat.tools import AgentTool, TeamTool
from autogen_core.model_context import (
    BufferedChatCompletionContext,
    HeadAndTailChatCompletionContext,
    TokenLimitedChatCompletionContext,
    UnboundedChatCompletionContext,
)
from autogen_core.models import AssistantMessage, SystemMessage, UserMessage
from autogen_core.tools import StaticStreamWorkbench, StaticWorkbench
from pydantic import JsonValue

from halo_adapters.autogen.lift_code import attribute, is_framework
from halo_adapters.autogen.lift_ends import ends_of
from halo_adapters.autogen.lift_models import ModelUse, clients_of, model_info, model_use, tool_schemas
from halo_core.lift import fields
from halo_core.plan import (
    AdvisedCall,
    Effect,
    LiteralText,
    LLMOperator,
    Message,
    MessagesSlot,
    OpaqueStep,
    PromptTemplate,
    Source,
)

KEYS = ("task", "messages")
"""State keys of every plan: what the row asks, and what the team has said since."""

_LIBRARY_CONTEXTS = (
    UnboundedChatCompletionContext,
    BufferedChatCompletionContext,
    HeadAndTailChatCompletionContext,
    TokenLimitedChatCompletionContext,
)
_CUTS: dict[type, str] = {
    BufferedChatCompletionContext: "the last messages only",
    HeadAndTailChatCompletionContext: "the first and last messages only",
    TokenLimitedChatCompletionContext: "as many messages as fit",
}
_WORKBENCHES = (StaticWorkbench, StaticStreamWorkbench)
_ROLES = ((SystemMessage, "system"), (UserMessage, "user"), (AssistantMessage, "assistant"))
_MAX_DEPTH = 40
"""Teams and agents inside each other, at most: beyond, something holds itself."""


def agent_step(agent: ChatAgent | Team, name: str, *, told_task: bool = True) -> LLMOperator | OpaqueStep:
    """The operator of the participant called `name`.

    `told_task`: it hears the task itself; without (Magentic-One) it begins anew and hears only what the team says.
    """
    hears = KEYS if told_task else KEYS[1:]
    if type(agent) is AssistantAgent:
        certain = _certain_call(agent, name, hears)
        if certain is not None:
            return certain
    return OpaqueStep(
        name=name,
        reads=hears,
        writes=("messages",),
        effect=effect(agent),
        advised_calls=tuple(_advised(agent, hears)),
        source=Source(framework="autogen", code=_code(agent), hints=_hints(agent)),
    )


def _certain_call(agent: AssistantAgent, name: str, hears: tuple[str, ...]) -> LLMOperator | None:
    """The one call that the agent surely makes in a turn; None where only running tells."""
    own = fields(agent)
    use = model_use(own["_model_client"])
    plain = type(own["_model_context"]) is UnboundedChatCompletionContext and not own["_output_content_type"]
    prompt = _prompt(own, hears)
    if not use.name or not plain or prompt is None or _tools(own) != [] or own["_handoff_tools"] or own["_memory"]:
        return None
    if {"on_messages", "on_messages_stream"} & own.keys():  # replaced on this very object
        return None
    return LLMOperator(
        name=name,
        reads=hears,
        writes=("messages",),
        model=use.name,
        prompt=prompt,
        sampling=use.sampling,
        response_format=use.response_format,
        source=Source(framework="autogen"),
    )


def effect(agent: ChatAgent | Team, depth: int = 0) -> Effect:
    """What a turn of the participant does to the world, as far as its parts tell; a write where they do not."""
    own = fields(agent)
    if depth > _MAX_DEPTH:
        return Effect.WRITE
    if type(agent) is AssistantAgent:
        pure = not own["_memory"] and _tools(own) == [] and all(type(h) is Handoff for h in own["_handoffs"].values())
        return Effect.PURE if pure and type(own["_model_context"]) in _LIBRARY_CONTEXTS else Effect.WRITE
    if type(agent) is MessageFilterAgent:
        return effect(own["_wrapped_agent"], depth + 1)
    if type(agent) is SocietyOfMindAgent:
        known = type(own["_model_context"]) in _LIBRARY_CONTEXTS
        return effect(own["_team"], depth + 1) if known else Effect.WRITE
    if isinstance(agent, BaseGroupChat) and is_framework(type(agent)) and not _asks_user_code(own):
        effects = {effect(participant, depth + 1) for participant in own["_participants"]}
        return Effect.PURE if effects == {Effect.PURE} else Effect.WRITE
    return Effect.WRITE


def _asks_user_code(own: dict[str, Any]) -> bool:
    """Whether functions of the user's, or the clock, decide in a team."""
    graph = own.get("_graph")
    asked = [edge.condition_function for node in graph.nodes.values() for edge in node.edges] if graph else []
    functions = (own.get("_selector_func"), own.get("_candidate_func"), *asked)
    return any(function is not None for function in functions) or not ends_of(own["_termination_condition"], None).told


# -- model calls ---------------------------------------------------------------------------------------------------


def _advised(agent: ChatAgent | Team, hears: tuple[str, ...]) -> Iterator[AdvisedCall]:
    """The calls of a turn: the participant's own, and one of each agent inside it."""
    for where, part in _with_parts(agent, ""):
        for call in _own_calls(part, KEYS if where else hears):
            yield call.model_copy(update={"found_in": f"{where}: {call.found_in}"}) if where else call


def _own_calls(agent: Any, hears: tuple[str, ...]) -> Iterator[AdvisedCall]:
    own = fields(agent)
    if isinstance(agent, AssistantAgent):
        tools = _tools(own)
        rounds = own["_max_tool_iterations"]
        handy = tools != [] or bool(own["_handoff_tools"])
        again = f", up to {rounds} rounds of tools" if handy and rounds > 1 else ""
        schemas = tool_schemas([*(tools or ()), *own["_handoff_tools"]])
        use = model_use(own["_model_client"])
        yield use.advised("model_client" + again, _prompt(own, hears), schemas)
        if tools != [] and own["_reflect_on_tool_use"]:
            yield use.advised("reflection on the tools' results", _prompt(own, hears))
    elif isinstance(agent, SocietyOfMindAgent):
        yield model_use(own["_model_client"]).advised("summary of the inner team", _summary_prompt(own))
    else:
        for name, client in clients_of(agent):
            yield model_use(client).advised(
                name.lstrip("_"), _prompt(own, hears) if "_system_messages" in own else None
            )


def uses(agent: ChatAgent | Team, name: str) -> Iterator[tuple[str, ModelUse]]:
    """All models that the participant called `name` and those inside it use, each with who uses it (`outer/inner`)."""
    for where, part in _with_parts(agent, name):
        manager = fields(part)["_group_chat_manager_name"] if isinstance(part, BaseGroupChat) else ""
        for _, client in clients_of(part):
            yield f"{where}/{manager}".strip("/"), model_use(client)


def _with_parts(agent: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The participant and all agents and teams inside it, inner ones first as they speak first."""
    seen: set[int] = set()

    def walk(part: Any, path: str) -> Iterator[tuple[str, Any]]:
        if id(part) in seen:
            return
        seen.add(id(part))
        for name, inner in parts(part):
            yield from walk(inner, f"{path}/{name}".strip("/"))
        yield path, part

    return walk(agent, where)


def parts(holder: Any) -> Iterator[tuple[str, Any]]:
    """What a team, an agent or its tools hold inside: agents by name, and teams with an empty name."""
    own = fields(holder)
    if isinstance(holder, BaseGroupChat):
        yield from zip(own["_participant_names"], own["_participants"], strict=True)
    elif isinstance(holder, MessageFilterAgent):
        yield "", own["_wrapped_agent"]
    elif isinstance(holder, AssistantAgent):
        for tool in _tools(own) or ():
            if isinstance(tool, AgentTool | TeamTool):
                yield str(fields(tool)["_name"]), fields(tool)["_task_runner"]
    else:
        for name, value in own.items():
            if isinstance(value, Team | ChatAgent):
                yield "" if name == "_team" else name.lstrip("_"), value


def _tools(own: dict[str, Any]) -> list[Any] | None:
    """The tools of an AssistantAgent; None where its workbenches tell them only at run time."""
    workbenches = own["_workbench"]
    if any(type(bench) not in _WORKBENCHES for bench in workbenches):
        return None
    return [tool for bench in workbenches for tool in fields(bench)["_tools"]]


# -- prompts -------------------------------------------------------------------------------------------------------


def _prompt(own: dict[str, Any], hears: tuple[str, ...]) -> PromptTemplate | None:
    """The agent's messages: its system message, what its context began with, the task and what was said since."""
    begun = fields(own.get("_model_context")).get("_messages") or () if "task" in hears else ()
    fixed: list[Message] = []
    for message in [*own["_system_messages"], *begun]:
        role = next((role for kind, role in _ROLES if type(message) is kind), None)
        if role is None or not isinstance(message.content, str):
            return None
        fixed.append(_message(role, message.content))
    return PromptTemplate(parts=(*fixed, *(MessagesSlot(path=key) for key in hears)))


def _summary_prompt(own: dict[str, Any]) -> PromptTemplate:
    role = "system" if model_info(own["_model_client"]).get("multiple_system_messages") else "user"
    said = MessagesSlot(path="inner")
    return PromptTemplate(parts=(_message(role, own["_instruction"]), said, _message(role, own["_response_prompt"])))


def _message(role: str, text: str) -> Message:
    return Message(role=role, segments=(LiteralText(text=text),) if text else ())


# -- what else is worth telling ------------------------------------------------------------------------------------


def _code(agent: Any) -> str:
    """The class of a participant that is not an AssistantAgent."""
    cls = type(agent)
    return "" if cls is AssistantAgent else f"{cls.__module__.partition('._')[0]}.{cls.__qualname__}"


def _hints(agent: Any) -> dict[str, JsonValue]:
    own = fields(agent)
    hints: dict[str, JsonValue] = {}
    if isinstance(agent, MessageFilterAgent):
        hints["sees"] = ", ".join(map(_filter, own["_filter"].per_source))
        agent, own = own["_wrapped_agent"], fields(own["_wrapped_agent"])
    if isinstance(agent, AssistantAgent):
        if cut := _CUTS.get(type(own["_model_context"])):
            hints["context"] = cut
        elif type(own["_model_context"]) not in _LIBRARY_CONTEXTS:
            hints["context"] = type(own["_model_context"]).__name__
        if _tools(own) is None:
            hints["tools"] = "told at run time by " + ", ".join(type(bench).__name__ for bench in own["_workbench"])
        if own["_memory"]:
            hints["memory"] = ", ".join(type(memory).__name__ for memory in own["_memory"])
        if own["_output_content_type"]:
            hints["answers"] = own["_output_content_type"].__name__
    if isinstance(agent, CodeExecutorAgent):
        hints["executor"] = type(attribute(agent, "_code_executor")).__name__
    return hints


def _filter(rule: Any) -> str:
    which = f"{rule.position} {rule.count} of " if rule.position and rule.count else ""
    return f"{which}{rule.source}"
