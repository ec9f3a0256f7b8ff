"""A node whose memory may be read by its parent: as `alknet up`, without the hardening.

``python -m tests.vault.memory.node HOME [OPTIONS of up]`` runs until it is killed; its first line
says that it is ready.
"""

from __future__ import annotations

import sys

from alknet.cli import up
from alknet.cli.app import main

if __name__ == "__main__":
    up._harden = lambda: None
    home, *options = sys.argv[1:]
    main(["--home", home, "up", "--listen", "127.0.0.1:0", "--json", *options])
