"""The other module of the `helper in another module` pattern: nodes see only `ask`."""

from __future__ import annotations

from tests.langgraph.patterns.pattern import Place


def ask(place: Place, question: str) -> str:
    """Make a model, here and now, and ask it."""
    return str(place.model().invoke(question).content)
