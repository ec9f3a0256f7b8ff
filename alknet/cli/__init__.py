"""The command line: one module per group of commands, each loaded only when it is called."""

from alknet.cli.app import main

__all__ = ["main"]
