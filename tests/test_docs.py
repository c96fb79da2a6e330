"""Documentation is executed: the Python blocks of each page run in order, against a simulated engine."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import halo_adapters.langgraph as halo
from halo_adapters.autogen import intercept
from halo_core.pool import EnginePool, SimulatedSpec

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def simulated() -> Iterator[EnginePool]:
    pool = halo.configure(halo.PoolConfig(models={"*": "sim"}, engines=(SimulatedSpec(model="sim"),)))
    yield pool
    pool.close()
    halo.uninstall()
    intercept.uninstall()


def pages() -> list[str]:
    return sorted(page.name for page in DOCS.glob("*.md") if BLOCK.search(page.read_text("utf-8")))


@pytest.mark.parametrize("name", pages())
def test_the_code_on_the_page_runs(name: str, simulated: EnginePool) -> None:
    blocks = BLOCK.findall((DOCS / name).read_text("utf-8"))
    scope: dict[str, Any] = {"__name__": f"docs_{name.removesuffix('.md')}"}
    for number, block in enumerate(blocks):
        file = f"{name}, block {number}"
        linecache.cache[file] = (len(block), None, block.splitlines(keepends=True), file)  # as if it were a file
        exec(compile(block, file, "exec", dont_inherit=True), scope)
    assert {"app", "team"} & scope.keys()  # every page builds one
    assert sum(engine.counters.calls for engine in simulated.group("sim").engines)  # and calls the model


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
