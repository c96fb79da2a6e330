"""What servers of every make say when they refuse, and which error and pause it becomes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from halo_core.errors import EngineDiedError, EngineError, PromptTooLongError
from halo_core.pool.endpoint_refusal import is_final, refusal, retry_after_s, said


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input tokens"),
        (400, "Input length (5000) exceeds model's maximum context length (4096)."),
        (400, "The decoder prompt (length 9000) is longer than the maximum model length of 8192."),
        (400, "The input (9000 tokens) is longer than the model's context length (8192 tokens)."),
        (400, "the request exceeds the available context size, try increasing it"),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. "),
        (400, "prompt is too long: 250000 tokens > 200000 maximum"),
    ],
)
def test_every_way_to_say_that_the_prompt_is_too_long(status: int, message: str) -> None:
    error = refusal("e", status, json.dumps({"error": {"message": message}}).encode(), max_model_len=77)
    assert isinstance(error, PromptTooLongError)
    assert message.strip() in str(error)
    assert "77 tokens" in str(error)


@pytest.mark.parametrize("message", ["temperature must be >= 0", "Unknown field: priority", "bad schema: minLength"])
def test_other_bad_requests_are_not_mistaken_for_it(message: str) -> None:
    assert type(refusal("e", 400, json.dumps({"error": {"message": message}}).encode())) is EngineError


def test_a_dead_vllm_core_is_a_dead_engine() -> None:
    body = b'{"error":{"message":"EngineCore encountered an issue. See stack trace","type":"InternalServerError"}}'
    assert isinstance(refusal("e", 500, body), EngineDiedError)
    assert type(refusal("e", 500, b"boom")) is EngineError


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"a\\n b"}}', "a b"),
        (b'{"error":"plain"}', "plain"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"message":"m"}', "m"),
        (b'{"detail":[{"loc":["body"]}]}', '{"detail":[{"loc":["body"]}]}'),
        (b"<html>\xff</html>", "<html>\ufffd</html>"),
        (b"", ""),
    ],
)
def test_the_message_is_found_wherever_it_is(body: bytes, message: str) -> None:
    assert said(body) == message


def test_a_page_of_text_is_shortened() -> None:
    assert len(said(b"x" * 10_000)) < 700


def test_an_empty_account_is_final() -> None:
    assert is_final(b'{"error":{"code":"insufficient_quota"}}')
    assert not is_final(b'{"error":{"code":"rate_limit_exceeded"}}')


def test_a_redirect_names_its_target() -> None:
    assert "https://new/v1" in str(refusal("e", 308, b"", location="https://new/v1"))


def test_the_pause_is_read_in_all_its_forms() -> None:
    assert retry_after_s({"retry-after": "2"}) == 2.0
    assert retry_after_s({"retry-after": "0.5"}) == 0.5
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_s({}) is None
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({"retry-after-ms": "x"}) is None
    later = retry_after_s({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)})
    assert later is not None and 90 < later <= 100
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
