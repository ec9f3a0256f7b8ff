"""``alknet vault rotate | rewrap | verify | export | import``: all secrets at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from alknet.cli.auditing import record_done
from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json, the_home
from alknet.cli.output import emit, note, say
from alknet.cli.unlocking import make_unlock, open_vault, unlock, unlock_options
from alknet.cli.vault_access import Call, locked_header, second_unlock, use_vault

__all__ = ["export_secrets", "import_secrets", "rewrap", "rotate", "verify"]


@click.command(cls=Command, examples=["alknet vault rotate && alknet vault rewrap"])
@unlock_options
def rotate(**options: Any) -> None:
    """Begin a new key version for all that is written from now on.

    What is there stays under its version until 'rewrap'. Interrupted or killed at any point, the
    file is as before or as after.
    """

    async def begin(call: Call) -> int:
        return int((await call("rotate"))["version"])

    version = use_vault(begin, make_unlock(**options))
    if is_json():
        emit({"kek_version": version})
    else:
        say(f"key version {version} is in use; 'alknet vault rewrap' moves older secrets to it")


@click.command(cls=Command, examples=["alknet vault rewrap", "alknet vault rewrap --retire"])
@click.option(
    "--retire",
    is_flag=True,
    help="Refuse older key versions from now on. What others keep sealed under them is lost.",
)
@unlock_options
def rewrap(retire: bool, **options: Any) -> None:
    """Put every secret under the newest key version, all of them or none.

    Only the keys of the secrets are encrypted anew; no value is decrypted. The credentials in the
    node's store follow, and only then --retire counts: interrupted in between, do it again.
    """

    async def move(call: Call) -> int:
        return int((await call("rewrap", retire=retire))["count"])

    count = use_vault(move, make_unlock(**options))
    if is_json():
        emit({"rewrapped": count, "retired": retire})
        return
    say(f"{count} values moved to the newest key version" if count else "all are under it already")
    if retire:
        say("older key versions are retired")


@click.command(cls=Command, examples=["alknet vault verify", "alknet vault verify --accept-older"])
@click.option(
    "--accept-older",
    is_flag=True,
    help="Go on with a file that is older than one that was in use here, as after a restore.",
)
@unlock_options
def verify(accept_older: bool, **options: Any) -> None:
    """Open every value of every secret, and name those that fail; exits with 1 if one does."""
    given = make_unlock(**options)
    locked_header()
    vault = open_vault(given, accepts_older=accept_older)
    try:
        damaged = vault.verify()
        values = sum(len(secret.versions) for secret in vault.secrets())
    finally:
        vault.lock()
    if is_json():
        emit({"ok": not damaged, "values": values, "damaged": damaged})
    else:
        say(f"{values - len(damaged)} of {values} values open")
    if damaged:
        raise CommandError(
            "DAMAGED",
            f"these do not open: {', '.join(damaged)}",
            hint="put them anew, or restore a backup; vault.alk.prev is the generation before",
        )


@click.command(
    "export",
    cls=Command,
    examples=[
        "alknet vault export out.age --recipient age1qx… --unlock-file ~/key    encrypted",
        "alknet vault export out.json --plain                                   open to all",
    ],
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--recipient", metavar="AGE", help="Encrypt it for an age recipient (age1…).")
@click.option("--plain", is_flag=True, help="Write all secrets as they are.")
@unlock_options
def export_secrets(file: Path, recipient: str | None, plain: bool, **options: Any) -> None:
    """Write all secrets, not the keys, to a new FILE of mode 0600.

    It is for moving to another vault or another program: JSON, encrypted for an age recipient or
    plain. The words and the node's own key are not in it; 'alknet backup' keeps those. It needs an
    unlock of its own, even while the node is unlocked: a key file, a passphrase.
    """
    from alknet.vault.export import export_of
    from alknet.vault.homevault import open_home_vault

    if bool(recipient) == plain:
        raise click.UsageError("say --recipient AGE, or --plain")
    given = make_unlock(**options)
    entropy, by = second_unlock(given, "an export")
    vault = open_home_vault(the_home())
    unlock(vault, entropy, by)
    try:
        data, count = export_of(vault, recipient)
    finally:
        vault.lock()
    _write(file, data)
    record_done(("vault.export", str(file.absolute())))
    if is_json():
        emit({"file": str(file.absolute()), "secrets": count, "encrypted": not plain})
        return
    say(f"{count} secrets written to {file}")
    if plain:
        note("Whoever reads that file has them all: remove it when it has done its work.")


@click.command(
    "import",
    cls=Command,
    examples=[
        "alknet vault import out.age --decrypt-with age.key",
        "alknet vault import out.json --replace      newer versions of those that are there",
    ],
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--decrypt-with",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The age identity that an encrypted export is for.",
)
@click.option("--replace", is_flag=True, help="Store new versions of secrets that exist.")
@unlock_options
def import_secrets(file: Path, decrypt_with: Path | None, replace: bool, **options: Any) -> None:
    """Store all secrets of an export, or none: one that exists is refused without --replace."""
    from alknet.cli.unlocking import read_age_identities
    from alknet.core.clock import wall_clock
    from alknet.vault.export import import_into

    identities = () if decrypt_with is None else read_age_identities(decrypt_with)
    data = file.read_bytes()
    locked_header()
    vault = open_vault(make_unlock(**options))
    try:
        count = import_into(vault, data, identities, now=wall_clock(), replaces=replace)
    finally:
        vault.lock()
    record_done(("vault.import", str(file.absolute())))
    if is_json():
        emit({"secrets": count})
    else:
        say(f"{count} secrets stored")


def _write(file: Path, data: bytes) -> None:
    from alknet.vault.durable import store_errors, sync_directory, write_private

    with store_errors(f"cannot write {file}"):
        write_private(file, data)
        sync_directory(file.absolute().parent)
    sys.stdout.flush()
