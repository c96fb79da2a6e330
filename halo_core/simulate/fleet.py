"""The engines of a simulation: groups of equal ones, by model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halo_core.pool import EnginePool, LLMCall, PoolConfig
from halo_core.pool.clock import RealClock
from halo_core.pool.simulated import SimulatedEngine
from halo_core.pool.virtual_loop import VirtualLoop
from halo_core.stats import EngineCurve

STEP_TOKENS = 2048
"""vLLM's default `max_num_batched_tokens` for a server."""


@dataclass(slots=True, frozen=True)
class SimulatedGroup:
    """Engines that serve one model."""

    model: str
    engines: int
    curve: EngineCurve
    slots: int = 32
    """Requests that each decodes at once."""
    kv_tokens: int = 0
    """Tokens of KV that each holds; 0 where that is no limit."""
    block_size: int = 16
    step_tokens: int = STEP_TOKENS
    """Tokens that a step takes at most."""


@dataclass(slots=True, frozen=True)
class Fleet:
    """All engines."""

    groups: Sequence[SimulatedGroup]

    @property
    def engines(self) -> int:
        """Their number."""
        return sum(group.engines for group in self.groups)

    def pool(self) -> EnginePool:
        """A pool of these engines on a loop of virtual time; close it."""
        pool = EnginePool(PoolConfig(adopt=False), loop=VirtualLoop())
        for group in self.groups:
            for index in range(group.engines):
                pool.add(_engine(group, index))
        return pool


def _engine(group: SimulatedGroup, index: int) -> SimulatedEngine:
    return SimulatedEngine(
        f"{group.model}#{index}",
        group.model,
        slots=group.slots,
        kv_tokens=group.kv_tokens or None,
        block_size=group.block_size,
        max_batched_tokens=group.step_tokens,
        answer_tokens=_length,
        clock=RealClock(),  # of the loop, whose time is virtual
        curve=group.curve,
    )


def _length(call: LLMCall) -> int:
    """The catalog says how long answers are, and the simulated rows ask for exactly that."""
    return int(call.body["max_tokens"])
