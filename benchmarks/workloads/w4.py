"""W4, Wiki-Bridge: a spine of three steps, two bridges of two that leave it at different steps, a sampler, the final.

The paper's table does not say which steps have tools: as in its public programs, the spine's first (a query) and each
bridge's first, categories by request and links by query (the programs' second bridge searches other languages, of which
the articles here have none).
"""

from __future__ import annotations

from benchmarks.workloads import wiki
from benchmarks.workloads.shape import Step, Workload
from benchmarks.workloads.toolbox import Toolbox
from benchmarks.workloads.w3 import HOUSE


def workload(tools: Toolbox) -> Workload:
    """9 model calls and 3 tools a row: 2 queries and 1 request."""
    return Workload(
        "W4",
        (
            Step("a0", "A", HOUSE + "You sum up the topic.", (), (tools.query("articles_by_text"),)),
            Step("a1", "A", HOUSE + "You turn the summary into an outline.", ("a0",)),
            Step("a2", "A", HOUSE + "You write the outline out.", ("a1",)),
            Step(
                "b1",
                "C",
                HOUSE + "You connect the outline with the topic's category.",
                ("a1",),
                (tools.request("category_pages"),),
            ),
            Step("b2", "C", HOUSE + "You name the subtopics that follow from it.", ("b1",)),
            Step(
                "c1",
                "B",
                HOUSE + "You connect the summary with the articles that link to the topic.",
                ("a0",),
                (tools.query("inbound_links"),),
            ),
            Step("c2", "B", HOUSE + "You say what these articles add to the topic.", ("c1",)),
            Step("s0", "B", HOUSE + "You draw short hints from three notes.", ("b2", "a2", "c2")),
            Step("final", "B", HOUSE + "You explain the topic with the hints.", ("a2", "s0")),
        ),
        wiki.rows,
    )
