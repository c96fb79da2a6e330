"""Plans as JSON: any plan comes back equal; documents that are not one give a clear error."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_core.errors import PlanError
from halo_core.plan import (
    AdvisedCall,
    Barrier,
    Constant,
    Edge,
    Effect,
    EqualCalls,
    Exit,
    Fact,
    Guard,
    Join,
    LiteralText,
    LLMOperator,
    Message,
    MessagesSlot,
    OpaqueStep,
    Operator,
    Plan,
    PromptTemplate,
    Route,
    Sampling,
    SharedPrefix,
    Slot,
    Source,
    StateKey,
    ToolOperator,
    ToolSchema,
    Unread,
    close_loops,
    to_text,
)

KEYS = ("k0", "k1", "k2")
text = st.text(max_size=8)
names = st.text(min_size=1, max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
objects = st.dictionaries(text, json_values, max_size=2)
keys = st.none() | st.lists(st.sampled_from(KEYS), unique=True).map(tuple)
samplings = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    max_tokens=st.none() | st.integers(1, 9),
    seed=st.none() | st.integers(0, 9),
    stop=st.lists(text, max_size=2).map(tuple),
    extra=objects,
)
prompts = st.builds(
    PromptTemplate,
    parts=st.lists(
        st.builds(MessagesSlot, path=st.sampled_from(KEYS))
        | st.builds(
            Message,
            role=names,
            segments=st.lists(
                st.builds(LiteralText, text=text) | st.builds(Slot, path=st.sampled_from(("k0", "k1.0.title"))),
                max_size=3,
            ).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)
tools = st.lists(st.builds(ToolSchema, name=names, parameters=objects), max_size=1).map(tuple)
sources = st.builds(
    Source, framework=text, retries=st.none() | st.integers(1, 3), timeout_s=st.none() | st.floats(0, 9), hints=objects
)


common = {"name": st.just("renamed later"), "source": sources}
stateful = common | {"reads": keys, "writes": keys}
advised = st.builds(AdvisedCall, model=text, prompt=st.none() | prompts, sampling=samplings, tools=tools)
operators: st.SearchStrategy[Operator] = st.one_of(
    st.builds(
        LLMOperator,
        model=names,
        prompt=prompts,
        sampling=samplings,
        tools=tools,
        response_format=st.none() | objects,
        **common,
    ),
    st.builds(ToolOperator, tool=names, effect=st.sampled_from(Effect), arguments=objects, **stateful),
    st.builds(OpaqueStep, advised_calls=st.lists(advised, max_size=2).map(tuple), **stateful),
    st.builds(Route, deterministic=st.booleans(), **common),
    st.builds(Join, **common),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any shape of graph over a backbone that reaches every operator and leaves from the last."""
    chosen = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    made = [draw(operators).model_copy(update={"name": name}) for name in chosen]
    backbone = list(pairwise(chosen))
    more = draw(st.lists(st.tuples(st.sampled_from(chosen), st.sampled_from(chosen)), max_size=4, unique=True))
    edges = [draw(_edges(*pair)) for pair in dict.fromkeys([*backbone, *more])]
    return Plan(
        name=draw(text),
        operators=close_loops(made, edges),
        edges=tuple(edges),
        entry=(chosen[0],),
        exits=(Exit(source=chosen[-1], may=draw(st.booleans())),),
        barriers=(Barrier(after=(chosen[0],), before=(chosen[-1],), reason=draw(text)),) if len(chosen) > 1 else (),
        state=tuple(
            StateKey(name=key, reducer=draw(st.none() | text), commutative=draw(st.booleans())) for key in KEYS
        ),
        output=draw(keys),
        facts=draw(_facts(chosen)),
        fingerprint=draw(text),
    )


@st.composite
def _facts(draw: st.DrawFn, chosen: list[str]) -> tuple[Fact, ...]:
    one = st.sampled_from(chosen)
    several = st.lists(one, min_size=2, max_size=3).map(tuple)
    facts = st.one_of(
        st.builds(EqualCalls, operators=several, of=st.sampled_from(("tool", "model")), name=text),
        st.builds(Constant, operator=one, tool=text),
        st.builds(Unread, operator=one),
        st.builds(SharedPrefix, operators=several, model=text, tokens=st.integers(0, 9), digest=text, opening=text),
    )
    return tuple(draw(st.lists(facts, max_size=3)))


@st.composite
def _edges(draw: st.DrawFn, source: str, target: str) -> Edge:
    return Edge(
        source=source,
        target=target,
        kind=draw(st.sampled_from(("data", "control"))),
        may=draw(st.booleans()),
        fan_out=draw(st.booleans()),
    )


@given(plans(), st.sampled_from((None, 2)))
@settings(max_examples=60, deadline=None)
def test_round_trip(plan: Plan, indent: int | None) -> None:
    document = plan.to_json(indent)
    again = Plan.from_json(document)
    assert again == plan
    assert again.to_json(indent) == document
    assert str(again) == str(plan)
    assert again.to_mermaid() == plan.to_mermaid()


@given(plans())
@settings(max_examples=40, deadline=None)
def test_text_shows_each_operator_once(plan: Plan) -> None:
    seen: list[str] = []

    def note(name: str) -> str:
        seen.append(name)
        return ""

    to_text(plan, note)
    assert sorted(seen) == sorted(o.name for o in plan.operators if o.kind != "loop")


def simple() -> Plan:
    guard = Guard(branch="r", label="x")
    return Plan(
        name="p",
        operators=(Route(name="r"), OpaqueStep(name="a", source=Source(timeout_s=float("inf")))),
        edges=(Edge(source="r", target="a", guard=guard),),
        entry=("r",),
        exits=("a",),
    )


def test_document_says_its_version() -> None:
    document = json.loads(simple().to_json())
    assert document["halo_plan"] == 1
    assert document["plan"]["operators"][0]["kind"] == "route"


def test_infinity_survives() -> None:
    assert Plan.from_json(simple().to_json()) == simple()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "plan document is not JSON"),
        ("[]", 'plan document has no "halo_plan" version'),
        ('{"plan": {}}', 'plan document has no "halo_plan" version'),
        (
            '{"halo_plan": 99, "plan": {}}',
            "plan document has version 99, this Halo reads version 1; lift the plan again",
        ),
        ('{"halo_plan": 1}', "plan document is malformed"),
        ('{"halo_plan": 1, "plan": {"name": 3}}', "plan document is malformed: name: Input should be a valid string"),
    ],
)
def test_foreign_documents(document: str, message: str) -> None:
    with pytest.raises(PlanError) as error:
        Plan.from_json(document)
    assert message in str(error.value)


def test_a_malformed_operator_is_named() -> None:
    document = json.loads(simple().to_json())
    document["plan"]["operators"][1]["kind"] = "teapot"
    with pytest.raises(PlanError, match=r"operator 'a' \(operators\.1\).*teapot"):
        Plan.from_json(json.dumps(document))


def test_checks_run_on_what_is_read() -> None:
    document = json.loads(simple().to_json())
    document["plan"]["operators"][1]["name"] = "r"
    with pytest.raises(PlanError, match="operator 'r': the name is used twice"):
        Plan.from_json(json.dumps(document))
