"""Predicted against actual: what a batch was expected to take, what it took, and where the difference comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from halo_core.errors import HaloError
from halo_core.explain.prediction import OperatorPrediction, Prediction, operators, predict
from halo_core.explain.tables import table
from halo_core.pool import EnginePool
from halo_core.runtime import Batch, OperatorStats, Span
from halo_core.simulate import RowSet

SHOWN = 3
NEGLIGIBLE = 0.005
"""An error below this share of the batch's time is not named."""


@dataclass(slots=True, frozen=True)
class PredictionError:
    """A quantity of one operator that came out otherwise than predicted."""

    operator: str
    what: str
    predicted: float
    actual: float
    seconds: float
    """What that is expected to have added to the batch's time (or saved, below 0)."""

    def __str__(self) -> str:
        change = f"{100 * (self.actual / self.predicted - 1):+.0f} %" if self.predicted else "not expected"
        return f"{self.operator}: {self.what} {self.actual:,.1f}, predicted {self.predicted:,.1f} ({change})"


@dataclass(slots=True, frozen=True)
class Comparison:
    """A batch that ran, beside its prediction."""

    batch: Batch
    prediction: Prediction

    @property
    def error(self) -> float:
        """(predicted - actual) / actual makespan."""
        return self.prediction.makespan_s / self.batch.stats.wall_s - 1 if self.batch.stats.wall_s else 0.0

    def errors(self) -> list[PredictionError]:
        """All errors that matter, the largest first."""
        bar = NEGLIGIBLE * self.batch.stats.wall_s
        found = [error for error in self._errors() if abs(error.seconds) > bar]
        return sorted(found, key=lambda error: -abs(error.seconds))

    def _errors(self) -> Iterator[PredictionError]:
        curve = self.prediction.fleet.groups[0].curve
        engines = max(self.prediction.fleet.engines, 1)
        slots = self.prediction.fleet.groups[0].slots
        decode_token_s = curve.decode_step_s(slots) / slots
        stats = self.batch.stats
        called_s = sum(span.total_s for span in stats.spans.values())
        predicted_of = operators(self.prediction)
        for operator, actual in sorted(stats.operators.items()):
            span = stats.spans.get(operator, Span())
            expected = predicted_of.get(operator, OperatorPrediction())
            quantities = (
                ("calls made", expected.executed, actual.executed, 0.0),
                (
                    "prompt tokens computed",
                    expected.computed_tokens,
                    actual.computed_tokens,
                    curve.prefill_token_s / engines,
                ),
                ("tokens generated", expected.generated_tokens, actual.generated_tokens, decode_token_s / engines),
                ("seconds a call", expected.mean_s, span.mean_s, span.calls * stats.wall_s / (called_s or 1.0)),
            )
            for what, predicted, was, unit_s in quantities:
                yield PredictionError(operator, what, predicted, was, (was - predicted) * unit_s)


def compare(batch: Batch, pool: EnginePool) -> Comparison:
    """The batch beside what was to be expected of it when it began; of one that taught the app, by what it taught.

    Raises `HaloError` that says what is not known.
    """
    if batch.watch is None:
        raise HaloError("only batches of apps that can be lifted are predicted")
    rows = RowSet(batch.watch.contents, batch.watch.fields)
    catalog = batch.known
    if catalog is None and batch.learnt is not None:
        catalog = batch.learnt.model_copy(update={"last": None})  # its own time would be the prediction
    return Comparison(batch, predict(batch.app, rows, catalog=catalog, pool=pool))


def comparison(batch: Batch, pool: EnginePool) -> list[str]:
    """The comparison as lines of text."""
    try:
        found = compare(batch, pool)
    except HaloError as error:
        return [f"no prediction: {error}"]
    wall_s, predicted_s = batch.stats.wall_s, found.prediction.makespan_s
    source = "what earlier runs taught" if batch.known is not None else "what its own first rows taught"
    lines = [f"predicted {predicted_s:.2f} s from {source}, took {wall_s:.2f} s ({100 * found.error:+.0f} %)"]
    predicted_of = operators(found.prediction)
    rows = [
        _row(name, predicted_of.get(name, OperatorPrediction()), stats, batch.stats.spans.get(name, Span()))
        for name, stats in sorted(batch.stats.operators.items())
    ]
    headers = ("predicted/actual", "calls made", "computed", "generated", "s a call", "ends at s")
    lines += ["  " + line for line in table(headers, rows)]
    errors = found.errors()[:SHOWN]
    return [*lines, *(["largest errors:", *(f"  {error}" for error in errors)] if errors else [])]


def _row(name: str, expected: OperatorPrediction, actual: OperatorStats, span: Span) -> tuple[str, ...]:
    return (
        name,
        f"{expected.executed:,}/{actual.executed:,}",
        f"{expected.computed_tokens:,}/{actual.computed_tokens:,}",
        f"{expected.generated_tokens:,}/{actual.generated_tokens:,}",
        f"{expected.mean_s:.2f}/{span.mean_s:.2f}",
        f"{expected.end_s:.1f}/{span.last_s:.1f}",
    )
