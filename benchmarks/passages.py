"""The passages of the reading desk as the rows of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import typer

PASSAGES = Path(__file__).parent.parent / "examples" / "reading_desk" / "passages.jsonl"


def rows(count: int, repeated: bool) -> list[dict[str, str]]:
    """`count` rows; with `repeated`, each distinct row stands there twice, the second time in another order."""
    distinct = [json.loads(line) for line in PASSAGES.read_text("utf-8").splitlines()]
    need = (count + 1) // 2 if repeated else count
    if need > len(distinct):
        more = (
            "Answer for a reader of twelve.",
            "Answer for a lawyer.",
            "Answer for a translator.",
            "Answer at length.",
        )
        distinct += [{**row, "question": f"{row['question']} {hint}"} for hint in more for row in distinct]
    if need > len(distinct):
        raise typer.BadParameter(f"there are {len(distinct)} different rows; --rows {count} needs {need}")
    chosen = distinct[:need]
    if repeated:
        again = chosen[1::2] + chosen[0::2]
        chosen = (chosen + again)[:count]
    return chosen
