"""The arguments of a client: those of AutoGen's OpenAI client, vLLM's sampling parameters, and Halo's own."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from autogen_core.models import ModelFamily, ModelInfo, validate_model_info
from pydantic import BaseModel, ConfigDict, SecretStr

from halo_core.errors import ConfigError

LateSystem = Literal["auto", "keep", "user", "merge", "error"]
"""What becomes of a system message that comes after others (AutoGen's memories add such), for models whose `model_info`
does not say that they take several.

`keep`: sent as it is; `user`: sent as a user message; `merge`: added to the first one; `error`: refused, as AutoGen's
own client does; `auto`: kept where the model's chat template shows it, else sent as a user message.
"""

REQUEST_FIELDS = frozenset(
    """
    audio frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata modalities model moderation
    parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention
    reasoning_effort response_format safety_identifier seed service_tier stop store stream_options temperature
    tool_choice tools top_logprobs top_p user verbosity web_search_options extra_body timeout
    """.split()  # noqa: SIM905
)
"""Fields of an OpenAI chat-completions request."""

ENGINE_FIELDS = frozenset(
    """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words best_of cache_salt chat_template
    chat_template_kwargs continue_final_message documents echo ignore_eos include_stop_str_in_output length_penalty
    min_p min_tokens mm_processor_kwargs prompt_logprobs repetition_penalty skip_special_tokens
    spaces_between_special_tokens stop_token_ids structured_outputs top_k truncate_prompt_tokens use_beam_search
    vllm_xargs guided_json guided_regex guided_choice guided_grammar
    """.split()  # noqa: SIM905
)
"""Further fields that vLLM takes beside them."""

_DISALLOWED = ("stream", "messages", "function_call", "functions", "n")
_IGNORED = frozenset(
    """
    organization project webhook_secret websocket_base_url max_retries timeout default_query
    http_client _strict_response_validation http_options
    """.split()  # noqa: SIM905
)
"""Arguments about the OpenAI client's own connection, which there is none of; the pool has its own limits."""

_OWN = frozenset(
    """
    api_key api_key_env base_url model_info model_capabilities add_name_prefixes include_name_in_message late_system
    pool context_length default_headers
    """.split()  # noqa: SIM905
)

DEFAULT_INFO: ModelInfo = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": ModelFamily.UNKNOWN,
    "structured_output": True,
    "multiple_system_messages": False,
}
"""Of a model that AutoGen does not know and the user says nothing of: what vLLM does for every chat model."""


class HaloClientConfig(BaseModel):
    """The client as a component's configuration. It has no field for a key: `api_key_env` names where to find it.

    Fields that are not listed are sampling parameters, of OpenAI's protocol or vLLM's.
    """

    model_config = ConfigDict(extra="allow")

    model: str
    base_url: str | None = None
    """A server to use when the pool does not serve `model`; it becomes an engine of the pool."""
    api_key_env: str | None = None
    """Environment variable with that server's key."""
    api_key: SecretStr | None = None
    """Read from configurations of AutoGen's own client, never written."""
    model_info: ModelInfo | None = None
    add_name_prefixes: bool = False
    include_name_in_message: bool = True
    late_system: LateSystem = "auto"
    pool: Literal["default"] = "default"
    context_length: int | None = None


@dataclass(slots=True)
class Settings:
    """A client's arguments, sorted."""

    model: str
    create_args: dict[str, Any] = field(default_factory=dict)
    """Of the request: sampling and the like, as given (`extra_body` by itself), without `model`."""
    info: ModelInfo = field(default_factory=lambda: DEFAULT_INFO)
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Sent to `base_url`'s server; like a key they are never written into a configuration."""
    prefixes: bool = False
    names: bool = True
    late_system: LateSystem = "auto"
    context_length: int | None = None
    info_given: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """Sort the arguments. Raises `ValueError` as AutoGen's client does, `ConfigError` for what neither takes."""
        given = {name: value for name, value in arguments.items() if value is not None}
        if "model" not in given:
            raise ValueError("model is required for HaloChatCompletionClient")
        if bad := [name for name in _DISALLOWED if name in given]:
            raise ValueError(f"Disallowed create args are present: {', '.join(bad)}")
        for name in given:
            if name not in REQUEST_FIELDS | ENGINE_FIELDS | _IGNORED | _OWN:
                near = difflib.get_close_matches(name, sorted(REQUEST_FIELDS | ENGINE_FIELDS | _OWN), 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(
                    f"HaloChatCompletionClient does not know the argument {name!r}{hint}. A parameter that only your "
                    "engine knows goes into extra_body={...}"
                )
        if given.get("pool", "default") != "default":
            raise ConfigError(
                f"pool={given['pool']!r}: a process has one pool, 'default'; configure it with halo.toml or "
                "halo_adapters.autogen.configure()"
            )
        settings = cls(
            model=given["model"],
            create_args={name: value for name, value in given.items() if _is_of_request(name) and name != "model"},
            base_url=given.get("base_url"),
            api_key=_key(given),
            api_key_env=given.get("api_key_env"),
            headers=dict(given.get("default_headers") or {}),
            prefixes=bool(given.get("add_name_prefixes", False)),
            names=bool(given.get("include_name_in_message", True)),
            late_system=given.get("late_system", "auto"),
            context_length=given.get("context_length"),
        )
        settings.info, settings.info_given = _model_info(settings.model, given)
        if settings.late_system not in ("auto", "keep", "user", "merge", "error"):
            raise ConfigError(f"late_system={settings.late_system!r}: choose auto, keep, user, merge or error")
        return settings

    def config(self) -> HaloClientConfig:
        """The component's configuration; a key stays out of it."""
        return HaloClientConfig(
            model=self.model,
            base_url=self.base_url,
            api_key_env=self.api_key_env,
            model_info=self.info if self.info_given else None,
            add_name_prefixes=self.prefixes,
            include_name_in_message=self.names,
            late_system=self.late_system,
            context_length=self.context_length,
            **self.create_args,
        )


def request_fields(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the request among `arguments`, those inside `extra_body` among them."""
    chosen = {name: value for name, value in arguments.items() if _is_of_request(name) and name != "extra_body"}
    return {**chosen, **(arguments.get("extra_body") or {})}


def _is_of_request(name: str) -> bool:
    return (name in REQUEST_FIELDS or name in ENGINE_FIELDS) and name != "timeout"


def _key(given: Mapping[str, Any]) -> str | None:
    key = given.get("api_key")
    if isinstance(key, SecretStr):
        key = key.get_secret_value()
    if isinstance(key, str) and set(key) != {"*"}:  # dumped components have stars in a key's place
        return key
    return os.environ.get(given.get("api_key_env") or "OPENAI_API_KEY")


def _model_info(model: str, given: Mapping[str, Any]) -> tuple[ModelInfo, bool]:
    """What the user says of the model, else what AutoGen knows of it, else what engines can do."""
    if "model_info" in given and "model_capabilities" in given:
        raise ValueError("model_capabilities and model_info are mutually exclusive")
    info = given.get("model_info") or given.get("model_capabilities")
    if info is not None:
        info = cast(ModelInfo, {"family": ModelFamily.UNKNOWN, **info} if "model_info" not in given else dict(info))
        validate_model_info(info)
        info.setdefault("structured_output", False)
        return info, True
    try:  # the names that AutoGen knows decide prompts (selectors, system messages): a rename must not change them
        from autogen_ext.models.openai._model_info import get_info

        return get_info(model), False
    except (ImportError, ValueError, KeyError):
        return DEFAULT_INFO, False
