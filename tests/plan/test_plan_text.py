"""Plans as text and as Mermaid: the files in `expected/` are what a user sees."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from halo_core.plan import (
    AdvisedCall,
    Barrier,
    Edge,
    Effect,
    Exit,
    Guard,
    Join,
    LLMOperator,
    Message,
    MessagesSlot,
    OpaqueStep,
    Plan,
    PromptTemplate,
    Route,
    Sampling,
    Source,
    StateKey,
    ToolOperator,
    ToolSchema,
    close_loops,
    to_text,
)

EXPECTED = Path(__file__).parent / "expected"
GREEDY = Sampling(temperature=0, max_tokens=64)


def edges(text: str) -> tuple[Edge, ...]:
    """`a b, c d` as the edges a -> b and c -> d."""
    return tuple(Edge(source=pair.split()[0], target=pair.split()[1]) for pair in text.split(","))


def guarded(source: str, label: str, target: str) -> Edge:
    return Edge(source=source, target=target, guard=Guard(branch=source, label=label))


def llm(name: str, *prompt: tuple[str, str] | Message | MessagesSlot, **fields: object) -> LLMOperator:
    return LLMOperator.model_validate(
        {"name": name, "model": "smol", "prompt": PromptTemplate.chat(prompt), "sampling": GREEDY, "writes": (name,)}
        | fields
    )


def chain() -> Plan:
    return Plan(
        name="chain",
        operators=(
            llm("outline", ("system", "You plan."), ("user", "Topic: {topic}")),
            llm(
                "draft", ("user", "{outline}\nWrite."), sampling=Sampling(temperature=0.7, seed=3, stop=("\n\n",), n=2)
            ),
        ),
        edges=edges("outline draft"),
        entry=("outline",),
        exits=("draft",),
        state=(StateKey(name="topic"), StateKey(name="outline", input=False), StateKey(name="draft", input=False)),
    )


def fan_out() -> Plan:
    """Branches of unequal length that meet twice, and two entries."""
    long_text = "You weigh arguments and answer in three short lines, each a full sentence, without any preamble."
    return Plan(
        name="fan out",
        operators=(
            llm("plan", ("user", "{topic}")),
            llm("pro", ("system", long_text), ("user", "For {topic}: {plan}"), writes=("notes",)),
            llm("con", ("user", "Against {topic}: {plan}"), writes=("notes",)),
            llm("deeper", ("user", "Deeper: {notes}"), writes=("notes",)),
            ToolOperator(name="lookup", tool="wiki", effect=Effect.READ, reads=("topic",), writes=("notes",)),
            Join(name="both"),
            llm("essay", ("user", "{notes}")),
            ToolOperator(name="post", tool="post", reads=("essay",), writes=(), arguments={"to": "blog"}),
        ),
        edges=edges("plan pro, plan con, con deeper, pro both, deeper both, both essay, lookup essay, essay post"),
        entry=("plan", "lookup"),
        exits=("post",),
        state=(
            StateKey(name="topic"),
            StateKey(name="plan", input=False),
            StateKey(name="notes", reducer="operator.add"),
            StateKey(name="essay", input=False),
        ),
        barriers=(Barrier(after=("pro", "con"), before=("deeper",)),),
    )


def loop() -> Plan:
    operators = (
        llm("draft", MessagesSlot(path="messages"), ("user", "Write {{now}}: {topic}")),
        OpaqueStep(name="judge", reads=("draft",), writes=("score",), effect=Effect.PURE),
        Route(name="good", reads=("score",), labels=("again", "done", "give up"), deterministic=True),
        llm("polish", ("user", "{draft}")),
    )
    links = (
        *edges("draft judge, judge good"),
        guarded("good", "again", "draft"),
        guarded("good", "done", "polish"),
    )
    return Plan(
        name="loop",
        operators=close_loops(operators, links),
        edges=links,
        entry=("draft",),
        exits=("polish", Exit(source="good", guard=Guard(branch="good", label="give up"))),
        state=(
            StateKey(name="topic"),
            StateKey(name="messages", reducer="langgraph.graph.message.add_messages"),
            *(StateKey(name=name, input=False) for name in ("draft", "score", "polish")),
        ),
    )


def agent() -> Plan:
    """What a lift of function nodes looks like: opaque steps, may edges, sends, framework facts."""
    search = ToolSchema(name="search", description="Search", parameters={"type": "object"})
    links = (
        Edge(source="model", target="tools", may=True, fan_out=True),
        *edges("tools model"),
        Edge(source="model", target="report", may=True),
        Edge(source="report", target="log", kind="control"),
        guarded("report", "retry", "model"),
    )
    operators = (
        OpaqueStep(
            name="model",
            advised_calls=(
                AdvisedCall(
                    model="smol",
                    prompt=PromptTemplate.chat([("system", "You are an agent."), MessagesSlot(path="messages")]),
                    tools=(search,),
                    found_in="closure 'llm'",
                ),
                AdvisedCall(model="big"),
            ),
            source=Source(framework="langgraph", node="agent:model", code="app.py:12", retries=3, timeout_s=2.5),
        ),
        ToolOperator(name="tools", tool="search", effect=Effect.READ, reads=("messages",), writes=("messages",)),
        OpaqueStep(name="report", source=Source(cached=True, deferred=True, hints={"priority": 1})),
        OpaqueStep(name="log", reads=(), writes=(), source=Source(error_handler="alarm")),
    )
    return Plan(
        name="agent",
        operators=close_loops(operators, links),
        edges=links,
        entry=("model",),
        exits=("log", Exit(source="model", may=True)),
        state=(StateKey(name="messages", reducer="add_messages", commutative=True),),
    )


def nested() -> Plan:
    """A fork inside a branch of a fork, with a sequence after the inner one."""
    names = ["a", "b", "b1", "b2", "b3", "b4", "c", "c1", "d"]
    return Plan(
        name="nested",
        operators=tuple(OpaqueStep(name=name, reads=(), writes=(), effect=Effect.PURE) for name in names),
        edges=edges("a b, a c, b b1, b b2, b1 b3, b2 b3, b3 b4, c c1, b4 d, c1 d"),
        entry=("a",),
        exits=("d",),
    )


PLANS = [chain, fan_out, loop, agent, nested]


@pytest.mark.parametrize("make", PLANS)
def test_text(make) -> None:
    assert str(make()) + "\n" == (EXPECTED / f"{make.__name__}.txt").read_text()


@pytest.mark.parametrize("make", PLANS)
def test_mermaid(make) -> None:
    assert make().to_mermaid() + "\n" == (EXPECTED / f"{make.__name__}.mmd").read_text()


def test_mermaid_escapes_what_its_grammar_reads() -> None:
    plan = Plan(
        name="escape",
        operators=(OpaqueStep(name='say "hi" | <b> #1\nend'),),
        entry=('say "hi" | <b> #1\nend',),
        exits=('say "hi" | <b> #1\nend',),
    )
    label = "say #quot;hi#quot; #124; #lt;b#gt; #35;1<br>end<br>opaque"
    assert f'n1["{label}"]' in plan.to_mermaid()


def test_text_of_a_workflow_longer_than_the_stack() -> None:
    names = [f"step{i}" for i in range(3000)]
    plan = Plan(
        name="long",
        operators=tuple(OpaqueStep(name=name, reads=(), writes=()) for name in names),
        edges=tuple(Edge(source=a, target=b) for a, b in pairwise(names)),
        entry=(names[0],),
        exits=(names[-1],),
    )
    lines = str(plan).splitlines()
    assert lines[2] == "├─ step0: opaque [write] () -> nothing"
    assert lines[-1] == "└─ END"
    assert len(lines) == 3003


def test_notes_stand_at_their_operators() -> None:
    text = to_text(chain(), {"draft": "3 ms", "outline": ""}.__getitem__)
    assert "draft: llm smol (outline) -> draft  [3 ms]" in text
    assert "outline: llm smol (topic) -> outline\n" in text
