"""``alknet vault shares``: the words, split among people of whom some suffice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from alknet.cli.auditing import record_done
from alknet.cli.options import Group, is_json
from alknet.cli.output import emit, note, say
from alknet.cli.unlocking import make_unlock, unlock_options
from alknet.cli.vault_access import second_unlock

__all__ = ["shares"]

STDIN = Path("-")


@click.group(
    cls=Group,
    examples=[
        "alknet vault shares split --threshold 2 --count 3 --dir shares",
        "alknet vault shares combine shares/1.txt shares/3.txt --words-file words",
    ],
)
def shares() -> None:
    """Split the vault's root key into shares (SLIP-39), and make the words of enough of them.

    Give each share of 33 words to another person or place. Fewer than the threshold say nothing.
    """


@shares.command(examples=["alknet vault shares split --threshold 2 --count 3 --dir shares"])
@click.option("--threshold", type=int, required=True, metavar="N", help="So many suffice.")
@click.option("--count", type=int, required=True, metavar="N", help="Make so many, up to 16.")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write each to a new file there, 1.txt and so on, of mode 0600.",
)
@unlock_options
def split(threshold: int, count: int, directory: Path | None, **options: Any) -> None:
    """Make shares. They come from the same bytes as the 24 words, and restore the same keys.

    Needs an unlock of its own, even while the node is unlocked. Without --dir they are printed on
    a terminal, or into a pipe with --json. Shares of two splits do not go together.
    """
    import sys

    from alknet.vault.recovery import split_into_shares

    if directory is None and not is_json() and not sys.stdout.isatty():
        raise click.UsageError("the shares would go into a pipe or file: --dir, or ask for --json")
    entropy, _ = second_unlock(make_unlock(**options), "splitting")
    with entropy:
        made = split_into_shares(entropy.view, threshold=threshold, count=count)
    # Before they are shown: what was printed in part may have been seen.
    record_done(("vault.shares.split", f"{threshold} of {count}"))
    if directory is not None:
        files = _write(directory, made)
        if is_json():
            emit({"threshold": threshold, "files": [str(file.absolute()) for file in files]})
        else:
            say(f"{count} shares in {directory}; any {threshold} of them restore the keys")
    elif is_json():
        emit({"threshold": threshold, "shares": made})
    else:
        for number, share in enumerate(made, start=1):
            say(f"share {number} of {count}, {threshold} suffice:\n{share}\n")


@shares.command(examples=["alknet vault shares combine 1.txt 3.txt --words-file words"])
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
@click.option(
    "--words-file",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the 24 words to this new file, of mode 0600.",
)
def combine(files: Sequence[Path], words_file: Path) -> None:
    """Make the 24 words of enough shares; 'alknet init --restore' makes the node of them.

    A file may hold several. More than enough are as good; those of another split are not.
    """
    from alknet.vault.durable import store_errors, write_private
    from alknet.vault.recovery import combine_shares, shares_in, words_from_entropy

    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    found = [share for text in texts for share in shares_in(text) or [""]]
    with combine_shares(found) as entropy, store_errors(f"cannot write {words_file}"):
        write_private(words_file, words_from_entropy(entropy.view).encode() + b"\n")
    if is_json():
        emit({"words_file": str(words_file.absolute())})
    else:
        say(f"wrote {words_file}")
        note(f"Restore the node with 'alknet init --restore --words-file {words_file}'.")


def _write(directory: Path, made: Sequence[str]) -> list[Path]:
    from alknet.vault.durable import store_errors, write_private

    written: list[Path] = []
    with store_errors(f"cannot write into {directory}"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for number, share in enumerate(made, start=1):
                path = directory / f"{number}.txt"
                write_private(path, share.encode() + b"\n")
                written.append(path)
        except BaseException:  # boundary: passed on; a Ctrl-C leaves no half of it either
            for path in written:  # some of a split are of no use with those of the next
                path.unlink(missing_ok=True)
            raise
    return written
