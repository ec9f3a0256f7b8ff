"""``alknet init``: a home with a key and a config file, whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json, the_home
from alknet.cli.output import emit, fields, note, paint, say
from alknet.core.home import CONFIG_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["init"]

STDIN = Path("-")
WORDS_PER_LINE = 6
# How often a person may mistype the words before we stop asking.
TRIES = 3


@click.command(
    cls=Command,
    examples=[
        "alknet init                                   words on the terminal, to write down",
        "alknet init --words-file words.txt            words to a new file that only you can read",
        "alknet init --restore                         asks for the words, without echo",
        "alknet init --restore --words-file words.txt  reads them from a file",
    ],
)
@click.option(
    "--words-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the words to a new file of mode 0600; with --restore, read them from there "
    "('-': standard input).",
)
@click.option("--restore", is_flag=True, help="Take the key from words that you have.")
def init(words_file: Path | None, restore: bool) -> None:
    """Create this node: a new key from 24 words, and a config file.

    The words are the only way to get the key back on another machine. They are shown once, on a
    terminal; they are never printed into a pipe, unless --json asks for them there (then the
    object has a field "words") or --words-file names a file. A home that has a key is left alone.
    Interrupted at any point, nothing is left behind.
    """
    from alknet.vault.derive import identity_key

    home = the_home()
    _refuse_existing(home)
    if restore:
        words = _read_words(words_file)
        key = identity_key(words)
        _commit(home, key)
        _report(home, key, words=None, words_file=None)
        return
    words = _new_words(words_file)
    key = identity_key(words)
    if words_file is not None:
        _commit(home, key, words=words, words_file=words_file.absolute())
        _report(home, key, words=None, words_file=words_file)
    elif is_json():
        # First, for a node whose words went to a full disk could never be restored.
        _report(home, key, words=words, words_file=None)
        _commit(home, key)
    else:
        _show(words)
        _commit(home, key)
        _report(home, key, words=None, words_file=None)


def _refuse_existing(home: Path) -> None:
    from alknet.vault.keyfile import KEY_FILE

    if (home / KEY_FILE).exists():
        raise CommandError(
            "CONFLICT",
            f"{home} holds a node already, its key is never replaced",
            hint="'alknet id' shows it; --home DIR makes another node elsewhere",
        )


def _new_words(words_file: Path | None) -> str:
    from alknet.vault.words import generate_words

    if words_file is None and not is_json() and not sys.stdout.isatty():
        raise click.UsageError(
            "the words would go into a pipe or file: name one with --words-file, or ask for --json"
        )
    if words_file == STDIN:
        raise click.BadParameter("name a new file", param_hint="--words-file")
    if words_file is not None and (words_file.exists() or words_file.is_symlink()):
        raise click.BadParameter(
            "the file exists, it is not overwritten", param_hint="--words-file"
        )
    return generate_words()


def _read_words(words_file: Path | None) -> str:
    from alknet.vault.words import check_words

    if words_file is not None and words_file != STDIN:
        # What is no text holds none of the words, whatever it decodes to.
        return check_words(words_file.read_text(encoding="utf-8", errors="replace"))
    if words_file == STDIN or not sys.stdin.isatty():
        return check_words(sys.stdin.read())
    return _ask_words()


def _ask_words() -> str:
    from alknet.errors import LocalError
    from alknet.vault.words import check_words

    note("Type or paste the words, on one line or several; an empty line ends them.")
    note("Nothing is shown while you type. Ctrl-C leaves everything as it is.")
    for tries_left in range(TRIES - 1, -1, -1):
        try:
            return check_words(_ask_lines())
        except LocalError as exc:
            if not tries_left:
                raise
            note(f"{exc}. Once more:")
    raise AssertionError("unreachable")


def _ask_lines() -> str:
    import getpass

    words: list[str] = []
    while len(words) < 24:
        line = getpass.getpass("words: " if not words else f"words ({len(words)} so far): ")
        if not line.strip():
            break
        words += line.split()
    return " ".join(words)


def _show(words: str) -> None:
    listed = words.split()
    say(paint("These 24 words restore your node. They are shown only now.", bold=True))
    say("Write them down, in order, and keep them where neither fire nor thieves come.")
    say()
    for start in range(0, len(listed), WORDS_PER_LINE):
        row = enumerate(listed[start : start + WORDS_PER_LINE], start=start + 1)
        say("  ".join(f"{number:>2} {word:<8}" for number, word in row).rstrip())
    say()
    if sys.stdin.isatty():
        click.prompt(
            "Press Enter when you have them, Ctrl-C to make nothing",
            default="",
            show_default=False,
            prompt_suffix=". ",
        )


def _commit(
    home: Path, key: Ed25519PrivateKey, *, words: str = "", words_file: Path | None = None
) -> None:
    """Make the home, and the file of words before it; both or none."""
    from alknet.cli.running import uninterrupted
    from alknet.vault.durable import store_errors, sync_directory, write_private

    with uninterrupted():
        if words_file is not None:
            with store_errors(f"cannot write {words_file}"):
                write_private(words_file, words.encode() + b"\n")
        try:
            if words_file is not None:
                with store_errors(f"cannot write {words_file}"):
                    sync_directory(words_file.parent)  # no key lasts without its words
            with store_errors(f"cannot create {home}"):
                _make_home(home, key)
        except BaseException:
            if words_file is not None:
                words_file.unlink(missing_ok=True)
            raise


def _make_home(home: Path, key: Ed25519PrivateKey) -> None:
    from alknet.vault.keyfile import create_home

    if home.exists() or home.is_symlink():
        create_home(home)  # checks that it is ours and private
        _fill(home, key)
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    building = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    try:
        create_home(building)
        _fill(building, key)
        building.rename(home)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(building)
    _flush(home.parent)


def _fill(home: Path, key: Ed25519PrivateKey) -> None:
    """Write config and key; the key comes last, for a home with a key is a finished one."""
    from alknet.core.config import default_config_text
    from alknet.vault.durable import write_private
    from alknet.vault.keyfile import write_key

    config = home / CONFIG_FILE
    is_new = not config.exists()
    try:
        if is_new:
            write_private(config, default_config_text().encode())
        write_key(home, key)
    except BaseException:
        if is_new:
            config.unlink(missing_ok=True)
        raise


def _flush(directory: Path) -> None:
    from alknet.vault.durable import sync_directory

    sync_directory(directory)


def _report(
    home: Path, key: Ed25519PrivateKey, *, words: str | None, words_file: Path | None
) -> None:
    from alknet.core.nodeid import NodeId

    node_id = NodeId.from_public_key(key.public_key())
    if is_json():
        made: dict[str, object] = {
            "id": str(node_id),
            "fingerprint": node_id.fingerprint,
            "home": str(home),
            "config": str(home / CONFIG_FILE),
        }
        if words is not None:
            made["words"] = words
        if words_file is not None:
            made["words_file"] = str(words_file.absolute())
        emit(made)
        return
    rows: dict[str, object] = {"id": node_id, "home": home, "config": home / CONFIG_FILE}
    if words_file is not None:
        rows["words"] = words_file.absolute()
    fields(rows)
    say("Run it with 'alknet up'.")
