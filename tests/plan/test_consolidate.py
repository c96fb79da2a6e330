"""Consolidation: instances are one exactly where the rules allow it, and never where somebody could tell."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_core.errors import PlanError
from halo_core.plan import (
    SKIPPED,
    AdvisedCall,
    ConsolidatedPlan,
    Edge,
    Effect,
    Exit,
    Guard,
    Join,
    LLMOperator,
    OpaqueStep,
    Operator,
    Plan,
    PromptTemplate,
    Route,
    Sampling,
    StateKey,
    ToolOperator,
    close_loops,
    consolidate,
)
from halo_core.plan.graph import cyclic_regions
from tests.plan.supersteps import OUTPUTS, digest, run

GREEDY = Sampling(temperature=0)


def llm(name: str, reads: Sequence[str], greedy: bool = True, writes: tuple[str, ...] | None = None) -> LLMOperator:
    prompt = PromptTemplate.parse(" ".join(f"{{{key}}}" for key in reads))
    sampling = GREEDY if greedy else Sampling(temperature=1)
    return LLMOperator(
        name=name, model="m", prompt=prompt, sampling=sampling, writes=(name,) if writes is None else writes
    )


def line(*operators: Operator, keys: str = "q r", **fields: Any) -> Plan:
    """A chain of operators over the row keys `keys` and one key per name."""
    names = [operator.name for operator in operators]
    edges = tuple(Edge(source=a, target=b) for a, b in itertools.pairwise(names))
    state = [StateKey(name=key) for key in keys.split()] + [StateKey(name=name, input=False) for name in names]
    return Plan(
        **{"name": "p", "operators": operators, "edges": edges, "entry": names[:1], "exits": names[-1:], "state": state}
        | fields
    )


def partition(consolidated: ConsolidatedPlan, operator: str) -> list[list[int]]:
    return [list(found.rows) for found in consolidated.classes(operator)]


def grouped(rows: int, signature: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in range(rows):
        groups[signature(row)].append(row)
    return list(groups.values())


ROWS = [{"q": q, "r": r} for q, r in [("a", 1), ("b", 1), ("a", 1), ("a", 2), ("b", 1)]]


def test_equal_inputs_are_one_instance_all_the_way_down() -> None:
    made = consolidate(line(llm("x", ["q"]), llm("y", ["x", "r"]), llm("z", ["x"])), ROWS)
    assert partition(made, "x") == [[0, 2, 3], [1, 4]]
    assert partition(made, "y") == [[0, 2], [1, 4], [3]]
    assert partition(made, "z") == [[0, 2, 3], [1, 4]]
    assert [(c.operator, c.instances, c.classes, c.merged) for c in made.counts()] == [
        ("x", 5, 2, 3),
        ("y", 5, 3, 2),
        ("z", 5, 2, 3),
    ]
    found = list(made.classes("y"))
    assert [c.number for c in found] == [made.class_of("y", c.representative) for c in found]


def test_an_operator_without_inputs_is_one_instance() -> None:
    assert partition(consolidate(line(llm("x", [])), ROWS), "x") == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("operator", "why"),
    [
        (llm("x", ["q"], greedy=False), "sampled"),
        (ToolOperator(name="x", tool="t", reads=("q",), writes=("x",)), "writes"),
        (OpaqueStep(name="x", reads=("q",), writes=("x",)), "may write"),
        (Route(name="x", reads=("q",)), "unknown route"),
        (
            OpaqueStep(
                name="x", reads=("q",), writes=("x",), effect=Effect.PURE, advised_calls=(AdvisedCall(model="m"),)
            ),
            "may sample",
        ),
    ],
)
def test_what_is_never_merged(operator: Operator, why: str) -> None:
    made = consolidate(line(operator, llm("y", ["q"])), ROWS)
    assert partition(made, "x") == [[0], [1], [2], [3], [4]]
    assert made.count("x").unmerged == why
    for row in range(5):
        made.bind("x", row, {}, branch="same")
    assert made.count("x").classes == 5


@pytest.mark.parametrize(
    "operator",
    [
        ToolOperator(name="x", tool="t", reads=("q",), writes=("x",), effect=Effect.READ),
        ToolOperator(name="x", tool="t", reads=("q",), writes=("x",), effect=Effect.PURE),
        OpaqueStep(name="x", reads=("q",), writes=("x",), effect=Effect.PURE),
        Route(name="x", reads=("q",), deterministic=True),
        LLMOperator(
            name="x", model="m", prompt=PromptTemplate.parse("{q}"), sampling=Sampling(temperature=1, seed=1), writes=()
        ),
    ],
)
def test_what_is_merged(operator: Operator) -> None:
    assert partition(consolidate(line(operator), ROWS), "x") == [[0, 2, 3], [1, 4]]


def test_a_read_after_a_possible_write_is_not_merged() -> None:
    write = ToolOperator(name="w", tool="t", reads=(), writes=())
    read = ToolOperator(name="x", tool="t", reads=("q",), writes=("x",), effect=Effect.READ)
    after = consolidate(line(write, read), ROWS)
    assert after.count("x").unmerged == "reads after w, which may write"


def test_what_is_read_beside_a_write_of_the_same_superstep_is_not_merged() -> None:
    read = ToolOperator(name="x", tool="t", reads=("q",), writes=("x",), effect=Effect.READ)
    write = ToolOperator(name="w", tool="t", reads=("q",), effect=Effect.WRITE)
    first = llm("a", "q")
    ways = (Edge(source="a", target="w"), Edge(source="a", target="x"))
    plan = line(first, write, read, edges=ways, exits=("w", "x"))
    assert consolidate(plan, [{"q": 1, "r": 1}] * 2).count("x").unmerged == "reads beside w, which may write"
    before = consolidate(line(read, write), ROWS)
    assert before.count("x").classes == 2


def test_an_opaque_step_that_may_read_anything_depends_on_the_whole_row() -> None:
    plan = line(OpaqueStep(name="x", writes=("x",), effect=Effect.PURE))
    rows = [{"q": 1, "more": 1}, {"q": 1, "more": 2}, {"more": 1, "q": 1}]
    assert partition(consolidate(plan, rows), "x") == [[0, 2], [1]]


def test_assume_pure_estimates_what_opaque_steps_share() -> None:
    advised = AdvisedCall(model="m", sampling=GREEDY)
    steps = [OpaqueStep(name=name, advised_calls=(advised,)) for name in "xy"]
    assert [c.classes for c in consolidate(line(*steps), ROWS).counts()] == [5, 5]
    assert [c.classes for c in consolidate(line(*steps), ROWS, assume_pure=True).counts()] == [3, 3]
    sampled = line(OpaqueStep(name="x", advised_calls=(AdvisedCall(model="m"),)))
    assert consolidate(sampled, ROWS, assume_pure=True).count("x").classes == 5


def test_a_replaced_first_value_does_not_matter() -> None:
    plan = line(llm("x", ["r"], writes=("q",)), llm("y", ["q"]))
    assert partition(consolidate(plan, ROWS), "y") == [[0, 1, 2, 4], [3]]
    # a step that may leave the key alone lets the row's value through
    plan = line(OpaqueStep(name="x", reads=("r",), writes=("q",), effect=Effect.PURE), llm("y", ["q"]))
    assert partition(consolidate(plan, ROWS), "y") == [[0, 2], [1, 4], [3]]


def test_a_write_seen_through_the_state_without_an_edge() -> None:
    """b writes at step 2 what c reads at step 3, though nothing leads from b to c."""
    operators = (llm("a", []), llm("b", ["q"], writes=("k",)), llm("m", []), llm("c", ["k"]))
    edges = tuple(Edge(source=s, target=t) for s, t in ("ab", "am", "mc"))
    plan = line(*operators, keys="q k", edges=edges, exits=("b", "c"))
    assert partition(consolidate(plan, ROWS), "c") == [[0, 2, 3], [1, 4]]


def guarded(source: str, label: str, target: str) -> Edge:
    return Edge(source=source, target=target, guard=Guard(branch=source, label=label))


def branching(deterministic: bool) -> Plan:
    operators = (
        Route(name="pick", reads=("r",), labels=("x", "y"), deterministic=deterministic),
        llm("left", ["q"], writes=("k",)),
        llm("right", [], writes=("k",)),
        llm("end", ["k"]),
    )
    edges = (
        guarded("pick", "x", "left"),
        guarded("pick", "y", "right"),
        *(Edge(source=s, target="end") for s in ("left", "right")),
    )
    return line(*operators, keys="q r k", edges=edges)


def test_what_follows_a_branch_depends_on_the_decision() -> None:
    known = consolidate(branching(True), ROWS)
    assert partition(known, "left") == [[0, 2, 3], [1, 4]]
    assert partition(known, "end") == [[0, 2], [1, 4], [3]]
    unknown = consolidate(branching(False), ROWS)
    assert unknown.count("end").classes == 5
    for row, branch in enumerate("xyxyx"):
        unknown.bind("pick", row, {}, branch=branch)
        unknown.bind("left", row, {"k": row % 2} if branch == "x" else SKIPPED)
        unknown.bind("right", row, {"k": 0} if branch == "y" else SKIPPED)
        assert unknown.resolve("end", row) is not None
    assert partition(unknown, "end") == [[0, 2, 4], [1, 3]]


def test_an_operator_that_was_skipped_in_one_row_still_counts_in_another() -> None:
    made = consolidate(branching(False), [{"q": q, "r": 1} for q in "aabb"])
    assert partition(made, "left") == [[0, 1], [2, 3]]
    for row, branch in enumerate("yxyx"):
        made.bind("pick", row, {}, branch=branch)
        made.bind("left", row, {"k": row} if branch == "x" else SKIPPED)
        made.bind("right", row, {"k": 0} if branch == "y" else SKIPPED)
        made.resolve("end", row)
    assert partition(made, "end") == [[0, 2], [1], [3]]


def loop(judge: Operator) -> Plan:
    operators = (
        llm("draft", ["q"]),
        judge,
        Route(name="good", reads=("judge",), deterministic=True),
        llm("out", ["draft"]),
    )
    edges = (
        *(Edge(source=a, target=b) for a, b in itertools.pairwise(["draft", "judge", "good"])),
        guarded("good", "again", "draft"),
        guarded("good", "done", "out"),
    )
    names = ("draft", "judge", "good", "out")
    state = (StateKey(name="q"), *(StateKey(name=name, input=False) for name in names))
    return line(*operators, operators=close_loops(operators, edges), edges=edges, state=state, exits=("out",))


def test_loops_merge_only_when_all_that_decides_is_deterministic() -> None:
    merged = consolidate(loop(llm("judge", ["draft"])), ROWS)
    assert [c.classes for c in merged.counts()] == [2, 2, 2, 2]
    split = consolidate(loop(llm("judge", ["draft"], greedy=False)), ROWS)
    assert {c.operator: c.classes for c in split.counts()} == {"draft": 2, "judge": 5, "good": 5, "out": 5}
    with pytest.raises(PlanError, match="operator 'loop:draft' is a loop and has no instances"):
        split.count("loop:draft")


def test_the_number_of_turns_counts_though_every_way_passes_the_writer() -> None:
    operators = (
        llm("a", ["k"], writes=("k",)),
        Route(name="good", reads=("r",), deterministic=True),
        llm("out", ["k"]),
    )
    edges = (Edge(source="a", target="good"), guarded("good", "again", "a"), guarded("good", "done", "out"))
    made = consolidate(line(*operators, keys="q r k", operators=close_loops(operators, edges), edges=edges), ROWS)
    assert [c.classes for c in made.counts()] == [1, 2, 2]


def test_a_loop_that_feeds_itself_is_all_or_nothing() -> None:
    operators = (
        llm("a", ["q", "b"]),
        llm("b", ["a"], greedy=False),
        Route(name="good", reads=("b",), deterministic=True),
    )
    edges = (
        *(Edge(source=x, target=y) for x, y in itertools.pairwise(["a", "b", "good"])),
        guarded("good", "again", "a"),
    )
    leave = Exit(source="good", guard=Guard(branch="good", label="done"))
    made = consolidate(line(*operators, operators=close_loops(operators, edges), edges=edges, exits=(leave,)), ROWS)
    assert [c.classes for c in made.counts()] == [5, 5, 5]
    assert made.count("a").unmerged == "feeds on b, which is not merged"


def test_outputs_that_turn_out_equal_merge_what_follows() -> None:
    made = consolidate(line(llm("x", ["q"]), llm("y", ["x"]), llm("z", ["y", "q"])), ROWS)
    assert made.resolve("y", 0) is None
    assert made.bind("x", 0, {"x": [1, {"t": "same"}]}) == made.class_of("x", 3)
    assert made.resolve("y", 2) == made.class_of("y", 0)
    assert made.resolve("y", 1) is None
    made.bind("x", 1, {"x": [1, {"t": "same"}]})
    assert made.resolve("y", 4) == made.class_of("y", 0)
    assert partition(made, "y") == [[0, 1, 2, 3, 4]]
    assert made.count("y").classes == 1
    assert partition(made, "z") == [[0, 2, 3], [1, 4]]


def test_instances_that_ran_apart_stay_apart() -> None:
    made = consolidate(line(llm("x", ["q"]), llm("y", ["x"]), llm("z", ["y"])), ROWS)
    made.bind("y", 0, {"y": "ran early"})
    made.bind("y", 1, {"y": "ran early, too"})
    for row in (0, 1):
        made.bind("x", row, {"x": "same"})
        made.resolve("y", row)
    assert made.count("y").classes == 2
    assert [made.resolve("z", row) for row in range(5)] == [0, 1, 0, 0, 1]


def test_the_first_output_of_a_class_stays() -> None:
    made = consolidate(line(llm("x", ["q"]), llm("y", ["x"])), ROWS)
    made.bind("x", 0, {"x": 1})
    made.bind("x", 2, {"x": 2})
    made.bind("x", 1, {"x": 1})
    assert [made.resolve("y", row) for row in range(5)] == [0, 0, 0, 0, 0]


def test_only_the_keys_that_are_read_matter() -> None:
    step = OpaqueStep(name="x", reads=("q",), writes=("x", "log"))
    state = [StateKey(name=key) for key in ("q", "x", "log")] + [StateKey(name="y", input=False)]
    made = consolidate(line(step, llm("y", ["x"]), state=state), [{"q": 1}] * 3)
    for row in range(3):
        made.bind("x", row, {"x": row // 2, "log": row})
        made.resolve("y", row)
    assert partition(made, "y") == [[0, 1], [2]]


def test_wrong_questions() -> None:
    made = consolidate(line(llm("x", ["q"])), ROWS)
    with pytest.raises(PlanError, match="operator 'x' was bound to write 'k'; its writes are"):
        made.bind("x", 0, {"k": 1})
    with pytest.raises(PlanError, match="row 5 is not in a batch of 5"):
        made.resolve("x", 5)
    with pytest.raises(PlanError, match="no operator 'w'; it has x"):
        made.class_of("w", 0)


def test_values_without_canonical_form_are_never_merged() -> None:
    shared = object()
    made = consolidate(line(llm("x", ["q"])), [{"q": shared}, {"q": [shared]}, {"q": shared}, {"q": 1}, {"q": 1}])
    assert partition(made, "x") == [[0], [1], [2], [3, 4]]


def test_rows_of_any_kind() -> None:
    plan = line(llm("x", ["q"]))
    assert partition(consolidate(plan, iter(["bare", "other", "bare"])), "x") == [[0, 2], [1]]
    assert consolidate(plan, []).count("x").classes == 0
    assert partition(consolidate(plan, [{"q": 1}]), "x") == [[0]]
    assert partition(consolidate(plan, [{}, {"q": None}, {}]), "x") == [[0, 2], [1]]


def test_text_shows_the_classes() -> None:
    text = str(consolidate(line(llm("x", ["q"]), llm("y", ["x"], greedy=False)), ROWS))
    assert text.splitlines()[0] == "consolidated over 5 rows: classes of instances in brackets"
    assert "x: llm m (q) -> x  [2 of 5]" in text
    assert "y: llm m (x) -> y  [5 of 5, sampled]" in text


# --- Properties: against brute force, and against a machine that runs the plan ---


@st.composite
def layered_plans(draw: st.DrawFn) -> Plan:
    """Model calls, each writing its own key and reading row keys and earlier calls that surely came before."""
    count = draw(st.integers(1, 6))
    operators: list[LLMOperator] = []
    for i in range(count):
        reads = draw(st.lists(st.sampled_from(["q", "r", *(o.name for o in operators)]), unique=True, max_size=3))
        operators.append(llm(f"o{i}", reads, greedy=draw(st.integers(0, 3)) > 0))
    return line(*operators)


small_rows = st.lists(st.fixed_dictionaries({"q": st.integers(0, 2), "r": st.booleans()}), min_size=1, max_size=8)


@given(layered_plans(), small_rows)
@settings(deadline=None)
def test_classes_are_equal_inputs_by_brute_force(plan: Plan, rows: list[dict[str, Any]]) -> None:
    def instance(name: str, row: int) -> Hashable:
        operator = plan[name]
        assert isinstance(operator, LLMOperator)
        if not operator.sampling.deterministic:
            return (name, row)
        keys = operator.prompt.state_keys()
        return (name, *(repr(rows[row][key]) if key in "qr" else instance(key, row) for key in keys))

    made = consolidate(plan, rows)
    for name in (operator.name for operator in plan.operators):
        groups = grouped(len(rows), functools.partial(instance, name))
        assert partition(made, name) == groups
        assert made.count(name).classes == len(groups)


@given(layered_plans(), small_rows, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_classes_are_equal_values_once_outputs_are_known(
    plan: Plan, rows: list[dict[str, Any]], random: Random
) -> None:
    """Whatever the order in which rows advance."""
    made = consolidate(plan, rows)
    states = [dict(row) for row in rows]
    inputs: dict[tuple[str, int], str] = {}
    at = [0] * len(rows)
    while unfinished := [row for row in range(len(rows)) if at[row] < len(plan.operators)]:
        row = random.choice(unfinished)
        operator = plan.operators[at[row]]
        at[row] += 1
        assert isinstance(operator, LLMOperator)
        seen = repr([states[row][key] for key in operator.prompt.state_keys()])
        inputs[operator.name, row] = seen
        noise = 0 if operator.sampling.deterministic else row
        states[row][operator.name] = digest(operator.name, seen, noise) % OUTPUTS
        assert made.resolve(operator.name, row) is not None
        made.bind(operator.name, row, {operator.name: states[row][operator.name]})
    for operator in plan.operators:
        assert isinstance(operator, LLMOperator)

        def signature(row: int, operator: LLMOperator = operator) -> Hashable:
            return inputs[operator.name, row] if operator.sampling.deterministic else row

        assert partition(made, operator.name) == grouped(len(rows), signature)
        assert made.count(operator.name).classes == len(partition(made, operator.name))


@given(layered_plans(), small_rows, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_rows_and_of_operators_does_not_matter(
    plan: Plan, rows: list[dict[str, Any]], random: Random
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    operators, edges = list(plan.operators), list(plan.edges)
    random.shuffle(operators)
    random.shuffle(edges)
    shuffled = Plan(**{**dict(plan), "operators": operators, "edges": edges})
    one, other = consolidate(plan, rows), consolidate(shuffled, [rows[i] for i in order])
    for operator in operators:
        moved = sorted(sorted(order[row] for row in rows) for rows in partition(other, operator.name))
        assert moved == sorted(partition(one, operator.name))


KEYS = ("q", "r", "k", "n")


@st.composite
def any_plans(draw: st.DrawFn, loops: bool = True) -> Plan:
    """Operators of all kinds that share keys, with branches, joins, sends and loops."""
    names = [f"o{i}" for i in range(draw(st.integers(2, 7)))]
    operators = [draw(_any_operator(name)) for name in names]
    pairs = list(itertools.pairwise(names))
    forward = st.tuples(st.sampled_from(names), st.sampled_from(names))
    if not loops:
        forward = forward.map(lambda pair: (min(pair), max(pair))).filter(lambda pair: pair[0] != pair[1])
    pairs = list(dict.fromkeys([*pairs, *draw(st.lists(forward, max_size=4))]))
    if draw(st.booleans()):  # not every plan is a chain with short cuts
        cut = draw(st.integers(1, len(names) - 1))
        pairs = [pair for pair in pairs if pair != (names[cut - 1], names[cut])] + [(names[0], names[cut])]
    edges = list(dict.fromkeys(draw(_any_edge(operators[names.index(a)], b)) for a, b in pairs))
    return Plan(
        name="any",
        operators=close_loops(operators, edges),
        edges=tuple(edges),
        entry=(names[0],),
        exits=tuple(Exit(source=name) for name in names),
        state=tuple(StateKey(name=key, reducer="append" if key == "n" else None) for key in KEYS),
    )


@functools.cache  # Hypothesis checks each new strategy, which takes longer than drawing from it
def _any_operator(name: str) -> st.SearchStrategy[Operator]:
    keys = st.lists(st.sampled_from(KEYS), unique=True, max_size=2).map(tuple)
    effects = st.sampled_from([Effect.PURE, Effect.PURE, Effect.READ, Effect.WRITE])
    given_name = st.just(name)
    return st.one_of(
        st.builds(llm, given_name, keys, st.sampled_from([True, True, False]), keys),
        st.builds(ToolOperator, name=given_name, tool=given_name, effect=effects, reads=keys, writes=keys),
        st.builds(OpaqueStep, name=given_name, effect=effects, reads=st.none() | keys, writes=st.none() | keys),
        st.builds(Route, name=given_name, reads=keys, deterministic=st.sampled_from([True, True, False])),
        st.builds(Join, name=given_name),
    )


@st.composite
def _any_edge(draw: st.DrawFn, source: Operator, target: str) -> Edge:
    if isinstance(source, Route):
        return guarded(source.name, draw(st.sampled_from("xy")), target)
    step = isinstance(source, OpaqueStep)
    may = step and draw(st.booleans())
    return Edge(source=source.name, target=target, may=may, fan_out=may and draw(st.booleans()))


def _endless(plan: Plan) -> bool:
    """Whether routes and joins alone form a cycle, which would never end a superstep."""
    between = {o.name for o in plan.operators if isinstance(o, Route | Join)}
    return bool(cyclic_regions(plan.graph().subgraph(between)))


chance_rows = st.lists(
    st.fixed_dictionaries({"q": st.integers(0, 1), "r": st.integers(0, 1), "k": st.integers(0, 1), "n": st.just(0)}),
    min_size=2,
    max_size=6,
)


@given(any_plans(), chance_rows, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_instances_of_a_class_see_the_same(plan: Plan, rows: list[dict[str, Any]], random: Random) -> None:
    """In each turn, for as many turns as both rows make."""
    if _endless(plan):
        return
    made = consolidate(plan, rows)
    runs = [run(plan, row, lambda: random.randrange(4)) for row in rows]
    for count in made.counts():
        for found in made.classes(count.operator):
            for a, b in itertools.combinations(found.rows, 2):
                seen = zip(runs[a].seen.get(count.operator, ()), runs[b].seen.get(count.operator, ()), strict=False)
                assert all(x == y for x, y in seen), (count.operator, a, b)


@given(any_plans(loops=False), chance_rows, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_instances_resolved_to_one_class_see_the_same(plan: Plan, rows: list[dict[str, Any]], random: Random) -> None:
    runs = [run(plan, row, lambda: random.randrange(4)) for row in rows]
    if any(len(seen) > 1 for one in runs for seen in one.seen.values()):
        return
    made = consolidate(plan, rows)
    order = [count.operator for count in made.counts()]
    for name in order:
        for row in random.sample(range(len(rows)), len(rows)):
            update = runs[row].updates.get(name, SKIPPED)
            made.resolve(name, row)
            made.bind(name, row, update, branch=runs[row].branches.get(name))
    for name in order:
        for found in made.classes(name):
            seen = [runs[row].seen[name] for row in found.rows if name in runs[row].seen]
            assert all(one == seen[0] for one in seen), name
