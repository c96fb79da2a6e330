"""The checker's tools: pure functions over a small file."""

from __future__ import annotations

import json
from pathlib import Path

import halo_core

GLOSSARY: dict[str, str] = json.loads((Path(__file__).parent / "glossary.json").read_text("utf-8"))


@halo_core.tool(effect="pure")
def look_up(term: str) -> str:
    """The meaning of one of Lantern's terms."""
    meaning = GLOSSARY.get(term.strip().lower())
    return f"{term}: {meaning}" if meaning else f"{term} is not in the glossary"


@halo_core.tool(effect="pure")
def count_words(text: str) -> int:
    """The number of words of a text."""
    return len(text.split())
