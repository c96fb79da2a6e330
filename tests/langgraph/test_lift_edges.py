"""How the wiring of a graph becomes edges, guards, joins and barriers."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from halo_adapters.langgraph.lift import lift
from halo_core.plan import Plan, Route


class State(TypedDict, total=False):
    """Something to pass on."""

    text: str
    where: str
    many: Annotated[int, operator.add]
    parts: Annotated[list[str], operator.add]


def step(state: State) -> State:
    return {"text": "done"}


def plan_of(*nodes: str, entry: str = "a", **wiring: Any) -> Plan:
    """A graph of steps named `nodes`; `wiring` maps a source to `(branch, path_map)` or to a target."""
    builder = StateGraph(State)
    for name in nodes:
        builder.add_node(name, wiring.get(f"{name}_node", step))
    builder.add_edge(START, entry)
    for source, target in wiring.items():
        if source in nodes and isinstance(target, str):
            builder.add_edge(source, target)
        elif source in nodes:
            builder.add_conditional_edges(source, *target)
    return lift(builder.compile(), name="test")


def edges(plan: Plan) -> set[str]:
    """`source -label-> target`, `?` for may and `*` for fan-out; exits lead to END."""
    lines = {(e.source, e.guard, e.may, e.fan_out, e.target) for e in plan.edges}
    lines |= {(e.source, e.guard, e.may, False, "END") for e in plan.exits}
    return {
        f"{source} {guard.label if guard else ''}{'?' if may else ''}{'*' if each else ''}> {target}"
        for source, guard, may, each, target in lines
    }


def by_annotation(state: State) -> Literal["b", "__end__"]:
    return state["where"]  # type: ignore[return-value]


def by_truth(state: State) -> bool:
    return bool(state["where"])


def by_text(state: State):
    if state["where"]:
        return "b"
    return "c" if state["text"] else END


def by_unknown(state: State):
    return state["where"]


def test_labels_of_an_annotation() -> None:
    plan = plan_of("a", "b", a=(by_annotation,))
    assert edges(plan) == {
        "a > a.by_annotation",
        "a.by_annotation b> b",
        "a.by_annotation __end__> END",
        "b > END",
    }


def test_labels_of_a_path_map_need_not_be_texts() -> None:
    plan = plan_of("a", "b", "c", a=(by_truth, {True: "b", False: "c", "True": "c"}))
    assert edges(plan) == {
        "a > a.by_truth",
        "a.by_truth True> b",
        "a.by_truth False> c",
        "a.by_truth 'True'> c",
        "b > END",
        "c > END",
    }
    route = plan["a.by_truth"]
    assert isinstance(route, Route)
    assert route.labels == ("True", "False", "'True'")
    assert route.deterministic


def test_labels_that_stand_in_the_code() -> None:
    plan = plan_of("a", "b", "c", a=(by_text,))
    assert edges(plan) == {
        "a > a.by_text",
        "a.by_text b> b",
        "a.by_text c> c",
        "a.by_text __end__> END",
        "b > END",
        "c > END",
    }


def test_labels_of_a_lambda() -> None:
    plan = plan_of("a", "b", a=(lambda state: "b" if state["where"] else END,))
    assert {"a.condition b> b", "a.condition __end__> END"} <= edges(plan)


def test_labels_that_nobody_can_tell_lead_everywhere() -> None:
    plan = plan_of("a", "b", "c", a=(by_unknown,))
    route = "a.by_unknown"
    assert edges(plan) == {
        f"a > {route}",
        f"{route} ?> a",
        f"{route} ?> b",
        f"{route} ?> c",
        f"{route} ?> END",
        "b > END",
        "c > END",
    }
    assert plan[route].labels is None


def test_two_conditional_edges_both_leave() -> None:
    builder = StateGraph(State)
    for name in "abc":
        builder.add_node(name, step)
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", by_text, ["b", "c", END])
    builder.add_conditional_edges("a", by_annotation)
    plan = lift(builder.compile())
    assert {"a > a.by_text", "a > a.by_annotation"} <= edges(plan)


def test_conditional_entry() -> None:
    builder = StateGraph(State)
    builder.add_node("b", step)
    builder.add_conditional_edges(START, by_annotation)
    plan = lift(builder.compile())
    assert plan.entry == ("START.by_annotation",)
    assert "START.by_annotation b> b" in edges(plan)


def sends(state: State):
    if not state["parts"]:
        return END
    return [Send("b", {"text": part}) for part in state["parts"]]


def sends_somewhere(state: State):
    return [Send(part, {}) for part in state["parts"]]


def sends_grown(state: State):
    result = []
    for part in state["parts"]:
        result.append(Send("b", {"text": part}))
    return result


def test_sends_are_fan_outs() -> None:
    plan = plan_of("a", "b", a=(sends, ["b", END]), b=END)
    assert edges(plan) == {"a > a.sends", "a.sends ?*> b", "a.sends __end__> END", "b > END"}


def test_sends_to_unknown_nodes_lead_everywhere() -> None:
    assert {"a.sends_somewhere ?*> a", "a.sends_somewhere ?*> b"} <= edges(plan_of("a", "b", a=(sends_somewhere,)))


def test_sends_out_of_sight_keep_to_the_path_map() -> None:
    plan = plan_of("a", "b", "c", entry="a", a=(sends_grown, ["b"]), b="c")
    assert edges(plan) == {
        "a > a.sends_grown",
        "a.sends_grown ?*> b",
        "a.sends_grown ?> END",
        "b > c",
        "c > END",
    }


def goes_by_code(state: State):
    return Command(goto=["b", Send("c", {})])


def goes_by_state(state: State):
    return Command(goto=state["where"])


def goes_declared(state: State) -> Command[Literal["b", "__end__"]]:
    return Command(goto=state["where"])  # type: ignore[arg-type]


def only_updates(state: State):
    return Command(update={"text": "x"})


def test_commands() -> None:
    assert edges(plan_of("a", "b", "c", a_node=goes_by_code)) >= {"a ?> b", "a ?*> c"}
    assert edges(plan_of("a", "b", a_node=goes_by_state)) == {"a ?> a", "a ?> b", "a ?> END", "b > END"}
    assert edges(plan_of("a", "b", a_node=goes_declared)) == {"a ?> b", "a ?> END", "b > END"}
    assert edges(plan_of("a", a_node=only_updates)) == {"a > END"}


def test_a_node_that_nothing_leads_to_may_follow_any_step() -> None:
    assert edges(plan_of("a", "b", "hidden", a="b")) == {
        "a > b",
        "a ?> hidden",
        "b ?> hidden",
        "hidden > END",
    }


def test_an_error_handler_may_follow_its_node_and_no_branch() -> None:
    builder = StateGraph(State)
    builder.add_node("a", step, error_handler=step)
    builder.add_edge(START, "a")
    builder.add_conditional_edges("a", by_unknown)
    plan = lift(builder.compile())
    assert "a ?> __error_handler__a" in edges(plan)
    assert "a.by_unknown ?> __error_handler__a" not in edges(plan)
    assert plan["a"].source.error_handler == "__error_handler__a"


def test_joins_wait_and_plain_edges_do_not() -> None:
    builder = StateGraph(State)
    for name in "abcd":
        builder.add_node(name, step)
    builder.add_edge(START, "a")
    builder.add_edge(START, "b")
    builder.add_edge(["a", "b"], "c")
    builder.add_edge("b", "d")
    builder.add_edge("a", "d")
    builder.add_edge(["c", "d"], END)
    plan = lift(builder.compile())
    assert edges(plan) == {
        "a > join:a+b",
        "b > join:a+b",
        "join:a+b > c",
        "b > d",
        "a > d",
        "c > END",
        "d > END",
    }
    assert [(b.after, b.before) for b in plan.barriers] == [(("a", "b"), ("c", "d"))]


def test_state_keys() -> None:
    state = {key.name: key for key in plan_of("a").state}
    assert (state["text"].reducer, state["text"].commutative) == (None, False)
    assert (state["many"].reducer, state["many"].commutative) == ("operator.add", True)
    assert (state["parts"].reducer, state["parts"].commutative) == ("operator.add", False)
