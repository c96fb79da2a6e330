"""The catalog: what is known of an app's calls and tools from running it, by the app's fingerprint."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from halo_core.stats.distribution import Distribution
from halo_core.stats.query_price import QueryPrice
from halo_core.stats.remembered import read_remembered, write_remembered

logger = logging.getLogger(__name__)


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SharedPart(_Fact):
    """A stretch of a call's prompt, behind the one before it, that other calls have too."""

    scope: str
    """`app`: the same in every row; `row`: in other calls of its row; `field:PATH`: in rows equal in that field."""
    key: str
    """Names the stretch within its scope: two calls share it where all keys up to it are equal."""
    tokens: int = Field(ge=0)


class StepProfile(_Fact):
    """One call of a row: the `turn`-th (from 0) that an operator makes."""

    operator: str
    turn: int = 0
    model: str
    frequency: float = Field(ge=0, le=1)
    """Share of the rows that make it."""
    after: tuple[str, ...] = ()
    """Names of the steps that were always answered before it was asked."""
    lead_s: Distribution = Distribution()
    """From the last of those answers (or the row's begin) until it is asked: tools, code, framework; seconds."""
    tools_s: dict[str, float] = Field(default_factory=dict)
    """Tool -> seconds of that lead that passed in its calls, on average; together at most the lead."""
    prompt_tokens: Distribution = Distribution()
    answer_tokens: Distribution = Distribution()
    parts: tuple[SharedPart, ...] = ()
    """The beginning of its prompt that is shared with other calls, in order; what is left is its own."""
    system_tokens: int = 0
    """Length of its tools and leading system messages."""
    continues: str = ""
    """The step whose prompt and answer its own prompt begins with; empty for none."""
    distinct: float = Field(default=1.0, gt=0)
    """Calls that engines compute for each different row: below 1 where it reads only a part of the row, above 1 where
    equal rows do not share (sampling)."""

    @property
    def name(self) -> str:
        """Unique in the catalog."""
        return step_name(self.operator, self.turn)

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that other calls have too."""
        return sum(part.tokens for part in self.parts)


class ToolProfile(_Fact):
    """One tool."""

    calls: int = 0
    executed: int = 0
    mean_s: float = 0.0
    """Of an executed call, seconds, without waiting for room."""
    queued_s: float = 0.0
    """Waiting for room, per call."""
    price: QueryPrice | None = None
    """Of a database's queries, by its own EXPLAIN."""

    def repriced(self, growth: float) -> ToolProfile:
        """The same tool where its calls take so many times longer."""
        price = self.price.model_copy(update={"now": growth}) if self.price is not None else None
        return self.model_copy(update={"mean_s": self.mean_s * growth, "price": price})


class LastRun(_Fact):
    """The last batch that was small enough to be noted whole: against it, predictions are set right."""

    wall_s: float
    contents: tuple[str, ...]
    """Of its rows, equal for equal rows."""
    fields: tuple[dict[str, str], ...]
    """Of its rows, see `row_fields`."""


class Catalog(_Fact):
    """What is known of one app."""

    format: Literal[1] = 1
    app: str
    """The app's fingerprint."""
    rows: int = 0
    """Rows that it was learnt from."""
    steps: tuple[StepProfile, ...] = ()
    """In an order in which each comes after those it waits for."""
    tools: dict[str, ToolProfile] = Field(default_factory=dict)
    tail_s: Distribution = Distribution()
    """From a row's last answer to its end, seconds."""
    tail_tools_s: dict[str, float] = Field(default_factory=dict)
    """Tool -> seconds of that which passed in its calls, on average."""
    last: LastRun | None = None
    learnt_at: str = ""
    """UTC, ISO 8601."""

    def step(self, name: str) -> StepProfile | None:
        """The step of that name."""
        return next((step for step in self.steps if step.name == name), None)

    def answer_lengths(self) -> dict[str, float]:
        """Operator -> tokens that its answers have on average; of several turns, those of the longest."""
        found: dict[str, float] = {}
        for step in self.steps:
            if step.answer_tokens.count:
                found[step.operator] = max(found.get(step.operator, 0.0), step.answer_tokens.mean)
        return found

    def repriced(self, growth: Mapping[str, float]) -> Catalog:
        """The same app where calls of these tools take so many times longer than they did."""
        if not growth:
            return self

        def longer_s(tools_s: Mapping[str, float]) -> float:
            return sum(tools_s.get(tool, 0.0) * (times - 1.0) for tool, times in growth.items())

        steps = (step.model_copy(update={"lead_s": step.lead_s.shifted(longer_s(step.tools_s))}) for step in self.steps)
        return self.model_copy(
            update={
                "steps": tuple(steps),
                "tail_s": self.tail_s.shifted(longer_s(self.tail_tools_s)),
                "tools": {
                    name: tool.repriced(growth[name]) if name in growth else tool for name, tool in self.tools.items()
                },
            }
        )

    def updated(self, newer: Catalog) -> Catalog:
        """This one corrected by a later run: what it saw again counts by rows, at most as much as 64 of the old."""
        old = {step.name: step for step in self.steps}
        steps = tuple(_updated(old[step.name], step) if step.name in old else step for step in newer.steps)
        return newer.model_copy(
            update={
                "rows": min(self.rows, _MEMORY) + newer.rows,
                "steps": steps,
                "tools": {**self.tools, **newer.tools},
                "last": newer.last or self.last,
            }
        )


_MEMORY = 64


def _updated(old: StepProfile, new: StepProfile) -> StepProfile:
    """Lengths of both; the structure is the newer one's."""
    return new.model_copy(
        update={
            "prompt_tokens": _faded(old.prompt_tokens).merged(new.prompt_tokens),
            "answer_tokens": _faded(old.answer_tokens).merged(new.answer_tokens),
        }
    )


def _faded(known: Distribution) -> Distribution:
    return known.model_copy(update={"count": min(known.count, _MEMORY)})


def step_name(operator: str, turn: int) -> str:
    """`planner`, `planner#2` for its second call in a row, and so on."""
    return operator if turn == 0 else f"{operator}#{turn + 1}"


# -- files -------------------------------------------------------------------------------------------------------------


def catalog_file(folder: Path, app: str) -> Path:
    """Where the catalog of the app with this fingerprint is kept."""
    return folder / f"{hashlib.sha256(app.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"


def read_catalog(folder: Path, app: str) -> Catalog | None:
    """What is known of the app; None where nothing is, and with a warning where the file cannot be used."""
    file = catalog_file(folder, app)
    found = read_remembered(file, Catalog, "catalog", "the app is learnt again, as if it had never run")
    if found is not None and found.app != app:
        logger.warning("the catalog %s is of another app (%s): it is not used", file, found.app)
        return None
    return found


def write_catalog(folder: Path, catalog: Catalog) -> None:
    """Keep a catalog; a folder that cannot be written to costs only what was learnt."""
    # It has queries with their parameters.
    write_remembered(catalog_file(folder, catalog.app), catalog, "catalog", private=True)
