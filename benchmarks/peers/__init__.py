"""Who is measured, one module a peer, each run in processes of its own by `benchmarks.worker`."""
