"""W5, TPCH-Trident: three strands of two queries each, two hubs with HTTP tools, a tail and a report."""

from __future__ import annotations

from benchmarks.workloads import tpch
from benchmarks.workloads.shape import Step, Workload
from benchmarks.workloads.toolbox import Toolbox

HOUSE = """You work for a wholesaler's analysts, who read your notes on the way to a meeting. Answer from the figures
that you are given and from nothing else; round money to thousands; name the region, the segment and the year that you
speak of; write one short paragraph without headings, lists or greetings. Where figures are missing, say which.
"""


def workload(tools: Toolbox) -> Workload:
    """7 model calls and 9 tools a row, and the rule."""
    return Workload(
        "W5",
        (
            Step("volume", "B", HOUSE + "You judge volumes and discounts (Q1, Q6).", (), _queries(tools, "Q1", "Q6")),
            Step(
                "revenue",
                "A",
                HOUSE + "You judge revenue by order and nation.",
                (),
                _queries(tools, "Q3", "Q5"),
            ),
            Step("supply", "C", HOUSE + "You judge supply costs and profit (Q2, Q9).", (), _queries(tools, "Q2", "Q9")),
            Step(
                "hub1",
                "A",
                HOUSE + "You join three notes with the delays by ship mode (Q12) and say what they have in common.",
                ("volume", "revenue", "supply"),
                (tools.request("Q12"),),
            ),
            Step(
                "hub2",
                "B",
                HOUSE + "You add the share of promotions (Q14) and say what follows from it.",
                ("hub1",),
                (tools.request("Q14"),),
            ),
            Step("tail", "C", HOUSE + "You name the one risk that the notes show.", ("hub2",)),
            Step(
                "report",
                "A",
                HOUSE + "You name the best supplier and report.",
                ("tail",),
                _queries(tools, "Q15"),
            ),
        ),
        tpch.rows,
        tpch.rule,
    )


def _queries(tools: Toolbox, *names: str) -> tuple:  # type: ignore[type-arg]
    return tuple(map(tools.query, names))
