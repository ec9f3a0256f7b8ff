"""docs/reference/cli.md: the help of every command."""

from __future__ import annotations

from collections.abc import Iterator

import click

from alknet.cli.app import cli
from tests.docs.pages.markdown import GENERATED

__all__ = ["page"]

WIDTH = 96


def page() -> str:
    """Return the page."""
    return f"""{GENERATED}
# Commands

What `alknet COMMAND --help` says. Exit statuses are in [errors.md](errors.md), formats that
scripts rely on in [the section below](#formats-for-scripts).

{"".join(_sections())}## Formats for scripts

With `--json`, a command prints one JSON value on one line; errors are one line on standard error,
`{{"error": {{"code": …, "message": …}}}}`. These do not change within a major version:

| command | prints |
| --- | --- |
| `alknet id --json` | `id` (z-base-32), `fingerprint`, `ticket` |
| `alknet up --json` | a line per event; the first is `ready`, with `id`, `ticket` and `listen` |
| `alknet token create NAME --json` | `token`, `prefix`, `expires_at` |
| `alknet call … --json` | the output alone; of a subscription, a line per item |
"""


def _sections() -> Iterator[str]:
    for words, command in _commands(cli, ("alknet",)):
        context = click.Context(
            command, info_name=" ".join(words), terminal_width=WIDTH, **command.context_settings
        )
        level = "##" if len(words) <= 2 else "###"
        yield f"{level} {' '.join(words)}\n\n```text\n{command.get_help(context).rstrip()}\n```\n\n"


def _commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words[-1])
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, (*words, name))
