"""Fitting: exact where the probes are, robust where one of them was disturbed, never negative."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_core.errors import ConfigError
from halo_core.stats import DecodePoint, EngineCurve, Probe, attention_pairs, fit, residuals
from halo_core.stats.fit import non_negative_least_squares, predicted_s, relative_error

TRUE = EngineCurve(
    request_s=0.004,
    prefill_step_s=0.03,
    prefill_token_s=0.0035,
    attention_pair_s=1.2e-6,
    decode=tuple(DecodePoint(batch=b, step_s=0.02 + 0.003 * b) for b in (1, 2, 4, 8, 16)),
    decode_context_token_s=4e-6,
)


def probes() -> list[Probe]:
    """A calibration's probes, without their seconds."""
    made = [
        Probe("prefill", 1, requests=1, prefill_steps=1, prefill_tokens=n, attention_pairs=attention_pairs(n))
        for n in (48, 64, 128, 256, 512, 1024)
    ]
    made += [
        Probe("cached", 1, requests=1, prefill_steps=1, prefill_tokens=n, attention_pairs=attention_pairs(n, c))
        for n, c in ((32, 512), (128, 512), (128, 1024))
    ]
    made += [
        Probe("request", 1, requests=n, prefill_steps=min(n, 2), prefill_tokens=n, attention_pairs=33.0 * n)
        for n in (1, 4, 16)
    ]
    made += [
        Probe("decode", 1, decode_steps=16, batch=b, context_tokens=b * c) for b in (1, 2, 4, 8, 16) for c in (48, 900)
    ]
    return made


def timed(curve: EngineCurve) -> list[Probe]:
    return [dataclasses.replace(probe, seconds=predicted_s(curve, probe)) for probe in probes()]


def flat(curve: EngineCurve) -> list[float]:
    shared = (curve.request_s, curve.prefill_step_s, curve.prefill_token_s, curve.attention_pair_s)
    return [*shared, curve.decode_context_token_s, *(point.step_s for point in curve.decode)]


def test_exact_probes_give_the_curve_back() -> None:
    found = fit(timed(TRUE))
    assert flat(found) == pytest.approx(flat(TRUE), rel=1e-4)
    by_kind = residuals(found, timed(TRUE))
    assert [(r.kind, r.probes) for r in by_kind] == [("prefill", 6), ("cached", 3), ("request", 3), ("decode", 10)]
    assert all(r.median <= r.worst < 1e-5 for r in by_kind)


def test_a_disturbed_probe_does_not_bend_the_curve() -> None:
    exact = timed(TRUE) * 2  # two engines
    for disturbed in range(len(exact) // 2):
        bent = list(exact)
        bent[disturbed] = dataclasses.replace(bent[disturbed], seconds=bent[disturbed].seconds * 1.8)
        found = fit(bent)
        for probe in exact:
            assert abs(relative_error(found, probe)) < 0.08, (bent[disturbed], probe)


def test_what_no_probe_did_costs_nothing() -> None:
    found = fit([probe for probe in timed(TRUE) if probe.kind == "decode"])
    assert (found.request_s, found.prefill_step_s, found.prefill_token_s, found.attention_pair_s) == (0, 0, 0, 0)
    assert found.decode_step_s(8) == pytest.approx(TRUE.decode_step_s(8))


def test_probes_that_decode_are_needed() -> None:
    with pytest.raises(ConfigError, match="decode"):
        fit([probe for probe in timed(TRUE) if probe.kind == "prefill"])


@given(st.integers(0, 10_000))
def test_noise_never_makes_a_coefficient_negative(seed: int) -> None:
    noise = random.Random(seed)
    noisy = [dataclasses.replace(p, seconds=p.seconds * noise.uniform(0.7, 1.5)) for p in timed(TRUE)]
    assert all(value >= 0 for value in flat(fit(noisy)))


@given(st.integers(0, 10_000))
def test_least_squares_meets_the_conditions_of_its_optimum(seed: int) -> None:
    """Karush-Kuhn-Tucker: the gradient vanishes where x > 0 and points outwards where x = 0."""
    draw = random.Random(seed)
    rows = [[draw.uniform(-1, 1) for _ in range(5)] for _ in range(9)]
    targets = [draw.uniform(-1, 1) for _ in rows]
    found = non_negative_least_squares(rows, targets)
    left = [b - sum(a * x for a, x in zip(row, found, strict=True)) for row, b in zip(rows, targets, strict=True)]
    for j, x in enumerate(found):
        gradient = sum(row[j] * rest for row, rest in zip(rows, left, strict=True))
        assert x >= 0
        assert gradient <= 1e-6
        assert x == 0 or abs(gradient) < 1e-6
