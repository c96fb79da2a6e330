"""Plans that are not well formed: each error names the operator and the cure."""

from __future__ import annotations

from typing import Any

import pytest

from halo_core.errors import PlanError
from halo_core.plan import (
    Barrier,
    Edge,
    Effect,
    Exit,
    Guard,
    LLMOperator,
    Loop,
    OpaqueStep,
    Operator,
    Plan,
    PromptTemplate,
    Route,
    Sampling,
    StateKey,
    ToolOperator,
    Unread,
    close_loops,
    critical_path,
    effect_of,
)


def step(name: str, **fields: Any) -> OpaqueStep:
    return OpaqueStep(name=name, **({"reads": (), "writes": ()} | fields))


def llm(prompt: str, **fields: Any) -> LLMOperator:
    return LLMOperator(**({"name": "llm", "model": "m", "prompt": PromptTemplate.parse(prompt), "writes": ()} | fields))


def edge(source: str, target: str, **fields: Any) -> Edge:
    return Edge(source=source, target=target, **fields)


def plan(*operators: Operator, edges: tuple[Edge, ...] = (), **fields: Any) -> Plan:
    first, last = (operators[0].name, operators[-1].name) if operators else ("", "")
    return Plan(**({"name": "p", "operators": operators, "edges": edges, "entry": (first,), "exits": (last,)} | fields))


BACK = (edge("a", "b"), edge("b", "a"))
ROUTE = Route(name="r", reads=(), labels=("x", "y"))

WRONG: dict[str, tuple[Any, str]] = {
    "no operators": (lambda: plan(), "plan 'p' has no operators; add at least one"),
    "duplicate name": (lambda: plan(step("a"), step("a")), "operator 'a': the name is used twice"),
    "reserved name": (lambda: plan(step("__end__")), "operator '__end__': the name is reserved; use `entry`"),
    "dangling target": (
        lambda: plan(step("a"), edges=(edge("a", "b"),)),
        "edge 'a' -> 'b' names operator 'b', which is not in plan 'p'",
    ),
    "dangling source": (lambda: plan(step("a"), edges=(edge("z", "a"),)), "names operator 'z'"),
    "edge into a loop": (
        lambda: plan(
            step("a"), step("b"), Loop(name="l", body=("a", "b")), edges=(*BACK, edge("b", "l")), exits=("b",)
        ),
        "edge 'b' -> 'l' names the loop 'l', which has no edges; name a member of its body",
    ),
    "edge twice": (
        lambda: plan(step("a"), step("b"), edges=(edge("a", "b"), edge("a", "b"))),
        "edge 'a' -> 'b' is given twice",
    ),
    "no entry": (lambda: plan(step("a"), entry=()), "plan 'p' has no entry"),
    "unknown entry": (lambda: plan(step("a"), entry=("x",)), "entry names operator 'x'"),
    "unknown exit": (lambda: plan(step("a"), exits=("x",)), "exit names operator 'x'"),
    "unknown barrier": (
        lambda: plan(step("a"), barriers=(Barrier(after=("a",), before=("x",)),)),
        "barrier (superstep) names operator 'x'",
    ),
    "barrier on itself": (
        lambda: plan(step("a"), barriers=(Barrier(after=("a",), before=("a",)),)),
        "operator 'a' cannot wait for itself",
    ),
    "unreachable": (
        lambda: plan(step("a"), step("b"), edges=(), exits=("a", "b")),
        "operator 'b' cannot be reached from the entry; add an edge into it or drop it",
    ),
    "unreachable cycle": (
        lambda: plan(
            step("z"), step("a"), step("b"), Loop(name="l", body=("a", "b")), edges=BACK, entry=("z",), exits=("z",)
        ),
        "operator 'a' cannot be reached",
    ),
    "leads nowhere": (
        lambda: plan(step("a"), step("b"), edges=(edge("a", "b"),), exits=("a",)),
        "operator 'b' leads nowhere; add an edge out of it or name it in `exits`",
    ),
    "uncovered cycle": (
        lambda: plan(step("a"), step("b"), edges=BACK),
        "operators 'a', 'b' form a cycle that no loop covers; add a Loop over them (close_loops does)",
    ),
    "uncovered self-loop": (lambda: plan(step("a"), edges=(edge("a", "a"),)), "operators 'a' form a cycle"),
    "loop covers a part": (
        lambda: plan(step("a"), step("b"), Loop(name="l", body=("a",)), edges=(*BACK, edge("a", "a")), exits=("b",)),
        "operators 'a', 'b' form a cycle that no loop covers",
    ),
    "unknown body": (
        lambda: plan(step("a"), Loop(name="l", body=("a", "x")), exits=("a",)),
        "loop 'l': its body names 'x', which is not in the plan",
    ),
    "loop in a body": (
        lambda: plan(
            step("a"), Loop(name="k", body=("a",)), Loop(name="l", body=("k",)), edges=(edge("a", "a"),), exits=("a",)
        ),
        "loop 'l': its body names the loop 'k'; name that loop's members",
    ),
    "loop without cycle": (
        lambda: plan(step("a"), Loop(name="l", body=("a",)), exits=("a",)),
        "loop 'l': its body has no cycle",
    ),
    "overlapping loops": (
        lambda: plan(
            step("a"),
            step("b"),
            step("c"),
            Loop(name="k", body=("a", "b")),
            Loop(name="l", body=("b", "c")),
            edges=(*BACK, edge("b", "c"), edge("c", "b")),
            exits=("c",),
        ),
        "loops 'k' and 'l' overlap; nest one in the other or join them",
    ),
    "guard of another": (
        lambda: plan(
            step("a"), ROUTE, step("b"), edges=(edge("a", "r"), edge("a", "b", guard=Guard(branch="r", label="x")))
        ),
        "guard of 'a' -> 'b' names branch 'r'; only the edge's own source can decide",
    ),
    "guard of a tool": (
        lambda: plan(ToolOperator(name="t", tool="t"), exits=(Exit(source="t", guard=Guard(branch="t", label="x")),)),
        "operator 't' is a tool and cannot decide; put a route after it",
    ),
    "unknown label": (
        lambda: plan(ROUTE, step("b"), edges=(edge("r", "b", guard=Guard(branch="r", label="z")),)),
        "route 'r' never answers 'z'; it answers x, y",
    ),
    "writing route": (
        lambda: plan(Route(name="r", writes=("k",)), state=(StateKey(name="k"),)),
        "route 'r' writes the state",
    ),
    "state twice": (
        lambda: plan(step("a"), state=(StateKey(name="k"), StateKey(name="k"))),
        "state key 'k' is declared twice",
    ),
    "undeclared output": (
        lambda: plan(step("a"), output=("k",)),
        "output 'k' of plan 'p' is not a state key; declare it in `state`",
    ),
    "fact about nobody": (
        lambda: plan(step("a"), facts=(Unread(operator="b"),)),
        "fact 'unread' names operator 'b', which is not in plan 'p'; drop it",
    ),
    "undeclared read": (lambda: plan(step("a", reads=("k",))), "operator 'a' reads 'k', which is not a state key"),
    "undeclared write": (lambda: plan(step("a", writes=("k",))), "operator 'a' writes 'k', which is not a state key"),
    "undeclared slot": (lambda: plan(llm("{docs.0}")), "operator 'llm' reads 'docs', which is not a state key"),
    "slot not read": (
        lambda: plan(llm("{k}", reads=()), state=(StateKey(name="k"),)),
        "operator 'llm': slot {k} is not in its reads",
    ),
    "slot nobody writes": (
        lambda: plan(llm("{k}"), state=(StateKey(name="k", input=False),)),
        "operator 'llm': slot {k} is written by no operator and given by no row",
    ),
    "conversion in a prompt": (lambda: PromptTemplate.parse("{k!r}"), "field {k} must only name an input path"),
    "empty field": (lambda: PromptTemplate.parse("{}"), "field {} must only name an input path"),
    "single brace": (lambda: PromptTemplate.parse("{k"), "write a literal brace twice"),
    "unknown operator": (lambda: plan(step("a"))["b"], "plan 'p' has no operator 'b'; it has a"),
    "missing weight": (lambda: critical_path(plan(step("a")), {}), "no weight for operator 'a'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_fault_is_named(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(PlanError) as error:
        make()
    assert message in str(error.value)


def test_a_slot_may_be_written_by_a_step_that_may_write_anything() -> None:
    made = plan(
        step("any", writes=None), llm("{k}"), edges=(edge("any", "llm"),), state=(StateKey(name="k", input=False),)
    )
    assert "any" in made and "none" not in made


def test_plans_are_frozen_and_closed() -> None:
    made = plan(step("a"))
    with pytest.raises(ValueError, match="frozen"):
        made.name = "b"  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs"):
        step("a", color="red")


def test_close_loops_covers_each_cycle_once() -> None:
    operators = [step(name) for name in "abcdef"]
    links = [edge(*pair) for pair in ("ab", "ba", "bc", "cd", "dd", "de", "ef", "fe")]
    loops = close_loops(operators, links)[6:]
    assert [(o.name, o.body) for o in loops if isinstance(o, Loop)] == [
        ("loop:a", ("a", "b")),
        ("loop:d", ("d",)),
        ("loop:e", ("e", "f")),
    ]
    assert close_loops([*operators, *loops], links) == (*operators, *loops)
    assert plan(*operators, *loops, edges=tuple(links), exits=("f",)).generations() == (
        ("a", "b"),
        ("c",),
        ("d",),
        ("e", "f"),
    )


def test_close_loops_keeps_a_given_loop_and_finds_a_free_name() -> None:
    given = Loop(name="mine", body=("a", "b", "c"), bound=3)
    operators = [step("a"), step("b"), step("c"), step("d"), step("loop:d"), given]
    links = [edge(*pair) for pair in ("ab", "ba", "bc", "cd", "dd")]
    assert [o.name for o in close_loops(operators, links)[6:]] == ["loop:d'"]


def test_nested_loops_are_legal() -> None:
    links = (edge("a", "b"), edge("b", "b"), edge("b", "a"))
    made = plan(
        step("a"),
        step("b"),
        Loop(name="inner", body=("b",)),
        Loop(name="outer", body=("a", "b")),
        edges=links,
        exits=("b",),
    )
    assert made.generations() == (("a", "b"),)


def test_generations_and_critical_path() -> None:
    made = plan(*(step(name) for name in "abcde"), edges=tuple(edge(*pair) for pair in ("ab", "ac", "cd", "be", "de")))
    assert made.generations() == (("a",), ("b", "c"), ("d",), ("e",))
    assert critical_path(made) == ("a", "c", "d", "e")
    assert critical_path(made, {"a": 1, "b": 9, "c": 1, "d": 1, "e": 1}) == ("a", "b", "e")


def test_critical_path_through_a_loop() -> None:
    operators = [step(name) for name in "abcd"]
    links = tuple(edge(*pair) for pair in ("ab", "bc", "cb", "cd"))
    made = plan(*close_loops(operators, links), edges=links, exits=("d",))
    assert critical_path(made) == ("a", "b", "c", "d")


def test_graph_holds_parallel_edges() -> None:
    links = tuple(edge("r", "b", guard=Guard(branch="r", label=label)) for label in "xy")
    graph = plan(ROUTE, step("b"), edges=links).graph()
    assert graph.edges["r", "b"]["edges"] == list(links)
    assert graph.nodes["b"]["operator"] == step("b")


def test_effects_and_determinism() -> None:
    assert effect_of(ToolOperator(name="t", tool="t")) is Effect.WRITE
    assert effect_of(step("a")) is Effect.WRITE
    assert effect_of(ROUTE) is Effect.PURE
    assert Sampling(temperature=0).deterministic and Sampling(seed=0).deterministic
    assert not Sampling().deterministic and not Sampling(temperature=0.1).deterministic


def test_prompt_segments_slots_and_static_prefix() -> None:
    prompt = PromptTemplate.chat([("system", "Be {{brief}}."), ("user", "Q: {q.text} in {lang}, {q.text}")])
    assert [str(part) for part in prompt.parts] == [
        'system: "Be {brief}."',
        'user: "Q: " {q.text} " in " {lang} ", " {q.text}',
    ]
    assert [slot.path for slot in prompt.slots()] == ["q.text", "lang", "q.text"]
    assert prompt.state_keys() == ("q", "lang")
    assert [str(part) for part in prompt.static_prefix()] == ['system: "Be {brief}."', 'user: "Q: "']
    assert PromptTemplate.parse("all static").static_prefix() == PromptTemplate.parse("all static").parts
