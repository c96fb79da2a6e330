"""Hypothesis strategies of problems to schedule."""

from __future__ import annotations

from hypothesis import strategies as st

from halo_core.optimize.problem import Problem, Task, Worker
from halo_core.stats import DecodePoint, EngineCurve


@st.composite
def problems(draw: st.DrawFn, tasks: int, workers: int) -> Problem:
    """Any small problem: free edges, some models on some workers only, little KV, cheap or no loads, no work at all."""
    models = draw(st.integers(1, 3))
    speeds = [
        EngineCurve(
            prefill_step_s=draw(st.sampled_from((0.0, 0.1))),
            prefill_token_s=draw(st.sampled_from((0.0, 0.001, 0.01))),
            attention_pair_s=draw(st.sampled_from((0.0, 1e-5))),
            decode=(DecodePoint(batch=1, step_s=draw(st.sampled_from((0.0, 0.1)))), DecodePoint(batch=4, step_s=0.15)),
            load_s=draw(st.sampled_from((0.0, 1.0, 6.0))),
        )
        for _ in range(2)
    ]
    names = [f"m{i}" for i in range(models)]
    engines = []
    for i in range(draw(st.integers(1, workers))):
        # The first worker can serve everything, so that every task can run.
        served = names if i == 0 else draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        speed = draw(st.sampled_from(speeds))
        resident = draw(st.sampled_from(["", *served]))
        kv_tokens = draw(st.sampled_from((0, 150, 400)))
        engines.append(Worker(f"w{i}", dict.fromkeys(served, speed), resident, slots=4, kv_tokens=kv_tokens))
    made: list[Task] = []
    for i in range(draw(st.integers(1, tasks))):
        after = draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else []
        path = draw(st.lists(st.sampled_from((("a", 90), ("b", 100), ("c", 33))), max_size=3))
        made.append(
            Task(
                name=f"t{i}",
                model=draw(st.sampled_from(names)),
                after=tuple(after),
                lead_s=draw(st.sampled_from((0.0, 1.5))),
                prefix=tuple(path),
                shared_tokens=draw(st.sampled_from((0, 20))),
                own_tokens=draw(st.sampled_from((0, 30))),
                answer_tokens=draw(st.sampled_from((0, 8))),
                calls=draw(st.integers(1, 6)),
            )
        )
    return Problem(made, engines)
