"""A plan's tree, or any lines, with numbers in columns to its left; and plain tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from halo_core.plan import Plan, to_text

_MARK = re.compile(r"  \[\0(.*)\0\]$")

Cells = Sequence[int | str]


@dataclass(slots=True)
class Tree:
    """A plan's text, or any lines, with cells for some of its operators."""

    lines: list[str]
    cells: Mapping[str, Cells] = field(default_factory=dict)
    """Operator -> its row of the columns."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Operator -> what to add at the end of its line."""


def plan_tree(plan: Plan, cells: Mapping[str, Cells], notes: Mapping[str, str] | None = None) -> Tree:
    """The plan's text with a place for cells on each operator's line."""
    return Tree(to_text(plan, lambda name: f"\0{name}\0").split("\n"), cells, notes or {})


def render(headers: Sequence[str], trees: Iterable[Tree]) -> list[str]:
    """The trees one below the other, all in the same columns; the headers stand on the first line."""
    trees = list(trees)
    rows = [[_cell(value) for value in cells] for tree in trees for cells in tree.cells.values()]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines: list[str] = []
    for tree in trees:
        for line in tree.lines:
            marked = _MARK.search(line)
            name = marked.group(1) if marked else ""
            cells = tree.cells.get(name, ()) if marked else ()
            left = headers if not lines else [_cell(value) for value in cells] or [""] * len(headers)
            text = line[: marked.start()] if marked else line
            note = f"  [{tree.notes[name]}]" if tree.notes.get(name) else ""
            columns = "  ".join(value.rjust(width) for value, width in zip(left, widths, strict=True))
            lines.append(f"{columns} │ {text}{note}".rstrip())
    return lines


def table(headers: Sequence[str], rows: Sequence[Cells]) -> list[str]:
    """Lines of aligned columns: texts to the left, numbers to the right."""
    shown = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *shown, strict=True)]
    right = [all(isinstance(row[i], int) for row in rows) for i in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        aligned = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return [line(headers), *(line(row) for row in shown)]


def _cell(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if value else "-"
