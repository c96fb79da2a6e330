"""The response parser and the event decoder: any cut of the bytes gives the same result, broken bytes give an error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_core.pool.http_wire import BadResponseError, EventDecoder, ResponseParser


def cut(data: bytes, points: list[int]) -> list[bytes]:
    bounds = [0, *sorted({point % (len(data) + 1) for point in points}), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]


def chunked(body: bytes, points: list[int]) -> bytes:
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in cut(body, points))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n"


def parse(pieces: list[bytes]) -> tuple[ResponseParser, bytes]:
    parser, body = ResponseParser(), b""
    for piece in pieces:
        parser.feed(piece)
        body += parser.take()
    return parser, body


points = st.lists(st.integers(0, 10_000), max_size=40)


@given(body=st.binary(max_size=300), points=points)
def test_a_sized_body_survives_any_cut(body: bytes, points: list[int]) -> None:
    data = b"HTTP/1.1 201 Created\r\nX-A: 1\r\nx-a:  2 \r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    parser, got = parse(cut(data, points))
    assert (parser.status, parser.complete, parser.keep_alive, got) == (201, True, True, body)
    assert parser.headers["x-a"] == "1, 2"


@given(body=st.binary(min_size=1, max_size=300), chunks=points, points=points)
def test_a_chunked_body_survives_any_cut(body: bytes, chunks: list[int], points: list[int]) -> None:
    parser, got = parse(cut(chunked(body, chunks), points))
    assert (parser.complete, parser.keep_alive, got) == (True, True, body)


@given(body=st.binary(min_size=1, max_size=100), chunks=points, data=st.data())
def test_a_truncated_body_is_never_whole(body: bytes, chunks: list[int], data: st.DataObject) -> None:
    whole = chunked(body, chunks)
    parser, _ = parse([whole[: data.draw(st.integers(0, len(whole) - 1))]])
    assert not parser.complete
    assert not parser.eof()


def test_a_body_without_length_ends_with_the_connection() -> None:
    parser, body = parse([b"HTTP/1.1 200 OK\r\n\r\nab", b"cd"])
    assert (body, parser.complete, parser.delimited) == (b"abcd", False, False)
    assert parser.eof()
    assert not parser.keep_alive


def test_an_interim_response_is_skipped() -> None:
    parser, _ = parse([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"])
    assert (parser.status, parser.complete) == (204, True)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close", False),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", True),
        (b"HTTP/1.1 200 OK", True),
    ],
)
def test_keep_alive_follows_version_and_header(head: bytes, kept: bool) -> None:
    parser, _ = parse([head + b"\r\nContent-Length: 0\r\n\r\n"])
    assert parser.complete
    assert parser.keep_alive is kept


def test_bytes_after_the_body_spoil_the_connection() -> None:
    parser, body = parse([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 408 "])
    assert (body, parser.complete, parser.keep_alive) == (b"ok", True, False)


def test_a_head_request_has_no_body() -> None:
    parser = ResponseParser(no_body=True)
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    assert parser.complete


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(BadResponseError, match="the server"):
        parse([data])


@given(
    events=st.lists(st.binary(min_size=1, max_size=30).filter(lambda b: not set(b) & set(b"\r\n") and b[:1] != b" ")),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1),
    points=points,
)
def test_events_survive_any_cut_and_any_line_end(events: list[bytes], ends: list[bytes], points: list[int]) -> None:
    body = b": comment\nevent: x\n"
    for index, event in enumerate(events):
        end = ends[index % len(ends)]
        body += b"id: 1" + end + b"data: " + event + end + end
    decoder = EventDecoder()
    got = [event for piece in cut(body, points) for event in decoder.feed(piece)] + decoder.flush()
    assert got == events


def test_data_lines_of_one_event_are_joined() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data:a\ndata: b\n\ndata: c\n") == [b"a\nb"]
    assert decoder.flush() == [b"c"]
