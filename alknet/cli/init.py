"""``alknet init``: a home with a vault and a config file, whole or not at all."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json, the_home
from alknet.cli.output import emit, fields, paint, say
from alknet.core.home import CONFIG_FILE, NODE_FILES

if TYPE_CHECKING:
    from alknet.core.nodeid import NodeId

__all__ = ["Plan", "init", "make_home"]

STDIN = Path("-")
WORDS_PER_LINE = 6


@click.command(
    cls=Command,
    examples=[
        "alknet init                                   words on the terminal, to write down",
        "alknet init --words-file words.txt            words to a new file that only you can read",
        "alknet init --restore --words-file words.txt  reads them from a file",
        "alknet init --restore --device 1              another node id of the same words",
        "alknet init --no-key-file                     opened by a passphrase, at each start",
    ],
)
@click.option(
    "--words-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the words to a new file of mode 0600; with --restore, read them from there "
    "('-': standard input).",
)
@click.option("--restore", is_flag=True, help="Take the keys from words that you have.")
@click.option(
    "--device",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    metavar="N",
    help="Be device N of the words: each has a node id of its own. By default 0.",
)
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that opens the vault, too.")
@click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Take that passphrase from the first line of FILE.",
)
@click.option(
    "--no-key-file",
    is_flag=True,
    help="Put no key file beside the vault: the passphrase is asked for at every start.",
)
def init(
    words_file: Path | None,
    restore: bool,
    device: int,
    passphrase: bool,
    passphrase_file: str | None,
    no_key_file: bool,
) -> None:
    """Create this node: a vault whose keys come from 24 words, and a config file.

    The words are the only way to get the keys back on another machine. They are shown once, on a
    terminal; they are never printed into a pipe, unless --json asks for them there (then the
    object has a field "words") or --words-file names a file. A home that has a node is left alone.
    Interrupted at any point, nothing is left behind.

    A key file beside the vault lets the node start unasked; whoever copies the whole home has its
    secrets then. With --no-key-file a passphrase protects a copy, and a restart waits for you.
    """
    from alknet.cli.words import read_words
    from alknet.vault.words import generate_words

    home = the_home()
    _refuse_existing(home)
    _check_words_file(words_file, restore)
    plan = Plan(device, _passphrase(passphrase, passphrase_file, no_key_file), not no_key_file)
    if restore:
        node_id = _commit(home, read_words(words_file), plan)
        _report(home, node_id, words=None, words_file=None)
        return
    words = generate_words()
    if words_file is not None:
        node_id = _commit(home, words, plan, words_file=words_file.absolute())
        _report(home, node_id, words=None, words_file=words_file)
    elif is_json():
        # First, for a node whose words went to a full disk could never be restored.
        _report(home, _node_id(words, plan), words=words, words_file=None)
        _commit(home, words, plan)
    else:
        _show(words)
        _report(home, _commit(home, words, plan), words=None, words_file=None)


@dataclass(frozen=True)
class Plan:
    """What opens the vault, and which of the words' nodes it is."""

    device: int = 0
    passphrase: bytearray | None = None
    has_key_file: bool = True


def _passphrase(asks: bool, file: str | None, is_needed: bool) -> bytearray | None:
    from alknet.cli.unlocking import choose_passphrase, is_terminal, read_passphrase

    if file is not None:
        return read_passphrase(file)
    if not asks and not is_needed:
        return None
    if not is_terminal():
        raise click.UsageError("there is no terminal to ask for a passphrase: --passphrase-file")
    return choose_passphrase()


def _refuse_existing(home: Path) -> None:
    if any((home / name).exists() for name in NODE_FILES):
        raise CommandError(
            "CONFLICT",
            f"{home} holds a node already, its keys are never replaced",
            hint="'alknet id' shows it; --home DIR makes another node elsewhere",
        )


def _check_words_file(words_file: Path | None, restore: bool) -> None:
    if restore:
        return
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


def _commit(home: Path, words: str, plan: Plan, *, words_file: Path | None = None) -> NodeId:
    """Make the home, and the file of words before it; both or none. Then note it."""
    from alknet.cli.auditing import record_done
    from alknet.cli.running import uninterrupted
    from alknet.errors import Conflict
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
                node_id = make_home(home, words, plan)
        except BaseException as exc:  # boundary: passed on; a Ctrl-C leaves no half of it either
            # After a conflict the home is there, of other words.
            is_made = (home / NODE_FILES[0]).exists() and not isinstance(exc, Conflict)
            if words_file is not None and not is_made:
                words_file.unlink(missing_ok=True)
            raise
    record_done(("home.init", str(node_id)))
    return node_id


def make_home(home: Path, words: str, plan: Plan = Plan()) -> NodeId:
    """Make the home of a node and return its id; the home appears whole, or not at all."""
    from alknet.vault.building import building_home
    from alknet.vault.keyfile import create_home

    if home.exists() or home.is_symlink():
        create_home(home)  # checks that it is ours and private
        return _fill(home, words, plan)
    with building_home(home) as building:
        return _fill(building, words, plan)


def _fill(home: Path, words: str, plan: Plan) -> NodeId:
    """Write config and vault; the vault comes last, for a home with one is finished."""
    from alknet.core.clock import wall_clock
    from alknet.core.config import default_config_text
    from alknet.core.nodeid import NodeId
    from alknet.vault.durable import write_private
    from alknet.vault.homevault import create_home_vault, has_vault
    from alknet.vault.recovery import entropy_from_words

    config = home / CONFIG_FILE
    is_new = False
    try:
        with contextlib.suppress(FileExistsError):  # prepared, or by another that makes this home
            write_private(config, default_config_text().encode())
            is_new = True
        vault, key = create_home_vault(
            home,
            entropy_from_words(words),
            now=wall_clock(),
            device=plan.device,
            passphrase=plan.passphrase,
            has_key_file=plan.has_key_file,
        )
    except BaseException:  # boundary: passed on; a Ctrl-C leaves no half of it either
        if is_new and not has_vault(home):  # else another was faster, and it is that one's
            config.unlink(missing_ok=True)
        raise
    vault.lock()
    return NodeId.from_public_key(key.public_key())


def _node_id(words: str, plan: Plan) -> NodeId:
    from alknet.core.nodeid import NodeId
    from alknet.vault.derive import identity_key

    return NodeId.from_public_key(identity_key(words, device=plan.device).public_key())


def _report(home: Path, node_id: NodeId, *, words: str | None, words_file: Path | None) -> None:
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
