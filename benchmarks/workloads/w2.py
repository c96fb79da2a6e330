"""W2, IMDb-TripleChain: a planner, three chains behind it, a check of the question beside them, and a final step.

The paper's table does not say which steps have tools: as in its public programs, each chain's first, titles and crew by
query, people by request. The chains begin with what the planner wrote; the check needs the row only.
"""

from __future__ import annotations

from benchmarks.workloads import imdb
from benchmarks.workloads.shape import Step, Workload
from benchmarks.workloads.toolbox import Toolbox
from benchmarks.workloads.w1 import HOUSE


def workload(tools: Toolbox) -> Workload:
    """10 model calls and 3 tools a row: 2 queries and 1 request."""
    return Workload(
        "W2",
        (
            Step("planner", "A", HOUSE + "You say what has to be looked up to answer the question."),
            Step("check", "C", HOUSE + "You put the question in the fewest words that leave no doubt."),
            Step(
                "movie1",
                "C",
                HOUSE + "You survey the titles that the question may mean.",
                ("planner",),
                (tools.query("titles_by_name"),),
            ),
            Step("movie2", "C", HOUSE + "You pick the titles that matter most, and say why.", ("movie1",)),
            Step(
                "people1",
                "A",
                HOUSE + "You survey the people that the question may mean.",
                ("planner",),
                (tools.request("people_by_name"),),
            ),
            Step("people2", "A", HOUSE + "You pick the person who matters most, and say why.", ("people1",)),
            Step(
                "crew1",
                "B",
                HOUSE + "You survey who made the title.",
                ("planner",),
                (tools.query("crew_of_title"),),
            ),
            Step("crew2", "B", HOUSE + "You say what these people's work has in common.", ("crew1",)),
            Step("crew3", "B", HOUSE + "You say how they shaped the title.", ("crew2",)),
            Step(
                "final",
                "B",
                HOUSE + "You answer the question as the check puts it.",
                ("movie2", "people2", "crew3", "planner", "check"),
            ),
        ),
        imdb.rows,
    )
