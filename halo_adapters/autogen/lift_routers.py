"""The teams in which a model chooses who speaks next: selector and Magentic-One."""

from __future__ import annotations

import re
from string import Formatter
from typing import Any

from autogen_agentchat.teams._group_chat._magentic_one._prompts import ORCHESTRATOR_TASK_LEDGER_FACTS_PROMPT
from autogen_core.models import ModelFamily

from halo_adapters.autogen.lift_agents import KEYS
from halo_adapters.autogen.lift_code import described
from halo_adapters.autogen.lift_models import model_info, model_use
from halo_adapters.autogen.lift_wiring import Wiring
from halo_core.plan import (
    AdvisedCall,
    Edge,
    Effect,
    Exit,
    Guard,
    LiteralText,
    LLMOperator,
    Message,
    OpaqueStep,
    Operator,
    PromptTemplate,
    Route,
    Slot,
    Source,
    StateKey,
)

SPEAKER = StateKey(name="speaker", input=False)
"""Whom a selector chose last."""


def selector(team: Any) -> Wiring:
    """A router that chooses the next speaker before each turn: a model's call, or a function of the user's."""
    w = Wiring(team)
    router, decides = _router(w)
    w.state.append(SPEAKER)
    w.operators += router
    w.entry = [w.manager]
    w.add(w.names)
    for name in w.names:
        w.edges.append(Edge(source=decides, target=name, guard=Guard(branch=decides, label=name)))
    for name in w.names:
        if w.ends.turns != 1:
            w.link(name, w.manager, may=w.ends.early or w.ends.turns is not None)
        if w.ends.early or w.ends.turns is not None:
            w.leave(name, may=w.ends.early and w.ends.turns != 1)
    w.close(w.ends.turns)
    return w


def _router(w: Wiring) -> tuple[list[Operator], str]:
    """The router's operators, and the one of them that decides."""
    own = w.own
    use = model_use(own["_model_client"])
    functions = [own[key] for key in ("_selector_func", "_candidate_func") if own[key] is not None]
    prompt = _selector_prompt(w)
    attempts = own["_max_selector_attempts"]
    # Of two speakers who must take turns, the second is no question.
    asked = len(w.names) > 2 or own["_allow_repeated_speaker"]
    if use.name and prompt is not None and asked and not functions:
        call = LLMOperator(
            name=w.manager,
            reads=(*KEYS, SPEAKER.name),
            writes=(SPEAKER.name,),
            model=use.name,
            prompt=prompt,
            sampling=use.sampling,
            response_format=use.response_format,
            source=Source(framework="autogen", retries=attempts if attempts > 1 else None),
        )
        route = Route(
            name=w.unique(f"after:{w.manager}"),
            reads=(SPEAKER.name,),
            labels=tuple(w.names),
            deterministic=True,
            source=Source(framework="autogen"),
        )
        w.edges.append(Edge(source=call.name, target=route.name))
        return [call, route], route.name
    code = ", ".join(map(described, functions))
    step = OpaqueStep(
        name=w.manager,
        reads=(*KEYS, SPEAKER.name),
        writes=(SPEAKER.name,),
        effect=Effect.WRITE if functions else Effect.PURE,
        advised_calls=(use.advised("model_client", prompt),),
        source=Source(framework="autogen", code=code, retries=attempts if attempts > 1 else None),
    )
    return [step], step.name


def _selector_prompt(w: Wiring) -> PromptTemplate | None:
    """The selector's prompt; None where it is more than text around the known fields."""
    segments: list[LiteralText | Slot] = []
    fixed = {"roles": _roles(w)}
    if w.own["_allow_repeated_speaker"] and w.own["_candidate_func"] is None:
        fixed["participants"] = str(w.names)
    pending = ""
    try:
        for literal, name, spec, conversion in Formatter().parse(w.own["_selector_prompt"]):
            pending += literal
            if name is None:
                continue
            if spec or conversion or name not in ("roles", "participants", "history"):
                return None
            if name in fixed:
                pending += fixed[name]
                continue
            paths = KEYS if name == "history" else (f"{SPEAKER.name}.candidates",)
            segments += [LiteralText(text=pending)] if pending else []
            segments += [Slot(path=path) for path in paths]
            pending = ""
    except ValueError:
        return None
    segments += [LiteralText(text=pending)] if pending else []
    family = str(model_info(w.own["_model_client"]).get("family", ""))
    role = "system" if ModelFamily.is_openai(family) else "user"
    return PromptTemplate(parts=(Message(role=role, segments=tuple(segments)),))


def _roles(w: Wiring) -> str:
    descriptions = w.own["_participant_descriptions"]
    lines = (re.sub(r"\s+", " ", f"{n}: {d}").strip() for n, d in zip(w.names, descriptions, strict=True))
    return "\n".join(lines)


def magentic(team: Any) -> Wiring:
    """An orchestrator that plans, asks one participant at a time, and ends the run with an answer of its own."""
    w = Wiring(team, relayed=False)
    w.ends = w.ends.or_when("on the orchestrator's answer")
    use = model_use(w.own["_model_client"])
    facts = PromptTemplate.chat([("user", ORCHESTRATOR_TASK_LEDGER_FACTS_PROMPT)])
    calls: tuple[AdvisedCall, ...] = (
        use.advised("facts", facts),
        use.advised("plan"),
        use.advised("progress, before each turn"),
        use.advised("final answer"),
    )
    w.operators.append(
        OpaqueStep(
            name=w.manager,
            reads=KEYS,
            writes=("messages",),
            effect=Effect.PURE,
            advised_calls=calls,
            source=Source(framework="autogen", hints={"stalls": w.own["_max_stalls"]}),
        )
    )
    w.entry = [w.manager]
    w.add(w.names)
    w.exits.append(Exit(source=w.manager, may=True))
    stops = w.own["_termination_condition"] is not None
    for name in w.names:
        w.edges.append(Edge(source=w.manager, target=name, may=True))
        w.link(name, w.manager, may=stops)
        if stops:
            w.leave(name, may=True)
    # The orchestrator looks at its bound before it counts the round.
    rounds, turns = w.own["_max_turns"], w.ends.turns
    w.close(turns + 1 if turns is not None and turns == rounds else turns)
    return w
