"""Columns: which rows of a batch are alike, as two flat integer arrays instead of an object per instance."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Column:
    """A partition of the rows into classes, numbered in the order of their first rows."""

    classes: Sequence[int]
    """Row -> class."""
    representatives: Sequence[int]
    """Class -> its first row."""

    @property
    def distinct(self) -> bool:
        """Whether each row is alone in its class."""
        return len(self.classes) == len(self.representatives)


def distinct_column(rows: int) -> Column:
    """Each row alone in its class; takes no memory."""
    return Column(range(rows), range(rows))


def constant_column(rows: int) -> Column:
    """All rows in one class."""
    return Column(array("I", [0]) * rows, range(min(rows, 1)))


def column_of(signatures: Iterable[Hashable], rows: int) -> Column:
    """Rows with equal signatures in one class; `signatures` yields one per row."""
    numbers: dict[Hashable, int] = {}
    classes = array("I")
    representatives = array("I")
    for row, signature in enumerate(signatures):
        number = numbers.setdefault(signature, len(representatives))
        classes.append(number)
        if number == len(representatives):
            representatives.append(row)
    return Column(classes, representatives) if len(representatives) < rows else distinct_column(rows)


def combine(columns: Sequence[Column], rows: int) -> Column:
    """Rows that are alike in all of the columns in one class."""
    different = list({id(column): column for column in columns if len(column.representatives) != 1}.values())
    if not different:
        return columns[0] if columns else constant_column(rows)
    if alone := next((column for column in different if column.distinct), None):
        return alone
    if len(different) == 1:
        return different[0]
    return column_of(zip(*(column.classes for column in different), strict=True), rows)
