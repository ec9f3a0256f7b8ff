"""A node whose memory may be read by its parent: as `alknet up`, without the hardening.

``python -m tests.vault.memory.node HOME`` runs until its standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from alknet.core.address import Address
from alknet.node import Node


async def main(home: Path) -> None:
    async with Node.from_home(home, listen=[Address("127.0.0.1", 0)]):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
