"""What `halo bench NAME` can run."""

BENCHMARKS = {
    "demo": "benchmarks.demo:main",
    "overhead": "benchmarks.overhead:main",
    "autogen-overhead": "benchmarks.autogen_overhead:main",
    "autogen-review": "benchmarks.autogen_review:main",
    "W5": "benchmarks.workloads.bench:run_w5",
    "W6": "benchmarks.workloads.bench:run_w6",
    "consolidate": "benchmarks.consolidate:main",
    "report": "benchmarks.report:main",
}
