"""W3, Wiki-LongChain: four roots, a timeline in two steps, a drill-down and an inbound view behind them, a final step.

Edges and tools that the paper's table leaves open are those of its public programs: the timeline begins with what the
expander wrote, the drill-down with the category's notes; the final step joins the rewriter, the expander, the outbound
view and the ends of the three branches. Queries: two of the expander, one of the first timeline, one of the final step;
requests: category and outbound view.
"""

from __future__ import annotations

from benchmarks.workloads import wiki
from benchmarks.workloads.shape import Step, Workload
from benchmarks.workloads.toolbox import Toolbox

HOUSE = """You write for the editors of an encyclopedia, who decide from your notes what a reader should be told about a
topic. Use the excerpts that you are given and nothing that you remember; call articles by their full titles; give the
year with every event, and put events in order; say of a category what its articles have in common. Write one short
paragraph without headings, lists or greetings. Where the excerpts say nothing, say so.
"""


def workload(tools: Toolbox) -> Workload:
    """9 model calls and 6 tools a row: 4 queries and 2 requests."""
    return Workload(
        "W3",
        (
            Step("rewriter", "A", HOUSE + "You turn the topic into one narrow question."),
            Step(
                "expander",
                "A",
                HOUSE + "You sum up the topic and name the articles that are central to it.",
                (),
                (tools.query("articles_by_text"), tools.query("articles_by_title")),
            ),
            Step(
                "category",
                "C",
                HOUSE + "You say where the topic stands among the categories.",
                (),
                (tools.request("category_pages"),),
            ),
            Step(
                "outbound",
                "B",
                HOUSE + "You say what the topic's article links to.",
                (),
                (tools.request("outbound_links"),),
            ),
            Step(
                "timeline1",
                "A",
                HOUSE + "You put the topic's events in order.",
                ("expander",),
                (tools.query("timeline"),),
            ),
            Step("timeline2", "A", HOUSE + "You mend the timeline and name its milestones.", ("timeline1",)),
            Step("drilldown", "C", HOUSE + "You name the topics within the category to mention.", ("category",)),
            Step(
                "inbound",
                "B",
                HOUSE + "You say who is likely to link to the topic, and why.",
                ("expander", "outbound"),
            ),
            Step(
                "final",
                "B",
                HOUSE + "You answer the narrow question.",
                ("expander", "timeline2", "drilldown", "outbound", "inbound", "rewriter"),
                (tools.query("snippets"),),
            ),
        ),
        wiki.rows,
    )
