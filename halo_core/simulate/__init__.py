"""A batch in virtual time: the real runtime on simulated engines that follow measured curves, driven by the catalog."""

from halo_core.simulate.fleet import Fleet, SimulatedGroup, fleet_of, group_of
from halo_core.simulate.simulation import EngineForecast, Simulation, StepForecast, simulate
from halo_core.simulate.workflow import RowSet

__all__ = [
    "EngineForecast",
    "Fleet",
    "RowSet",
    "SimulatedGroup",
    "Simulation",
    "StepForecast",
    "fleet_of",
    "group_of",
    "simulate",
]
