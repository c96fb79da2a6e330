"""Rows in and results out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from halo_core.cli.rows import check_output, read_rows, to_line, write_lines
from halo_core.errors import ConfigError
from halo_core.runtime import row_keys


def test_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xc3\xa9"}')
    rows = read_rows(path)
    assert rows.values == [{"a": 1}, {"a": "é"}]
    assert rows.lines == [1, 4]
    assert rows.place(1) == "row 1 (rows.jsonl, line 4)"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a": 1}\n{"a": \xff}\n', "rows.jsonl, line 2: not UTF-8 at byte 7"),
        (b'{"a":' * 100_000, "line 1: nested too deeply"),
        (b'{"a": 1} {"a": 2}', "line 1: not valid JSON (Extra data at column 10)"),
        (b"1\n2\n3\n4\n5\n", "line 3: a JSON number, not an object; and 2 more"),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1: Exceeds the limit"),
    ],
)
def test_every_kind_of_bad_line_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert complaint in str(caught.value)


def test_equal_rows_are_told_apart_by_their_occurrence() -> None:
    assert row_keys(["x", "y", "x", "x"]) == ["x:0", "y:0", "x:1", "x:2"]


def test_a_line_is_one_line_of_valid_utf8() -> None:
    for value in ({"text": "a\nb\u2028c é"}, {"text": "\ud800"}):
        line = to_line(value)
        assert "\n" not in line and json.loads(line.encode("utf-8")) == value
    assert to_line("é") == '"é"'


def test_output_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")
    path.chmod(0o640)

    def lines():  # type: ignore[no-untyped-def]
        yield "first"
        assert path.read_text() == "old\n"
        yield "second"

    write_lines(path, lines())
    assert path.read_text() == "first\nsecond\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_failed_write_leaves_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot write .*: No space left on device"):
        write_lines(path, ["new"])
    assert path.read_text() == "old\n" and os.listdir(tmp_path) == ["out.jsonl"]


def test_output_is_checked_before_the_work(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    check_output(tmp_path / "out.jsonl", rows)
    for path, complaint in (
        (tmp_path / "none" / "out.jsonl", "there is no folder"),
        (tmp_path, "it is a folder"),
        (tmp_path / "." / "rows.jsonl", "would be overwritten"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            check_output(path, rows)
