"""The client's arguments: a rename from AutoGen's OpenAI client suffices, mistakes are named, keys stay unwritten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from autogen_core import ComponentModel
from autogen_core.models import (
    ChatCompletionClient,
    LLMMessage,
    ModelFamily,
    SystemMessage,
    UserMessage,
)
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.openai._model_info import _MODEL_INFO, get_info
from autogen_ext.models.openai.config import OpenAIClientConfiguration
from pydantic import SecretStr, ValidationError

from halo_adapters.autogen import HaloChatCompletionClient, PoolConfig, configure
from halo_adapters.autogen.settings import DEFAULT_INFO, HaloClientConfig, Settings
from halo_core.errors import ConfigError
from halo_core.pool import EndpointSpec, EnginePool, SimulatedSpec, VLLMSpec

PROVIDER = "halo_adapters.autogen.HaloChatCompletionClient"
SECRET = "sk-do-not-write-me-anywhere"
INFO: dict[str, Any] = {
    "vision": True,
    "function_calling": False,
    "json_output": False,
    "family": ModelFamily.R1,
    "structured_output": False,
    "multiple_system_messages": True,
}
HELLO = [UserMessage(content="Hello", source="user")]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)


def body(client: HaloChatCompletionClient, messages: Any = HELLO) -> dict[str, Any]:
    """The request that the client makes of these messages."""
    return client._body("m", messages, (), "auto", None, {})


# -- arguments -------------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, Any] = {
    "model": "gpt-4o",
    "api_key": SECRET,
    "base_url": "http://localhost:1/v1",
    "organization": "org",
    "timeout": 3.5,
    "max_retries": 7,
    "model_info": INFO,
    "add_name_prefixes": True,
    "include_name_in_message": False,
    "default_headers": {"X-Mine": "1"},
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "max_tokens": 11,
    "presence_penalty": 0.25,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "seed": 5,
    "stop": ["a", "b"],
    "temperature": 0.0,
    "top_p": 0.5,
    "user": "me",
    "stream_options": {"include_usage": True},
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
}
"""A value for every argument of `OpenAIChatCompletionClient` that can be given together."""


PARAMETERS = """
    audio frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata modalities parallel_tool_calls
    prediction presence_penalty prompt_cache_key reasoning_effort response_format safety_identifier seed service_tier
    stop store stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
    extra_body timeout
""".split()  # noqa: SIM905
"""Of a chat completion in openai 1.109 (later ones only add some), which AutoGen's client takes as arguments."""

CONNECTION = """
    organization project webhook_secret websocket_base_url timeout max_retries default_headers default_query http_client
    _strict_response_validation
""".split()  # noqa: SIM905
"""Arguments of openai 1.109's `AsyncOpenAI`."""


def test_all_arguments_of_autogens_client_are_taken() -> None:
    known = set(OpenAIClientConfiguration.__annotations__)
    assert known == {*EXAMPLES, "model_capabilities", "n"}
    halo, theirs = HaloChatCompletionClient(**EXAMPLES), OpenAIChatCompletionClient(**EXAMPLES)
    expected = theirs._process_create_args(HELLO, [], "auto", None, {})
    args = {name: value for name, value in expected.create_args.items() if name not in ("model", "timeout")}
    assert body(halo) == {**args, "messages": expected.messages}
    assert halo.model_info == theirs.model_info


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_of_the_protocol_is_taken(name: str) -> None:
    value = {"a": 1} if name in ("extra_body", "stream_options") else "x"
    HaloChatCompletionClient(**{"model": "m", name: value})


@pytest.mark.parametrize("name", CONNECTION)
def test_arguments_about_the_sdks_connection_are_taken_and_are_no_part_of_a_request(name: str) -> None:
    given: Any = {"X-Mine": "1"} if name == "default_headers" else "x"
    assert body(HaloChatCompletionClient(**{"model": "m", name: given})) == body(HaloChatCompletionClient(model="m"))


@pytest.mark.parametrize("name", ["stream", "messages", "function_call", "functions", "n"])
def test_what_autogen_disallows_is_disallowed(name: str) -> None:
    arguments: dict[str, Any] = {"model": "gpt-4o", "api_key": "x", name: 1}
    with pytest.raises(ValueError, match=f"Disallowed create args.*{name}"):
        OpenAIChatCompletionClient(**arguments)
    with pytest.raises(ValueError, match=f"Disallowed create args.*{name}"):
        HaloChatCompletionClient(**arguments)


def test_a_model_is_required() -> None:
    with pytest.raises(ValueError, match="model is required"):
        HaloChatCompletionClient(temperature=0)
    with pytest.raises(ValueError, match="model is required"):
        HaloChatCompletionClient(model=None)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("max_token", "max_tokens"),
        ("api_key_environment", "api_key_env"),
        ("late_systems", "late_system"),
        ("modelinfo", "model_info"),
        ("baseurl", "base_url"),
    ],
)
def test_unknown_arguments_are_named_with_what_may_be_meant(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{wrong}' \(did you mean '{near}'\?\)"):
        HaloChatCompletionClient(**{"model": "m", wrong: 1})


def test_an_unknown_argument_like_no_other_is_named_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"'zzzz'\. .*extra_body") as caught:
        HaloChatCompletionClient(model="m", zzzz=1)
    assert "did you mean" not in str(caught.value)
    assert body(HaloChatCompletionClient(model="m", extra_body={"zzzz": 1}))["zzzz"] == 1


def test_arguments_that_are_none_are_not_given() -> None:
    client = HaloChatCompletionClient(
        model="m", temperature=None, reasoning_effort=None, base_url=None, extra_body=None
    )
    assert body(client) == body(HaloChatCompletionClient(model="m"))


@pytest.mark.parametrize("pool", ["other", "http://localhost:8000"])
def test_there_is_one_pool(pool: str) -> None:
    with pytest.raises(ConfigError, match=f"pool={pool!r}: a process has one pool, 'default'"):
        HaloChatCompletionClient(model="m", pool=pool)
    HaloChatCompletionClient(model="m", pool="default")


def test_a_late_system_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="late_system='later': choose auto, keep, user, merge or error"):
        HaloChatCompletionClient(model="m", late_system="later")


def test_streams_always_ask_for_usage() -> None:
    client = HaloChatCompletionClient(
        model="m", stream_options={"include_usage": False, "continuous_usage_stats": True}
    )
    assert body(client)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


# -- model_info ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*_MODEL_INFO, "gpt-4o", "o3-mini", "gpt-5"])
def test_models_that_autogen_knows_keep_their_info(model: str) -> None:
    assert HaloChatCompletionClient(model=model).model_info == get_info(model)


def test_other_models_can_do_what_engines_can() -> None:
    client = HaloChatCompletionClient(model="Qwen/Qwen2.5-0.5B-Instruct")
    assert client.model_info == client.capabilities == DEFAULT_INFO
    assert client.model_info["function_calling"] and client.model_info["structured_output"]
    assert not client.model_info["vision"] and not client.model_info["multiple_system_messages"]


def test_the_users_info_wins_and_is_copied() -> None:
    given = dict(INFO)
    client = HaloChatCompletionClient(model="gpt-4o", model_info=given)
    assert client.model_info == given
    given["vision"] = False
    assert client.model_info["vision"]


def test_the_older_model_capabilities_are_taken() -> None:
    old = {"vision": True, "function_calling": False, "json_output": True}
    client = HaloChatCompletionClient(model="gpt-4o", model_capabilities=old)
    assert client.model_info == {**old, "family": ModelFamily.UNKNOWN, "structured_output": False}
    with pytest.raises(ValueError, match="mutually exclusive"):
        HaloChatCompletionClient(model="gpt-4o", model_capabilities=old, model_info=INFO)


@pytest.mark.parametrize("missing", ["vision", "function_calling", "json_output", "family"])
def test_an_incomplete_info_is_refused_as_by_autogen(missing: str) -> None:
    info = {name: value for name, value in INFO.items() if name != missing}
    with pytest.raises(ValueError, match=missing):
        OpenAIChatCompletionClient(model="m", api_key="x", model_info=info)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=missing):
        HaloChatCompletionClient(model="m", model_info=info)


def test_info_without_structured_output_has_none() -> None:
    info = {name: value for name, value in INFO.items() if name != "structured_output"}
    assert HaloChatCompletionClient(model="m", model_info=info).model_info["structured_output"] is False


# -- keys ------------------------------------------------------------------------------------------------------------


def key(**arguments: Any) -> str | None:
    return Settings.of({"model": "m", **arguments}).api_key


def test_keys_come_from_the_argument_then_the_named_variable_then_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "default")
    assert key() == "default"
    monkeypatch.setenv("MY_KEY", "mine")
    assert key(api_key_env="MY_KEY") == "mine"
    assert key(api_key_env="MY_KEY", api_key="given") == "given"
    assert key(api_key=SecretStr("secret")) == "secret"
    monkeypatch.delenv("MY_KEY")
    assert key(api_key_env="MY_KEY") is None, "another server's key must not be sent instead"


@pytest.mark.parametrize("stars", ["**********", "*", SecretStr("**********")], ids=["ten", "one", "secret"])
def test_stars_of_a_dumped_component_are_no_key(stars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key(api_key=stars) is None
    monkeypatch.setenv("MY_KEY", "mine")
    assert key(api_key=stars, api_key_env="MY_KEY") == "mine"


def test_keys_are_written_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET + "-env")
    client = HaloChatCompletionClient(
        model="m", api_key=SECRET, api_key_env="MY_KEY", default_headers={"Authorization": SECRET}, temperature=0
    )
    component = client.dump_component()
    for text in (
        component.model_dump_json(),
        repr(component),
        repr(client),
        repr(client._settings),
        json.dumps(body(client)),
        repr(client._create_args),
    ):
        assert SECRET not in text
    assert component.config["api_key_env"] == "MY_KEY"
    assert "api_key" not in component.config


# -- configurations --------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "server": {"base_url": "http://localhost:1/v1", "api_key_env": "MY_KEY"},
    "sampling": {"temperature": 0.0, "seed": 3, "stop": ["x"], "top_k": 4, "logit_bias": {"1": 2}},
    "extra_body": {"extra_body": {"no_field_of_ours": {"a": [1]}, "top_k": 9}},
    "format": {"response_format": {"type": "json_object"}},
    "info": {"model_info": INFO},
    "own": {
        "add_name_prefixes": True,
        "include_name_in_message": False,
        "late_system": "merge",
        "context_length": 99,
        "pool": "default",
    },
    "known model": {"model": "gpt-4o"},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_configurations_survive_json(name: str) -> None:
    client = HaloChatCompletionClient(**{"model": "m", **ARGUMENTS[name]})
    text = client.dump_component().model_dump_json()
    loaded = ChatCompletionClient.load_component(json.loads(text))
    assert isinstance(loaded, HaloChatCompletionClient)
    assert loaded._settings == client._settings
    assert loaded.dump_component().model_dump_json() == text
    assert body(loaded) == body(client)
    assert json.loads(text)["provider"] == PROVIDER
    assert json.loads(text)["component_type"] == "model"


def test_the_info_of_known_models_is_left_to_autogen() -> None:
    assert "model_info" not in HaloChatCompletionClient(model="gpt-4o").dump_component().config
    given = HaloChatCompletionClient(model="gpt-4o", model_info=INFO).dump_component().config["model_info"]
    assert given == INFO


def test_a_configuration_of_autogens_client_loads_with_the_provider_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {name: value for name, value in EXAMPLES.items() if name != "stream_options"}
    theirs = OpenAIChatCompletionClient(**arguments)
    written = json.loads(theirs.dump_component().model_dump_json())
    assert written["config"]["api_key"] == "**********"
    written["provider"] = PROVIDER
    written["config"]["api_key_env"] = "MY_KEY"
    monkeypatch.setenv("MY_KEY", "mine")
    loaded = ChatCompletionClient.load_component(written)
    assert isinstance(loaded, HaloChatCompletionClient)
    assert body(loaded) == body(HaloChatCompletionClient(**arguments))
    assert loaded.model_info == theirs.model_info
    assert loaded._settings.api_key == "mine"
    assert loaded._settings.base_url == EXAMPLES["base_url"]
    assert "**" not in loaded.dump_component().model_dump_json()


def test_a_key_in_a_configuration_is_used_and_not_written_back() -> None:
    loaded = HaloChatCompletionClient.load_component(
        ComponentModel(provider=PROVIDER, config={"model": "m", "api_key": SECRET})
    )
    assert loaded._settings.api_key == SECRET
    assert SECRET not in loaded.dump_component().model_dump_json()


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({}, ValidationError, "model"),
        ({"model": "m", "temprature": 0}, ConfigError, "did you mean 'temperature'"),
        ({"model": "m", "late_system": "later"}, ValidationError, "late_system"),
        ({"model": "m", "n": 2}, ValueError, "Disallowed"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_configurations_are_refused_by_name(config: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ChatCompletionClient.load_component({"provider": PROVIDER, "config": config})


def test_the_configuration_has_no_field_that_the_client_does_not_take() -> None:
    fields = set(HaloClientConfig.model_fields) - {"model"}
    given = HaloClientConfig(model="m").model_dump(exclude={"model"})
    assert set(given) == fields
    HaloChatCompletionClient(model="m", **given)


# -- late system messages --------------------------------------------------------------------------------------------

LATE: list[LLMMessage] = [
    SystemMessage(content="first"),
    SystemMessage(content="and second"),
    UserMessage(content="question", source="user"),
    SystemMessage(content="a memory"),
    SystemMessage(content="another"),
    UserMessage(content="more", source="user"),
]
KEPT = ["system:first\nand second", "user:question", "system:a memory", "system:another", "user:more"]
TURNED = ["system:first\nand second", "user:question", "user:a memory", "user:another", "user:more"]
MERGED = ["system:first\nand second\na memory\nanother", "user:question", "user:more"]


def told(served: str, late_system: Any = "auto", messages: Any = LATE, **arguments: Any) -> list[str]:
    """ROLE:CONTENT of the messages that a client sends for `served`."""
    client = HaloChatCompletionClient(model="m", late_system=late_system, **arguments)
    sent = client._body(served, messages, (), "auto", None, {})["messages"]
    return [f"{message['role']}:{message['content']}" for message in sent]


@pytest.mark.parametrize(("policy", "expected"), [("keep", KEPT), ("user", TURNED), ("merge", MERGED)])
def test_late_system_messages_follow_the_policy(policy: str, expected: list[str]) -> None:
    assert told("m", policy) == expected


def test_late_system_messages_can_be_refused() -> None:
    with pytest.raises(ValueError, match="Multiple and Not continuous system messages are not supported"):
        told("m", "error")


@pytest.mark.parametrize("policy", ["auto", "keep", "user", "merge", "error"])
def test_models_that_take_several_get_them_as_they_are(policy: str) -> None:
    expected = ["system:first", "system:and second", "user:question", "system:a memory", "system:another", "user:more"]
    assert told("m", policy, model_info=INFO) == expected


@pytest.mark.parametrize("policy", ["auto", "keep", "user", "merge", "error"])
def test_a_first_system_message_is_not_late_wherever_it_stands(policy: str) -> None:
    messages = [UserMessage(content="q", source="user"), SystemMessage(content="a"), SystemMessage(content="b ")]
    assert told("m", policy, messages) == ["user:q", "system:a\nb"]


def test_a_late_system_message_as_the_users_has_a_name() -> None:
    client = HaloChatCompletionClient(model="m", late_system="user")
    assert client._body("m", LATE, (), "auto", None, {})["messages"][2]["name"] == "system"


LOOP = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "renders all": (LOOP, KEPT),
    "raises": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System role only at the start') }}{% endif %}{{ m.content }}{% endfor %}",
        TURNED,
    ),
    "ignores": (
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
        TURNED,
    ),
    "broken": ("{% for m in messages %}", TURNED),
    "empty": ("", TURNED),
    # As of Mistral and Hermes: transformers says `tools=None` where there are none.
    "asks for tools": ("{% if tools is not none %}{{ tools | length }}{{ tools[0].name }}{% endif %}" + LOOP, KEPT),
    "asks for documents": ("{% if documents is not none %}{{ documents[0].x }}{% endif %}" + LOOP, KEPT),
    "dates": ("{{ strftime_now('%d %b %Y') }}" + LOOP, KEPT),
    "breaks": ("{% for m in messages %}{{ m.content }}{% if loop.last %}{% break %}{% endif %}{% endfor %}", KEPT),
    "json": ("{{ messages | tojson(indent=2) }}", KEPT),
    "trained": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        KEPT,
    ),
    "looks outside": ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + LOOP, TURNED),
}


def serve(folder: Path | str) -> EnginePool:
    """A pool whose model "m" is served from a folder; nothing is started."""
    return configure(PoolConfig(engines=(VLLMSpec(model="m", path=str(folder)),)))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    configure(PoolConfig())


@pytest.mark.parametrize("form", ["tokenizer_config", "named templates", "file"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_auto_asks_the_models_template(name: str, form: str, folder: Path) -> None:
    template, expected = TEMPLATES[name]
    if form == "file":
        (folder / "chat_template.jinja").write_text(template, "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "wrong {{"}), "utf-8")
    else:
        found: Any = template
        if form == "named templates":
            found = [{"name": "tool_use", "template": "{{"}, {"name": "default", "template": template}]
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": found}), "utf-8")
    serve(folder)
    assert told("m") == expected


@pytest.mark.parametrize("content", [None, "{}", '{"chat_template": null}', '{"chat_template": []}', "no json"])
def test_auto_without_a_template_asks_as_the_user(content: str | None, folder: Path) -> None:
    if content is not None:
        (folder / "tokenizer_config.json").write_text(content, "utf-8")
    serve(folder)
    assert told("m") == TURNED


def test_auto_where_nobody_can_tell_asks_as_the_user(folder: Path) -> None:
    serve("some-hub/name")
    assert told("m") == TURNED
    configure(PoolConfig(engines=(EndpointSpec(model="m", url="http://localhost:1/v1"),)))
    assert told("m") == TURNED
    assert told("adopted@http://localhost:1/v1") == TURNED


def test_auto_keeps_them_for_the_simulated_engine(folder: Path) -> None:
    configure(PoolConfig(engines=(SimulatedSpec(model="m"),)))
    assert told("m") == KEPT
