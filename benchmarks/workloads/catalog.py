"""Every workload by its name, with the data that its tools look into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from benchmarks.workloads import imdb, tool_server, tpch, w1, w2, w3, w4, w5, w6, wiki
from benchmarks.workloads.primitives import PRIMITIVES
from benchmarks.workloads.shape import Workload
from benchmarks.workloads.toolbox import Toolbox

TOOLED: dict[str, tuple[Callable[[Toolbox], Workload], ModuleType]] = {
    "W1": (w1.workload, imdb),
    "W2": (w2.workload, imdb),
    "W3": (w3.workload, wiki),
    "W4": (w4.workload, wiki),
    "W5": (w5.workload, tpch),
    "W6": (w6.workload, tpch),
}
"""Name -> the workload and its data: `database()`, QUERIES, and the HTTP tools' mean latency MEAN_S."""

NAMES = (*TOOLED, *PRIMITIVES)


def repeats(name: str) -> bool:
    """Whether the source of the workload has equal rows, so that a variant without them differs."""
    return name in ("W5", "W6") or name.endswith("-doc")


@contextmanager
def opened(name: str, *, latency_scale: float, scale: float) -> Iterator[Workload]:
    """The workload, its database filled and its tool server running.

    latency_scale: factor on the HTTP tools' latency.
    scale: factor on the lengths of the primitives' texts.
    """
    if name in PRIMITIVES:
        yield PRIMITIVES[name](scale)
        return
    make, data = TOOLED[name]
    with tool_server.running(data, latency_scale) as address:
        tools = Toolbox(str(data.database()), address, data.QUERIES)
        try:
            yield make(tools)
        finally:
            tools.close()
