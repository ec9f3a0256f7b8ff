"""``alknet completion``: scripts for shells."""

from __future__ import annotations

import click

from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, say

__all__ = ["completion"]


@click.command(
    cls=Command,
    examples=[
        'eval "$(alknet completion bash)"                      in ~/.bashrc',
        'eval "$(alknet completion zsh)"                       in ~/.zshrc',
        "alknet completion fish > ~/.config/fish/completions/alknet.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete commands and options of alknet."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    maker = found(root, {}, "alknet", "_ALKNET_COMPLETE")
    # Not `source()`: that starts a bash to look at its version.
    script = maker.source_template % maker.source_vars()
    if is_json():
        emit({"shell": shell, "script": script})
    else:
        say(script)
