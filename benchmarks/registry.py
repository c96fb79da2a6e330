"""What `halo bench NAME` can run."""

BENCHMARKS = {
    "demo": "benchmarks.demo:main",
    "overhead": "benchmarks.overhead:main",
    "consolidate": "benchmarks.consolidate:main",
}
