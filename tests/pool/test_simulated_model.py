"""The stand-in model: any difference in a request shows in its answer, which has the shape that was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from halo_core.pool import simulated_model as model


def ask(text: str = "hello", **fields: Any) -> model.Answer:
    return model.answer("m", {"messages": [{"role": "user", "content": text}], **fields})


TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


@pytest.mark.parametrize(
    "change",
    [
        {"text": "hello "},
        {"temperature": 0.5},
        {"seed": 1},
        {"top_p": 0.5},
        {"tools": [TOOL]},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "system", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "hello", "name": "x"}]},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}]},
        {"stop": ["x"]},
        {"logit_bias": {"1": 2}},
    ],
)
def test_any_difference_shows(change: dict[str, Any]) -> None:
    assert ask(**change).digest != ask().digest


def test_another_model_answers_differently() -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert model.answer("a", body).digest != model.answer("b", body).digest


def test_what_does_not_reach_the_model_does_not_show() -> None:
    neutral: tuple[dict[str, Any], ...] = (
        {"stream": True}, {"user": "u"}, {"max_tokens": 5}, {"n": 2}, {"seed": None}, {"metadata": {}},
    )  # fmt: skip
    for field in neutral:
        assert ask(**field).digest == ask().digest
    assert ask(logit_bias={"1": 2, "3": 4}).digest == ask(logit_bias={"3": 4, "1": 2}).digest


@given(st.integers(1, 60))
def test_a_token_limit_only_cuts_the_answer(limit: int) -> None:
    whole, cut = ask().choices[0], ask(max_tokens=limit)
    choice = cut.choices[0]
    assert whole.text.startswith(choice.text)
    assert cut.tokens <= limit
    assert (choice.finish == "length") == (model.count_tokens(whole.text) >= limit)
    assert ask(max_completion_tokens=limit) == cut


def test_lengths_can_be_set() -> None:
    assert ask(max_tokens=100, ignore_eos=True).tokens == 100
    assert ask(min_tokens=70).tokens == 70
    body: dict[str, Any] = {"messages": []}
    assert model.answer("m", body, tokens=7).tokens == 7
    assert model.answer("m", body, tokens=7, room=3).choices[0].finish == "length"


def test_samples_of_one_request_differ() -> None:
    answered = ask(n=20, temperature=1)
    assert len({choice.text for choice in answered.choices}) == 20


def test_content_parts_are_read_as_text() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert model.render({"messages": [{"role": "user", "content": parts}]}) == ask().prompt


def test_a_lone_surrogate_does_no_harm() -> None:
    bad = "\ud83d"
    assert ask(bad).digest != ask("x").digest
    assert ask(stop=[bad]).digest
    assert model.tokenize(bad * 9)


@given(st.text(max_size=50), st.text(max_size=50))
def test_equal_beginnings_have_equal_tokens(head: str, tail: str) -> None:
    tokens = model.tokenize(head + tail)
    assert len(tokens) == model.count_tokens(head + tail)
    whole = len(head) // model.CHARS_PER_TOKEN
    assert tokens[:whole] == model.tokenize(head)[:whole]


def test_tools_are_called_when_demanded_or_asked_for() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    assert ask(tools=[TOOL]).choices[0].tool == ""
    assert ask(tools=[TOOL], tool_choice="required").choices[0].tool == "search"
    named = {"type": "function", "function": {"name": "other"}}
    assert ask(tools=[TOOL, other], tool_choice=named).choices[0].tool == "other"
    assert ask("please Use Tool now", tools=[TOOL]).choices[0].tool == "search"
    assert ask("please use tool now", tools=[TOOL], tool_choice="none").choices[0].tool == ""
    answered = [
        {"role": "user", "content": "use tool"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "use tool"},
    ]
    assert ask(messages=answered, tools=[TOOL]).choices[0].tool == ""  # so that an agent's loop ends


def test_a_tool_call_is_well_formed() -> None:
    answered = ask(tools=[TOOL], tool_choice="required")
    document = json.loads(model.completion_json(answered, "m", answered.usage(3, 1)))
    message = document["choices"][0]["message"]
    assert message["content"] is None
    assert set(json.loads(message["tool_calls"][0]["function"]["arguments"])) == {"query"}
    assert document["choices"][0]["finish_reason"] == "tool_calls"
    assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert document["usage"]["total_tokens"] == 3 + answered.tokens


class Leaf(BaseModel):
    name: str
    score: float
    next: Leaf | None = None


class Tree(BaseModel):
    leaves: list[Leaf]
    kind: str | int
    ok: bool


def test_structured_answers_are_valid_even_for_recursive_models() -> None:
    for text in ("a", "b", "c"):
        schema = {"name": "tree", "schema": Tree.model_json_schema()}
        answered = ask(text, response_format={"type": "json_schema", "json_schema": schema})
        assert Tree.model_validate_json(answered.choices[0].text).leaves
    assert json.loads(ask(response_format={"type": "json_object"}).choices[0].text)


@pytest.mark.parametrize(
    ("schema", "check"),
    [
        ({"enum": ["a", "b"]}, lambda v: v in ("a", "b")),
        ({"const": 3}, lambda v: v == 3),
        ({"type": "integer", "minimum": 5, "maximum": 6}, lambda v: v in (5, 6)),
        ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 6}, lambda v: v == 5),
        ({"type": "number"}, lambda v: isinstance(v, float)),
        ({"type": "string", "minLength": 20}, lambda v: len(v) >= 20),
        ({"type": "string", "maxLength": 3}, lambda v: len(v) == 3),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 3}, lambda v: len(v) == 3),
        ({"type": "array", "maxItems": 0}, lambda v: v == []),
        ({"type": ["string", "null"]}, lambda v: isinstance(v, str)),
        ({"type": "null"}, lambda v: v is None),
        ({"allOf": [{"properties": {"a": {"type": "null"}}}]}, lambda v: v == {"a": None}),
        (True, lambda v: isinstance(v, str)),
        ({"$ref": "#/nowhere"}, lambda v: True),
        ({"$ref": "#"}, lambda v: True),
    ],
)
def test_instances_are_valid(schema: Any, check: Any) -> None:
    assert check(model.instance(schema, "0123456789abcdef" * 2))


@given(st.integers(1, 200), st.integers(1, 9))
def test_chunk_bounds_cover_the_answer(steps: int, pieces: int) -> None:
    bounds = model.chunk_bounds(steps, pieces)
    assert bounds[0] == 0
    assert bounds[-1] == steps
    assert list(bounds) == sorted(set(bounds))
    assert len(bounds) - 1 <= pieces
