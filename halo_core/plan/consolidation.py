"""The consolidated plan: rows x operators as value-numbered classes, where instances with equal inputs are one.

Numbering is symbolic: an operator's classes follow from the classes of what reaches it, so the cost is a few integers
per operator and row. What only running tells (outputs, decisions) is bound as it becomes known and merges more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from halo_core.errors import PlanError
from halo_core.plan.column import Column, column_of, combine, distinct_column
from halo_core.plan.dataflow import ALL, Dataflow, Inputs
from halo_core.plan.plan import Plan
from halo_core.plan.text import to_text
from halo_core.plan.value import Absent, ValueNumbers, row_number, state_value

SKIPPED: Literal[Absent.SKIPPED] = Absent.SKIPPED
"""Bound in place of an update for an operator that did not run for a row."""


@dataclass(slots=True, frozen=True)
class InstanceCount:
    """How many instances of one operator there are, before and after merging."""

    operator: str
    instances: int
    """One per row; an operator in a loop or under a fan-out counts once per row however often it runs."""
    classes: int
    """Instances left after merging."""
    unmerged: str
    """Why equal instances are not merged; empty where they are."""

    @property
    def merged(self) -> int:
        """Instances that another one stands for."""
        return self.instances - self.classes


@dataclass(slots=True, frozen=True)
class InstanceClass:
    """Instances of one operator that are one."""

    operator: str
    number: int
    """Identifies the class among those of the operator; numbers have gaps once classes were merged."""
    rows: Sequence[int]
    """The rows that it serves, ascending."""

    @property
    def representative(self) -> int:
        """The first of its rows."""
        return self.rows[0]


class _Numbering:
    """One operator's classes and what is known of each: merged into which, outputs, whether its inputs are known."""

    __slots__ = ("bound", "column", "count", "inputs_known", "known", "parent", "signatures", "skipped")

    def __init__(self, column: Column) -> None:
        self.column = column
        self.count = len(column.representatives)
        self.parent: array[int] | None = None
        """Class -> the class it was merged into (itself, where it was not); None until the first merge."""
        self.known: dict[str, array[int]] = {}
        """State key or ALL -> class -> number of the value it wrote, -1 while unknown."""
        self.bound = bytearray()
        """Class -> whether its outputs are known; empty until the first is."""
        self.inputs_known = bytearray()
        """Class -> whether its inputs are known; empty until the first are."""
        self.skipped = bytearray()
        """Row -> whether the operator did not run; empty until one did not. Rows of a class can differ in that."""
        self.signatures: dict[tuple[int, ...], int] = {}

    def find(self, row: int) -> int:
        number = self.column.classes[row]
        if self.parent is None:
            return number
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    def merge(self, number: int, into: int) -> None:
        if self.parent is None:
            self.parent = array("I", range(len(self.column.representatives)))
        self.parent[number] = into
        self.count -= 1

    def value(self, row: int, key: str, skipped: int) -> int:
        """The number of what the row's instance wrote, `skipped` where it did not run, -1 while unknown."""
        if self.skipped and self.skipped[row]:
            return skipped
        values = self.known.get(key)
        return -1 if values is None else values[self.find(row)]

    def skip(self, row: int) -> None:
        if not self.skipped:
            self.skipped = bytearray(len(self.column.classes))
        self.skipped[row] = 1

    def is_bound(self, number: int) -> bool:
        return bool(self.bound) and self.bound[number] == 1

    def bind(self, number: int, outputs: Iterable[tuple[str, int]]) -> None:
        size = len(self.column.representatives)
        if not self.bound:
            self.bound = bytearray(size)
        self.bound[number] = 1
        for key, value in outputs:
            if key not in self.known:
                self.known[key] = array("q", [-1]) * size
            self.known[key][number] = value


class ConsolidatedPlan:
    """A plan over the rows of a batch. Made by `consolidate`; not safe for use by several threads at once."""

    def __init__(self, plan: Plan, rows: int, flow: Dataflow, columns: Mapping[str, Column], given: _Given) -> None:
        self.plan = plan
        self.rows = rows
        self._flow = flow
        self._given = given
        self._numberings = {name: _Numbering(columns[name]) for name in flow.order}
        self._values = ValueNumbers()
        self._skipped = self._values.number(SKIPPED)
        self._asked: dict[str, list[str]] = {name: [] for name in flow.order}
        for inputs in flow.inputs.values():
            for writer, key in inputs.written:
                if key not in self._asked[writer]:
                    self._asked[writer].append(key)

    def class_of(self, operator: str, row: int) -> int:
        """The class that the operator's instance for `row` (0-based) belongs to as far as is known now."""
        return self._numbering(operator, row).find(row)

    def resolve(self, operator: str, row: int) -> int | None:
        """The final class of the instance, or None while an input of it is unknown.

        Instances whose inputs turn out equal are merged here; the class of those asked for first stays. Operators that
        are never merged are final from the start, and so are those that depend on nothing but the rows.
        """
        numbering = self._numbering(operator, row)
        number = numbering.find(row)
        inputs = self._flow.inputs[operator]
        if operator in self._flow.unmerged or not inputs.written:
            return number
        if not numbering.inputs_known:
            numbering.inputs_known = bytearray(len(numbering.column.representatives))
        if numbering.inputs_known[number]:
            return number
        signature = self._given.signature(inputs, row)
        for writer, key in inputs.written:
            value = self._numberings[writer].value(row, key, self._skipped)
            if value < 0:
                return None
            signature.append(value)
        first = numbering.signatures.setdefault(tuple(signature), number)
        numbering.inputs_known[number] = 1
        if first == number or numbering.is_bound(number):
            return number  # one that ran already keeps its own outputs
        numbering.merge(number, first)
        return first

    def bind(
        self,
        operator: str,
        row: int,
        update: Mapping[str, Any] | Literal[Absent.SKIPPED],
        *,
        branch: str | None = None,
    ) -> int:
        """Tell what the instance wrote (state key -> value, or SKIPPED) and which branch it chose; returns its class.

        An update holds for the whole class: the first one stays. SKIPPED holds for the row alone. Bind the members of a
        loop when the loop is over, with their last update. Raises PlanError for a key that the operator does not write.
        """
        numbering = self._numbering(operator, row)
        number = self.resolve(operator, row)
        if number is None:
            number = numbering.find(row)
        if update is SKIPPED:
            numbering.skip(row)
            return number
        writes = self.plan[operator].writes
        for key in update:
            if writes is not None and key not in writes:
                raise PlanError(f"operator {operator!r} was bound to write {key!r}; its writes are {list(writes)}")
        if not numbering.is_bound(number):
            numbering.bind(number, [(key, self._value(update, key, branch)) for key in self._asked[operator]])
        return number

    def _value(self, update: Mapping[str, Any], key: str, branch: str | None) -> int:
        if key == ALL:
            return self._values.state(update, decision=("branch", branch))
        return self._values.number(update.get(key, Absent.MISSING))

    def count(self, operator: str) -> InstanceCount:
        """Instances and classes of one operator as far as is known now."""
        numbering = self._numbering(operator)
        return InstanceCount(operator, self.rows, numbering.count, self._flow.unmerged.get(operator, ""))

    def counts(self) -> tuple[InstanceCount, ...]:
        """Instances and classes of all operators, sources first."""
        return tuple(self.count(name) for name in self._flow.order)

    def classes(self, operator: str) -> Iterator[InstanceClass]:
        """The operator's classes in the order of their first rows, as far as is known now."""
        numbering = self._numbering(operator)
        if numbering.column.distinct and numbering.parent is None:
            yield from (InstanceClass(operator, row, range(row, row + 1)) for row in range(self.rows))
            return
        sizes = array("I", [0]) * len(numbering.column.representatives)
        order = array("I")
        for row in range(self.rows):
            number = numbering.find(row)
            if not sizes[number]:
                order.append(number)
            sizes[number] += 1
        ends = array("I", [0]) * len(sizes)
        total = 0
        for number in order:
            ends[number] = total
            total += sizes[number]
        by_class = array("I", [0]) * self.rows
        for row in range(self.rows):
            number = numbering.find(row)
            by_class[ends[number]] = row
            ends[number] += 1
        for number in order:
            yield InstanceClass(operator, number, by_class[ends[number] - sizes[number] : ends[number]])

    def __str__(self) -> str:
        title = f"consolidated over {self.rows} row{'' if self.rows == 1 else 's'}: classes of instances in brackets\n"
        return title + to_text(self.plan, self._note)

    def _note(self, operator: str) -> str:
        count = self.count(operator)
        return f"{count.classes} of {count.instances}" + (f", {count.unmerged}" if count.unmerged else "")

    def _numbering(self, operator: str, row: int = 0) -> _Numbering:
        if operator not in self._numberings:
            kind = self.plan[operator].kind
            raise PlanError(f"operator {operator!r} is a {kind} and has no instances; ask for a member of its body")
        if not 0 <= row < max(self.rows, 1):
            raise PlanError(f"operator {operator!r}: row {row} is not in a batch of {self.rows}; rows count from 0")
        return self._numberings[operator]


@dataclass(slots=True, frozen=True)
class _Given:
    """Columns of what the rows bring."""

    whole: Column | None
    keys: Mapping[str, Column]

    def columns(self, inputs: Inputs) -> list[Column]:
        whole = [self.whole] if inputs.row and self.whole is not None else []
        return whole + [self.keys[key] for key in inputs.given]

    def signature(self, inputs: Inputs, row: int) -> list[int]:
        return [column.classes[row] for column in self.columns(inputs)]


def consolidate(plan: Plan, rows: Iterable[Any], *, assume_pure: bool = False) -> ConsolidatedPlan:
    """Number the instances of `plan`'s operators over `rows` (mappings, pydantic models, dataclasses or bare inputs).

    Instances merge when nobody can tell: the operator is deterministic, writes nothing outside the state, and all that
    can reach it is equal (see `halo_core.plan.value` for what equal means). The rows must hold all that decides: a
    thread's saved state or a run's config is invisible here. `assume_pure` also merges opaque steps and routes whose
    purity nobody declared: an estimate for EXPLAIN of what the calls inside them will share, never a licence to
    execute. Time and memory grow linearly with rows x operators.
    """
    batch = rows if isinstance(rows, Sequence) else list(rows)
    flow = Dataflow(plan, assume_pure)
    given = _read(batch, flow.inputs.values())
    columns: dict[str, Column] = {}
    made: dict[frozenset[int], Column] = {}
    for name in flow.order:
        if name in flow.unmerged:
            columns[name] = distinct_column(len(batch))
            continue
        inputs = flow.inputs[name]
        reaching = given.columns(inputs) + [columns[writer] for writer, _ in inputs.written]
        # Operators that see the same things share one column, and so do the steps of a chain.
        sources = frozenset(map(id, reaching))
        if sources not in made:
            made[sources] = combine(reaching, len(batch))
        columns[name] = made[sources]
    return ConsolidatedPlan(plan, len(batch), flow, columns, given)


def _read(batch: Sequence[Any], wanted: Iterable[Inputs]) -> _Given:
    """Columns of the state keys, and of the whole row, that some operator may see."""
    whole, keys = False, dict[str, None]()
    for inputs in wanted:
        whole = whole or inputs.row
        keys.update(dict.fromkeys(inputs.given))
    columns: dict[str, Column] = {}
    for key in keys:
        numbers = ValueNumbers()
        columns[key] = column_of((numbers.number(state_value(row, key)) for row in batch), len(batch))
    if not whole:
        return _Given(None, columns)
    numbers = ValueNumbers()
    return _Given(column_of((row_number(numbers, row) for row in batch), len(batch)), columns)
