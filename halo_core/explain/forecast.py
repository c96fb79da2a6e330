"""What the rows of a batch would share, told from the plan before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from halo_core.errors import HaloError
from halo_core.explain import prediction
from halo_core.explain.findings import findings
from halo_core.explain.prediction import OperatorPrediction, Prediction, predict
from halo_core.explain.tables import Cells, plan_tree, render, table
from halo_core.plan import InstanceCount, LLMOperator, OpaqueStep, Operator, Plan, consolidate
from halo_core.simulate import RowSet


@dataclass(slots=True, frozen=True)
class Forecast:
    """A batch before it runs: its plan, what its rows share, and what it is expected to take."""

    plan: Plan
    rows: int
    distinct: int
    counts: tuple[InstanceCount, ...]
    prediction: Prediction | None
    operators: Mapping[str, OperatorPrediction]
    """What is expected of each operator that calls models; empty where there is no prediction."""
    missing: str
    """Why there is no prediction; empty where there is one."""

    @classmethod
    def of(cls, plan: Plan, rows: Sequence[Any], rowset: RowSet, app: str) -> Forecast:
        """`rowset` tells which rows are equal, as the framework compares them; `app` is the app's fingerprint."""
        # What calls share inside opaque steps does not depend on the steps' purity: equal calls are one call.
        counts = tuple(consolidate(plan, rows, assume_pure=True).counts())
        found: Prediction | None = None
        missing = ""
        try:
            found = predict(app, rowset)
        except HaloError as error:
            missing = str(error)
        operators = prediction.operators(found) if found is not None else {}
        return cls(plan, len(rows), len(set(rowset.contents)), counts, found, operators, missing)

    def summary(self, cost_per_gpu_hour: float | None = None) -> list[str]:
        """The prediction in words, or why there is none."""
        if self.prediction is None:
            return [f"no prediction: {self.missing}"]
        return prediction.summary(self.prediction, cost_per_gpu_hour)

    def lines(self, cost_per_gpu_hour: float | None = None) -> list[str]:
        """The forecast as text: the plan's tree with a row of figures for each operator, and what they come to."""
        empty: Cells = [""] * len(prediction.HEADERS)
        cells: dict[str, Cells] = {}
        notes: dict[str, str] = {}
        calls = distinct_calls = 0
        for count in self.counts:
            each = _calls(self.plan[count.operator])
            calls += count.instances * each
            distinct_calls += count.classes * each
            own = (count.instances, count.classes, count.instances * each, count.classes * each)
            known = self.operators.get(count.operator)
            more = () if self.prediction is None else prediction.cells(known) if known is not None else empty
            cells[count.operator] = (*own, *more)
            notes[count.operator] = count.unmerged if each else ""
        again = ", each loop and fan-out counted once" if _repeats(self.plan) else ""
        more_headers = prediction.HEADERS if self.prediction is not None else ()
        headers = ("rows", "distinct", "calls", "to make", *more_headers)
        return [
            *render(headers, [plan_tree(self.plan, cells, notes)]),
            "",
            f"rows: {self.rows:,}, {self.distinct:,} of them distinct",
            f"calls: about {calls:,} planned, {distinct_calls:,} to make (an estimate: the models found in the code "
            f"are called once each{again})",
            *_prefixes(self.plan, self.rows),
            *findings(self.plan),
            *self.summary(cost_per_gpu_hour),
        ]

    def document(self, cost_per_gpu_hour: float | None = None) -> dict[str, Any]:
        """The forecast as plain data for JSON; times in seconds, shares between 0 and 1."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "rows": self.rows,
            "distinct_rows": self.distinct,
            "operators": [
                {
                    "name": count.operator,
                    "instances": count.instances,
                    "merged_instances": count.merged,
                    "not_merged_because": count.unmerged,
                    "predicted": asdict(self.operators[count.operator]) if count.operator in self.operators else None,
                }
                for count in self.counts
            ],
            "barriers": [barrier.model_dump(mode="json") for barrier in self.plan.barriers],
            "findings": findings(self.plan),
            "prediction": prediction.document(self.prediction, cost_per_gpu_hour) if self.prediction else None,
            "no_prediction_because": self.missing,
        }


def forecast(
    plan: Plan, rows: Sequence[Any], rowset: RowSet, *, app: str = "", cost_per_gpu_hour: float | None = None
) -> list[str]:
    """The plan with instances and calls per operator before and after merging, as lines of text.

    `rowset` tells which rows are equal, as the framework compares them. Where the app (by its fingerprint) has run
    before and the engines' speed is known, also what each operator is expected to take.
    """
    return Forecast.of(plan, rows, rowset, app).lines(cost_per_gpu_hour)


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
