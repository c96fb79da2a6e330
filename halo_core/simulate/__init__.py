"""A batch in virtual time: the real runtime on simulated engines that follow measured curves, driven by the catalog."""

from halo_core.simulate.fleet import Fleet, SimulatedGroup
from halo_core.simulate.simulation import Simulation, StepForecast, simulate
from halo_core.simulate.workflow import RowSet

__all__ = ["Fleet", "RowSet", "SimulatedGroup", "Simulation", "StepForecast", "simulate"]
