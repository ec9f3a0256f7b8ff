"""``alknet version``."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed

import click

from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, say

__all__ = ["version"]

# Those that a bug report should name.
LIBRARIES = ("aioquic", "cryptography", "msgspec", "pyOpenSSL", "trio")


@click.command(cls=Command, examples=["alknet version", "alknet version --json"])
def version() -> None:
    """Print the version of alknet, of Python and of the libraries that matter."""
    libraries = {name: installed(name) for name in LIBRARIES}
    if is_json():
        found = {"version": installed("alknet"), "python": platform.python_version()}
        emit({**found, "libraries": libraries})
        return
    say(f"alknet {installed('alknet')}")
    listed = ", ".join(f"{name} {number}" for name, number in libraries.items())
    say(f"Python {platform.python_version()}, {listed}")
