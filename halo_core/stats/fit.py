"""Fitting an engine's curve to probes: robust least squares in which no coefficient is negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from halo_core.errors import ConfigError
from halo_core.stats.curve import DecodePoint, EngineCurve

ProbeKind = Literal["request", "prefill", "cached", "decode"]
"""`cached` is a prefill behind a context that the engine holds."""

_ROUNDS = 12
_TRUSTED = 0.02
"""Relative error beyond which a probe counts the less, the more it is off: others may have used the machine."""
_RIDGE = 1e-9


@dataclass(slots=True, frozen=True)
class Probe:
    """What an engine was given to do, and how long it took, both in all."""

    kind: ProbeKind
    seconds: float
    requests: int = 0
    prefill_steps: int = 0
    """Steps that computed prompt tokens."""
    prefill_tokens: int = 0
    attention_pairs: float = 0.0
    decode_steps: int = 0
    """Steps that decoded one token for each of `batch` requests."""
    batch: int = 0
    context_tokens: float = 0.0
    """Tokens that one decode step attends to, over the batch, mean over the steps."""
    engine: str = ""


class Residual(BaseModel):
    """How far a curve is from the probes of one kind: |predicted - measured| / measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ProbeKind
    probes: int
    median: float
    worst: float


def fit(probes: Sequence[Probe]) -> EngineCurve:
    """The curve that is nearest to the probes, in relative terms. What no probe did costs nothing in it.

    A step for a larger batch takes no less time than one for a smaller.

    Raises `ConfigError` where no probe that took time decoded.
    """
    usable = [probe for probe in probes if probe.seconds > 0]
    batches = sorted({probe.batch for probe in usable if probe.decode_steps})
    if not batches:
        raise ConfigError("a curve needs probes that decode and take time, and there are none")
    reach = {b: [p.context_tokens for p in usable if p.batch == b] for b in batches}
    if not any(max(tokens) > 2 * min(tokens) for tokens in reach.values()):
        usable = [replace(probe, context_tokens=0.0) for probe in usable]  # their share cannot be told
    weights = [1.0] * len(usable)
    solution: list[float] = []
    for _ in range(_ROUNDS):
        rows = [[w * x / p.seconds for x in _row(p, batches)] for w, p in zip(weights, usable, strict=True)]
        solution = non_negative_least_squares(rows, weights)
        errors = [abs(_dot(_row(p, batches), solution) / p.seconds - 1) for p in usable]
        weights = [min(1.0, _TRUSTED / error) ** 0.5 if error else 1.0 for error in errors]
    request_s, step_s, token_s, pair_s, context_s, *growth = solution
    return EngineCurve(
        request_s=request_s,
        prefill_step_s=step_s,
        prefill_token_s=token_s,
        attention_pair_s=pair_s,
        decode_context_token_s=context_s,
        decode=tuple(DecodePoint(batch=b, step_s=s) for b, s in zip(batches, accumulate(growth), strict=True)),
    )


def predicted_s(curve: EngineCurve, probe: Probe) -> float:
    """Seconds that the curve gives for what the probe did."""
    return (
        probe.requests * curve.request_s
        + probe.prefill_steps * curve.prefill_step_s
        + probe.prefill_tokens * curve.prefill_token_s
        + probe.attention_pairs * curve.attention_pair_s
        + probe.decode_steps * curve.step_s(0, 0, probe.batch, probe.context_tokens)
    )


def relative_error(curve: EngineCurve, probe: Probe) -> float:
    """(predicted - measured) / measured: negative where the engine was slower than its curve."""
    return predicted_s(curve, probe) / probe.seconds - 1 if probe.seconds > 0 else 0.0


def residuals(curve: EngineCurve, probes: Sequence[Probe]) -> tuple[Residual, ...]:
    """How well the curve describes its probes, by kind, in the order in which the kinds come first."""
    found = []
    for kind in dict.fromkeys(probe.kind for probe in probes):
        errors = [abs(relative_error(curve, probe)) for probe in probes if probe.kind == kind]
        found.append(Residual(kind=kind, probes=len(errors), median=median(errors), worst=max(errors)))
    return tuple(found)


def _row(probe: Probe, batches: Sequence[int]) -> list[float]:
    """What multiplies each coefficient, in the order in which `fit` takes the solution apart."""
    steps = probe.decode_steps
    return [
        probe.requests,
        probe.prefill_steps,
        probe.prefill_tokens,
        probe.attention_pairs,
        steps * probe.context_tokens,
        # What each batch adds to the one before: nothing negative, a larger batch takes no less time.
        *(float(steps) if batch <= probe.batch else 0.0 for batch in batches),
    ]


def non_negative_least_squares(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """The x >= 0 that minimises |A x - b|, by the active sets of Lawson and Hanson (1974), chapter 23.

    Columns are scaled to length 1, and a column of zeros gets 0.
    """
    columns = list(zip(*rows, strict=True))
    lengths = [_dot(column, column) ** 0.5 for column in columns]
    scaled = [[x / length for x in column] if length else None for column, length in zip(columns, lengths, strict=True)]
    kept = [j for j, column in enumerate(scaled) if column is not None]
    unit = [column for column in scaled if column is not None]
    gram = [[_dot(a, b) for b in unit] for a in unit]
    right = [_dot(column, targets) for column in unit]
    found = [0.0] * len(unit)
    free: list[int] = []
    for _ in range(3 * len(unit) + 1):
        gradient = [right[j] - _dot(gram[j], found) for j in range(len(unit))]
        entering = max((j for j in range(len(unit)) if j not in free), key=lambda j: gradient[j], default=None)
        if entering is None or gradient[entering] <= 1e-12:
            break
        free.append(entering)
        while free:
            trial = _solve([[gram[i][j] for j in free] for i in free], [right[i] for i in free])
            negative = [(j, x) for j, x in zip(free, trial, strict=True) if x <= 0]
            if not negative:
                break
            # As far towards the trial as no coefficient becomes negative; the one that reaches 0 leaves.
            step = min(found[j] / (found[j] - x) if found[j] > x else 0.0 for j, x in negative)
            for j, x in zip(free, trial, strict=True):
                found[j] += step * (x - found[j])
            leaving = {j for j, _ in negative if found[j] <= 1e-15} or {min(negative, key=lambda pair: pair[1])[0]}
            for j in leaving:
                found[j] = 0.0
            free = [j for j in free if j not in leaving]
        for j, x in zip(free, trial if free else (), strict=True):
            found[j] = x
    solution = [0.0] * len(columns)
    for j, x in zip(kept, found, strict=True):
        solution[j] = x / lengths[j]
    return solution


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivoting; a trace of ridge keeps columns that say the same apart."""
    size = len(right)
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for i in range(size):
        rows[i][i] += _RIDGE
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, size):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, size + 1):
                rows[r][c] -= factor * rows[i][c]
    solution = [0.0] * size
    for i in reversed(range(size)):
        solution[i] = (rows[i][size] - _dot(rows[i][i + 1 : size], solution[i + 1 :])) / rows[i][i]
    return solution


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
