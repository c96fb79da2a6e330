"""One node of a graph as an operator of the plan: a model call where that is certain, else an opaque step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough, RunnableSequence
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from langgraph.types import Command
from pydantic import JsonValue
from pydantic_core import from_json, to_json

from halo_adapters.langgraph.inventory import NodeInventory, unbind
from halo_adapters.langgraph.lift_agent import agent_model
from halo_adapters.langgraph.lift_code import functions_of, mentions, only_computes
from halo_adapters.langgraph.lift_models import ModelUse, model_use
from halo_adapters.langgraph.lift_prompts import prompt_template
from halo_adapters.langgraph.lift_proof import prove
from halo_adapters.langgraph.lift_returns import returns_of
from halo_core.lift import fields
from halo_core.plan import (
    AdvisedTool,
    Effect,
    LLMOperator,
    MessagesSlot,
    OpaqueStep,
    PromptTemplate,
    Source,
)
from halo_core.tools import spec_of

ROOT = "__root__"
"""LangGraph's name of the only key of a state that is not a mapping."""

_LIBRARY = ("langchain_core.", "langchain.", "langgraph.")


def lift_node(
    name: str, spec: Any, found: NodeInventory, reads: tuple[str, ...], state: Sequence[str]
) -> LLMOperator | OpaqueStep:
    """The operator of the node `name`; `reads` are the state keys of its input schema, `state` all of them."""
    hints = halo_hints(spec.metadata)
    call = certain_call(spec.runnable, reads, pure=_hinted(hints) is Effect.PURE)
    use, writes = call if call is not None else (None, None)
    if use is not None and use.name and use.prompt is not None:
        return LLMOperator(
            name=name,
            reads=reads if reads == (ROOT,) else use.prompt.state_keys(),
            writes=writes,
            source=_source(spec, hints),
            model=use.name,
            prompt=use.prompt,
            sampling=use.sampling,
            tools=use.tools,
            response_format=use.response_format,
        )
    effect, doubt = node_effect(spec.runnable, found, hints), ""
    if effect is None:
        proof = prove(spec.runnable, composed, _tool_effect)
        effect, doubt = proof.effect, proof.doubt
        reads = reads if proof.reads is None else tuple(key for key in reads if key in proof.reads)
    return OpaqueStep(
        name=name,
        reads=reads,
        writes=node_writes(spec.runnable, found, state),
        source=_source(spec, hints),
        effect=effect,
        doubt=doubt,
        advised_calls=tuple(model.advised() for model in found.models),
        advised_tools=tuple(_advised_tools(found)),
    )


def certain_call(
    runnable: Any, reads: tuple[str, ...], *, pure: bool
) -> tuple[ModelUse, tuple[str, ...] | None] | None:
    """The one model call that the node surely is, and the keys it surely writes; None where only running tells.

    `pure` is the user's word that functions around the call do nothing but compute.
    """
    key: str | None = None
    if type(runnable) is RunnableParallel and len(runnable.steps__) == 1:
        key, runnable = next(iter(runnable.steps__.items()))
    steps = list(runnable.steps) if isinstance(runnable, RunnableSequence) else [runnable]
    prompt: PromptTemplate | None
    if issubclass(type(steps[0]), BasePromptTemplate):
        prompt, steps = prompt_template(steps[0]), steps[1:]
    else:
        prompt = PromptTemplate(parts=(MessagesSlot(path=ROOT),)) if reads == (ROOT,) else None
    model, bound = unbind(steps[0]) if steps else (None, {})
    if prompt is None or not issubclass(type(model), BaseChatModel):
        return None
    if prompt.state_keys() != (ROOT,) and not set(prompt.state_keys()) <= set(reads):
        return None
    rest = steps[1:]
    if not pure and not all(_parses(step) or _computes(step) for step in rest):
        return None
    writes: tuple[str, ...] | None = (key,) if key is not None else (ROOT,) if reads == (ROOT,) else None
    if writes is None and rest and type(rest[-1]) is RunnableLambda:
        told = returns_of(rest[-1])
        certain = told.updates == 1 and not (told.unknown or told.unknown_keys or told.labels)
        writes = tuple(told.keys) if certain else None
    return model_use(model, bound, prompt, ""), writes


def _parses(step: Any) -> bool:
    """Whether a step only computes: one of LangChain's own output parsers or a passthrough."""
    library = type(step).__module__.startswith("langchain_core.")
    return library and (issubclass(type(step), BaseOutputParser) or type(step) is RunnablePassthrough)


def _computes(step: Any) -> bool:
    """Whether a function after the model only reshapes the answer."""
    return type(step) is RunnableLambda and only_computes(step, (BaseMessage,))


def composed(runnable: Any) -> bool:
    """Whether a node is made of models, prompts and parsers of LangChain alone, so that it changes nothing outside."""
    if isinstance(runnable, RunnableSequence):
        return all(map(composed, runnable.steps))
    if type(runnable) is RunnableParallel:
        return all(map(composed, runnable.steps__.values()))
    inner, _ = unbind(runnable)
    if inner is not runnable:
        return composed(inner)
    return issubclass(type(runnable), BaseChatModel | BasePromptTemplate) or _parses(runnable)


def node_effect(runnable: Any, found: NodeInventory, hints: Mapping[str, JsonValue]) -> Effect | None:
    """What running the node does to the world, as far as its author or its shape tell; None where neither does."""
    hinted = _hinted(hints)
    if hinted is not None:
        return hinted
    if isinstance(runnable, Runnable) and composed(runnable):
        return Effect.PURE
    functions = functions_of(runnable)
    agents = [agent_model(f) for f in functions if not hasattr(f, "__self__")]
    if agents and all(agent is not None and agent.plain for agent in agents):
        return Effect.PURE
    if isinstance(runnable, ToolNode):
        effects = [_tool_effect(tool) for tool in found.tools.values()]
        order = [Effect.PURE, Effect.READ, Effect.WRITE]
        return max(effects, key=order.index, default=Effect.WRITE)
    declared = spec_of(functions[0]) if len(functions) == 1 else None
    return declared.effect if declared is not None else None


def _advised_tools(found: NodeInventory) -> Iterator[AdvisedTool]:
    for name, tool in found.tools.items():
        yield AdvisedTool(name=name, effect=_tool_effect(tool))
    for name, (effect, label) in found.declared.items():
        if name not in found.tools:
            yield AdvisedTool(name=name, effect=effect, found_in=label)


def _tool_effect(tool: Any) -> Effect:
    """What a LangChain tool says of itself, or its function under `halo_core.tool` does."""
    own = fields(tool)
    specs = [spec for name in ("func", "coroutine") if (spec := spec_of(own.get(name))) is not None]
    return specs[0].effect if specs else _hinted(halo_hints(own.get("metadata"))) or Effect.WRITE


def node_writes(runnable: Any, found: NodeInventory, state: Sequence[str]) -> tuple[str, ...] | None:
    """The state keys that the node can write, None where its code does not show them."""
    if isinstance(runnable, RunnableParallel) and ROOT not in state:
        return tuple(key for key in state if key in runnable.steps__)
    if isinstance(runnable, ToolNode):
        key = str(fields(runnable).get("_messages_key", "messages"))
        commands = any(mentions(tool, Command) for tool in found.tools.values())
        return (key,) if key in state and not commands else None
    functions = functions_of(runnable)
    agents = [agent for f in functions if not hasattr(f, "__self__") and (agent := agent_model(f)) is not None]
    if agents and all(agent.plain for agent in agents):
        keys = {"messages"} | ({"structured_response"} if agents[0].structured else set())
        return tuple(key for key in state if key in keys)
    told = returns_of(runnable)
    if told.unknown or told.unknown_keys or told.labels:
        return None
    return (ROOT,) if ROOT in state else tuple(key for key in state if key in told.keys)


def halo_hints(metadata: Any) -> dict[str, JsonValue]:
    """What a node's or tool's `metadata["halo"]` says, as JSON data."""
    hints = metadata.get("halo") if isinstance(metadata, Mapping) else None
    if not isinstance(hints, Mapping):
        return {}
    return {str(key): from_json(to_json(value, fallback=repr)) for key, value in hints.items()}


def _hinted(hints: Mapping[str, JsonValue]) -> Effect | None:
    if hints.get("pure"):
        return Effect.PURE
    effect = hints.get("effect")
    return Effect(effect) if isinstance(effect, str) and effect in set(Effect) else None


def _source(spec: Any, hints: dict[str, JsonValue]) -> Source:
    policies = spec.retry_policy if isinstance(spec.retry_policy, Sequence) else [spec.retry_policy]
    attempts = [getattr(policy, "max_attempts", 1) for policy in _policies(spec.retry_policy, policies)]
    limits = [
        value.total_seconds() if isinstance(value, timedelta) else float(value)
        for key in ("run_timeout", "idle_timeout")
        if (value := getattr(spec.timeout, key, None)) is not None
    ]
    return Source(
        framework="langgraph",
        code=code_of(spec.runnable),
        retries=max(attempts, default=None),
        cached=spec.cache_policy is not None,
        timeout_s=min(limits, default=None),
        deferred=bool(spec.defer),
        error_handler=spec.error_handler_node or "",
        hints=hints,
    )


def _policies(given: Any, listed: Sequence[Any]) -> Sequence[Any]:
    """A `RetryPolicy` is itself a tuple; a list of them is one only of policies."""
    if given is None:
        return ()
    return (given,) if hasattr(given, "max_attempts") else listed


def code_of(target: Any) -> str:
    """Import path of the code behind a node; for composites, what they are made of."""
    if isinstance(target, Pregel):
        return f"graph {target.get_name()!r}"
    if isinstance(target, ToolNode):
        return "ToolNode with " + ", ".join(target.tools_by_name)
    functions = functions_of(target)
    if functions and not isinstance(target, RunnableSequence | RunnableParallel):
        return f"{functions[0].__module__}.{functions[0].__qualname__}"
    return _composition(target)


def _composition(target: Any) -> str:
    if isinstance(target, RunnableSequence):
        return " | ".join(map(_composition, target.steps))
    if isinstance(target, RunnableParallel):
        return "{" + ", ".join(f"{key}: {_composition(step)}" for key, step in target.steps__.items()) + "}"
    return type(unbind(target)[0]).__name__
