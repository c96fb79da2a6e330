"""Twenty-nine ways in which LangGraph applications hold and call their model."""

from tests.langgraph.patterns import agents, composing, holding, outside, shapes
from tests.langgraph.patterns.pattern import PATTERNS, Pattern, Place

__all__ = ["PATTERNS", "Pattern", "Place", "agents", "composing", "holding", "outside", "shapes"]
