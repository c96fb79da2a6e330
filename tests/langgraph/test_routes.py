"""Where a request goes: the app's own server is spoken to as the app would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

import halo_adapters.langgraph as halo
from halo_adapters.langgraph.openai_route import _payload, _reason
from halo_adapters.langgraph.sdk_hook import _event
from halo_core.pool import EnginePool, SimulatedSpec

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    pool = halo.configure(halo.PoolConfig(models={"ours": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield pool
    pool.close()


def route(**settings: Any) -> tuple[str | None, str | None]:
    asked = settings.pop("asked", {})
    model = ChatOpenAI(**{"model": "theirs", "base_url": URL, "api_key": "k", **settings})
    return _reason(model, _payload(model, ("hello",), asked))


def test_a_servers_own_headers_reach_it_and_tell_tenants_apart(pool: EnginePool) -> None:
    names = [route(default_headers={"X-Tenant": tenant})[0] for tenant in ("blue", "green", "blue")]
    assert names == [f"theirs@{URL}", f"theirs@{URL}#2", f"theirs@{URL}"]
    engines = [engine for name in names[:2] if name for engine in pool.group(name).engines]
    assert [engine._headers["X-Tenant"] for engine in engines] == ["blue", "green"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"asked": {"extra_headers": {"X-Trace": "1"}}}, "extra_headers="),
        ({"asked": {"extra_query": {"v": "2"}}}, "extra_query="),
        ({"default_query": {"api-version": "2"}}, "default_query="),
    ],
)
def test_what_only_its_own_server_understands_goes_there(pool: EnginePool, settings: dict[str, Any], what: str) -> None:
    assert route(**settings) == (None, f"the request has {what}")
    assert route(model="ours", **settings) == ("sim", None)


def test_a_stream_ends_with_the_tokens_used_only_where_that_was_asked_for() -> None:
    last = b'{"choices":[],"usage":{"prompt_tokens":3}}'
    middle = b'{"choices":[{"delta":{"content":"a"}}],"usage":null}'
    assert _event(last, True) == b"data: " + last + b"\n\n" and _event(last, False) == b""
    assert b'"content": "a"' in _event(middle, False) and b"usage" not in _event(middle, False)
