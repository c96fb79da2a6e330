"""Fold constant tools: what reads nothing of the row and changes nothing is the same for the whole batch."""

from __future__ import annotations

from collections.abc import Iterator

from halo_core.optimize.rules.rule import add_facts
from halo_core.plan import Constant, Effect, OpaqueStep, Operator, Plan, ToolOperator, effect_of
from halo_core.plan.dataflow import Dataflow, Inputs

_NOTHING = Inputs(row=False, given=(), written=())


def fold_constant_tools(plan: Plan) -> Plan:
    """Mark tools whose arguments are all constants, and steps around tools or models that read nothing, as `Constant`.

    They are pure, or read in a plan that writes nowhere (a write of one row may fall between the looks of others), and
    no branch's choice or sent item reaches them. Such an operator is one class of the consolidation already; the fact
    says it by name. A step of the user's own code is still run for every row: only the calls in it are made once.
    """
    return add_facts(plan, _constant(plan))


def _constant(plan: Plan) -> Iterator[Constant]:
    if not any(map(_calls, plan.operators)):
        return
    flow = Dataflow(plan)
    writes = any(effect_of(operator) is Effect.WRITE for operator in plan.operators)
    for name in flow.order:
        operator = plan[name]
        if not _calls(operator) or name in flow.unmerged or flow.inputs[name] != _NOTHING:
            continue
        if effect_of(operator) is Effect.PURE or not writes:
            yield Constant(operator=name, tool=operator.tool if isinstance(operator, ToolOperator) else "")


def _calls(operator: Operator) -> bool:
    """Whether the operator is a candidate: it reads nothing, and calls a tool or holds calls."""
    inside = isinstance(operator, OpaqueStep) and bool(operator.advised_tools or operator.advised_calls)
    return operator.reads == () and (inside or isinstance(operator, ToolOperator))
