"""Benchmarks: each ``bench_<what>`` compares alknet with a peer in one run on one machine."""
