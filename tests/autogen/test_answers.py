"""What Halo reads out of an engine's answer is what AutoGen's own OpenAI client reads, whole or in pieces."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from autogen_core.models import CreateResult, ModelFamily, RequestUsage, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from hypothesis import given
from hypothesis import strategies as st
from openai import ContentFilterFinishReasonError, LengthFinishReasonError
from pydantic import BaseModel

from halo_adapters.autogen.answers import Assembler, finish_reason, result_of, split_thought
from halo_core.errors import EngineError

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
Document = dict[str, Any]


class Verdict(BaseModel):
    label: str


def completion(
    content: str | None = None,
    calls: Sequence[tuple[str, Any]] | None = None,
    *,
    finish: str | None = "stop",
    usage: Any = USAGE,
    logprobs: Any = None,
    **message: Any,
) -> Document:
    """A `chat.completion` document."""
    told: Document = {"role": "assistant", "content": content, **message}
    if calls is not None:
        told["tool_calls"] = [
            {"id": f"given-{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": told, "finish_reason": finish, "logprobs": logprobs}],
    }
    if usage is not None:
        document["usage"] = usage
    return document


def chunk(finish: str | None = None, *, usage: Any = None, logprobs: Any = None, **delta: Any) -> Document:
    """A `chat.completion.chunk` document."""
    made: Document = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}],
    }
    if usage is not None:
        made["usage"] = usage
    return made


def call_piece(index: int, name: str | None = None, arguments: Any = None, **more: Any) -> Document:
    """A piece of a tool call in a chunk."""
    return {"index": index, "function": {"name": name, "arguments": arguments}, **more}


CLOSING = {**chunk(), "choices": [], "usage": USAGE}


def autogens(answer: bytes, kind: str, family: str) -> OpenAIChatCompletionClient:
    """AutoGen's client, before a server that always gives this answer."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer, headers={"content-type": kind}))
    return OpenAIChatCompletionClient(
        model="m",
        api_key="key",
        base_url="http://server/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),  # type: ignore[call-arg]
        model_info={
            "family": family,
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
        },
    )


ASKED = [UserMessage(content="Hello", source="user")]


async def their_result(document: Document, family: str, json_output: Any = None) -> CreateResult:
    client = autogens(json.dumps(document).encode(), "application/json", family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return await client.create(ASKED, json_output=json_output)


async def their_stream(chunks: Sequence[Document], family: str) -> list[Any]:
    lines = "".join(f"data: {json.dumps(piece)}\n\n" for piece in chunks) + "data: [DONE]\n\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = autogens(lines.encode(), "text/event-stream", family)
        return [item async for item in client.create_stream(ASKED)]


def our_stream(chunks: Sequence[Document], family: str, *, structured: bool = False) -> list[Any]:
    assembler = Assembler(family, structured=structured)
    return [*(text for piece in chunks for text in assembler.feed(piece)), assembler.result()]


def comparable(result: CreateResult) -> Mapping[str, Any]:
    """A result without the ids of its tool calls."""
    dumped = result.model_dump()
    if isinstance(dumped["content"], list):
        for call in dumped["content"]:
            del call["id"]
    return dumped


# -- whole answers ---------------------------------------------------------------------------------------------------

TOKEN = {
    "token": "Hi",
    "logprob": -0.5,
    "bytes": [72, 105],
    "top_logprobs": [
        {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
        {"token": "x", "logprob": -2, "bytes": None},
    ],
}
TASK = '{"input": "task"}'

DOCUMENTS: dict[str, Document] = {
    "text": completion("Hello"),
    "unicode": completion("Grüße \U0001f680 <|x|>"),
    "white space": completion("  Hello \n"),
    "nothing": completion(None),
    "empty": completion(""),
    "a tool call": completion(None, [("_pass_function", TASK)], finish="tool_calls"),
    "parallel tool calls": completion(
        None, [("_pass_function", TASK), ("_fail_function", TASK), ("_echo_function", "{}")], finish="tool_calls"
    ),
    "tool call that stopped": completion(None, [("_pass_function", TASK)], finish="stop"),
    "text beside a tool call": completion("I should make a tool call.", [("_pass_function", TASK)]),
    "no text beside a tool call": completion("", [("_pass_function", TASK)], finish="tool_calls"),
    "no tool calls": completion("I should make a tool call.", []),
    "arguments as a dict": completion(None, [("_pass_function", {"input": "ä", "n": [1, None]})], finish="tool_calls"),
    "arguments that are no JSON": completion(None, [("f", '{"input": ')], finish="tool_calls"),
    "odd names": completion(None, [("my tool!ä", "{}"), ("x" * 80, "{}"), ("a.b/c", "{}")], finish="tool_calls"),
    "reasoning_content": completion("This is the main content", reasoning_content="This is the reasoning content"),
    "reasoning_content and a call": completion(None, [("f", "{}")], finish="tool_calls", reasoning_content="why"),
    "no reasoning_content": completion("main", reasoning_content=None),
    "think": completion("<think> Hello</think> Another Hello Yet Another Hello"),
    "think over lines": completion("<think>\na\n\nb\n</think>\n\nanswer\n"),
    "think after text": completion("well <think>a</think> answer"),
    "two thinks": completion("<think>a</think> b <think>c</think> d"),
    "nested think": completion("<think>a <think> b</think> c</think> d"),
    "no think": completion("Hello Another Hello Yet Another Hello"),
    "think left open": completion("<think>for ever"),
    "think closed only": completion("all of it</think> answer"),
    "think closed first": completion("odd </think> then <think>a</think> answer"),
    "think of nothing": completion("<think></think>answer"),
    "think and reasoning_content": completion("<think>a</think>b", reasoning_content="r"),
    "logprobs": completion("Hi", logprobs={"content": [TOKEN, {**TOKEN, "top_logprobs": []}]}),
    "no logprobs": completion("Hi", logprobs={"content": None}),
    "logprobs of nothing": completion("Hi", logprobs={"content": []}),
    "no usage": completion("Hello", usage=None),
    "usage of a tool call": completion(None, [("f", "{}")], usage={**USAGE, "prompt_tokens": 77}),
    "cut off": completion("Hel", finish="length"),
    "filtered": completion("", finish="content_filter"),
    "no reason": completion("Hello", finish=None),
    "end_turn": completion("Hello", finish="end_turn"),
    "an odd reason": completion("Hello", finish="eos_token"),
    "tool_calls without one": completion("Hello", finish="tool_calls"),
    "loud reason": completion("Hello", finish="STOP"),
}


@pytest.mark.parametrize("family", [ModelFamily.UNKNOWN, ModelFamily.GPT_4O, ModelFamily.R1])
@pytest.mark.parametrize("name", DOCUMENTS)
async def test_results_are_those_of_autogen(name: str, family: str) -> None:
    document = DOCUMENTS[name]
    before = copy.deepcopy(document)
    got = result_of(document, family)
    assert document == before
    assert comparable(got) == comparable(await their_result(document, family))


def test_reasoning_by_its_new_name_is_a_thought() -> None:
    assert result_of(completion("a", reasoning="why"), ModelFamily.UNKNOWN).thought == "why"
    assert result_of(completion("a", reasoning="new", reasoning_content="old"), ModelFamily.R1).thought == "new"
    assert result_of(completion("a", reasoning=None, reasoning_content="old"), ModelFamily.R1).thought == "old"


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls", "function_calls", "end_turn"])
def test_known_finish_reasons_are_none_of_them_unknown(reason: str) -> None:
    assert finish_reason(reason) == finish_reason(reason.upper()) != "unknown"


@pytest.mark.parametrize("choices", [[], None, "absent"])
def test_an_answer_without_choices_is_the_engines_fault(choices: Any) -> None:
    document = {**completion("x"), "choices": choices}
    if choices == "absent":
        del document["choices"]
    with pytest.raises(EngineError, match="no choices"):
        result_of(document, ModelFamily.UNKNOWN)


@pytest.mark.parametrize(
    "usage", [{}, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 3}, {"completion_tokens": 4}]
)
def test_absent_token_counts_are_zero(usage: Any) -> None:
    got = result_of(completion("x", usage=usage), ModelFamily.UNKNOWN).usage
    assert got == RequestUsage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


@pytest.mark.parametrize("top", [None, "absent"])
def test_logprobs_without_alternatives_are_taken(top: Any) -> None:
    token = {**TOKEN, "top_logprobs": top}
    if top == "absent":
        del token["top_logprobs"]
    got = result_of(completion("Hi", logprobs={"content": [token]}), ModelFamily.UNKNOWN).logprobs
    assert got is not None
    assert (got[0].token, got[0].logprob, got[0].top_logprobs) == ("Hi", -0.5, [])


def test_a_tool_call_of_nothing_is_taken() -> None:
    got = result_of(completion(None, [(None, None)]), ModelFamily.UNKNOWN).content  # type: ignore[list-item]
    assert [(call.name, call.arguments) for call in got] == [("", "")]  # type: ignore[union-attr]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
@pytest.mark.parametrize("calls", [None, [("f", '{"a')]], ids=["text", "a tool call"])
async def test_structured_answers_that_were_cut_off_are_refused(calls: Any, finish: str) -> None:
    document = completion('{"label": "x', calls, finish=finish)
    with pytest.raises((LengthFinishReasonError, ContentFilterFinishReasonError)):
        await their_result(document, ModelFamily.UNKNOWN, Verdict)
    with pytest.raises(EngineError, match=finish if finish == "length" else "content filter"):
        result_of(document, ModelFamily.UNKNOWN, structured=True)
    pieces = [chunk(content='{"label": "x'), chunk(finish)]
    if calls:
        pieces.insert(1, chunk(tool_calls=[call_piece(0, "f", '{"a')]))
    with pytest.raises(EngineError, match=finish if finish == "length" else "content filter"):
        our_stream(pieces, ModelFamily.UNKNOWN, structured=True)
    assert result_of(document, ModelFamily.UNKNOWN).usage.prompt_tokens == 10


async def test_structured_answers_that_are_whole_are_taken() -> None:
    document = completion('{"label": "x"}')
    got = result_of(document, ModelFamily.UNKNOWN, structured=True)
    assert comparable(got) == comparable(await their_result(document, ModelFamily.UNKNOWN, Verdict))


def test_tool_calls_have_fresh_ids() -> None:
    document = completion(None, [("f", "{}"), ("f", "{}")], finish="tool_calls")
    pieces = [chunk(tool_calls=[call_piece(i, "f", "{}", id=f"given-{i}") for i in range(2)]), chunk("tool_calls")]
    ids = [
        call.id
        for result in [
            *(result_of(document, ModelFamily.UNKNOWN) for _ in range(2)),
            *(our_stream(pieces, ModelFamily.UNKNOWN)[-1] for _ in range(2)),
        ]
        for call in result.content
    ]
    assert len(set(ids)) == len(ids) == 8
    assert not any(name.startswith("given") for name in ids)


# -- thoughts --------------------------------------------------------------------------------------------------------

TAGS = st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "<", "k>"]), max_size=8).map("".join)


@given(TAGS)
def test_thoughts_are_split_as_by_autogen(text: str) -> None:
    from autogen_ext.models._utils.parse_r1_content import parse_r1_content

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert split_thought(text) == parse_r1_content(text)


@pytest.mark.parametrize("thought", ["hi, think", "<think", "knit", "</think>", "think>h", " k ", "\n"])
def test_thoughts_survive_whole(thought: str) -> None:
    whole = result_of(completion("answer", reasoning_content=thought), ModelFamily.R1)
    streamed = our_stream(
        [chunk(reasoning_content=thought), chunk(content="answer"), chunk("stop"), CLOSING], ModelFamily.R1
    )
    assert whole.thought == thought
    assert streamed[-1] == whole
    assert "".join(streamed[:-1]) == f"<think>{thought}</think>answer"


async def test_autogen_eats_a_part_of_such_a_thought() -> None:
    """The reason for not taking AutoGen's client as the oracle there."""
    pieces = [chunk(reasoning_content="hi, think"), chunk(content="answer"), chunk("stop")]
    assert (await their_stream(pieces, ModelFamily.R1))[-1].thought != "hi, think"


# -- streams ---------------------------------------------------------------------------------------------------------

STREAMS: dict[str, list[Document]] = {
    "text": [chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"), chunk("stop"), CLOSING],
    "no usage": [chunk(content="Hel"), chunk(content="lo"), chunk("stop")],
    "cut off": [chunk(content="Hel"), chunk("length"), CLOSING],
    "reason with the last text": [chunk(content="Hel"), chunk("stop", content="lo"), CLOSING],
    "a tool call": [
        chunk(role="assistant", tool_calls=[call_piece(0, "_pass_function", "", id="given")]),
        chunk(tool_calls=[call_piece(0, None, '{"inp')]),
        chunk(tool_calls=[call_piece(0, None, 'ut": "task"}')]),
        chunk("tool_calls"),
        CLOSING,
    ],
    "parallel tool calls": [
        chunk(tool_calls=[call_piece(0, "first", "{}", id="a"), call_piece(1, "second", "", id="b")]),
        chunk(tool_calls=[call_piece(1, None, "{}")]),
        chunk("tool_calls"),
        CLOSING,
    ],
    "a name in pieces": [
        chunk(tool_calls=[call_piece(0, "_pass", "", id="a")]),
        chunk(tool_calls=[call_piece(0, "_function", "{}")]),
        chunk("tool_calls"),
    ],
    "text beside a tool call": [
        chunk(content="I should "),
        chunk(content="make a call."),
        chunk(tool_calls=[call_piece(0, "f", "{}", id="a")]),
        chunk("tool_calls"),
        CLOSING,
    ],
    "think in the text": [chunk(content="<thi"), chunk(content="nk>a</think> b"), chunk("stop"), CLOSING],
    "no think": [chunk(content="Hello"), chunk("stop"), CLOSING],
    "reasoning_content": [
        chunk(reasoning_content="Why 1 "),
        chunk(reasoning_content="Why 2."),
        chunk(content="This is the main content", reasoning_content=None),
        chunk("stop"),
        CLOSING,
    ],
    "reasoning_content alone": [chunk(reasoning_content="Why 1."), chunk("length"), CLOSING],
    "empty reasoning_content": [
        chunk(reasoning_content="a"),
        chunk(reasoning_content=""),
        chunk(reasoning_content="b"),
        chunk(content="c"),
        chunk("stop"),
        CLOSING,
    ],
    "reasoning_content and a call": [
        chunk(reasoning_content="Why."),
        chunk(tool_calls=[call_piece(0, "f", "{}", id="a")]),
        chunk("tool_calls"),
        CLOSING,
    ],
    "empty chunks": [
        {**chunk(), "choices": []},
        chunk(content="a"),
        {**chunk(), "choices": []},
        chunk("stop"),
        CLOSING,
    ],
    "two choices": [
        {**chunk(), "choices": [*chunk(content="a")["choices"], *chunk(content="b")["choices"]]},
        chunk("stop"),
    ],
    "nothing": [chunk("stop"), CLOSING],
    "logprobs": [chunk("stop", logprobs={"content": [TOKEN]}), CLOSING],
}


@pytest.mark.parametrize("family", [ModelFamily.UNKNOWN, ModelFamily.R1])
@pytest.mark.parametrize("name", STREAMS)
async def test_streams_are_those_of_autogen(name: str, family: str) -> None:
    *expected_texts, expected = await their_stream(STREAMS[name], family)
    *texts, result = our_stream(STREAMS[name], family)
    assert texts == expected_texts
    assert comparable(result) == comparable(expected)


def test_reasoning_by_its_new_name_is_streamed_as_a_thought() -> None:
    got = our_stream([chunk(reasoning="Why."), chunk(content="a"), chunk("stop"), CLOSING], ModelFamily.UNKNOWN)
    assert got[:-1] == ["<think>Why.", "</think>", "a"]
    assert got[-1] == result_of(completion("a", reasoning="Why."), ModelFamily.UNKNOWN)


def test_the_end_of_the_reasoning_and_the_text_may_share_a_chunk() -> None:
    got = our_stream([chunk(reasoning="Wh"), chunk(reasoning="y.", content="a"), chunk("stop")], ModelFamily.UNKNOWN)
    assert got[:-1] == ["<think>Wh", "y.", "</think>", "a"]
    assert (got[-1].thought, got[-1].content) == ("Why.", "a")


def test_logprobs_of_all_chunks_are_kept() -> None:
    tokens = [{**TOKEN, "token": word} for word in "abc"]
    pieces = [chunk(content=token["token"], logprobs={"content": [token]}) for token in tokens]
    streamed = our_stream([*pieces, chunk("stop"), CLOSING], ModelFamily.UNKNOWN)[-1]
    assert streamed == result_of(completion("abc", logprobs={"content": tokens}), ModelFamily.UNKNOWN)


def test_the_usage_may_come_before_the_end() -> None:
    got = our_stream([chunk(content="a"), CLOSING, chunk("stop")], ModelFamily.UNKNOWN)[-1]
    assert (got.usage, got.finish_reason) == (RequestUsage(10, 5), "stop")


def test_running_usage_is_not_added_up() -> None:
    pieces = [chunk(content="a", usage={"prompt_tokens": 10, "completion_tokens": n}) for n in range(1, 6)]
    assert our_stream([*pieces, chunk("stop")], ModelFamily.UNKNOWN)[-1].usage == RequestUsage(10, 5)


@pytest.mark.parametrize("arguments", [{"input": "ä"}, None, ""])
def test_odd_arguments_are_streamed_as_they_are_read_whole(arguments: Any) -> None:
    whole = result_of(completion(None, [("f", arguments)], finish="tool_calls"), ModelFamily.UNKNOWN)
    pieces = [chunk(tool_calls=[call_piece(0, "f", arguments)]), chunk("tool_calls"), CLOSING]
    assert comparable(our_stream(pieces, ModelFamily.UNKNOWN)[-1]) == comparable(whole)


def test_tool_calls_without_an_index_are_one() -> None:
    piece = {"index": None, "function": {"name": "f", "arguments": "{}"}}
    got = our_stream([chunk(tool_calls=[piece]), chunk("tool_calls")], ModelFamily.UNKNOWN)[-1]
    assert [call.name for call in got.content] == ["f"]


# -- any cutting -----------------------------------------------------------------------------------------------------

PIECES = st.lists(st.text("ab <think>/{}", min_size=1, max_size=5), max_size=4)
CALL_PIECES = st.lists(st.lists(st.sampled_from(['{"a":', "1", "}", " "]), max_size=3), max_size=3)


@given(PIECES, PIECES, CALL_PIECES, st.sampled_from(["reasoning", "reasoning_content"]), st.booleans())
def test_streamed_answers_are_the_whole_ones_however_they_are_cut(
    texts: list[str], thoughts: list[str], calls: list[list[str]], field: str, r1: bool
) -> None:
    family = ModelFamily.R1 if r1 else ModelFamily.UNKNOWN
    finish = "tool_calls" if calls else "stop"
    document = completion(
        "".join(texts),
        [(f"tool{i}", "".join(parts)) for i, parts in enumerate(calls)],
        finish=finish,
        **{field: "".join(thoughts) or None},
    )
    pieces = [chunk(**{field: text}) for text in thoughts] + [chunk(content=text) for text in texts]
    for i, parts in enumerate(calls):
        pieces.append(chunk(tool_calls=[call_piece(i, f"tool{i}", "", id=f"given{i}")]))
        pieces += [chunk(tool_calls=[call_piece(i, None, part)]) for part in parts]
    *shown, result = our_stream([*pieces, chunk(finish), CLOSING], family)
    assert comparable(result) == comparable(result_of(document, family))
    thought = "".join(thoughts)
    assert "".join(shown) == (f"<think>{thought}</think>" if thought else "") + "".join(texts)
