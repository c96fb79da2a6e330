"""Rewrite rules, one per file, each `Plan -> Plan`. `halo_core.optimize.optimizer.RULES` is their order."""

from halo_core.optimize.rules.drop_dead import drop_dead
from halo_core.optimize.rules.factor_prefixes import factor_prefixes
from halo_core.optimize.rules.fold_constant_tools import fold_constant_tools
from halo_core.optimize.rules.merge_equal import merge_equal
from halo_core.optimize.rules.rule import Rule

__all__ = ["Rule", "drop_dead", "factor_prefixes", "fold_constant_tools", "merge_equal"]
