"""What a chat model's fields say of its calls: name, server, sampling, tools. Fields are read, nothing is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, Tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from halo_core.lift import fields
from halo_core.plan import AdvisedCall, PromptTemplate, Sampling, ToolSchema

_NAMES = ("model_name", "model", "model_id", "deployment_name", "repo_id")
_SERVERS = ("openai_api_base", "base_url", "endpoint_url", "azure_endpoint", "endpoint")
_OWN = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop",
    "stop_sequences": "stop",
    "n": "n",
}
"""Field or argument of a model -> field of `Sampling`."""
_EXTRA = (
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
    "reasoning",
    "verbosity",
    "service_tier",
    "extra_body",
    "tool_choice",
    "parallel_tool_calls",
)


UNKNOWN = Sampling()


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that a node may call, and what is known of the call."""

    kind: str
    """Name of the model's class."""
    name: str
    """The model's name as the app uses it; empty when only running tells."""
    base_url: str | None = None
    sampling: Sampling = UNKNOWN
    tools: tuple[ToolSchema, ...] = ()
    response_format: dict[str, Any] | None = None
    prompt: PromptTemplate | None = None
    found_in: str = ""
    """How it was found: `closure 'llm'`, `global 'chain'`, `self.model`."""
    model: Any = field(default=None, repr=False, compare=False)
    """The model itself, to look at and never to change; None where only its class or a raw client was found."""
    client: bool = False
    """Whether it is a client of a provider's SDK instead of a LangChain model."""

    def advised(self) -> AdvisedCall:
        """The same as part of an operator."""
        name = self.name or f"({self.kind}, named at run time)"
        return AdvisedCall(
            model=name, prompt=self.prompt, sampling=self.sampling, tools=self.tools, found_in=self.found_in
        )


def model_use(model: Any, bound: Mapping[str, Any], prompt: PromptTemplate | None, found_in: str) -> ModelUse:
    """Read a chat model; `bound` are the arguments that `bind` and its relatives have added, and override its own."""
    own = fields(model)
    extra = own.get("model_kwargs")
    settings = {**own, **(extra if isinstance(extra, dict) else {}), **bound}
    name = next((settings[key] for key in _NAMES if isinstance(settings.get(key), str)), "")
    server = next((own[key] for key in _SERVERS if isinstance(own.get(key), str)), None)
    response_format = _plain(bound.get("response_format"))
    return ModelUse(
        kind=type(model).__name__,
        name=name,
        base_url=server,
        sampling=sampling(settings),
        tools=tool_schemas(bound.get("tools") or ()),
        response_format=response_format if isinstance(response_format, dict) else None,
        prompt=prompt,
        found_in=found_in,
        model=model,
    )


def sampling(settings: Mapping[str, Any]) -> Sampling:
    """The sampling parameters among a model's fields and bound arguments."""
    known: dict[str, Any] = {}
    for key, target in _OWN.items():
        value = settings.get(key)
        if value is not None and target not in known:
            known[target] = ((value,) if isinstance(value, str) else tuple(value)) if target == "stop" else value
    extra = {key: plain for key in _EXTRA if settings.get(key) and (plain := _plain(settings[key])) is not None}
    try:
        return Sampling(**known, extra=extra)
    except (ValidationError, TypeError):
        return Sampling()


def tool_schemas(tools: Sequence[Any]) -> tuple[ToolSchema, ...]:
    """Tools as a model is told of them, from LangChain tools or their wire format."""
    schemas = []
    for tool in tools:
        if isinstance(tool, dict):
            function = tool.get("function")
            data = function if isinstance(function, dict) else {"name": str(tool.get("name") or tool.get("type"))}
        elif type(tool) in (StructuredTool, Tool):
            data = convert_to_openai_tool(tool)["function"]
        elif issubclass(type(tool), BaseTool):  # a class of the user's own: its schema may be code
            data = {key: fields(tool).get(key) for key in ("name", "description")}
        else:
            data = {"name": getattr(tool, "__name__", type(tool).__name__)}
        name, parameters = data.get("name"), _plain(data.get("parameters"))
        schemas.append(
            ToolSchema(
                name=str(name) if name else "(unnamed)",
                description=str(data.get("description") or ""),
                parameters=parameters if isinstance(parameters, dict) else {},
            )
        )
    return tuple(schemas)


def unpaired(use: ModelUse, prompt: PromptTemplate | None) -> ModelUse:
    """The same use with a prompt that was found beside it."""
    return use if use.prompt is not None or prompt is None else replace(use, prompt=prompt)


def _plain(value: Any) -> Any:
    """The value as JSON data, None where it has no such form."""
    if isinstance(value, type):
        return {"type": "json_schema", "json_schema": {"name": value.__name__}}
    try:
        return from_json(to_json(value))
    except (PydanticSerializationError, ValueError, TypeError):
        return None
