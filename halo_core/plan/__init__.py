"""The plan: an agent workflow as operators, edges and facts, and the consolidation of a batch over it."""

from halo_core.plan.consolidation import SKIPPED, ConsolidatedPlan, InstanceClass, InstanceCount, consolidate
from halo_core.plan.edges import END, START, Barrier, Edge, Exit, Guard, StateKey
from halo_core.plan.facts import Constant, EqualCalls, Fact, SharedPrefix, Unread
from halo_core.plan.graph import close_loops, critical_path
from halo_core.plan.operators import (
    AdvisedCall,
    AdvisedTool,
    Effect,
    Join,
    LLMOperator,
    Loop,
    OpaqueStep,
    Operator,
    Route,
    Sampling,
    Source,
    ToolOperator,
    ToolSchema,
    effect_of,
)
from halo_core.plan.overlap import Start, starts
from halo_core.plan.plan import Plan
from halo_core.plan.prompt import LiteralText, Message, MessagesSlot, PromptTemplate, Segment, Slot
from halo_core.plan.text import to_text

__all__ = [
    "END",
    "SKIPPED",
    "START",
    "AdvisedCall",
    "AdvisedTool",
    "Barrier",
    "ConsolidatedPlan",
    "Constant",
    "Edge",
    "Effect",
    "EqualCalls",
    "Exit",
    "Fact",
    "Guard",
    "InstanceClass",
    "InstanceCount",
    "Join",
    "LLMOperator",
    "LiteralText",
    "Loop",
    "Message",
    "MessagesSlot",
    "OpaqueStep",
    "Operator",
    "Plan",
    "PromptTemplate",
    "Route",
    "Sampling",
    "Segment",
    "SharedPrefix",
    "Slot",
    "Source",
    "Start",
    "StateKey",
    "ToolOperator",
    "ToolSchema",
    "Unread",
    "close_loops",
    "consolidate",
    "critical_path",
    "effect_of",
    "starts",
    "to_text",
]
