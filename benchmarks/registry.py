"""What `halo bench NAME` can run."""

BENCHMARKS = {
    "demo": "benchmarks.demo:main",
    "overhead": "benchmarks.overhead:main",
    "autogen-overhead": "benchmarks.autogen_overhead:main",
    "autogen-review": "benchmarks.autogen_review:main",
    "consolidate": "benchmarks.consolidate:main",
}
