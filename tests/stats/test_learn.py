"""The catalog is what the first rows showed: who waits for whom, how long things are, what prompts share."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from halo_core.stats import (
    Catalog,
    Distribution,
    Observed,
    ObservedCall,
    ObservedRow,
    StepProfile,
    ToolProfile,
    catalog_file,
    learn,
    read_catalog,
    row_fields,
    write_catalog,
)

ROLE = "system\x1e" + "You are the analyst of the desk. " * 8
"""264 characters of role and separator that all rows share."""


def call(operator: str, asked_s: float, answered_s: float, prompt: str = "", **given: object) -> ObservedCall:
    """A call of 100 prompt and 10 answer tokens."""
    facts = {"executed": True, "prompt_tokens": 100, "cached_tokens": 0, "answer_tokens": 10, **given}
    return ObservedCall(operator, "m", asked_s, answered_s, prompt=prompt, **facts)  # type: ignore[arg-type]


def observed(*rows: ObservedRow) -> Observed:
    """A batch of these rows alone."""
    executed: dict[str, int] = {}
    for row in rows:
        for one in row.calls:
            executed[one.operator] = executed.get(one.operator, 0) + one.executed
    planned = {name: sum(c.operator == name for row in rows for c in row.calls) for name in executed}
    return Observed(list(rows), 10.0, len(rows), len({row.content for row in rows}), executed, planned)


def known(found: Catalog | None) -> Catalog:
    """The catalog that there must be."""
    assert found is not None
    return found


def test_who_waits_for_whom_is_what_holds_in_every_row() -> None:
    # In the first row `slow` happens to be over before `last` is asked; in the second it is not.
    first = ObservedRow("a", 0.0, 9.0, [call("one", 0, 2), call("slow", 0, 3), call("last", 4, 8)])
    second = ObservedRow("b", 0.0, 9.0, [call("one", 1, 2), call("slow", 0, 6), call("last", 5, 8)])
    catalog = known(learn("app", observed(first, second)))
    last = catalog.step("last")
    assert last is not None and last.after == ("one",)
    assert last.lead_s.mean == pytest.approx((2 + 3) / 2)
    assert [step.name for step in catalog.steps][-1] == "last"
    assert catalog.tail_s.mean == pytest.approx(1.0)


def test_an_operators_calls_are_told_apart_by_turn_and_counted_by_row() -> None:
    twice = ObservedRow("a", 0.0, 9.0, [call("agent", 0, 1), call("agent", 2, 3)])
    once = ObservedRow("b", 0.0, 9.0, [call("agent", 0, 1)])
    catalog = known(learn("app", observed(twice, once)))
    assert [(step.name, step.turn, step.frequency) for step in catalog.steps] == [
        ("agent", 0, 1.0),
        ("agent#2", 1, 0.5),
    ]
    assert catalog.steps[1].after == ("agent",)


def test_prompts_share_by_app_by_field_and_by_row() -> None:
    rows = []
    for number, (context, question) in enumerate([("A", "q1"), ("A", "q2"), ("B", "q3")]):
        text = ROLE + "\x1euser\x1e" + context * 200
        prompt = f"{text}{question * 50}"
        rows.append(
            ObservedRow(
                str(number),
                0.0,
                9.0,
                [
                    call("ask", 0, 1, prompt),
                    call("again", 2, 3, f"{prompt}\x1eassistant\x1eanswer\x1euser\x1emore {number}"),
                ],
                fields={"context": context, "question": question},
            )
        )
    catalog = known(learn("app", observed(*rows)))
    ask, again = catalog.step("ask"), catalog.step("again")
    assert ask is not None and again is not None
    assert [part.scope for part in ask.parts] == ["app", "field:context", "row"]
    assert again.continues == "ask" and not ask.continues
    # What both begin with has one name in both, so that a radix tree joins them.
    assert [part.key for part in again.parts] == [part.key for part in ask.parts]
    assert sum(part.tokens for part in ask.parts) == pytest.approx(100, rel=0.25)


def test_lengths_are_corrected_by_what_a_cache_had() -> None:
    def rows(cached: int) -> list[ObservedRow]:
        prompts = [ROLE + f"\x1euser\x1equestion {number} " * 6 for number in range(3)]
        return [ObservedRow(p, 0, 9, [call("ask", 0, 1, p, cached_tokens=cached * (p != prompts[0]))]) for p in prompts]

    guessed = known(learn("app", observed(*rows(0)))).steps[0].shared_tokens
    assert guessed > 60
    assert known(learn("app", observed(*rows(48)))).steps[0].shared_tokens == guessed  # as many blocks as guessed
    assert known(learn("app", observed(*rows(64)))).steps[0].shared_tokens == 64 + 32  # one block of 64 was found
    assert known(learn("app", observed(*rows(4096)))).steps[0].shared_tokens == guessed  # a warm cache tells nothing


def test_equal_rows_share_calls_and_sampled_ones_do_not() -> None:
    shared = [ObservedRow("a", 0, 9, [call("ask", 0, 1, executed=n == 0)]) for n in range(4)]
    assert known(learn("app", observed(*shared))).steps[0].distinct == 1.0
    sampled = [ObservedRow("a", 0, 9, [call("ask", 0, 1)]) for _ in range(4)]
    assert known(learn("app", observed(*sampled))).steps[0].distinct == 4.0


def test_nothing_is_learnt_of_rows_without_calls() -> None:
    assert learn("app", observed(ObservedRow("a", 0.0, 1.0))) is None


def test_a_later_run_corrects_lengths_and_keeps_the_count() -> None:
    old = known(learn("app", observed(*(ObservedRow(str(i), 0, 9, [call("ask", 0, 1)]) for i in range(2)))))
    newer = known(learn("app", observed(ObservedRow("x", 0, 9, [call("ask", 0, 1, prompt_tokens=400)]))))
    both = old.updated(newer)
    assert both.rows == 3
    assert both.steps[0].prompt_tokens.mean == pytest.approx((100 + 100 + 400) / 3)


def test_a_catalog_is_kept_and_read_again(tmp_path: Path) -> None:
    catalog = known(learn("app", observed(ObservedRow("a", 0, 9, [call("ask", 0, 1)]))))
    write_catalog(tmp_path, catalog)
    assert read_catalog(tmp_path, "app") == catalog
    assert read_catalog(tmp_path, "another") is None


def test_a_corrupt_or_foreign_catalog_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = known(learn("app", observed(ObservedRow("a", 0, 9, [call("ask", 0, 1)]))))
    write_catalog(tmp_path, catalog)
    file = catalog_file(tmp_path, "app")
    file.write_text(file.read_text()[:100])
    with caplog.at_level(logging.WARNING):
        assert read_catalog(tmp_path, "app") is None
    assert str(file) in caplog.text and "learnt again" in caplog.text
    caplog.clear()
    catalog_file(tmp_path, "other").write_text(catalog.model_dump_json())
    with caplog.at_level(logging.WARNING):
        assert read_catalog(tmp_path, "other") is None
    assert "of another app" in caplog.text


def test_fields_are_paths_with_digests() -> None:
    fields = row_fields({"row": {"context": "c", "n": 1}, "input": "x"})
    assert set(fields) == {"row.context", "row.n", "input"}
    assert fields == row_fields({"input": "x", "row": {"n": 1, "context": "c"}})
    assert fields["row.context"] != row_fields({"row": {"context": "d"}})["row.context"]
    assert row_fields("just text") == {}


def test_a_distribution_draws_what_it_saw() -> None:
    seen = Distribution.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (seen.count, seen.mean, seen.median, seen.largest) == (5, 3.0, 3.0, 5.0)
    assert seen.at(0.0) == 1.0 and seen.at(0.25) == 2.0 and seen.at(1.0) == 5.0
    assert Distribution().merged(seen) == seen and seen.merged(Distribution()) == seen
    assert seen.merged(Distribution.of([9.0] * 5)).mean == 6.0


def test_of_a_lead_each_tool_has_what_passed_in_it() -> None:
    # In the first row two tools ran one after the other, in the second at the same time: 3 s of calls in 1.5 s.
    first = call("last", 4, 5, tools_s={"db": 1.0, "web": 2.0})
    second = call("last", 1.5, 3, tools_s={"db": 1.0, "web": 2.0})
    catalog = known(learn("app", observed(ObservedRow("a", 0.0, 9.0, [first]), ObservedRow("b", 0.0, 9.0, [second]))))
    step = catalog.step("last")
    assert step is not None and step.lead_s.mean == pytest.approx(2.75)
    assert step.tools_s == {"db": pytest.approx(0.75), "web": pytest.approx(1.5)}


def test_a_tool_that_takes_longer_lengthens_the_leads_it_is_part_of() -> None:
    step = StepProfile(operator="a", model="m", frequency=1, lead_s=Distribution.of([1.0, 3.0]), tools_s={"db": 0.5})
    other = StepProfile(operator="b", model="m", frequency=1, lead_s=Distribution.of([1.0]))
    catalog = Catalog(app="app", steps=(step, other), tools={"db": ToolProfile(mean_s=0.5), "web": ToolProfile()})
    assert catalog.repriced({}) is catalog
    longer = catalog.repriced({"db": 5.0})
    assert [s.lead_s.mean for s in longer.steps] == [pytest.approx(4.0), 1.0]
    assert longer.steps[0].lead_s.largest == pytest.approx(5.0)
    assert longer.tools["db"].mean_s == pytest.approx(2.5)
    shorter = catalog.repriced({"db": 0.1})
    assert shorter.steps[0].lead_s.quantiles[0] == pytest.approx(0.55)
