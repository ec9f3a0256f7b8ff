"""``alknet backup`` and ``alknet restore``: a home as one encrypted file, and back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alknet.cli.auditing import record_done
from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json, the_home, usage_errors
from alknet.cli.output import emit, fields, note, say

if TYPE_CHECKING:
    from alknet.vault.agefile import AgeIdentity, AgeRecipient
    from alknet.vault.container import Header
    from alknet.vault.locked import LockedBuffer

__all__ = ["backup", "restore"]

STDIO = Path("-")
# A database of a million peers; what is longer is another file.
MAX_BACKUP_BYTES = 1024 * 1024 * 1024

_FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.command(
    cls=Command,
    examples=[
        "alknet backup node.age --recipient age1…         whoever has its identity can read it",
        "alknet backup node.age --recipients-file r.txt   one a line, SSH public keys too",
        "alknet backup node.age --passphrase              asks for one",
        "alknet backup - --recipient age1… | ssh other 'cat > node.age'",
    ],
)
@click.argument("file", metavar="FILE.age|-", type=_FILE)
@click.option(
    "--recipient",
    "recipients",
    metavar="age1…",
    multiple=True,
    help="Who can read it: an age recipient or an SSH public key; repeatable.",
)
@click.option("--recipients-file", metavar="FILE", type=_FILE, help="Recipients, one a line.")
@click.option("--passphrase", "asks", is_flag=True, help="Ask for a passphrase that opens it.")
@click.option(
    "--passphrase-file",
    metavar="FILE|-",
    type=_FILE,
    help="Take the passphrase from the first line of the file ('-': standard input).",
)
@click.option("--armor", is_flag=True, help="Write ASCII, for mail and paste.")
def backup(
    file: Path,
    recipients: Sequence[str],
    recipients_file: Path | None,
    asks: bool,
    passphrase_file: Path | None,
    armor: bool,
) -> None:
    """Write the vault, the database, node.toml and the known nodes into one encrypted file.

    The node may run meanwhile. The file is an age file (https://age-encryption.org) of a tar
    archive: 'age -d -i KEY FILE.age | tar x' reads it without alknet. An existing file is never
    overwritten.

    The home's key file is not in it: to restore, you need the 24 words (or shares, or a
    passphrase of the vault) beside the backup.
    """
    known = _recipients(recipients, recipients_file)
    has_passphrase = asks or passphrase_file is not None
    if has_passphrase == bool(known):
        raise click.UsageError(
            "say who can read the backup: either --recipient (or --recipients-file), "
            "or --passphrase (or --passphrase-file)"
        )
    _refuse_target(file, armor)
    passphrase = _new_passphrase(passphrase_file) if has_passphrase else None
    data = _encrypted(known, passphrase, armor)
    if file == STDIO:
        sys.stdout.buffer.write(data)
        record_done(("home.backup", "standard output"))
        return
    _write(file, data)
    record_done(("home.backup", str(file.absolute())))
    _report(file, len(data))


@click.command(
    cls=Command,
    examples=[
        "alknet restore node.age --identity key.txt    then asks for the words",
        "alknet restore node.age --identity key.txt --words-file words.txt",
        "alknet restore node.age                       asks for its passphrase, and the words",
    ],
)
@click.argument("file", metavar="FILE.age|-", type=_FILE)
@click.option(
    "--identity",
    "identity_files",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="Opens the backup: of 'age-keygen', or an SSH private key; repeatable.",
)
@click.option(
    "--passphrase-file",
    metavar="FILE",
    type=_FILE,
    help="Opens the backup: its passphrase is the first line; without it, it is asked for.",
)
@click.option("--words-file", metavar="FILE|-", type=_FILE, help="Opens the vault: its 24 words.")
@click.option(
    "--shares-file",
    metavar="FILE|-",
    type=_FILE,
    help="Opens the vault: enough shares, one after another.",
)
@click.option(
    "--vault-passphrase-file",
    metavar="FILE|-",
    type=_FILE,
    help="Opens the vault: the first line is its passphrase.",
)
@click.option(
    "--unlock-file", metavar="FILE", type=_FILE, help="Opens the vault: a key file of it."
)
@click.option(
    "--no-key-file",
    is_flag=True,
    help="Give the home no key file: the node will ask at every start.",
)
def restore(
    file: Path,
    identity_files: Sequence[Path],
    passphrase_file: Path | None,
    no_key_file: bool,
    **ways: Path | None,
) -> None:
    """Make this node's home from a backup: the same id, peers, tokens and secrets.

    The home must be empty or not there yet. The backup's vault is opened with its words, which
    are asked for if no option names another way; then the home gets a new key file. Stop the old
    node first: two that run under one id take each other's connections.
    """
    from alknet.core.clock import wall_clock
    from alknet.stores.backup import restore_home

    data = _read_file(file)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in identity_files]
    archive = _decrypted(file, data, texts, passphrase_file)
    home = the_home()
    node_id = restore_home(
        home, archive, _opener(ways, texts), now=wall_clock(), has_key_file=not no_key_file
    )
    record_done(("home.restore", str(file if file == STDIO else file.absolute())))
    if is_json():
        emit({"id": str(node_id), "fingerprint": node_id.fingerprint, "home": str(home)})
        return
    fields({"id": node_id, "home": home})
    say("Run it with 'alknet up'; the old node must not run any more.")


# Writing.


def _recipients(texts: Sequence[str], file: Path | None) -> list[AgeRecipient]:
    from alknet.vault.agefile import read_recipients

    with usage_errors("--recipient"):
        found = [one for text in texts for one in read_recipients(text)]
    if file is not None:
        with usage_errors("--recipients-file"):
            found += read_recipients(_read_text(file))
    return found


def _refuse_target(file: Path, armor: bool) -> None:
    if file == STDIO and sys.stdout.isatty() and not armor:
        raise click.UsageError("a backup is not text: name a file, or add --armor")
    if file == STDIO and is_json():
        raise click.UsageError("the backup goes to standard output, so there is no room for JSON")
    if file != STDIO and (file.exists() or file.is_symlink()):
        raise CommandError("CONFLICT", f"{file} exists, it is not overwritten")


def _encrypted(known: Sequence[AgeRecipient], passphrase: str | None, armor: bool) -> bytes:
    from alknet.stores.backup import archive_home
    from alknet.vault.agefile import encrypt_file, encrypt_file_with_passphrase

    archive = archive_home(the_home())
    if passphrase is not None:
        return encrypt_file_with_passphrase(archive, passphrase, armored=armor)
    return encrypt_file(archive, known, armored=armor)


def _write(file: Path, data: bytes) -> None:
    from alknet.cli.running import uninterrupted
    from alknet.vault.durable import store_errors, write_new

    with uninterrupted(), store_errors(f"cannot write {file}"):
        write_new(file.absolute(), data)


def _report(file: Path, size: int) -> None:
    from alknet.cli.home import load_home_config
    from alknet.stores.backup import recovery_ways

    opened_by = recovery_ways(the_home())
    if is_json():
        emit({"file": str(file.absolute()), "bytes": size, "opened_by": opened_by})
        return
    fields({"file": file.absolute(), "bytes": size, "vault opens with": ", ".join(opened_by)})
    config = load_home_config()
    if config.store or config.store_file:
        note("Peers and tokens are in PostgreSQL, not in this file: back them up with pg_dump.")


# Reading.


def _read_file(file: Path) -> bytes:
    if file == STDIO:
        data = sys.stdin.buffer.read(MAX_BACKUP_BYTES + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(MAX_BACKUP_BYTES + 1)
    if len(data) > MAX_BACKUP_BYTES:
        raise CommandError("FAILED", f"{file} is longer than a backup can be")
    return data


def _decrypted(
    file: Path, data: bytes, identities: Sequence[str], passphrase_file: Path | None
) -> bytes:
    from alknet.errors import LocalError
    from alknet.vault.agefile import decrypt_file, decrypt_file_with_passphrase, wants_passphrase

    try:
        if wants_passphrase(data):
            return decrypt_file_with_passphrase(data, _passphrase(passphrase_file, "backup"))
        return decrypt_file(data, _identities(identities))
    except LocalError as exc:
        raise CommandError("FAILED", f"cannot open {file}: {exc}") from exc


def _identities(texts: Sequence[str]) -> list[AgeIdentity]:
    from alknet.vault.agefile import read_identities

    if not texts:
        raise click.UsageError("the backup is encrypted to a recipient: name its --identity FILE")
    with usage_errors("--identity"):
        return [one for text in texts for one in read_identities(text)]


def _opener(
    ways: dict[str, Path | None], identities: Sequence[str]
) -> Callable[[Header], LockedBuffer]:
    """Return what opens the vault of the backup: by the option that was given, else by asking."""
    given = [(name, path) for name, path in ways.items() if path is not None]
    if len(given) > 1:
        raise click.UsageError("name one way to open the vault, not several")
    if given:
        return partial(_open_by, *given[0])
    return lambda header: _found(header, identities)


def _open_by(way: str, path: Path, header: Header) -> LockedBuffer:
    from alknet.cli.words import entropy_from_files
    from alknet.vault.unlock import UnlockWith, find_entropy

    if way == "words_file":
        return entropy_from_files(path, None)
    if way == "shares_file":
        return entropy_from_files(None, path)
    if way == "vault_passphrase_file":
        return _with_passphrase(header, _passphrase(path, "vault"))
    return find_entropy(header, UnlockWith(key_files=(path,)))


def _found(header: Header, identities: Sequence[str]) -> LockedBuffer:
    from alknet.vault.envelope import Damaged
    from alknet.vault.slots import SlotKind
    from alknet.vault.unlock import UnlockWith, find_entropy

    kinds = {slot.kind for slot in header.slots}
    lines = tuple(line for text in identities for line in text.split() if _is_x25519(line))
    if lines and SlotKind.AGE in kinds:
        try:
            return find_entropy(header, UnlockWith(age_identities=lines))
        except Damaged:
            pass  # the backup's identity need not be the vault's
    if not sys.stdin.isatty():
        raise CommandError(
            "UNAVAILABLE",
            "the backup's vault is locked, and there is no terminal to ask for the words",
            hint="name --words-file, --shares-file, --vault-passphrase-file or --unlock-file",
        )
    if SlotKind.PASSPHRASE in kinds:
        note("The vault opens with a passphrase; press Enter to type its 24 words instead.")
        if passphrase := _ask("vault passphrase"):
            return _with_passphrase(header, passphrase)
    return _ask_words()


def _is_x25519(text: str) -> bool:
    return text.startswith("AGE-SECRET-KEY-1")


def _with_passphrase(header: Header, passphrase: str) -> LockedBuffer:
    from alknet.vault.unlock import UnlockWith, find_entropy

    return find_entropy(header, UnlockWith(passphrase=bytearray(passphrase.encode())))


def _ask_words() -> LockedBuffer:
    from alknet.cli.words import ask_words
    from alknet.vault.recovery import entropy_from_words

    return entropy_from_words(ask_words())


# Asking.


def _new_passphrase(file: Path | None) -> str:
    if file is not None:
        return _passphrase(file, "backup")
    passphrase = _ask("passphrase")
    if passphrase != _ask("once more"):
        raise CommandError("FAILED", "the two passphrases differ; nothing was written")
    return passphrase


def _passphrase(file: Path | None, what: str) -> str:
    if file is not None:
        return (_read_text(file).splitlines() or [""])[0]
    return _ask(f"passphrase of the {what}")


def _ask(prompt: str) -> str:
    import getpass

    if not sys.stdin.isatty():
        raise CommandError(
            "UNAVAILABLE",
            f"there is no terminal to ask for the {prompt}",
            hint="name a file that holds it, see --help",
        )
    return getpass.getpass(f"{prompt}: ")


def _read_text(file: Path) -> str:
    if file == STDIO:
        return sys.stdin.read()
    return file.read_text(encoding="utf-8", errors="replace")
