"""Random problems to schedule, by seed."""

from __future__ import annotations

from random import Random

from halo_core.optimize.problem import Problem, Segment, Task, Worker
from halo_core.stats import DecodePoint, EngineCurve


def curve(load_s: float = 5.0, factor: float = 1.0) -> EngineCurve:
    """Of the order of a small model on one GPU."""
    made = EngineCurve(
        prefill_step_s=0.005,
        prefill_token_s=5e-5,
        attention_pair_s=2e-9,
        decode=(DecodePoint(batch=1, step_s=0.01), DecodePoint(batch=32, step_s=0.02)),
        decode_context_token_s=1e-8,
        request_s=0.002,
        load_s=load_s,
    )
    return made.scaled(factor)


def prefix(random: Random, systems: int = 3, documents: int = 6) -> tuple[Segment, ...]:
    """One of few system prompts, and behind it, every second time, one of few documents."""
    system, document = random.randrange(systems), random.randrange(documents)
    path: tuple[Segment, ...] = ((f"system{system}", 100 + 350 * system),)
    return (*path, (f"document{document}", 200 + 300 * document)) if random.random() < 0.5 else path


def layered(
    seed: int,
    tasks: int,
    workers: int,
    *,
    models: int = 1,
    width: int = 3,
    kv_tokens: int = 0,
    calls: int = 64,
    load_s: float = 5.0,
    uneven: bool = False,
) -> Problem:
    """A random layered DAG, about `width` tasks to a layer, each after up to three tasks of the two layers before.

    The workers have the models in turn; with `uneven`, each is slower than the last one.
    """
    random = Random(seed)
    layers = max(1, tasks // width)
    layer = sorted(random.randrange(layers) for _ in range(tasks))
    made: list[Task] = []
    for i in range(tasks):
        near = [j for j in range(i) if layer[i] - 2 <= layer[j] < layer[i]]
        made.append(
            Task(
                name=f"t{i}",
                model=f"m{random.randrange(models)}",
                after=tuple(sorted(random.sample(near, min(len(near), random.randint(1, 3))))),
                lead_s=random.choice((0.0, 0.0, 0.5)),
                prefix=prefix(random),
                shared_tokens=random.choice((0, 0, 300)),
                own_tokens=random.randint(20, 300),
                answer_tokens=random.randint(10, 150),
                calls=random.randint(1, calls),
            )
        )
    engines = [
        Worker(
            name=f"w{i}",
            curves={f"m{k}": curve(load_s, 1 + 0.3 * i * uneven) for k in range(models)},
            resident=f"m{i % models}",
            kv_tokens=kv_tokens,
        )
        for i in range(workers)
    ]
    return Problem(made, engines)
