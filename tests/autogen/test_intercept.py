"""AutoGen's own OpenAI client under Halo: routed inside Halo's runs, everywhere under `halo exec`, else untouched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import RequestUsage, UserMessage
from autogen_ext.models.openai import BaseOpenAIChatCompletionClient, OpenAIChatCompletionClient

from halo_adapters.autogen import HaloChatCompletionClient, arun_batch, configure, intercept
from halo_core.pool import PoolConfig, SimulatedSpec
from halo_core.runtime import get_executor
from tests.autogen.shapes import INFO, agent, said
from tests.stub_server import StubServer


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer().threaded() as server:
        yield server


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    intercept.uninstall()  # a test of another file may have left it on this worker
    original = BaseOpenAIChatCompletionClient.create
    yield
    intercept.uninstall()
    assert BaseOpenAIChatCompletionClient.create is original


def pool(**options: Any) -> Any:
    return configure(PoolConfig(**options))


def client(stub: StubServer, model: str = "m", **options: Any) -> OpenAIChatCompletionClient:
    settings = {"api_key": "k", "base_url": f"{stub.url}/v1", "model_info": INFO, "temperature": 0, **options}
    return OpenAIChatCompletionClient(model=model, **settings)


def team(stub: StubServer, **options: Any) -> RoundRobinGroupChat:
    own = client(stub, **options)
    return RoundRobinGroupChat([agent("a", own), agent("b", own)], max_turns=3)


async def test_a_batch_routes_the_teams_own_client(stub: StubServer) -> None:
    """Its server becomes an engine of the pool; equal calls become one; answers are what the client gets by itself."""
    made = pool()
    expected = [said(await team(stub).run(task=task)) for task in ("x", "y")]
    before = stub.chats
    result = await arun_batch(team(stub), ["x", "y", "x", "y"])
    assert [said(run.unwrap()) for run in result] == expected * 2
    assert stub.chats - before == 6 and result.stats.total.shared == 6
    assert made.models == [f"m@{stub.url}/v1"]
    assert stub.headers[-1]["authorization"] == "Bearer k"
    made.close()


async def test_requests_are_the_clients_own(stub: StubServer) -> None:
    made = pool(models={"m": "sim"}, engines=(SimulatedSpec(model="sim"),))
    own = client(stub, max_tokens=7, seed=3, stop=["x"], add_name_prefixes=True)
    await arun_batch(RoundRobinGroupChat([agent("a", own)], max_turns=1), ["hi"])
    assert stub.chats == 0  # the pool serves the name, so nothing goes to the client's server
    await own.create([UserMessage(content="hi", source="user")])
    assert stub.bodies[-1]["max_tokens"] == 7 and stub.chats == 1  # outside a run it is AutoGen's client as ever
    made.close()
    made = pool()
    await arun_batch(RoundRobinGroupChat([agent("a", own)], max_turns=1), ["hi"])
    routed = stub.bodies[-1]
    assert (routed["max_tokens"], routed["seed"], routed["stop"], routed["temperature"]) == (7, 3, ["x"], 0)
    assert routed["messages"][-1] == {"role": "user", "name": "user", "content": "user said:\nhi"}
    made.close()


async def test_a_gateways_headers_go_with_the_calls(stub: StubServer) -> None:
    made = pool()
    own = client(stub, default_headers={"X-Tenant": "blue"})
    await arun_batch(RoundRobinGroupChat([agent("a", own)], max_turns=1), ["hi"])
    assert stub.headers[-1]["x-tenant"] == "blue" and stub.chats == 1
    made.close()
    made = pool()
    halo = HaloChatCompletionClient(model="m", base_url=f"{stub.url}/v1", default_headers={"X-Tenant": "red"})
    await halo.create([UserMessage(content="hi", source="user")])
    assert stub.headers[-1]["x-tenant"] == "red"
    assert "red" not in halo.dump_component().model_dump_json()
    made.close()


async def test_usage_stands_at_the_apps_client(stub: StubServer) -> None:
    made = pool()
    own = client(stub)
    result = await arun_batch(RoundRobinGroupChat([agent("a", own)], max_turns=1), ["x", "x", "x"])
    total, actual = own.total_usage(), own.actual_usage()
    assert total.prompt_tokens == 3 * actual.prompt_tokens > 0
    assert result.stats.total.executed == 1
    made.close()


async def test_streams_are_routed(stub: StubServer) -> None:
    made = pool()
    own = client(stub)
    streaming = RoundRobinGroupChat([agent("a", own, model_client_stream=True)], max_turns=1)
    result = await arun_batch(streaming, ["x", "x"])
    assert result.stats.total.executed == 1 and result.stats.total.shared == 1
    assert result[0].unwrap().messages[-1].models_usage != RequestUsage(0, 0)
    made.close()


async def test_what_the_pool_does_not_serve_is_left_alone(stub: StubServer) -> None:
    made = pool(adopt=False)
    result = await arun_batch(team(stub), ["x", "x"])
    assert not result.errors and stub.chats == 6
    assert result.stats.outside == 6
    assert "no engine serves model 'm'" in next(iter(result.stats.outside_reasons))
    made.close()


async def test_everywhere_makes_runs_of_what_a_script_runs(stub: StubServer) -> None:
    made = pool()
    intercept.install(everywhere=True)
    batch = get_executor().ambient(pin=True)
    results = await asyncio.gather(*(team(stub).run(task=task) for task in ("x", "y", "x")))
    assert said(results[0]) == said(results[2]) != said(results[1])
    single = agent("solo", client(stub))
    await single.run(task="alone")
    assert [event async for event in single.run_stream(task="again")]
    await client(stub).create([UserMessage(content="by itself", source="user")])
    stats = batch.stats
    assert stats.rows == stats.rows_done == 6
    assert sorted(stats.operators) == ["(no agent)", "a", "b", "solo"]
    assert (stats.total.executed, stats.total.shared) == (9, 3)
    get_executor().close_batch(batch)
    made.close()


async def test_nothing_is_routed_before_install_and_after_uninstall(stub: StubServer) -> None:
    made = pool(models={"m": "sim"}, engines=(SimulatedSpec(model="sim"),))
    own = client(stub)
    await own.create([UserMessage(content="hi", source="user")])
    intercept.install(everywhere=True)
    await own.create([UserMessage(content="hi", source="user")])
    assert stub.chats == 1
    intercept.uninstall()
    await own.create([UserMessage(content="hi", source="user")])
    assert stub.chats == 2
    made.close()
