"""The plan as a Mermaid flowchart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halo_core.plan.edges import END, START, Edge
from halo_core.plan.graph import framed_graph
from halo_core.plan.operators import LLMOperator, Loop, OpaqueStep, Operator, Route, ToolOperator

if TYPE_CHECKING:
    from halo_core.plan.plan import Plan


def to_mermaid(plan: Plan) -> str:
    """The plan as a flowchart: loops as subgraphs, guards as labels, `may` edges dotted, barriers as comments."""
    graph = framed_graph(plan)
    ids = {name: f"n{i}" for i, name in enumerate(graph)}
    lines = ["flowchart TD"]
    for barrier in plan.barriers:
        comment = f"barrier: {', '.join(barrier.after)} | {', '.join(barrier.before)} ({barrier.reason})"
        lines.append("  %% " + " ".join(comment.split()))
    lines += [f"  {ids[name]}{_shape(plan, name)}" for name in graph]
    # Innermost first: Mermaid keeps a node in the first subgraph that names it.
    loops = sorted((o for o in plan.operators if isinstance(o, Loop)), key=lambda loop: len(loop.body))
    for i, loop in enumerate(loops):
        bound = "" if loop.bound is None else f", at most {loop.bound}"
        lines.append(f"  subgraph l{i}[{_quote(loop.name + bound)}]")
        lines += [f"    {ids[name]}" for name in loop.body]
        lines.append("  end")
    for source, target, edges in graph.edges(data="edges"):
        lines += [f"  {ids[source]} {_arrow(edge)} {ids[target]}" for edge in edges]
    return "\n".join(lines)


def _shape(plan: Plan, name: str) -> str:
    if name in (START, END):
        return f"([{_quote('START' if name == START else 'END')}])"
    operator = plan[name]
    label = _quote(_label(operator))
    if isinstance(operator, LLMOperator):
        return f"({label})"
    if isinstance(operator, ToolOperator):
        return f"[/{label}/]"
    if isinstance(operator, Route):
        return f"{{{label}}}"
    if isinstance(operator, OpaqueStep):
        return f"[{label}]"
    return f"(({label}))"


def _label(operator: Operator) -> str:
    if isinstance(operator, LLMOperator):
        return f"{operator.name}\nllm {operator.model}"
    if isinstance(operator, ToolOperator):
        return f"{operator.name}\ntool {operator.tool} ({operator.effect})"
    return f"{operator.name}\n{operator.kind}"


def _arrow(edge: Edge) -> str:
    marks = [edge.guard.label] if edge.guard else []
    marks += ["each"] if edge.fan_out else []
    line = "-.->" if edge.may else "-->"
    return f"{line}|{_quote(' '.join(marks))}|" if marks else line


def _quote(text: str) -> str:
    """A Mermaid string: characters that its grammar or HTML would read are written as entity codes."""
    codes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "|": "#124;"}
    return '"' + "".join(codes.get(c, c) for c in text).replace("\n", "<br>") + '"'
