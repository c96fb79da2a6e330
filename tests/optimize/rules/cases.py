"""Small plans, one for each thing that a rule does or must not do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from halo_core.optimize.rules import Rule, drop_dead, factor_prefixes, fold_constant_tools, merge_equal
from halo_core.plan import (
    AdvisedCall,
    AdvisedTool,
    Barrier,
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
    ToolSchema,
    close_loops,
)

GREEDY = Sampling(temperature=0)
RULEBOOK = "You are one of three careful readers of contracts. Quote every clause that you rely on, by its number. " * 6


def llm(name: str, prompt: str, **fields: Any) -> LLMOperator:
    template = PromptTemplate.chat([("system", prompt.split("|")[0]), ("user", prompt.split("|")[-1])])
    return LLMOperator(
        **({"name": name, "model": "m", "prompt": template, "sampling": GREEDY, "writes": (name,)} | fields)
    )


def tool(name: str, effect: Effect = Effect.READ, **fields: Any) -> ToolOperator:
    return ToolOperator(
        **({"name": name, "tool": "search", "effect": effect, "reads": ("q",), "writes": (name,)} | fields)
    )


def step(name: str, **fields: Any) -> OpaqueStep:
    return OpaqueStep(**({"name": name, "reads": (), "writes": (name,), "effect": Effect.PURE} | fields))


def edges(text: str) -> list[Edge]:
    """`a b, c d` as the edges a -> b and c -> d; `a ?label b` is guarded by a's answer."""
    made = []
    for pair in text.split(","):
        source, *label, target = pair.split()
        guard = Guard(branch=source, label=label[0][1:]) if label else None
        made.append(Edge(source=source, target=target, guard=guard))
    return made


def plan(links: str | list[Edge], *operators: Operator, entry: str = "", exits: Any = "", **fields: Any) -> Plan:
    """The operators with a state of one key `q` that rows bring and one for each operator."""
    made = edges(links) if isinstance(links, str) and links else list(links)
    names = [o.name for o in operators]
    state = (StateKey(name="q"), *(StateKey(name=name, input=False) for name in names))
    return Plan(
        **{
            "name": "p",
            "operators": close_loops(operators, made),
            "edges": made,
            "entry": entry.split() or names[:1],
            "exits": exits.split() or names[-1:] if isinstance(exits, str) else exits,
            "state": state,
        }
        | fields
    )


# -- merge_equal --------------------------------------------------------------------------------------------------


def two_branches() -> Plan:
    """Two lookups in branches of different length; a third with another argument stays alone."""
    return plan(
        "plan first, plan think, think second, plan other, first both, second both, other both, both end",
        llm("plan", "Plan.|{q}"),
        tool("first"),
        llm("think", "Think.|{plan}"),
        tool("second"),
        tool("other", arguments={"limit": 3}),
        Join(name="both"),
        llm("end", "End.|{first}{second}{other}"),
    )


def a_write_between() -> Plan:
    return plan("first change, change second", tool("first"), tool("change", Effect.WRITE), tool("second"))


def pure_across_a_write() -> Plan:
    pure = Effect.PURE
    return plan("first change, change second", tool("first", pure), tool("change", Effect.WRITE), tool("second", pure))


def another_value() -> Plan:
    """What both read is written between them."""
    return plan("first ask, ask second", tool("first"), llm("ask", "Ask.|{q}", writes=("q",)), tool("second"))


def in_a_loop() -> Plan:
    """Nobody knows how often, hence with what, they run."""
    return plan(
        "first second, second good, good ?again first, good ?done end",
        tool("first"),
        tool("second"),
        Route(name="good", reads=("second",), labels=("again", "done"), deterministic=True),
        llm("end", "End.|{second}"),
    )


def models() -> Plan:
    """Votes: the same prompt three times, one of them sampled."""
    ask = "Judge.|{q}"
    sampled = llm("c", ask, sampling=Sampling(temperature=1))
    return plan("a sum, b sum, c sum", llm("a", ask), llm("b", ask), sampled, step("sum"), entry="a b c")


# -- fold_constant_tools ------------------------------------------------------------------------------------------


def constants() -> Plan:
    """A lookup with constants only, a step around one, a step without calls, and a lookup of the row."""
    return plan(
        "rates today, today idle, idle find",
        tool("rates", reads=(), arguments={"base": "EUR"}),
        step("today", effect=Effect.READ, advised_tools=(AdvisedTool(name="calendar", effect=Effect.READ),)),
        step("idle"),
        tool("find"),
    )


def constant_reads_beside_writes() -> Plan:
    """A write of one row may fall between the looks of others; what is pure stays constant."""
    return plan(
        "rates table, table book",
        tool("rates", reads=()),
        tool("table", Effect.PURE, reads=(), tool="table"),
        tool("book", Effect.WRITE),
    )


# -- drop_dead ----------------------------------------------------------------------------------------------------


def hidden_keys() -> Plan:
    """Only `answer` is given back: `log` is read by nobody, and `note` by nobody but `log`."""
    return plan(
        "note log, log answer",
        llm("note", "Note.|{q}"),
        llm("log", "Log.|{note}"),
        llm("answer", "Answer.|{q}"),
        output=("answer",),
    )


def everything_is_output() -> Plan:
    return plan("note answer", llm("note", "Note.|{q}"), llm("answer", "Answer.|{q}"))


def what_others_depend_on() -> Plan:
    """A route reads `grade`; `send` has an effect; `pick` decides what follows; `wait` writes nothing."""
    links = [
        *edges("grade good, good ?yes send, good ?no pick, send wait"),
        Edge(source="pick", target="wait", may=True),
        *edges("wait answer"),
    ]
    return plan(
        links,
        llm("grade", "Grade.|{q}"),
        Route(name="good", reads=("grade",), labels=("yes", "no"), deterministic=True),
        tool("send", Effect.WRITE),
        step("pick"),
        step("wait", writes=()),
        llm("answer", "Answer.|{q}"),
        output=("answer",),
    )


def a_leaf() -> Plan:
    """A branch of its own that ends the row, behind a guarded edge and behind a plain one."""
    return plan(
        "ask sort, sort ?a left, sort ?b answer, ask aside",
        llm("ask", "Ask.|{q}"),
        Route(name="sort", reads=("ask",), labels=("a", "b"), deterministic=True),
        llm("left", "Left.|{ask}"),
        llm("answer", "Answer.|{ask}"),
        llm("aside", "Aside.|{ask}"),
        exits="left answer aside",
        output=("answer",),
    )


def uneven_branches() -> Plan:
    """Without `dead`, `one` would run beside `two`, which it has to see."""
    return plan(
        "start dead, dead one, start two, one both, two both",
        step("start", reads=("q",)),
        llm("dead", "Dead.|{q}"),
        llm("one", "One.|{two}"),
        llm("two", "Two.|{start}"),
        Join(name="both"),
        exits="both",
        output=("one", "two"),
        barriers=(Barrier(after=("dead", "two"), before=("one",)),),
    )


def runs_twice() -> Plan:
    """Without `dead`, what two ways lead to would run another number of times."""
    return plan(
        "start dead, dead meet, start meet, meet after",
        step("start", reads=("q",)),
        llm("dead", "Dead.|{q}"),
        step("meet", reads=("start",)),
        llm("after", "After.|{meet}"),
        output=("after",),
    )


def before_a_join() -> Plan:
    """What a join waits for stays; so do a loop's members."""
    links = [*edges("dead both, two both, both turn, turn judge"), *edges("judge ?again turn, judge ?done end")]
    return plan(
        links,
        llm("dead", "Dead.|{q}"),
        llm("two", "Two.|{q}"),
        Join(name="both"),
        llm("turn", "Turn.|{q}"),
        Route(name="judge", reads=("two",), labels=("again", "done"), deterministic=True),
        llm("end", "End.|{two}"),
        entry="dead two",
        exits=(Exit(source="end"),),
        output=("end",),
    )


# -- factor_prefixes ----------------------------------------------------------------------------------------------


def readers() -> Plan:
    """A rulebook for all, a role for each; one reader has tools, which come first, and one another model."""
    search = ToolSchema(name="search")
    hidden = AdvisedCall(
        model="m", prompt=PromptTemplate.chat([("system", RULEBOOK + "You weigh risks."), ("user", "{q}")])
    )
    return plan(
        "law money, money risk, risk armed, armed big, big short",
        llm("law", RULEBOOK + f"You read for law. {'Cite statutes. ' * 20}|{{q}}"),
        llm("money", RULEBOOK + "You read for money.|{q}"),
        step("risk", reads=("q",), advised_calls=(hidden,)),
        llm("armed", RULEBOOK + "You look things up.|{q}", tools=(search,)),
        llm("big", RULEBOOK + "You read for law.|{q}", model="big"),
        llm("short", "Sum it up.|{q}"),
    )


CASES: dict[str, tuple[Rule, tuple[Callable[[], Plan], ...]]] = {
    "merge_equal": (
        merge_equal,
        (two_branches, a_write_between, pure_across_a_write, another_value, in_a_loop, models),
    ),
    "merge_equal_within_row": (partial(merge_equal, merge_within_row=True), (models, in_a_loop)),
    "fold_constant_tools": (fold_constant_tools, (constants, constant_reads_beside_writes)),
    "drop_dead": (drop_dead, (hidden_keys, everything_is_output, what_others_depend_on)),
    "drop_dead_remove": (
        partial(drop_dead, remove=True),
        (hidden_keys, a_leaf, uneven_branches, runs_twice, before_a_join),
    ),
    "factor_prefixes": (factor_prefixes, (readers,)),
}
