"""W1, IMDb-Diamond: a planner, three entries with two tools each, two hubs with a query each, a tail, a final step."""

from __future__ import annotations

from benchmarks.workloads import imdb
from benchmarks.workloads.shape import Step, Workload
from benchmarks.workloads.toolbox import Toolbox

HOUSE = """You answer questions for the readers of a film magazine, who want to know what to watch tonight. Use the
records that you are given and nothing that you remember; name every title with its year and every person with what
they did; give ratings with one decimal and never without the number of votes, where you have it. Write one short
paragraph without headings, lists or greetings. Where the records say nothing, say so.
"""


def workload(tools: Toolbox) -> Workload:
    """8 model calls and 9 tools a row: 7 queries and 2 requests."""
    return Workload(
        "W1",
        (
            Step("planner", "A", HOUSE + "You say what has to be looked up to answer the question."),
            Step(
                "movie",
                "B",
                HOUSE + "You pick the titles that the question is about.",
                ("planner",),
                (tools.request("titles_by_name"), tools.request("titles_since")),
            ),
            Step(
                "person",
                "A",
                HOUSE + "You say who matters to the question, and why.",
                ("planner",),
                (tools.query("people_by_name"), tools.query("titles_by_director")),
            ),
            Step(
                "akas",
                "C",
                HOUSE + "You say under which names the title was shown, and where.",
                ("planner",),
                (tools.query("akas_of_title"), tools.query("akas_of_region")),
            ),
            Step(
                "hub1",
                "A",
                HOUSE + "You join the notes on titles and people, and set them against the ratings of the genre.",
                ("movie", "person"),
                (tools.query("ratings_of_genre"),),
            ),
            Step(
                "hub2",
                "B",
                HOUSE + "You add the names abroad, and what else was made that year.",
                ("hub1", "akas"),
                (tools.query("genres_of_year"),),
            ),
            Step("tail", "C", HOUSE + "You say what to watch first, and what after it.", ("hub2",)),
            Step(
                "final",
                "A",
                HOUSE + "You answer the question.",
                ("hub2", "tail"),
                (tools.query("titles_of_year"),),
            ),
        ),
        imdb.rows,
    )
