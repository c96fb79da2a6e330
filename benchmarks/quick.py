"""`make bench-quick`: every benchmark and workload at a small size, once. Fails on errors, never on timings.

Every workload runs with 8 rows on every system over stub servers, and one of each framework with a row or two on real
engines: those compute a few hundred prompt tokens a second on two cores, so that eight rows of everything on everything
would take hours. The demo and the review team are left to `make demo` and the tests.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.engines import STUBS
from benchmarks.workloads.catalog import NAMES
from benchmarks.workloads.systems import SYSTEMS

ALL = ["--against", ",".join(SYSTEMS), "--distinct", "paper", "--trials", "1", "--max-concurrency", "none"]
SMALL = [*ALL, "--tokens", "4", "--latency-scale", "0.02", "--scale", "0.05"]
TEAM = ["--against", "B8,oracle", "--trials", "1", "--tokens", "4", "--repeats", "half", "--b8-concurrency", "none"]
RUNS = (
    ("consolidate", ["--rows", "5000", "--rows", "10000", "--trials", "1"]),
    ("overhead", ["--rows", "500", "--baseline-rows", "100", "--trials", "1"]),
    ("autogen-overhead", ["--rows", "100", "--baseline-rows", "30", "--trials", "1"]),
    ("workloads.bench", [*NAMES, "--rows", "8", "--layout", STUBS, *SMALL]),
    ("workloads.bench", ["W5", "--rows", "8", "--layout", STUBS, "--sync", *SMALL]),
    ("autogen-review", ["parallel", "--rows", "8", "--layout", STUBS, *TEAM]),
    ("autogen-review", ["debate", "--rows", "2", *TEAM]),
    ("workloads.bench", ["W4", "--rows", "1", *SMALL]),
)


def main() -> None:
    """Run them one after the other; a benchmark that fails ends the run with its exit status."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in RUNS:
            began = time.perf_counter()
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", f"benchmarks.{name.replace('-', '_')}", *arguments, "--json", str(out)]
            status = subprocess.run(command, check=False).returncode
            if status or not out.is_file():
                raise SystemExit(f"benchmark {name} failed (exit {status}): {' '.join(command)}")
            console.print(f"{name} {arguments[0]}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
