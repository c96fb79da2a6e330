"""What the scheduler is asked: tasks with their precedence, workers with their curves."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from halo_core.errors import PlanError
from halo_core.stats import EngineCurve

Segment = tuple[Hashable, int]
"""(identity, tokens): two prompts share a segment when their paths are equal up to and with it."""


@dataclass(slots=True, frozen=True)
class Task:
    """Calls of one operator that are served together, by one worker: one call, or those of a bundle of rows."""

    name: str
    model: str
    after: tuple[int, ...] = ()
    """Positions of the tasks that must be over before; all smaller than its own."""
    lead_s: float = 0.0
    """Tools between the end of the last of those and its own beginning, seconds."""
    prefix: tuple[Segment, ...] = ()
    """What its prompts share with prompts of other tasks, from the beginning, in order."""
    shared_tokens: int = 0
    """Prompt tokens (behind `prefix`) that its calls share among themselves: computed once."""
    own_tokens: float = 0.0
    """Prompt tokens that each call computes for itself, mean."""
    answer_tokens: float = 0.0
    """Tokens that each call generates, mean."""
    calls: int = 1

    @property
    def prefix_tokens(self) -> int:
        """Tokens of `prefix`."""
        return sum(tokens for _, tokens in self.prefix)


@dataclass(slots=True, frozen=True)
class Worker:
    """One engine."""

    name: str
    curves: Mapping[str, EngineCurve]
    """Model that it can serve -> its speed with it."""
    resident: str = ""
    """The model that it has loaded when the plan begins; empty for none."""
    slots: int = 32
    """Calls that it decodes at once."""
    kv_tokens: int = 0
    """Tokens of KV that it holds; 0 where that is no limit."""


@dataclass(slots=True, frozen=True)
class Problem:
    """Tasks and workers. Raises PlanError where a task can never run."""

    tasks: Sequence[Task]
    workers: Sequence[Worker]
    switching: bool = field(default=True)
    """Whether workers may load another model than their resident one."""

    def __post_init__(self) -> None:
        for position, task in enumerate(self.tasks):
            if any(not 0 <= before < position for before in task.after):
                raise PlanError(f"task {task.name!r} comes after a task that does not stand before it")
            if not any(self.may_serve(worker, task.model) for worker in self.workers):
                raise PlanError(f"no worker can serve model {task.model!r}, which task {task.name!r} needs")

    def may_serve(self, worker: Worker, model: str) -> bool:
        """Whether `worker` can ever serve `model`."""
        return model in worker.curves and (self.switching or worker.resident in ("", model))
