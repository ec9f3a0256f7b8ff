"""Run every benchmark: ``python -m benchmarks [--quick] [--json FILE]``."""

from __future__ import annotations

from benchmarks import bench_call

if __name__ == "__main__":
    bench_call.main()
