"""What the rows of a batch would share, told from the plan before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halo_core.errors import HaloError
from halo_core.explain import prediction
from halo_core.explain.findings import findings
from halo_core.explain.prediction import Prediction, predict
from halo_core.explain.tables import Cells, plan_tree, render, table
from halo_core.plan import LLMOperator, OpaqueStep, Operator, Plan, consolidate
from halo_core.simulate import RowSet


def forecast(
    plan: Plan, rows: Sequence[Any], rowset: RowSet, *, app: str = "", cost_per_gpu_hour: float | None = None
) -> list[str]:
    """The plan with instances and calls per operator before and after merging, as lines of text.

    `rowset` tells which rows are equal, as the framework compares them. Where the app (by its fingerprint) has run
    before and the engines' speed is known, also what each operator is expected to take.
    """
    predicted = _predicted(app, rowset)
    # What calls share inside opaque steps does not depend on the steps' purity: equal calls are one call.
    shared = consolidate(plan, rows, assume_pure=True)
    cells: dict[str, Cells] = {}
    notes: dict[str, str] = {}
    calls = distinct_calls = 0
    for count in shared.counts():
        each = _calls(plan[count.operator])
        calls += count.instances * each
        distinct_calls += count.classes * each
        cells[count.operator] = (count.instances, count.classes, count.instances * each, count.classes * each)
        notes[count.operator] = count.unmerged if each else ""
    again = ", each loop and fan-out counted once" if _repeats(plan) else ""
    headers: tuple[str, ...] = ("rows", "distinct", "calls", "to make")
    if isinstance(predicted, Prediction):
        headers += prediction.HEADERS
        more = prediction.cells(predicted, list(cells))
        cells = {name: (*own, *more.get(name, [""] * len(prediction.HEADERS))) for name, own in cells.items()}
    return [
        *render(headers, [plan_tree(plan, cells, notes)]),
        "",
        f"rows: {len(rows):,}, {len(set(rowset.contents)):,} of them distinct",
        f"calls: about {calls:,} planned, {distinct_calls:,} to make (an estimate: the models found in the code are "
        f"called once each{again})",
        *_prefixes(plan, len(rows)),
        *findings(plan),
        *(
            prediction.summary(predicted, cost_per_gpu_hour)
            if isinstance(predicted, Prediction)
            else [f"no prediction: {predicted}"]
        ),
    ]


def _predicted(app: str, rows: RowSet) -> Prediction | HaloError:
    try:
        return predict(app, rows)
    except HaloError as error:
        return error


def _calls(operator: Operator) -> int:
    """Model calls of one instance, as far as the code tells."""
    if isinstance(operator, OpaqueStep):
        return len(operator.advised_calls)
    return 1 if isinstance(operator, LLMOperator) else 0


def _prefixes(plan: Plan, rows: int) -> list[str]:
    """The beginnings of prompts that are known before anything runs, each with the calls that share it."""
    nodes: dict[str, list[str]] = {}
    for operator in plan.operators:
        for call in (operator,) if isinstance(operator, LLMOperator) else getattr(operator, "advised_calls", ()):
            if call.prompt is not None and (prefix := call.prompt.static_prefix()):
                nodes.setdefault("\n".join(map(str, prefix)), []).append(operator.name)
    if not nodes:
        return []
    lines = [
        (len(text), rows * len(names), ", ".join(dict.fromkeys(names)), text if len(text) <= 60 else f"{text[:60]}…")
        for text, names in nodes.items()
    ]
    headers = ("characters", "calls", "nodes", "prefix")
    return ["prefixes known in advance:", *("  " + line.replace("\n", " ") for line in table(headers, lines))]


def _repeats(plan: Plan) -> bool:
    return any(operator.kind == "loop" for operator in plan.operators) or any(edge.fan_out for edge in plan.edges)
