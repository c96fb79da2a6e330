"""W6, TPCH-Fanout: five analysts, three seniors who read all of them, and a merger; two ask the same four queries."""

from __future__ import annotations

from benchmarks.workloads import tpch
from benchmarks.workloads.shape import Step, Workload
from benchmarks.workloads.toolbox import Toolbox
from benchmarks.workloads.w5 import HOUSE

FIRST = ("market", "web", "volume", "history", "outlook")
SECOND = ("auditor", "costs", "sceptic")
FOUR = ("Q3", "Q5", "Q2", "Q9")


def workload(tools: Toolbox) -> Workload:
    """9 model calls and 12 tools a row, and the rule."""
    four = tuple(map(tools.query, FOUR))
    web = (tools.request("Q12"), tools.request("Q14"))
    return Workload(
        "W6",
        (
            Step("market", "C", HOUSE + "You judge revenue, supply and profit (Q3, Q5, Q2, Q9).", (), four),
            Step("web", "B", HOUSE + "You judge delays and promotions (Q12, Q14).", (), web),
            Step("volume", "A", HOUSE + "You judge volumes (Q1).", (), (tools.query("Q1"),)),
            Step("history", "C", HOUSE + "You say what such a segment buys in such a region."),
            Step("outlook", "C", HOUSE + "You say what to look out for in the year after."),
            Step("auditor", "C", HOUSE + "You check five notes against the figures (Q3, Q5, Q2, Q9).", FIRST, four),
            Step("costs", "A", HOUSE + "You check what discounts cost (Q6).", FIRST, (tools.query("Q6"),)),
            Step("sceptic", "C", HOUSE + "You name the weakest claim of five notes.", FIRST),
            Step("merger", "C", HOUSE + "You write the report of all notes.", SECOND),
        ),
        tpch.rows,
        tpch.rule,
    )
