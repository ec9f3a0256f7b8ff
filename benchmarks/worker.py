"""The process that `benchmarks.workers` starts: ``CORE MODULE OPTION server|client``.

It pins itself before a peer's library can start threads, then does what lines of JSON on its
standard input say, until that ends. A peer's module has ``RUNTIME`` (``trio`` or ``asyncio``),
``serve(directory, option)`` and ``dial(address, option)``, both async context managers: the first
yields the address for the second, the second a `benchmarks.driver.Link`.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys

from benchmarks.driver import Client, Server


def main() -> None:
    core, module, option, role = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    runtime = importlib.import_module(f"benchmarks.peers.on_{peer.RUNTIME}")
    target: Server | Client
    if role == "server":
        target = Server(lambda directory: peer.serve(directory, option))
    else:
        target = Client(lambda address: peer.dial(address, option))
    runtime.run(target)


if __name__ == "__main__":
    main()
