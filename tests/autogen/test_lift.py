"""Lifted teams as text: the files in `expected/` are what a user sees of each shape. `UPDATE_EXPECTED=1` rewrites."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from autogen_agentchat.agents import AssistantAgent, SocietyOfMindAgent
from autogen_agentchat.conditions import FunctionalTermination, MaxMessageTermination, TextMentionTermination
from autogen_agentchat.messages import TextMessage
from autogen_agentchat.teams import DiGraph, DiGraphEdge, DiGraphNode, GraphFlow, RoundRobinGroupChat, SelectorGroupChat
from autogen_ext.models.cache import ChatCompletionCache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halo_adapters.autogen.lift import lift, nested
from halo_adapters.autogen.report import explain, explain_analyze
from halo_core.errors import LiftError
from halo_core.plan import END, START, Effect, LLMOperator, Loop, OpaqueStep, Plan, Route, consolidate
from halo_core.plan.graph import framed_graph
from halo_core.pool import EnginePool, PoolConfig, Usage, configure
from halo_core.runtime import Batch, How
from tests.autogen import lift_teams
from tests.autogen.lift_teams import EchoClient, agent, changed, model

EXPECTED = Path(__file__).parent / "expected"
ROOT = Path(__file__).parents[2]
TASKS = ["one", "two", "one", "three", "one", "two"]
PRINT_FINGERPRINTS = """
from tests.autogen import lift_teams
from halo_adapters.autogen.lift import lift
for build in lift_teams.TEAMS:
    print(lift(build()).fingerprint)
"""
ids = pytest.mark.parametrize("build", lift_teams.TEAMS, ids=lambda build: build.__name__)


@pytest.fixture(autouse=True)
def pool() -> Iterator[EnginePool]:
    """A pool that maps one of the names to a model which nothing serves."""
    yield configure(PoolConfig.model_validate({"models": {"router": "absent"}}))
    configure(PoolConfig())


def check(name: str, text: str) -> None:
    """Compare with a file of `expected/`."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("UPDATE_EXPECTED"):
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


# -- plans --------------------------------------------------------------------------------------------------------


@ids
def test_plan_text(build: Callable[[], Any]) -> None:
    plan = lift(build())
    check(build.__name__, str(plan))
    assert Plan.from_json(plan.to_json()) == plan


@ids
def test_operators_are_named_as_the_callers_of_models_are(build: Callable[[], Any]) -> None:
    team = build()
    callers = (
        {team.name} if team.component_type == "agent" else {*team._participant_names, team._group_chat_manager_name}
    )
    steps = {o.name for o in lift(team).operators if isinstance(o, LLMOperator | OpaqueStep)}
    assert steps <= callers


def test_lifting_and_explaining_ask_nothing_of_the_users() -> None:
    lift_teams.EFFECTS.clear()
    for build in lift_teams.TEAMS:
        explain(build(), TASKS)
    assert lift_teams.EFFECTS == []


def test_name_and_default_name() -> None:
    assert lift(lift_teams.chain()).name == "chain"
    assert lift(lift_teams.chain(), name="mine").name == "mine"
    assert lift(lift_teams.solo()).name == "solo"


@pytest.mark.parametrize("build", [lift_teams.chain, lift_teams.panel, lift_teams.uneven, lift_teams.debate])
def test_equal_tasks_are_one_class(build: Callable[[], Any]) -> None:
    plan = lift(build())
    merged = consolidate(plan, [{"task": text} for text in TASKS])
    first = plan.entry[0]
    assert merged.count(first).classes == 3
    assert merged.class_of(first, 0) == merged.class_of(first, 2) != merged.class_of(first, 1)


def test_sampled_and_unjudgeable_steps_never_merge() -> None:
    sampled = RoundRobinGroupChat([agent("a", model_client=model(temperature=1))], max_turns=1)
    rows = [{"task": "same"}] * 3
    assert consolidate(lift(sampled), rows).count("a").classes == 3
    # Whether its loop goes on, a function of the user's says: equal rows may go different ways.
    assert consolidate(lift(lift_teams.judged()), rows).count("critic").classes == 3


def test_one_call_where_that_is_certain() -> None:
    plan = lift(lift_teams.mixed())
    calls = {operator.name for operator in plan.operators if isinstance(operator, LLMOperator)}
    assert calls == {"begun"}
    effects = {o.name: o.effect for o in plan.operators if isinstance(o, OpaqueStep)}
    pure = {"cut", "verdict", "filtered", "unknown"}
    assert {name for name, effect in effects.items() if effect is Effect.PURE} == pure
    assert all(effects[name] is Effect.WRITE for name in set(effects) - pure)


def test_an_inner_team_is_as_pure_as_its_parts() -> None:
    def effect(inner: Any) -> Effect:
        step = lift(SocietyOfMindAgent("society", inner, model()))["society"]
        assert isinstance(step, OpaqueStep)
        return step.effect

    assert effect(lift_teams.panel()) is Effect.PURE
    # Functions of the user's decide in these, or tools run.
    for inner in (lift_teams.picked(), lift_teams.judged(), lift_teams.review(), lift_teams.outer()):
        assert effect(inner) is Effect.WRITE


def test_an_agent_whose_turn_was_replaced_is_opaque() -> None:
    solo = agent("solo")
    solo.on_messages_stream = lambda messages, token: lift_teams.asked("stream")
    assert isinstance(lift(solo)["solo"], OpaqueStep)


def test_a_wrapped_client_stands_for_what_it_wraps() -> None:
    step = lift(AssistantAgent("solo", ChatCompletionCache(model("inner", seed=7))))["solo"]
    assert isinstance(step, LLMOperator)
    assert (step.model, step.sampling.seed) == ("inner", 7)


def test_sampling_keeps_what_has_no_field_of_its_own() -> None:
    client = model(top_p=0.5, stop="END", frequency_penalty=0.25, extra_body={"top_k": 3})
    step = lift(agent("solo", model_client=client))["solo"]
    assert isinstance(step, LLMOperator)
    assert (step.sampling.top_p, step.sampling.stop, step.sampling.max_tokens) == (0.5, ("END",), 64)
    assert step.sampling.extra == {"frequency_penalty": 0.25, "extra_body": {"top_k": 3}}


# -- bounds and ends ----------------------------------------------------------------------------------------------


def bound_of(plan: Plan) -> int | None:
    loops = [operator for operator in plan.operators if isinstance(operator, Loop)]
    assert len(loops) == 1
    return loops[0].bound


@pytest.mark.parametrize(
    ("ends", "turns", "bound"),
    [
        (None, 5, 3),
        (MaxMessageTermination(8), None, 4),  # the task is a message
        (MaxMessageTermination(8) | TextMentionTermination("x"), 5, 3),
        (MaxMessageTermination(8) & TextMentionTermination("x"), None, None),
        (MaxMessageTermination(5) & MaxMessageTermination(9), None, 4),
        (TextMentionTermination("x"), None, None),
    ],
)
def test_bounds(ends: Any, turns: int | None, bound: int | None) -> None:
    team = RoundRobinGroupChat([agent("a"), agent("b")], termination_condition=ends, max_turns=turns)
    assert bound_of(lift(team)) == bound


def test_a_bound_alone_ends_where_it_ends() -> None:
    plan = lift(lift_teams.rounds())
    assert [(leave.source, leave.may) for leave in plan.exits] == [("writer", False)]
    either = lift(lift_teams.debate())
    assert [(leave.source, leave.may) for leave in either.exits] == [("writer", True), ("critic", True)]
    assert lift(lift_teams.endless()).exits == ()


def test_a_subclass_of_a_condition_is_not_believed() -> None:
    class Patient(MaxMessageTermination):
        async def __call__(self, messages: Any) -> Any:
            return None

    plan = lift(RoundRobinGroupChat([agent("a"), agent("b")], termination_condition=Patient(3)))
    assert bound_of(plan) is None
    assert "when Patient says so" in str(plan)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_team_with_a_manager_of_its_own_is_refused() -> None:
    class Mine(RoundRobinGroupChat):
        def _create_group_chat_manager_factory(self, *args: Any, **settings: Any) -> Any:
            return lift_teams.asked("factory")

    class Renamed(RoundRobinGroupChat):
        pass

    with pytest.raises(LiftError, match=r"team 'RoundRobinGroupChat' is a .*Mine, whose manager"):
        lift(Mine([agent("a")]))
    assert lift(Renamed([agent("a")], max_turns=1))


def test_what_is_no_team_is_refused() -> None:
    with pytest.raises(LiftError, match="'int'"):
        lift(7)  # type: ignore[arg-type]


def test_a_broken_team_names_itself() -> None:
    team = lift_teams.chain()
    team._participants[1]._workbench = None
    with pytest.raises(LiftError, match=r"'chain' has no plan \(TypeError: .*runs as before"):
        lift(team)
    assert explain(team).startswith("no plan: 'chain'")


@pytest.mark.parametrize(
    ("nodes", "start", "message"),
    [
        ({"a": ["b"]}, None, "edge 'a' -> 'b' of team 'GraphFlow' leads to no node"),
        ({"a": ["x"], "x": []}, None, "graph node 'x' of team 'GraphFlow' is no participant"),
        ({"a": ["b"], "b": ["a"]}, None, "has no node to start with"),
        ({"a": ["b"], "b": []}, "c", "has no node to start with"),
    ],
)
def test_graphs_that_cannot_run(nodes: dict[str, list[str]], start: str | None, message: str) -> None:
    made = {n: DiGraphNode(name=n, edges=[DiGraphEdge(target=t) for t in ts]) for n, ts in nodes.items()}
    team = GraphFlow([agent("a"), agent("b")], DiGraph(nodes=made, default_start_node=start))
    with pytest.raises(LiftError, match=message):
        lift(team)


def test_a_selector_prompt_that_is_more_than_fields_leaves_the_router_open() -> None:
    speakers = [agent("a"), agent("b"), agent("c")]
    known = SelectorGroupChat(speakers, model(), max_turns=3)
    odd = SelectorGroupChat(speakers, model(), max_turns=3, selector_prompt="{history:>80} {participants}")
    assert isinstance(lift(known)["SelectorGroupChatManager"], LLMOperator)
    router = lift(odd)["SelectorGroupChatManager"]
    assert isinstance(router, OpaqueStep)
    assert router.advised_calls[0].prompt is None


def test_a_question_that_need_not_be_asked_leaves_the_router_open() -> None:
    two = [agent("a"), agent("b")]
    turning = lift(SelectorGroupChat(two, model(), max_turns=3))  # who spoke last may not speak again
    free = lift(SelectorGroupChat(two, model(), max_turns=3, allow_repeated_speaker=True))
    assert isinstance(turning["SelectorGroupChatManager"], OpaqueStep)
    assert isinstance(free["SelectorGroupChatManager"], LLMOperator)


def test_conditions_have_names_of_their_own() -> None:
    tests = [lambda message: True, lambda message: False]
    edges = [DiGraphEdge(target=name, condition=test) for name, test in zip("bc", tests, strict=True)]
    nodes = {"a": DiGraphNode(name="a", edges=edges), "b": DiGraphNode(name="b"), "c": DiGraphNode(name="c")}
    route = lift(GraphFlow([agent("a"), agent("b"), agent("c")], DiGraph(nodes=nodes)))["after:a"]
    assert isinstance(route, Route) and route.labels is not None
    one, two = route.labels
    line = line_of(tests[0])
    assert (one, two) == (f"lambda at test_lift.py:{line}", f"lambda at test_lift.py:{line}'")


def line_of(function: Any) -> int:
    return int(function.__code__.co_firstlineno)


def test_magentic_agents_hear_the_orchestrator_only() -> None:
    plan = lift(lift_teams.magentic())
    coder = plan["coder"]
    assert isinstance(coder, LLMOperator)
    assert coder.prompt.state_keys() == ("messages",)
    assert bound_of(plan) == 8


# -- inner teams --------------------------------------------------------------------------------------------------


def test_inner_teams_are_found_once() -> None:
    team = lift_teams.outer()
    found = [(where, inner.name) for where, inner in nested(team)]
    assert found == [
        ("society", "thinkers"),
        ("middle", "middle"),
        ("middle/deepest", "deepest"),
        ("caller/ask_team", "called"),
    ]
    thinkers = nested(team)[0][1]
    twice = [SocietyOfMindAgent(name, thinkers, model()) for name in ("one", "two")]
    assert [where for where, _ in nested(RoundRobinGroupChat([*twice]))] == ["one"]
    assert [where for where, _ in nested(twice[0])] == ["one"]


def test_a_team_that_holds_itself_can_be_looked_at() -> None:
    team = lift_teams.chain()
    team._participants[0] = SocietyOfMindAgent("writer", team, model())
    assert nested(team) == []
    assert isinstance(lift(team)["writer"], OpaqueStep)


# -- fingerprints -------------------------------------------------------------------------------------------------


def test_fingerprints_are_equal_across_processes() -> None:
    here = [lift(build()).fingerprint for build in lift_teams.TEAMS]
    assert len(set(here)) == len(here)
    for seed in ("1", "4711"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRINT_FINGERPRINTS],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == here


def shouts(city: str) -> str:
    """Look a city up."""
    return city.upper()


def looks(city: str, country: str = "") -> str:
    """Look a city up."""
    return city


def with_closure(word: str) -> Callable[[str], str]:
    def look_up(city: str) -> str:
        """Look a city up."""
        return city + word

    return look_up


CHANGES: list[dict[str, Any]] = [
    {},
    {"says": "You paint."},
    {"name": "large"},
    {"temperature": 0.5},
    {"tool": shouts},
    {"tool": looks},
    {"tool": with_closure("a")},
    {"tool": with_closure("b")},
    {"condition": "no"},
    {"condition": lambda message: "no" in message.to_text()},
    {"condition": lambda message: "yes" in message.to_text()},
    {"group": "any"},
    {"ends": MaxMessageTermination(4)},
    {"ends": MaxMessageTermination(5)},
    {"ends": TextMentionTermination("GO")},
    {"ends": MaxMessageTermination(4) | TextMentionTermination("GO")},
    {"ends": MaxMessageTermination(4) & TextMentionTermination("GO")},
    {"ends": FunctionalTermination(lambda messages: len(messages) > 1)},
    {"ends": FunctionalTermination(lambda messages: len(messages) > 2)},
    {"turns": 8},
    {"prompt": "Choose from {participants}."},
    {"pick": lambda messages: "writer"},
    {"pick": lambda messages: "society"},
    {"keep": 4},
    {"reflect": True},
]


def test_fingerprints_see_every_change() -> None:
    found = [lift(changed(**change)).fingerprint for change in CHANGES]
    assert len(set(found)) == len(CHANGES)


def test_fingerprints_do_not_see_where_calls_go() -> None:
    elsewhere = changed(address="http://127.0.0.1:8/v1", key="y")
    assert lift(elsewhere).fingerprint == lift(changed()).fingerprint


def test_a_run_that_was_forgotten_leaves_no_trace_in_the_fingerprint() -> None:
    ends = MaxMessageTermination(4) | TextMentionTermination("done")
    team = RoundRobinGroupChat([AssistantAgent(n, EchoClient()) for n in "ab"], termination_condition=ends)
    fresh = lift(team).fingerprint

    async def use() -> None:
        await team.run(task="hi")
        assert lift(team).fingerprint != fresh  # what was said will be said again
        await team.reset()

    asyncio.run(use())
    assert lift(team).fingerprint == fresh


# -- plans against runs -------------------------------------------------------------------------------------------


def spoken(team: Any, task: str) -> list[str]:
    """Who spoke, in order, when AutoGen itself runs the team."""
    result = asyncio.run(team.run(task=task))
    return [message.source for message in result.messages if message.source in team._participant_names]


def follows(plan: Plan) -> nx.DiGraph[str]:
    """Step -> the steps that may come next, START and END among them; routes, joins and managers drawn through."""
    graph: nx.DiGraph[str] = nx.DiGraph(framed_graph(plan))
    for name in list(graph):
        between = name not in (START, END) and not (plan[name].kind in ("llm", "opaque") and "Manager" not in name)
        if between:
            graph.add_edges_from((a, b) for a in graph.predecessors(name) for b in graph.successors(name))
            graph.remove_node(name)
    return graph


WORDS = st.lists(st.sampled_from(["yes", "no", "done", "a", "b", "c"]), min_size=1, max_size=4)
ENDS = st.sampled_from(
    [
        lambda: None,
        lambda: MaxMessageTermination(2),
        lambda: MaxMessageTermination(5),
        lambda: TextMentionTermination("done"),
        lambda: TextMentionTermination("done") | MaxMessageTermination(6),
        lambda: TextMentionTermination("done") & MaxMessageTermination(3),
    ]
)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(chosen=st.booleans(), size=st.integers(2, 3), words=WORDS, ends=ENDS, turns=st.integers(1, 7))
def test_turns_go_only_where_the_plan_says(chosen: bool, size: int, words: list[str], ends: Any, turns: int) -> None:
    client = EchoClient(words)
    agents: Any = [AssistantAgent(name, client) for name in "abc"[:size]]
    limits: Any = {"termination_condition": ends(), "max_turns": turns}
    team = SelectorGroupChat(agents, client, **limits) if chosen else RoundRobinGroupChat(agents, **limits)
    plan = lift(team)
    allowed = follows(plan)
    said = spoken(team, "hello")
    assert all(allowed.has_edge(a, b) for a, b in zip([START, *said], [*said, END], strict=True)), (said, str(plan))
    bounds = [loop.bound for loop in plan.operators if isinstance(loop, Loop)]
    each = 1 if chosen else len(agents)
    assert all(bound is not None and len(said) <= bound * each for bound in bounds)


@st.composite
def graphs(draw: st.DrawFn) -> DiGraph:
    """Graphs that AutoGen accepts: forward edges with conditions or without, and perhaps one way back."""
    names = "abcde"[: draw(st.integers(2, 5))]
    edges: dict[str, list[DiGraphEdge]] = {name: [] for name in names}
    groups = {name: draw(st.sampled_from(["all", "any"])) for name in names}
    for i, name in enumerate(names[:-1]):
        targets = draw(st.lists(st.sampled_from(names[i + 1 :]), min_size=1, max_size=3, unique=True))
        conditional = draw(st.booleans())
        for target in targets:
            condition = draw(st.sampled_from(["yes", "no", "e"])) if conditional else None
            edges[name].append(DiGraphEdge(target=target, condition=condition, activation_condition=groups[target]))
        if conditional and i and draw(st.booleans()):
            back = draw(st.sampled_from(names[: i + 1]))
            any_of = DiGraphEdge(target=back, condition="no", activation_group="back", activation_condition="any")
            edges[name].append(any_of)
    return DiGraph(
        nodes={name: DiGraphNode(name=name, edges=edges[name]) for name in names}, default_start_node=names[0]
    )


@FEW
@given(graph=graphs(), words=WORDS, ends=ENDS, turns=st.sampled_from([1, 2, 4, 6]))
def test_graphs_run_only_what_the_plan_says(graph: DiGraph, words: list[str], ends: Any, turns: int) -> None:
    agents = [AssistantAgent(name, EchoClient(words)) for name in graph.nodes]
    team = GraphFlow(agents, graph, termination_condition=ends(), max_turns=turns)
    plan = lift(team)
    said = spoken(team, "hello")
    ran = set(said)
    assert ran <= {operator.name for operator in plan.operators}, str(plan)
    assert said[0] == plan.entry[0]
    allowed = follows(plan)
    for name in ran - set(plan.entry):
        assert any(allowed.has_edge(other, name) for other in ran), (name, str(plan))
    assert allowed.has_edge(said[-1], END), (said, str(plan))
    if not any(isinstance(operator, Loop) for operator in plan.operators):
        for edge in plan.edges:  # what is certain happens; a join or route runs when it is certain itself
            if edge.certain and edge.source in ran and edge.target in graph.nodes:
                assert edge.target in ran, (said, str(plan))
        for barrier in plan.barriers:
            before, after = ran & set(barrier.before), ran & set(barrier.after)
            if before and after:
                assert max(said.index(n) for n in after) < min(said.index(n) for n in before), (said, str(plan))


def test_what_can_never_start_is_not_in_the_plan() -> None:
    """Both ways into `b` must be taken, and one of them leads from `b` itself: AutoGen ends after `a`."""
    edges = {"a": ["b"], "b": ["c"], "c": ["b"]}
    nodes = {
        name: DiGraphNode(name=name, edges=[DiGraphEdge(target=t, condition="" if name == "c" else None) for t in to])
        for name, to in edges.items()
    }
    nodes["c"].edges.append(DiGraphEdge(target="d", condition="yes"))
    nodes["d"] = DiGraphNode(name="d")
    agents = [AssistantAgent(name, EchoClient()) for name in nodes]
    team = GraphFlow(agents, DiGraph(nodes=nodes, default_start_node="a"), max_turns=9)
    plan = lift(team)
    assert [operator.name for operator in plan.operators] == spoken(team, "hello") == ["a"]
    assert "never speak='b, c, d'" in str(plan)


def test_a_join_that_waits_in_vain_ends_the_run() -> None:
    conditional = [DiGraphEdge(target="b", condition="yes"), DiGraphEdge(target="c", condition="no")]
    nodes = {
        "a": DiGraphNode(name="a", edges=conditional),
        "b": DiGraphNode(name="b", edges=[DiGraphEdge(target="d")]),
        "c": DiGraphNode(name="c", edges=[DiGraphEdge(target="d")]),
        "d": DiGraphNode(name="d"),
    }
    team = GraphFlow([AssistantAgent(name, EchoClient(["yes"])) for name in nodes], DiGraph(nodes=nodes))
    assert spoken(team, "hello") == ["a", "b"]
    assert {leave.source: leave.may for leave in lift(team).exits} == {
        "after:a": True,
        "b": True,
        "c": True,
        "d": False,
    }


# -- explain ------------------------------------------------------------------------------------------------------


def test_explain_with_tasks() -> None:
    told = explain(lift_teams.panel(), TASKS, why_not_native=lambda team: None)
    check("explain_panel", told)


def test_explain_without_tasks() -> None:
    told = explain(lift_teams.outer(), why_not_native=lambda team: "it has a team inside")
    check("explain_outer", told)


def test_explain_an_agent() -> None:
    told = explain(lift_teams.handy(), [TextMessage(content=text, source="user") for text in TASKS])
    check("explain_handy", told)
    assert "rows: 6, 3 of them distinct" in told  # ids and times of messages do not count
    assert "runs on" not in told


def test_explain_adds_nothing_to_the_pool(pool: EnginePool) -> None:
    explain(lift_teams.outer(), TASKS)
    assert pool.models == []


def test_explain_a_team_that_cannot_be_lifted() -> None:
    class Mine(RoundRobinGroupChat):
        def _create_group_chat_manager_factory(self, *args: Any, **settings: Any) -> Any:
            return lift_teams.asked("factory")

    told = explain(Mine([agent("a", model_client=model("router"))]))
    assert told.startswith("no plan: team")
    assert "left alone: the name map sends model 'router' to 'absent'" in told


def test_explain_analyze() -> None:
    batch = Batch("demo")
    batch.stats.rows_done, batch.stats.wall_s = 2, 0.5
    for operator, calls in {"society": 2, "think": 2, "doubt": 2, "SelectorGroupChatManager": 4, "deep": 1}.items():
        for _ in range(calls):
            batch.stats.count(operator, How.EXECUTED, Usage(100, 0, 50))
    check("analyze_outer", explain_analyze(batch, lift_teams.outer()))


def test_explain_analyze_without_a_plan() -> None:
    class Mine(RoundRobinGroupChat):
        def _create_group_chat_manager_factory(self, *args: Any, **settings: Any) -> Any:
            return lift_teams.asked("factory")

    batch = Batch("demo")
    batch.stats.count("a", How.EXECUTED, Usage(100, 0, 50))
    lines = explain_analyze(batch, Mine([agent("a")])).splitlines()
    assert lines[0].endswith("│ batch 'demo', without a plan")


def test_routes_only_where_something_is_decided() -> None:
    routes = {
        build.__name__: [o.name for o in lift(build()).operators if isinstance(o, Route)] for build in lift_teams.TEAMS
    }
    assert {name: found for name, found in routes.items() if found} == {
        "judged": ["after:writer", "after:critic"],
        "review": ["after:judge"],
        "branches": ["after:sort"],
        "panel": ["after:SelectorGroupChatManager"],
    }
    assert lift(lift_teams.branches())["after:sort"].deterministic
    assert not lift(lift_teams.review())["after:judge"].deterministic
