"""What a model client says of its calls: name, server, sampling. Attributes are read, nothing of the user's is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autogen_core.models import ChatCompletionClient
from autogen_core.tools import BaseTool
from pydantic import JsonValue, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from halo_adapters.autogen.lift_code import attribute, is_framework
from halo_core.lift import fields
from halo_core.plan import AdvisedCall, PromptTemplate, Sampling, ToolSchema

_OWN = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop",
    "n": "n",
}
"""Argument of a client -> field of `Sampling`."""
_ASIDE = frozenset({"model", "messages", "tools", "stream", "response_format", "user", "timeout", "metadata"})
"""Arguments that are no sampling parameters."""

UNKNOWN = Sampling()


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that an agent or a team calls."""

    kind: str
    """Name of the client's class."""
    name: str
    """The model's name as the app uses it; empty when the client does not say it."""
    base_url: str | None = None
    sampling: Sampling = UNKNOWN
    response_format: dict[str, JsonValue] | None = None

    def advised(
        self, found_in: str, prompt: PromptTemplate | None = None, tools: Sequence[ToolSchema] = ()
    ) -> AdvisedCall:
        """A call of the model as part of an opaque step."""
        name = self.name or f"({self.kind}, named at run time)"
        return AdvisedCall(model=name, prompt=prompt, sampling=self.sampling, tools=tuple(tools), found_in=found_in)


def model_use(client: Any) -> ModelUse:
    """Read a model client; one that only wraps another (`ChatCompletionCache`) stands for that."""
    kind = type(client).__name__
    for _ in range(10):
        inner = fields(client).get("client")
        if not isinstance(inner, ChatCompletionClient):
            break
        client = inner
    arguments = attribute(client, "_create_args")
    if not isinstance(arguments, Mapping):
        return ModelUse(kind, "")
    name = arguments.get("model")
    return ModelUse(
        kind=kind,
        name=name if isinstance(name, str) else "",
        base_url=_server(client),
        sampling=_sampling(arguments),
        response_format=_response_format(arguments.get("response_format")),
    )


def model_info(client: Any) -> Mapping[str, Any]:
    """What the client says its model can do; empty where only running its code would tell."""
    own = attribute(client, "_model_info")
    info = own if own is not None else attribute(client, "model_info")
    return info if isinstance(info, Mapping) else {}


def clients_of(holder: Any) -> list[tuple[str, Any]]:
    """The model clients among an object's attributes, each with the attribute's name."""
    return [(name, value) for name, value in fields(holder).items() if isinstance(value, ChatCompletionClient)]


def _server(client: Any) -> str | None:
    url = attribute(client, "_base_url")
    if url is None:
        url = fields(attribute(client, "_client")).get("_base_url")
    return str(url).rstrip("/") if url is not None else None


def _sampling(arguments: Mapping[str, Any]) -> Sampling:
    known: dict[str, Any] = {}
    for key, target in _OWN.items():
        value = arguments.get(key)
        if value is not None and target not in known:
            known[target] = ((value,) if isinstance(value, str) else tuple(value)) if target == "stop" else value
    rest = {k: v for k, v in arguments.items() if k not in _OWN and k not in _ASIDE}
    extra = {key: plain for key, value in rest.items() if (plain := _json(value)) is not None}
    try:
        return Sampling(**known, extra=extra)
    except (ValidationError, TypeError):
        return Sampling()


def _response_format(value: Any) -> dict[str, JsonValue] | None:
    if isinstance(value, type):
        return {"type": "json_schema", "json_schema": {"name": value.__name__}}
    plain = _json(value)
    return plain if isinstance(plain, dict) else None


def tool_schemas(tools: Sequence[Any]) -> tuple[ToolSchema, ...]:
    """Tools as a model is told of them; of a tool class of the user's own only name and description."""
    schemas = []
    for tool in tools:
        if isinstance(tool, BaseTool) and is_framework(type(tool)):
            data: Mapping[str, Any] = tool.schema
        else:
            own = fields(tool)
            data = {"name": own.get("_name"), "description": own.get("_description")}
        name, parameters = data.get("name"), _json(data.get("parameters"))
        schemas.append(
            ToolSchema(
                name=str(name) if name else f"({type(tool).__name__})",
                description=str(data.get("description") or ""),
                parameters=parameters if isinstance(parameters, dict) else {},
            )
        )
    return tuple(schemas)


def _json(value: Any) -> Any:
    """The value as JSON data, None where it has no such form."""
    try:
        return from_json(to_json(value))
    except (PydanticSerializationError, ValueError, TypeError):
        return None
