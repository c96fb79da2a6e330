"""LangChain's standard suites for chat models, against `HaloChatModel` on a simulated engine."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from halo_adapters import langgraph as halo
from halo_adapters.langgraph.chat_model import HaloChatModel
from halo_core.pool import Completion, LLMCall, PoolConfig
from halo_core.pool.simulated import SimulatedEngine

MODEL = "standard"
OTHER_MODEL = "standard-too"
JOKE = {"type": "object", "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}
"""What the suites describe in words when they ask for JSON without a schema."""


def understood(name: str, prompt: str) -> dict[str, Any] | None:
    """What the suites expect of a model that reads their prompts: which tools it calls, and with what."""
    if name == "unicode_customer":
        named = re.search("named '(.+?)'", prompt)
        return {"customer_name": named[1] if named else "", "description": "A company"}
    fixed: dict[str, dict[str, Any]] = {
        "magic_function": {"input": 3},
        "get_weather": {"location": "San Francisco, CA"},
    }
    return fixed.get(name)


class ObligingEngine(SimulatedEngine):
    """A simulated engine that seems to understand the suites' tools; all else is its hash of the request."""

    async def complete(self, call: LLMCall) -> Completion:
        return await super().complete(obliging(call))

    def stream(self, call: LLMCall) -> AsyncIterator[bytes]:
        return super().stream(obliging(call))


def obliging(call: LLMCall) -> LLMCall:
    """The same call, with schemas that admit nothing but the expected arguments."""
    body = copy.deepcopy(dict(call.body))
    last = body["messages"][-1]
    for tool in body.get("tools") or ():
        expected = understood(tool["function"]["name"], str(last["content"]))
        if expected is not None:
            properties = {key: {"const": value} for key, value in expected.items()}
            tool["function"]["parameters"] = {"type": "object", "properties": properties}
            if last["role"] == "user":
                body.setdefault("tool_choice", "required")
    if (body.get("response_format") or {}).get("type") == "json_object":
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": JOKE}}
    return replace(call, body=body)


@pytest.fixture(autouse=True, scope="module")
def pool() -> Iterator[None]:
    served = halo.configure(PoolConfig())
    for model in (MODEL, OTHER_MODEL):
        served.add(ObligingEngine(model, model, clock="zero"))
    yield
    halo.configure(PoolConfig())


class TestHaloChatModelUnit(ChatModelUnitTests):
    """What can be said without a model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return HaloChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL}


class TestHaloChatModel(ChatModelIntegrationTests):
    """What needs a model. Images are left out: those tests download theirs, and tests here run offline."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return HaloChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "temperature": 0}

    @property
    def model_override_value(self) -> str:
        return OTHER_MODEL

    @property
    def supports_json_mode(self) -> bool:
        return True
