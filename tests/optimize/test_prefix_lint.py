"""The prefix lint: what it finds behind a first difference, how it names that, and what it leaves alone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_core.optimize.prefix_lint import Finding, Kind, Sample, lint_plan, lint_samples
from halo_core.optimize.shared_text import ANCHOR, shared_text
from halo_core.plan import AdvisedCall, MessagesSlot, PromptTemplate
from tests.optimize.rules.cases import llm, plan, step


def prose(seed: int, chars: int) -> str:
    """Text that repeats nothing."""
    random = Random(seed)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(chars // 3)]
    return " ".join(words)[:chars]


RULES = prose(0, 8_000)
RULEBOOK = prose(1, 1_200)


# -- templates ----------------------------------------------------------------------------------------------------


def test_literal_text_behind_a_slot() -> None:
    made = plan("", llm("write", "You write.|{q}" + RULEBOOK))
    assert [str(finding) for finding in lint_plan(made)] == [
        "write: 300 shared tokens sit behind {q}: computed again for every value of it. "
        "Move the slot behind the shared part"
    ]


def test_literal_text_behind_a_transcript_in_an_opaque_step() -> None:
    prompt = PromptTemplate.chat([MessagesSlot(path="q"), ("system", RULEBOOK)])
    made = plan("", step("talk", reads=("q",), advised_calls=(AdvisedCall(model="m", prompt=prompt),)))
    assert [(f.operators, f.shared_tokens, f.kind, f.differs) for f in lint_plan(made)] == [
        (("talk",), 300, "slot", "*{q}")
    ]


@pytest.mark.parametrize("prompt", [RULEBOOK + "|{q}", "You write.|{q} Be brief."])
def test_templates_with_nothing_to_say(prompt: str) -> None:
    assert lint_plan(plan("", llm("write", prompt))) == []


# -- prompts that were sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "first", "second", "shown"),
    [
        ("timestamp", "Now: 2026-11-23T04:00.", "Now: 2026-11-23T04:05.", "2026-11-23T04:00"),
        ("timestamp", "At 09:15:02", "At 09:16:40", "09:15:02"),
        ("timestamp", "Today is 23 November 2026,", "Today is 24 November 2026,", "23 November 2026"),
        ("timestamp", "ts=1795406400.25;", "ts=1795406460.75;", "1795406400.25"),
        (
            "uuid",
            "id 3f2b8c1e-0d4a-4f6b-9a7e-5c1d2e3f4a5b",
            "id 3f2b8c1e-0d4a-4f6b-9a7e-5c1d2e3f4a5c",
            "3f2b8c1e-0d4a-4f6b-9a7e-5c1d2e3f4a5b",
        ),
        ("counter", "Row 7 of 90.", "Row 12 of 90.", "7"),
        ("name", "You help Ada Lovelace today.", "You help Grace Hopper today.", "Ada Lovelace"),
        ("text", "you like tea.", "you prefer juice.", "like tea"),
    ],
)
def test_what_differs_first(kind: Kind, first: str, second: str, shown: str) -> None:
    samples = [Sample("summariser", i, f"{head}\n{RULES}\nText {i}") for i, head in enumerate((first, second))]
    (finding,) = lint_samples(samples)
    assert (finding.kind, finding.differs, finding.operators) == (kind, shown, ("summariser",))
    assert abs(finding.shared_tokens - 2_000) <= 5


def test_a_finding_reads_as_a_sentence() -> None:
    found = Finding(("summariser",), 2_000, 4, "timestamp", "2026-11-23T04:00")
    assert str(found) == (
        "summariser: 2,000 shared tokens sit behind 4 tokens that differ: computed in every row; "
        "first differing text is a timestamp ('2026-11-23T04:00'). Move it behind the shared part"
    )


def test_long_content_stays_and_the_shared_part_moves() -> None:
    rows = [Sample("summariser", row, f"Text {row}: {prose(40 + row, 4_000)}\n{RULES}") for row in range(3)]
    (finding,) = lint_samples(rows)
    assert (finding.kind, finding.differs, finding.ahead_tokens) == ("counter", "0", 1_000)
    assert str(finding).endswith("Move the shared part before it")


def test_roles_before_what_the_operators_of_a_row_share() -> None:
    roles = {
        name: f"You are the {name} reader. {prose(seed, 375)}\n" for seed, name in enumerate(("law", "tax", "risk"), 5)
    }
    documents = [prose(100 + row, 8_000) for row in range(3)]
    samples = [Sample(name, row, role + text) for name, role in roles.items() for row, text in enumerate(documents)]
    (finding,) = lint_samples(samples)
    assert finding.operators == ("law", "tax", "risk")
    assert str(finding) == (
        "law, tax, risk: 2,000 shared tokens sit behind a 99-token role prompt: computed 3x per row; "
        f"first differing text ({roles['law'][12:52].strip()!r}). Move it behind the shared part"
    )


def test_operators_that_share_nothing_stand_alone() -> None:
    text, other = prose(20, 8_000), prose(21, 8_000)
    prompts = {"a": "You are a. " + text, "b": "You sum up. " + other, "c": "You doubt. " + text}
    assert [f.operators for f in lint_samples([Sample(name, 0, p) for name, p in prompts.items()])] == [("a", "c")]


def test_what_a_cache_can_serve_is_no_finding() -> None:
    rows = [Sample("summariser", row, f"{RULES}\n{prose(row, 2_000)}") for row in range(4)]
    assert lint_samples(rows) == []
    assert lint_samples(rows[:1]) == []
    assert lint_samples([Sample("summariser", row, RULES) for row in range(4)]) == []
    assert lint_samples([]) == []


def test_one_row_counts_once() -> None:
    turns = [Sample("agent", 0, f"turn {turn}\n{RULES}") for turn in range(3)]
    assert lint_samples(turns) == []


# -- shared text --------------------------------------------------------------------------------------------------


def test_only_what_stands_in_all_texts_is_shared() -> None:
    one, two = prose(30, 1_000), prose(31, 1_000)
    found = shared_text([f"x{one}--{two}", f"y{two}++{one}", f"z{one}"], 400)
    assert found is not None
    assert (found.difference, found.begins, found.chars) == (0, 1, 1_000)


@given(
    st.lists(st.text("ab", max_size=40), min_size=2, max_size=4),
    st.text("abc \n", min_size=3 * ANCHOR, max_size=200),
    st.lists(st.text("cd", max_size=40), min_size=4, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_shared_text_is_in_every_text(heads: list[str], middle: str, tails: list[str]) -> None:
    texts = [f"{head}|{middle}|{tail}" for head, tail in zip(heads, tails, strict=False)]
    found = shared_text(texts, ANCHOR)
    if found is None:
        assert len(set(heads)) == 1  # else the middle stands behind the first difference, and is found
        return
    first = texts[0]
    assert all(text.startswith(first[: found.difference]) for text in texts)
    assert found.difference <= found.begins
    assert all(first[found.begins : found.begins + ANCHOR] in text[found.difference :] for text in texts)
    assert found.chars <= len(first) - found.difference
