"""EXPLAIN as a page of HTML: what is expected of each operator, when, and the plan as text below it."""

from __future__ import annotations

from html import escape

from halo_core.explain.forecast import Forecast
from halo_core.explain.prediction import OperatorPrediction

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.when { width: 35%; padding: 0; }
.bar { background: #4a7dbd; height: .8rem; border-radius: 2px; min-width: 2px; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px; }
"""
_HEADERS = ("operator", "instances", "merged", "to make", "tokens in", "out", "cached", "at most", "cost", "when")


def page(forecast: Forecast, cost_per_gpu_hour: float | None = None) -> str:
    """One self-contained page."""
    end_s = forecast.prediction.makespan_s if forecast.prediction is not None else 0.0
    rows = [
        _row(count.operator, count.instances, count.merged, forecast.operators.get(count.operator), end_s)
        for count in forecast.counts
    ]
    head = "".join(f"<th>{title}</th>" for title in _HEADERS)
    name = escape(forecast.plan.name)
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>EXPLAIN {name}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{name}</h1>",
            f"<p>{forecast.rows:,} rows, {forecast.distinct:,} of them distinct.</p>",
            *(f"<p>{escape(line.strip())}</p>" for line in forecast.summary(cost_per_gpu_hour)),
            f"<table><thead><tr>{head}</tr></thead><tbody>",
            *rows,
            "</tbody></table>",
            f"<pre>{escape(chr(10).join(forecast.lines(cost_per_gpu_hour)))}</pre>",
            "</body></html>",
        ]
    )


def _row(name: str, instances: int, merged: int, predicted: OperatorPrediction | None, end_s: float) -> str:
    cells = [escape(name), f"{instances:,}", f"{merged:,}"]
    bar = ""
    if predicted is not None:
        cells += [
            f"{predicted.executed:,}",
            f"{predicted.prompt_tokens:,}",
            f"{predicted.generated_tokens:,}",
            f"{100 * predicted.cached_share:.0f} %",
            f"{100 * predicted.ceiling_share:.0f} %",
            f"{100 * predicted.cost_share:.0f} %",
        ]
        span_s = (predicted.start_s, predicted.end_s - predicted.start_s)
        start, width = (100 * seconds / (end_s or 1.0) for seconds in span_s)
        when = f"{predicted.start_s:.1f} s to {predicted.end_s:.1f} s"
        bar = f'<div class="bar" style="margin-left:{start:.1f}%;width:{width:.1f}%" title="{when}"></div>'
    cells += [""] * (len(_HEADERS) - 1 - len(cells))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + f'<td class="when">{bar}</td></tr>'
