"""`halo run --verify K`: rows run again on the plain framework, and what differs."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from autogen_agentchat.base import TaskResult

import halo_core
from halo_adapters.autogen import intercept
from halo_adapters.autogen.cli import ADAPTER as AUTOGEN
from halo_adapters.autogen.driver import Driver
from halo_adapters.langgraph.cli import ADAPTER as LANGGRAPH
from halo_adapters.langgraph.native import NativeGraph
from halo_core.cli.verify import EFFECTS, OUTCOME, Difference, Watch, WouldWriteError, compare, picked, verify_rows
from halo_core.errors import HaloError
from halo_core.pool import PoolConfig, SimulatedSpec, configure
from halo_core.runtime import SESSION, Batch, Run
from tests.cli.conftest import Halo, Project
from tests.cli.gated_stub import GatedStub

RUN = ("run", "app:graph", "--input", "rows.jsonl", "--output", "out.jsonl")

APPS = """
import itertools
from typing import Annotated, TypedDict

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

import halo_core
from app import llm

count = itertools.count()
runs = itertools.count()


class State(TypedDict, total=False):
    question: str
    answer: str
    ticket: int
    notes: dict


def line(*nodes, state=State):
    builder = StateGraph(state)
    for node in nodes:
        builder.add_node(node.__name__, node)
    for one, other in itertools.pairwise([START, *(node.__name__ for node in nodes), END]):
        builder.add_edge(one, other)
    return builder


def ask(state):
    return {"answer": llm.invoke("Answer " + state["question"]).content}


def number(state):
    return {"notes": {"list": ["same", {"ticket": next(count)}]}} if state["question"] == "odd" else {}


def fail_once(state):
    if state["question"] == "odd" and next(runs) == 0:
        raise ValueError("the first time")
    return {}


@halo_core.tool(effect="write", source="letters")
def send(to, body=""):
    with open("letters", "a") as file:
        file.write(to + "\\n")
    return len(to)


@tool
def pay(amount: int) -> str:
    "Pay."
    with open("letters", "a") as file:
        file.write(f"pay {amount}\\n")
    return "paid"


def tell(state):
    if state["question"].startswith("odd"):
        try:
            send("you", body=f"{next(count)}" if state["question"] == "odd" else state["answer"])
        except Exception:
            pass
    return {}


def pay_up(state):
    return {"answer": pay.invoke({"amount": len(state["question"])})}


class Talk(MessagesState, total=False):
    question: str
    last: str


async def say(state):
    answer = await llm.ainvoke([HumanMessage("Say " + state["question"])])
    return {"messages": [HumanMessage(state["question"]), answer], "last": answer.id}


equal = line(ask)
counted = line(ask, number)
unsteady = line(ask, fail_once)
writer = line(ask, tell)
payer = line(pay_up)
talk = line(say, state=Talk)
"""


@pytest.fixture
def apps(project: Project) -> Project:
    project.write("apps.py", APPS)
    return project


def run(app: str, *more: str) -> tuple[str, ...]:
    return ("run", f"apps:{app}", "--input", "rows.jsonl", "--output", "out.jsonl", *more)


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_the_rows_are_spread() -> None:
    assert picked(24, 4) == [0, 8, 15, 23]
    assert picked(24, 1) == [0] and picked(24, 2) == [0, 23]
    assert picked(3, 3) == picked(3, 9) == [0, 1, 2] and picked(0, 4) == []
    assert all(len(set(picked(n, k))) == k for n in range(2, 40) for k in range(2, n))


def test_a_difference_is_named_by_its_first_place() -> None:
    halo = {"same": [1], "text": "a" * 200 + "b" + "c" * 200, "deep": {"x": [1, {"y": 2}]}, "kind": 1, "only": None}
    plain = {"same": [1], "text": "a" * 200 + "d" + "c" * 200, "deep": {"x": [1, {"y": 3}, 4]}, "kind": 1.0}
    found = {difference.key: difference for difference in compare(7, halo, plain)}
    assert sorted(found) == ["deep", "kind", "only", "text"]
    assert found["deep"] == Difference(7, "deep", ".x[1].y", "2", "3")
    assert (found["only"].halo, found["only"].plain) == ("null", "(nothing)")
    one, other = found["text"].excerpts
    assert one == "..." + "a" * 30 + "b" + "c" * 89 + "..." and other == one.replace("b", "d")


def message(id: str, call: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "ai",
        "content": "hi",
        "id": id,
        "additional_kwargs": {"tool_calls": [{"id": call}]},
        "response_metadata": {"id": f"chat-{id}", "finish_reason": "stop", "token_usage": {"details": id}},
        "tool_calls": [{"id": call, "name": "f", "args": {}}],
        "usage_metadata": {"input_tokens": 3, "input_token_details": {"cache_read": len(id)}},
        **more,
    }


def test_what_differs_from_run_to_run_is_not_compared_in_langgraph() -> None:
    def state(id: str, call: str, reply: str, **more: Any) -> dict[str, Any]:
        messages = [message(id, call), {**message(f"{id}2", call, **more), "type": "tool", "tool_call_id": reply}]
        return {"messages": messages, "last": id, "id": "7"}

    def differ(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
        both = (LANGGRAPH.comparable(None, each) for each in (one, other))
        return [f"{found.key}{found.path}" for found in compare(0, *both)]

    assert not differ(state("run-1", "call-1", "call-1"), state("run--22", "call-9", "call-9"))
    assert differ(state("a", "c", "c"), state("a", "c", "other")) == ["messages[1].tool_call_id"]
    assert differ(state("a", "c", "c"), state("a", "c", "c", content="ho")) == ["messages[1].content"]
    assert differ(state("a", "c", "c"), {**state("b", "d", "d"), "id": "8"}) == ["id"]
    assert LANGGRAPH.comparable(None, "text") == {"(result)": "text"}


def test_verify_rows_from_python(apps: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(apps.path))
    pool = configure(PoolConfig(engines=(SimulatedSpec(model="small"),)))
    import apps as module  # type: ignore[import-not-found]

    rows = [{"question": question} for question in ("a", "odd", "b")]
    app = LANGGRAPH.prepare(module.unsteady)
    results = [result for _, result in sorted(LANGGRAPH.run(app, rows), key=lambda item: item[0])]
    assert isinstance(results[1], ValueError)
    assert verify_rows(LANGGRAPH, app, rows, results, [0, 2]) == []
    [found] = verify_rows(LANGGRAPH, app, rows, results, [0, 1, 2])
    assert (found.position, found.key) == (1, OUTCOME)
    assert (found.halo, found.plain) == ("ValueError: the first time", "a result")
    assert app.halo.why_not_native(app) is None  # as it was
    payer = LANGGRAPH.prepare(module.payer)
    with pytest.raises(WouldWriteError, match="row 0 calls pay"):
        verify_rows(LANGGRAPH, payer, rows, [{"question": "a", "answer": "paid"}], [0])
    assert not apps.exists("letters")
    pool.close()


# -- LangGraph ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["app:graph", "app:agraph", "apps:talk"])
def test_equal_rows_pass(apps: Project, halo: Halo, target: str) -> None:
    apps.rows(*"abcdefga")
    result = halo("run", target, "--input", "rows.jsonl", "--output", "out.jsonl", "--verify", "3")
    assert result.code == 0, result.err
    assert "verifying: 3 of 8 rows run again on plain LangGraph" in result.err
    assert "verified 3 of 8 rows against plain LangGraph: 3 equal" in result.err
    assert "note:" not in result.err
    if target == "app:graph":  # what ran again, beside every row once
        assert sorted((Counter(apps.drafts()) - Counter("abcdefga")).elements()) == ["a", "a", "e"]


def test_quiet_is_quiet(apps: Project, halo: Halo) -> None:
    apps.rows("a", "b")
    assert halo(*run("equal", "--verify", "2", "--quiet")) == type(halo(*RUN, "--help"))(0, "", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_difference_is_named(apps: Project, halo: Halo, quiet: bool) -> None:
    apps.rows("a", "odd", "b")
    result = halo(*run("counted", "--verify", "9", *["--quiet"][:quiet]))
    assert result.code == 1
    assert "different: row 1 (rows.jsonl, line 2), notes, at .list[1].ticket" in result.err
    assert "  Halo:      0\n  LangGraph: 1\n" in result.err
    assert "verified 3 of 3 rows against plain LangGraph: 2 equal, 1 different" in result.err
    assert result.err.count("different: ") == 1
    assert len(apps.output()) == 3  # written all the same


def test_a_fault_of_halos_own_executor_is_found(apps: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    right = NativeGraph.invoke
    monkeypatch.setattr(NativeGraph, "invoke", lambda *args, **more: {**right(*args, **more), "answer": "wrong"})
    apps.rows("a", "b")
    result = halo(*run("equal", "--verify", "1"))
    assert result.code == 1
    assert "different: row 0 (rows.jsonl, line 1), answer\n" in result.err and '  Halo:      "wrong"\n' in result.err


def test_failed_rows_are_compared_by_their_exception(apps: Project, halo: Halo) -> None:
    apps.rows("a", "bad", "b")
    result = halo(*RUN, "--verify", "3")
    assert result.code == 1 and "1 of 3 rows failed" in result.err
    assert "plain LangGraph: 3 equal" in result.err

    apps.rows("a", "odd")
    result = halo("run", "apps:unsteady", "--input", "rows.jsonl", "--output", "out2.jsonl", "--verify", "2")
    assert result.code == 1
    assert f"different: row 1 (rows.jsonl, line 2), {OUTCOME}" in result.err
    assert "ValueError: the first time" in result.err and "a result" in result.err


def test_rows_of_an_earlier_run_are_compared_by_what_it_wrote(apps: Project, halo: Halo) -> None:
    apps.rows("a", "b")
    assert halo(*run("writer", "--quiet")).code == 0
    apps.rows("a", "b", "odd 1")
    result = halo(*run("writer", "--resume", "--verify", "3", "--allow-writes"))
    assert result.code == 0, result.err
    assert "plain LangGraph: 3 equal" in result.err
    assert "side effects of 2 rows are not compared" in result.err


# -- side effects ------------------------------------------------------------------------------------------------------


def letters(project: Project) -> list[str]:
    return (project.path / "letters").read_text().splitlines()


def test_nothing_is_written_again_without_consent(apps: Project, halo: Halo) -> None:
    apps.rows("a", "odd 1", "b", "odd 2")
    result = halo(*run("writer", "--verify", "4"))
    assert result.code == 0, result.err
    assert letters(apps) == ["you", "you"]
    assert "verified 2 of 4 rows against plain LangGraph: 2 equal, 2 not verified" in result.err
    assert "row 1 (rows.jsonl, line 2): not verified: would write again with the tool 'send'" in result.err


def test_a_resumed_row_is_stopped_before_it_writes(apps: Project, halo: Halo) -> None:
    apps.rows("a", "odd 1")
    assert halo(*run("writer", "--quiet")).code == 0
    result = halo(*run("writer", "--resume", "--verify", "2"))  # the node swallows the refusal
    assert result.code == 0, result.err
    assert letters(apps) == ["you"] and "1 equal, 1 not verified" in result.err


def test_nothing_verified_is_no_success(apps: Project, halo: Halo) -> None:
    apps.rows("a", "b")
    result = halo(*run("payer", "--verify", "2"))
    assert result.code == 1
    assert "verified 0 of 2 rows against plain LangGraph: 0 equal, 2 not verified" in result.err
    assert "with the tool 'pay'" in result.err and letters(apps) == ["pay 1", "pay 1"]


def test_writes_are_made_again_and_compared_with_consent(apps: Project, halo: Halo) -> None:
    apps.rows("a", "odd 1", "b")
    result = halo(*run("writer", "--verify", "3", "--allow-writes"))
    assert result.code == 0, result.err
    assert letters(apps) == ["you", "you"] and "plain LangGraph: 3 equal" in result.err

    apps.rows("odd", "b")
    result = halo(*run("writer", "--journal", "two.db", "--verify", "2", "--allow-writes"))
    assert result.code == 1
    assert f"different: row 0 (rows.jsonl, line 1), {EFFECTS}" in result.err
    halo_line, plain_line = [line for line in result.err.splitlines() if "send(" in line]
    assert '"body": "0"' in halo_line and '"body": "1"' in plain_line

    apps.rows("a", "b")
    result = halo(*run("payer", "--journal", "three.db", "--verify", "2", "--allow-writes"))
    assert result.code == 0, result.err  # arguments of LangChain's own, which differ, are no arguments of the write


def test_writes_of_every_kind_are_told_apart_by_their_arguments(tmp_path: Any) -> None:
    """Two runs that ask for the same are equal, whatever objects come with it; one other value is a difference."""
    api = halo_core.http("http://127.0.0.1:9", retries=0)
    db = halo_core.sql("duckdb:")
    db.query("CREATE TABLE item (name TEXT)")

    @halo_core.tool(effect="write")
    def send(to: str, *, config: Any = None, store: Any = "here") -> None:
        del to, config, store

    def asked(name: str) -> Counter[str]:
        batch = Batch("one")
        token = SESSION.set(Run(batch, "key", 0))
        try:
            with Watch() as watch:
                with pytest.raises(HaloError):
                    api.request("POST", "/items", json={"name": name}, headers={"x-time": "now"})
                db.query("INSERT INTO item VALUES (?)", [name])
                asyncio.run(db.aquery("INSERT INTO item VALUES (?)", [name]))
                db.query("SELECT name FROM item")
                send(name, config={"callbacks": object()}, store=object())
        finally:
            SESSION.reset(token)
        return watch.of(batch, "key", lambda arguments: arguments)

    assert sum(asked("tea").values()) == 4
    assert asked("tea") == asked("tea")
    assert not asked("tea") & asked("milk")
    db.close()
    api.close()


# -- notes, interruption, help -----------------------------------------------------------------------------------------


def test_what_may_explain_a_difference_is_told(apps: Project, halo: Halo) -> None:
    from tests.stub_server import StubServer

    app = (apps.path / "app.py").read_text().replace("temperature=0", "temperature=1")
    apps.write("app.py", app)
    apps.rows("odd")
    with StubServer().threaded() as stub:
        apps.endpoint(stub.url)
        result = halo(*run("counted", "--verify", "1"))
    assert result.code == 1
    assert "note: small: it is not known how the server computes" in result.err
    assert "note: ask may sample" in result.err


def test_an_interruption_loses_nothing(apps: Project) -> None:
    apps.rows("a", "b", "c")
    seen = Counter[str]()

    def second(text: str) -> bool:
        seen[text] += 1
        return "Answer c" in text and seen[text] == 2

    stub = GatedStub(second)
    with stub.threaded():
        apps.endpoint(stub.url)
        process = apps.start(*run("equal", "--verify", "3"))
        stub.wait_held(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted while verifying; the results of all rows are in out.jsonl" in err
    assert "verified 2 of 3 rows against plain LangGraph: 2 equal" in err and "Traceback" not in err
    assert len(apps.output()) == 3


def test_the_option_is_told_of_and_checked(apps: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    told = halo("run", "--help").out
    assert "--verify" in told and "--allow-writes" in told
    apps.rows("a")
    assert halo(*RUN, "--verify", "-1").code == 2
    assert halo(*RUN, "--verify", "0").code == 0


# -- AutoGen -----------------------------------------------------------------------------------------------------------

TEAM = """
import itertools

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, RoundRobinGroupChat
from halo_adapters.autogen import HaloChatCompletionClient

count = itertools.count()


def note(id: str) -> str:
    "Write a note."
    with open("letters", "a") as file:
        file.write("note\\n")
    return "noted"


def agents(*names, **more):
    client = HaloChatCompletionClient(model="small", temperature=0)
    return [AssistantAgent(name, client, system_message=f"You are the {name}.", **more) for name in names]


class Changing(AssistantAgent):
    async def on_messages_stream(self, messages, token):
        async for event in super().on_messages_stream(messages, token):
            if hasattr(event, "chat_message"):
                event.chat_message.content = f"number {next(count)}"
            yield event


def team():
    return RoundRobinGroupChat(agents("writer", "critic"), max_turns=3)


def noting():
    return RoundRobinGroupChat(agents("writer", tools=[note]), max_turns=2)


def flow():
    one, two, three = people = agents("one", "two", "three")
    graph = DiGraphBuilder().add_node(one).add_node(two).add_node(three)
    graph.add_edge(one, two).add_edge(one, three)
    return GraphFlow(people, graph=graph.build())


def changing():
    client = HaloChatCompletionClient(model="small", temperature=0)
    return RoundRobinGroupChat([Changing("writer", client)], max_turns=1)
"""


@pytest.fixture
def teams(project: Project) -> Any:
    project.write("teams.py", TEAM)
    project.write("rows.jsonl", "".join(json.dumps({"task": f"task {n}: use tool"}) + "\n" for n in range(4)))
    yield project
    intercept.uninstall()


def team_run(team: str, *more: str) -> tuple[str, ...]:
    return ("run", f"teams:{team}", "--input", "rows.jsonl", "--output", "out.jsonl", *more)


@pytest.mark.parametrize("team", ["team", "flow"])
def test_a_team_is_verified(teams: Project, halo: Halo, team: str) -> None:
    result = halo(*team_run(team, "--verify", "2"))
    assert result.code == 0, result.err
    assert "verified 2 of 4 rows against plain AutoGen: 2 equal" in result.err


def test_a_fault_of_halos_own_driver_is_found(teams: Project, halo: Halo, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Driver.stream

    async def stream(self: Driver, *args: Any) -> AsyncGenerator[Any, None]:
        async for item in right(self, *args):
            if isinstance(item, TaskResult):
                item.stop_reason = "wrong"
            yield item

    monkeypatch.setattr(Driver, "stream", stream)
    result = halo(*team_run("team", "--verify", "1"))
    assert result.code == 1
    assert "different: row 0 (rows.jsonl, line 1), stop_reason\n" in result.err and result.err.count("different:") == 1


def test_a_team_that_differs(teams: Project, halo: Halo) -> None:
    result = halo(*team_run("changing", "--verify", "1"))
    assert result.code == 1
    assert "different: row 0 (rows.jsonl, line 1), messages, at [1].content" in result.err
    assert '  AutoGen: "number' in result.err


def test_a_teams_tools_are_not_called_again(teams: Project, halo: Halo) -> None:
    result = halo(*team_run("noting", "--verify", "4"))
    calls = len(letters(teams))
    assert calls and "with the tool 'note'" in result.err and "not verified" in result.err
    (teams.path / "out.jsonl.halo.db").unlink()
    result = halo(*team_run("noting", "--verify", "4", "--allow-writes"))
    assert result.code == 0, result.err
    assert len(letters(teams)) == 3 * calls and "4 equal" in result.err


def test_what_differs_from_run_to_run_is_not_compared_in_autogen() -> None:
    def result(id: str, call: str, reply: str, content: Any = "x") -> dict[str, Any]:
        own = {"id": id, "created_at": id, "source": "a", "type": "T"}
        return {
            "stop_reason": None,
            "messages": [
                {**own, "content": [{"id": call, "name": "f", "arguments": "{}"}]},
                {**own, "content": [{"call_id": reply, "name": "f", "content": content, "is_error": False}]},
                {**own, "content": {"id": content}},
            ],
        }

    def differ(*both: dict[str, Any]) -> list[str]:
        app = AUTOGEN.prepare(None)
        intercept.uninstall()
        found = compare(0, *(AUTOGEN.comparable(app, each) for each in both))
        return [f"{difference.key}{difference.path}" for difference in found]

    assert not differ(result("1", "c", "c"), result("2", "d", "d"))
    assert differ(result("1", "c", "c"), result("2", "d", "e")) == ["messages[1].content[0].call_id"]
    assert differ(result("1", "c", "c"), result("1", "c", "c", "y")) == ["messages[1].content[0].content"]
