"""`make bench-quick`: every benchmark at a small size, once. Fails on errors, never on timings."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

RUNS = (
    ("consolidate", ["--rows", "5000", "--rows", "10000", "--trials", "1"]),
    ("overhead", ["--rows", "500", "--baseline-rows", "100", "--trials", "1"]),
    ("autogen-overhead", ["--rows", "100", "--baseline-rows", "30", "--trials", "1"]),
    ("demo", ["--rows", "8", "--trials", "1", "--layout", "2x1", "--repeats", "half"]),
    ("autogen-review", ["--rows", "4", "--trials", "1", "--repeats", "half"]),
    ("workloads.bench", ["W5", "--rows", "3", "--trials", "1", "--against", "B0,B7,oracle"]),
    ("workloads.bench", ["W6", "--rows", "3", "--trials", "1", "--against", "B0,B7,oracle"]),
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
            console.print(f"{name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
