"""What went through Halo in a run, told by the plugins inside the test processes to the harness outside."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "HALO_CONFORMANCE_ROUTING"
"""Names the file that the counts go to."""


def tell(counts: Mapping[str, int]) -> None:
    """Add this process's counts; each of pytest-xdist's workers adds its own line."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(counts) + "\n")


def read(path: Path) -> dict[str, int]:
    """The sums over all processes; empty where none told anything."""
    counts: Counter[str] = Counter()
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            counts.update(json.loads(line))
    return dict(counts)
