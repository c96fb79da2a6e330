"""Lifting: a compiled graph as a plan, read from its builder (never `get_graph()`, which can raise on legal graphs).

Nothing of the user's runs. What only running tells stays open: opaque steps, `may` edges, unknown labels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, get_origin

from langgraph.channels import BinaryOperatorAggregate, LastValue
from langgraph.constants import START
from langgraph.pregel import Pregel

from halo_adapters.langgraph.inventory import NodeInventory, inventory
from halo_adapters.langgraph.lift_edges import Wiring
from halo_adapters.langgraph.lift_nodes import code_of, lift_node
from halo_core.errors import HaloError, LiftError
from halo_core.lift import barriers
from halo_core.plan import OpaqueStep, Operator, Plan, Source, StateKey, close_loops

_COMMUTATIVE = {
    ("_operator", "add"): (int,),
    ("_operator", "mul"): (int,),
    ("_operator", "or_"): (int, bool, set, frozenset),
    ("_operator", "and_"): (int, bool, set, frozenset),
    ("builtins", "max"): (int, float),
    ("builtins", "min"): (int, float),
}
"""Reducers whose value does not depend on the order of the writes, with the types for which that is so."""


def lift(app: Pregel[Any, Any, Any, Any], *, name: str | None = None) -> Plan:
    """The plan of a compiled graph. A graph without a builder (`@entrypoint`) becomes one opaque step.

    Raises `LiftError`, naming the node or the graph, where the graph has no well-formed plan.
    """
    title = name or app.get_name()
    builder = getattr(app, "builder", None)
    try:
        found = inventory(app)
        plan = _functional(app, title, found) if builder is None else _graph(app, builder, title, found)
    except LiftError:
        raise
    except Exception as error:  # whatever a graph holds, it must still be able to run
        what = str(error) if isinstance(error, HaloError) else f"{type(error).__name__}: {error}"
        raise LiftError(f"graph {title!r} has no plan ({what}); it runs as before, without one") from error
    digest = blake2b(plan.to_json().encode(), digest_size=16)
    for node in sorted(found):
        for part in found[node].digests:
            digest.update(len(part).to_bytes(4, "little") + part)
    return plan.model_copy(update={"fingerprint": digest.hexdigest()})


def _functional(app: Pregel[Any, Any, Any, Any], title: str, found: Mapping[str, NodeInventory]) -> Plan:
    calls = tuple(model.advised() for inside in found.values() for model in inside.models)
    code = ", ".join(code_of(node.bound) for node in app.nodes.values())
    name = next(iter(app.nodes)) if len(app.nodes) == 1 else title
    step = OpaqueStep(name=name, source=Source(framework="langgraph", code=code), advised_calls=calls)
    return Plan(name=title, operators=(step,), entry=(name,), exits=(name,))  # type: ignore[arg-type]


def _graph(app: Pregel[Any, Any, Any, Any], builder: Any, title: str, found: Mapping[str, NodeInventory]) -> Plan:
    state = state_keys(builder)
    keys = [key.name for key in state]
    steps: list[Operator] = []
    for name, spec in builder.nodes.items():
        reads = tuple(key for key in builder.schemas.get(spec.input_schema, keys) if key in keys)
        try:
            steps.append(lift_node(name, spec, found[name], reads, keys))
        except Exception as error:
            raise LiftError(
                f"node {name!r} of graph {title!r} has no operator ({type(error).__name__}: {error}); the graph runs "
                "as before, without a plan"
            ) from error
    wiring = Wiring(builder, found, keys)
    operators = close_loops([*steps, *wiring.operators], wiring.edges)
    plan = Plan(
        name=title,
        operators=operators,
        edges=tuple(wiring.edges),
        entry=tuple(wiring.entry),
        exits=tuple(wiring.exits),
        state=state,
        output=_output(app, builder),
    )
    return plan.model_copy(update={"barriers": barriers(plan)})


def _output(app: Pregel[Any, Any, Any, Any], builder: Any) -> tuple[str, ...] | None:
    """The keys that the output schema leaves; None for all. A saved thread shows all of them and keeps them."""
    shown = builder.schemas.get(builder.output_schema)
    if app.checkpointer or shown is None or shown.keys() >= builder.channels.keys():
        return None
    return tuple(name for name in builder.channels if name in shown)


def state_keys(builder: Any) -> tuple[StateKey, ...]:
    """The state's keys with their reducers; a channel that does more than keep the last value counts as a reducer."""
    given = builder.schemas.get(builder.input_schema, builder.channels)
    return tuple(
        StateKey(name=name, reducer=_reducer(channel), commutative=_commutative(channel), input=name in given)
        for name, channel in builder.channels.items()
    )


def _reducer(channel: Any) -> str | None:
    if type(channel) is LastValue:
        return None
    reducer = channel.operator if isinstance(channel, BinaryOperatorAggregate) else type(channel)
    module = getattr(reducer, "__module__", "").lstrip("_")
    named = vars(sys.modules.get(getattr(reducer, "__module__", ""), sys)).items()
    public = next((name for name, value in named if value is reducer), None)  # decorators hide the function's own name
    path = public or getattr(reducer, "__qualname__", type(reducer).__qualname__)
    return path if module in ("builtins", "") else f"{module}.{path}"


def _commutative(channel: Any) -> bool:
    if not isinstance(channel, BinaryOperatorAggregate):
        return False
    reducer = (getattr(channel.operator, "__module__", ""), getattr(channel.operator, "__qualname__", ""))
    kind = channel.typ.__origin__ if get_origin(channel.typ) is Annotated else channel.typ
    return (get_origin(kind) or kind) in _COMMUTATIVE.get(reducer, ())


def nested(
    app: Pregel[Any, Any, Any, Any], found: Mapping[str, NodeInventory] | None = None
) -> Sequence[tuple[str, Pregel[Any, Any, Any, Any]]]:
    """The graphs inside the graph's nodes, each once, with the node that runs them (`outer/inner` when deeper)."""
    seen = {id(app)}
    result: list[tuple[str, Pregel[Any, Any, Any, Any]]] = []
    pending = [("", app, found if found is not None else inventory(app))]
    while pending:
        path, _, inside = pending.pop(0)
        for node, what in inside.items():
            for _, graph in what.subgraphs:
                if id(graph) in seen or node == START:
                    continue
                seen.add(id(graph))
                where = f"{path}/{node}".lstrip("/")
                result.append((where, graph))
                pending.append((where, graph, inventory(graph)))
    return result
