"""`halo bench report`: every result file on one HTML page that needs neither a network nor a script."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from halo_core.errors import ConfigError

RESULTS = Path(__file__).parent / "results"

# -- what a file says --------------------------------------------------------------------------------------------------


class Run(BaseModel):
    """One system, one trial; None where a benchmark does not measure it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    system: str
    trial: int
    wall_s: Annotated[FiniteFloat, Field(ge=0)]
    orchestrator_cpu_s: float | None = None
    calls_executed: int | None = None
    calls_shared: int | None = None
    prompt_tokens_computed: int | None = None
    prompt_tokens_cached: int | None = None
    generated_tokens: int | None = None
    peak_rss_mb: float | None = None
    extra: dict[str, Any] = {}

    @property
    def further(self) -> dict[str, Any]:
        """The benchmark's own figures."""
        return {**(self.model_extra or {}), **self.extra}

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured, by column of the table of runs."""
        known = {
            "system": self.system,
            "trial": self.trial,
            "wall, s": self.wall_s,
            "orchestrator CPU, s": self.orchestrator_cpu_s,
            "calls executed": self.calls_executed,
            "calls shared": self.calls_shared,
            "prompt tokens computed": self.prompt_tokens_computed,
            "prompt tokens cached": self.prompt_tokens_cached,
            "tokens generated": self.generated_tokens,
            "peak RSS, MiB": self.peak_rss_mb,
        }
        return {name: value for name, value in known.items() if value is not None} | self.further


class Ratio(BaseModel):
    """One system's figure over another's, paired trial by trial."""

    model_config = ConfigDict(frozen=True)

    median: FiniteFloat
    min: FiniteFloat
    max: FiniteFloat


class Bar(BaseModel):
    """A figure beside what was promised of it."""

    model_config = ConfigDict(frozen=True)

    value: FiniteFloat
    at_least: FiniteFloat | None = None
    at_most: FiniteFloat | None = None
    held: bool

    @property
    def promise(self) -> str:
        """The bound in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "no bound" if self.at_least is None else f"at least {self.at_least:g}"


class Document(BaseModel):
    """What `benchmarks.measure.report` writes; fields of one benchmark alone are in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    workload: str
    rows: int | None = None
    layout: str | None = None
    machine: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    runs: tuple[Run, ...]
    ratios: dict[str, Ratio] = {}
    bars: dict[str, Bar] = {}
    equal_rows: dict[str, int] | None = None
    equal_transcripts: int | None = None

    @property
    def groups(self) -> dict[str, list[Run]]:
        """The runs by system, and by workload and rows where these differ from run to run."""
        varying = [key for key in ("workload", "rows") if len({text(run.further.get(key)) for run in self.runs}) > 1]
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            case = [text(run.further.get(key)) + (" rows" if key == "rows" else "") for key in varying]
            found.setdefault(", ".join([run.system, *case]), []).append(run)
        return found

    @property
    def sizes(self) -> list[str]:
        """Numbers of rows: of the runs where they say so, else of the document."""
        of_runs = [run.further["rows"] for run in self.runs if "rows" in run.further]
        return list(dict.fromkeys(map(text, of_runs or [self.rows])))

    @property
    def trials(self) -> str:
        """Runs of each system, counted."""
        counts = {len(runs) for runs in self.groups.values()} or {0}
        return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"

    @property
    def equal(self) -> list[tuple[str, bool]]:
        """Whose answers are Halo's in how many rows; False where not in all."""
        counts = {**(self.equal_rows or {}), "transcripts": self.equal_transcripts}
        known = {name: count for name, count in counts.items() if count is not None}
        return [(f"{name}: {text(count)} of {text(self.rows)}", count == self.rows) for name, count in known.items()]

    @property
    def run_table(self) -> list[list[str]]:
        """A header, and a line per run."""
        lines = [run.figures for run in self.runs]
        header = list(dict.fromkeys(name for line in lines for name in line))
        return [header, *([text(line[name]) if name in line else "-" for name in header] for line in lines)]

    @property
    def other_fields(self) -> dict[str, Any]:
        """Settings and notes of this benchmark alone, by dotted name."""
        return dict(flat(self.model_extra or {}))


@dataclass(frozen=True, slots=True)
class Part:
    """A document, or a variant of one; where it is not a known one, its figures as they are and why."""

    name: str
    document: Document | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    note: str = ""


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Part]:
    """The parts of a file. Raises `ValueError` or `OSError` where nothing can be shown of it."""
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict | list) or not any(True for _ in flat(content)):
        raise ValueError("neither an object nor a list with figures in it")
    if isinstance(content, list) or is_document(content):
        return [part("", content)]
    variants = {name: value for name, value in content.items() if is_document(value)}
    rest = {name: value for name, value in content.items() if name not in variants}
    others = [part("other fields" if variants else "", rest)] if rest else []
    return [part(name, value) for name, value in variants.items()] + others


def is_document(content: Any) -> bool:
    """Whether this means to be a benchmark's document."""
    return isinstance(content, dict) and {"workload", "runs"} <= content.keys()


def part(name: str, content: Any) -> Part:
    """A known document, or plain figures."""
    figures, note = dict(flat(content)), "not a document of benchmarks.measure"
    if not is_document(content):
        return Part(name, figures=figures, note=note)
    try:
        return Part(name, document=Document.model_validate(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Part(name, figures=figures, note=f"{note}: {where}: {first['msg']}")


def flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves by dotted name; a list of plain values is one leaf."""
    if isinstance(content, dict):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and any(isinstance(value, dict | list) for value in content):
        items = [(str(number), value) for number, value in enumerate(content)]
    elif content != []:
        yield name, content
        return
    else:
        return
    for key, value in items:
        yield from flat(value, f"{name}.{key}" if name else key)


def text(value: Any) -> str:
    """A value as people read it: floats to four digits, thousands set apart."""
    if isinstance(value, bool) or value is None:
        return "none" if value is None else "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(below)}" for key, below in value.items())
    return ", ".join(map(text, value)) if isinstance(value, list) else str(value)


# -- plots -------------------------------------------------------------------------------------------------------------


def plots(document: Document) -> Iterator[Markup]:
    """Wall seconds by system; where the numbers of rows differ, wall milliseconds per row as well."""
    groups = document.groups
    if not groups:
        return
    yield plot("wall time", "s", {label: [run.wall_s for run in runs] for label, runs in groups.items()})
    sizes = [run.further.get("rows") for run in document.runs]
    if len(document.sizes) > 1 and all(isinstance(size, int) and size > 0 for size in sizes):
        per_row = {label: [1000 * r.wall_s / r.further["rows"] for r in runs] for label, runs in groups.items()}
        yield plot("wall time per row", "ms", per_row)


def plot(title: str, unit: str, groups: dict[str, list[float]]) -> Markup:
    """A horizontal bar up to each group's median, a dot per value, and beside them the median and range in figures."""
    left, width, right, pitch = 16 + 7 * max(map(len, groups)), 420, 190, 30
    bottom = pitch * len(groups)
    step = tick_step(max(map(max, groups.values())))
    count = max(1, math.ceil(max(map(max, groups.values())) / step))
    scale = width / (count * step)
    drawn = Markup('<text x="{}" y="{}">{}, {}</text>').format(left + width + 24, bottom + 18, title, unit)
    for tick in range(count + 1):
        x = left + tick * step * scale
        drawn += Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(x, bottom)
        drawn += Markup('<text class="tick" x="{:.1f}" y="{}">{:g}</text>').format(x, bottom + 18, tick * step)
    for number, (label, values) in enumerate(groups.items()):
        y, median = pitch * number + pitch // 2, statistics.median(values)
        spread = f" ({text(min(values))} to {text(max(values))})" if len(values) > 1 else ""
        drawn += Markup(
            '<text class="label" x="{}" y="{}">{}</text><rect class="{}" x="{}" y="{}" width="{:.1f}" height="18"/>'
        ).format(left - 8, y + 4, label, "ours" if label.startswith("halo") else "theirs", left, y - 9, median * scale)
        for value in values:
            drawn += Markup('<circle cx="{:.1f}" cy="{}" r="3.5"/>').format(left + value * scale, y)
        end = left + max(values) * scale
        drawn += Markup('<text x="{:.1f}" y="{}">{} {}{}</text>').format(end + 9, y + 4, text(median), unit, spread)
    return Markup('<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">{3}</svg>').format(
        left + width + right, bottom + 24, title, drawn
    )


def tick_step(top: float) -> float:
    """1, 2 or 5 times a power of ten, of which about five reach the top."""
    rough = (top or 1.0) / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = """\
{% macro pairs(title, values) %}{% if values %}
<table><caption>{{ title }}</caption>
{% for name, value in values.items() %}<tr><th>{{ name }}</th><td>{{ text(value) }}</td></tr>
{% endfor %}</table>
{% endif %}{% endmacro %}
{% macro outcome(bar) %}
{% if bar.held %}<span class="held">held</span>{% else %}<b class="missed">missed</b>{% endif %}
{% endmacro %}
{% macro equal(document) %}{% for said, all in document.equal %}
<div{% if not all %} class="missed"{% endif %}>{{ said }}</div>{% else %}not compared{% endfor %}{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Halo benchmarks</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #63686e; --line: #d5d9de; --ours: #5b97e5;
  --theirs: #b4bbc3; --missed: #c01c28; --held: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --paper: #16181b; --soft: #9aa1a9; --line: #373c42;
  --ours: #2f6fc4; --theirs: #545b64; --missed: #ff7b72; --held: #56d364; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 80rem; padding: 0 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; }
a { color: inherit; }
.wide { overflow-x: auto; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; align-items: flex-start; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { font-weight: 500; color: var(--soft); }
.runs td { white-space: nowrap; } .runs td + td, .runs th + th { text-align: right; }
.missed { color: var(--missed); } .held { color: var(--held); } .note { color: var(--soft); }
svg { display: block; max-width: 100%; height: auto; margin: 1rem 0; }
svg text { font-size: 12px; fill: var(--ink); } svg .label { text-anchor: end; }
svg .tick { text-anchor: middle; fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .ours { fill: var(--ours); } svg .theirs { fill: var(--theirs); }
svg circle { fill: var(--ink); stroke: var(--paper); stroke-width: 1.2; }
</style>
</head>
<body>
<h1>Halo benchmarks</h1>
<p>{{ files | length }} files, {{ documents | length }} measured workloads. Bars: {{ held }} held,
{% if missed %}<b class="missed">{{ missed }} missed</b>{% else %}none missed{% endif %}.
{% if unreadable %}<a class="missed" href="#unreadable">{{ unreadable | length }} unreadable</a>.{% endif %}</p>
<div class="wide"><table>
<tr><th>workload</th><th>file</th><th>rows</th><th>trials</th><th>ratios: median (min to max)</th><th>bars</th>
<th>rows equal</th></tr>
{% for name, parts in files.items() %}{% set link = "#file-%d" % loop.index %}{% for part in parts %}
{% if part.document %}{% set document = part.document %}
<tr><td>{{ document.workload }}</td>
<td><a href="{{ link }}">{{ name }}</a>{% if part.name %}<div class="note">{{ part.name }}</div>{% endif %}</td>
<td>{{ document.sizes | join(" / ") }}</td>
<td>{{ document.trials }}{% if document.trials == "1" %}<div class="note">no spread</div>{% endif %}</td>
<td>{% for name, of in document.ratios.items() %}
<div>{{ name }}: {{ text(of.median) }}x ({{ text(of.min) }} to {{ text(of.max) }})</div>{% else %}none{% endfor %}</td>
<td>{% for name, bar in document.bars.items() %}
<div>{{ outcome(bar) }}: {{ name }} {{ text(bar.value) }}, {{ bar.promise }}</div>{% else %}none set{% endfor %}</td>
<td>{{ equal(document) }}</td></tr>
{% else %}
<tr><td>{{ part.name }}</td><td><a href="{{ link }}">{{ name }}</a></td>
<td colspan="5">plain figures, {{ part.note }}</td></tr>
{% endif %}{% endfor %}{% endfor %}
</table></div>
<p class="note">A ratio A/B is A's figure over B's (wall seconds unless its name says otherwise), taken trial by trial:
B0/halo above 1 means that Halo was faster; halo/oracle is how far Halo is from the limit, 1. B0 is the same app on
plain LangGraph at its best concurrency, B7 a hand-written asyncio program, B8 plain AutoGen; the oracle knows all calls
beforehand, waits for nothing and sends each distinct one once. With one trial, median, min and max are one measurement:
nothing is known of the spread. Files may come from different builds and machines: compare within a section, not
across.</p>
{% for name, parts in files.items() %}
<section id="file-{{ loop.index }}">
<h2>{{ name }}</h2>
{% for part in parts %}
{% if part.document %}{% set document = part.document %}
<h3>{% if part.name %}{{ part.name }}: {% endif %}{{ document.workload }}</h3>
<p>Rows: {{ document.sizes | join(" / ") }}. Trials of each system: {{ document.trials }}.
Layout: {{ document.layout or "not said" }}.</p>
{% if document.sizes | length > 1 %}<p class="note">Runs have different numbers of rows: compare their wall seconds
per row.</p>{% endif %}
{% for drawn in plots(document) %}{{ drawn }}
{% else %}<p>No runs.</p>{% endfor %}
{% if document.groups %}<p class="note">Bar: median; dots: single trials; figures: median (min to max).</p>{% endif %}
<div class="beside">
{% if document.ratios %}
<table><caption>Ratios</caption><tr><th></th><th>median</th><th>min</th><th>max</th></tr>
{% for name, of in document.ratios.items() %}
<tr><th>{{ name }}</th><td>{{ text(of.median) }}x</td><td>{{ text(of.min) }}x</td><td>{{ text(of.max) }}x</td></tr>
{% endfor %}</table>
{% endif %}
{% if document.bars %}
<table><caption>Bars</caption><tr><th></th><th>measured</th><th>promised</th><th></th></tr>
{% for name, bar in document.bars.items() %}
<tr><th>{{ name }}</th><td>{{ text(bar.value) }}</td><td>{{ bar.promise }}</td><td>{{ outcome(bar) }}</td></tr>
{% endfor %}</table>
{% endif %}
<table><caption>Rows equal to Halo's</caption><tr><td>{{ equal(document) }}</td></tr></table>
</div>
<div class="wide"><table class="runs"><caption>Runs</caption>
{% for line in document.run_table %}{% set cell = "th" if loop.first else "td" %}
<tr>{% for value in line %}<{{ cell }}>{{ value }}</{{ cell }}>{% endfor %}</tr>
{% endfor %}</table></div>
<div class="beside">{{ pairs("Machine", document.machine) }}{{ pairs("Versions", document.versions) }}
{{ pairs("Settings and notes", document.other_fields) }}</div>
{% else %}
<p class="note">Plain figures, {{ part.note }}.</p>
{{ pairs(part.name or "Figures", part.figures) }}
{% endif %}{% endfor %}
</section>
{% endfor %}
{% if unreadable %}
<section id="unreadable">
<h2>Unreadable</h2>
{{ pairs("Not shown above", unreadable) }}
</section>
{% endif %}
</body>
</html>
"""


def render(files: dict[str, list[Part]], unreadable: dict[str, str]) -> str:
    """The page of all files by name, and of those that cannot be shown, with the reason."""
    documents = [part.document for parts in files.values() for part in parts if part.document]
    held = [bar.held for document in documents for bar in document.bars.values()]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(text=text, plots=plots)
    return environment.from_string(PAGE).render(
        files=files, documents=documents, held=held.count(True), missed=held.count(False), unreadable=unreadable
    )


def main(
    results: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the JSON files are.", show_default="benchmarks/results")
    ] = RESULTS,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page.", show_default="FOLDER/report.html")
    ] = None,
) -> None:
    """All result files as one HTML page with plots."""
    paths = sorted(results.rglob("*.json"))
    if not paths:
        raise ConfigError(f"{results} is no folder with JSON files in it: write some with halo bench NAME --json FILE")
    files: dict[str, list[Part]] = {}
    unreadable: dict[str, str] = {}
    for path in paths:
        name = path.relative_to(results).as_posix()
        try:
            files[name] = read(path)
        except (ValueError, OSError) as error:
            unreadable[name] = str(error)
            typer.echo(f"warning: {path} is unreadable: {error}", err=True)
    page = output or results / "report.html"
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(files, unreadable), "utf-8", errors="replace")  # JSON can hold what UTF-8 cannot
    except OSError as error:
        raise ConfigError(f"the page cannot be written: {error}") from error
    typer.echo(f"{page}: {len(files)} files" + (f", {len(unreadable)} unreadable" if unreadable else ""))
