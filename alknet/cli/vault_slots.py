"""``alknet vault slots``: the ways to open the vault."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from alknet.cli.auditing import record_done
from alknet.cli.failures import CommandError
from alknet.cli.options import Group, is_json, the_home
from alknet.cli.output import emit, note, say, table
from alknet.cli.unlocking import (
    choose_passphrase,
    is_terminal,
    make_unlock,
    open_vault,
    read_passphrase,
    unlock_options,
    wipe,
)
from alknet.cli.vault_access import Call, locked_header, use_vault

if TYPE_CHECKING:
    from alknet.vault.container import Header
    from alknet.vault.slots import Slot
    from alknet.vault.vault import Vault

__all__ = ["slots"]


@click.group(
    cls=Group,
    examples=[
        "alknet vault slots list",
        "alknet vault slots add passphrase",
        "alknet vault slots remove 1f2e3d4c",
    ],
)
def slots() -> None:
    """Show and change what opens the vault. The 24 words always do (--words-file).

    A slot holds the vault's root key, encrypted: adding or removing one touches no secret. Whoever
    once opened a vault may have kept that key, so removing a slot keeps out those who could have
    opened it, not those who did.
    """


@slots.command("list", examples=["alknet vault slots list", "alknet vault slots list --json"])
def list_slots() -> None:
    """List the slots."""
    header = locked_header()
    if is_json():
        emit(
            {
                "slots": [
                    {
                        "id": slot.id,
                        "kind": slot.kind.value,
                        "label": slot.label,
                        "created_at": slot.created_at,
                        "recipient": slot.recipient or None,
                    }
                    for slot in header.slots
                ]
            }
        )
        return
    rows = [(s.id, s.kind.value, s.label or s.recipient, _day(s.created_at)) for s in header.slots]
    table(("slot", "kind", "label", "added"), rows, empty="no slots: the 24 words alone open it")


@slots.command(
    examples=[
        "alknet vault slots add passphrase                  asks for it, twice",
        "alknet vault slots add key-file /media/stick/key   writes a new key file there",
        "alknet vault slots add keyring                     the key store of your desktop",
        "alknet vault slots add age age1qx…                 whoever has that age identity",
    ]
)
@click.argument("kind", type=click.Choice(["passphrase", "key-file", "keyring", "age"]))
@click.argument("value", required=False, metavar="[FILE|RECIPIENT]")
@click.option("--label", default="", metavar="TEXT", help="For people, in lists.")
@click.option(
    "--new-passphrase-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Take the new passphrase from the first line of FILE.",
)
@unlock_options
def add(
    kind: str, value: str | None, label: str, new_passphrase_file: str | None, **options: Any
) -> None:
    """Add a way to open the vault; the vault must be opened for it, by another way.

    KIND says which: 'passphrase' asks, 'key-file' writes 32 random bytes to the new FILE, 'keyring'
    puts them into the system's keyring, 'age' encrypts them for RECIPIENT.
    """
    from alknet.core.clock import wall_clock

    _check(kind, value, new_passphrase_file)
    vault = open_vault(make_unlock(**options))
    try:
        slot = _add(vault, kind, value, label, new_passphrase_file, wall_clock())
    finally:
        vault.lock()
    record_done(("vault.slots.add", slot.id))
    if is_json():
        emit({"id": slot.id, "kind": slot.kind.value, "label": slot.label})
    else:
        say(f"slot {slot.id} ({slot.kind.value}) opens the vault now")


@slots.command(examples=["alknet vault slots remove 1f2e3d4c"])
@click.argument("slot_id", metavar="SLOT")
@unlock_options
def remove(slot_id: str, **options: Any) -> None:
    """Remove a way to open the vault; never the last one.

    Removing the slot of the home's key file removes that file too: from then on the node needs
    something else at each start. Older copies of the vault's file still have the slot.
    """

    async def forget(call: Call) -> Any:
        return await call("slots/remove", id=slot_id)

    header = locked_header()
    gone = [slot for slot in header.slots if slot.id == slot_id]
    of_home = [slot for slot in gone if _is_opened_by_home(header, slot)]
    use_vault(forget, make_unlock(**options))
    for slot in of_home:
        _remove_key_file(slot)
    for slot in gone:
        _forget_in_keyring(header, slot)
    if is_json():
        emit({"id": slot_id, "done": "removed"})
    else:
        say(f"slot {slot_id} removed")


def _check(kind: str, value: str | None, new_passphrase_file: str | None) -> None:
    wants = {"key-file": "FILE", "age": "RECIPIENT"}.get(kind)
    if wants and not value:
        raise click.UsageError(f"{kind} needs a {wants}")
    if not wants and value:
        raise click.UsageError(f"{kind} takes no argument; a passphrase is never one")
    if new_passphrase_file is not None and kind != "passphrase":
        raise click.UsageError("--new-passphrase-file is for a passphrase")
    if kind == "passphrase" and new_passphrase_file is None and not is_terminal():
        raise click.UsageError("there is no terminal to ask: --new-passphrase-file")


def _add(
    vault: Vault, kind: str, value: str | None, label: str, file: str | None, now: float
) -> Slot:
    from alknet.vault import slots as kinds
    from alknet.vault.unlock import create_key_file, forget_keyring_key, new_keyring_key

    if kind == "passphrase":
        passphrase = choose_passphrase() if file is None else read_passphrase(file)
        try:
            return vault.add_slot(
                lambda i, root: kinds.passphrase_slot(i, root, passphrase, label=label, now=now)
            )
        finally:
            wipe(passphrase)
    assert value is not None or kind == "keyring"
    if kind == "age":
        recipient = str(value)
        return vault.add_slot(
            lambda i, root: kinds.age_slot(i, root, recipient, label=label, now=now)
        )
    if kind == "key-file":
        path = Path(str(value)).absolute()
        with create_key_file(path) as key:
            try:
                name = label or path.name
                return vault.add_slot(
                    lambda i, root: kinds.key_file_slot(i, root, key.view, label=name, now=now)
                )
            except BaseException:  # boundary: passed on; a key of no slot stays nowhere
                path.unlink(missing_ok=True)
                raise
    if any(slot.kind is kinds.SlotKind.KEYRING for slot in vault.header.slots):
        raise CommandError(
            "CONFLICT",
            "the keyring has a key of this vault already, and keeps one",
            hint="remove that slot first: 'alknet vault slots list'",
        )
    with new_keyring_key(vault.header.vault_id) as key:
        try:
            return vault.add_slot(
                lambda i, root: kinds.keyring_slot(i, root, key.view, label=label, now=now)
            )
        except BaseException:  # boundary: passed on; a key of no slot stays nowhere
            forget_keyring_key(vault.header.vault_id)
            raise


def _is_opened_by_home(header: Header, slot: Slot) -> bool:
    """Whether the home's key file is what opens *slot*."""
    from alknet.errors import AlknetError
    from alknet.vault.slots import SlotKind
    from alknet.vault.unlock import HOME_KEY_FILE, UnlockWith, find_entropy

    if slot.kind is not SlotKind.KEY_FILE:
        return False
    alone = msgspec.structs.replace(header, slots=(slot,))
    try:
        find_entropy(alone, UnlockWith(key_files=(the_home() / HOME_KEY_FILE,))).close()
    except AlknetError:  # there is none, or it is another's
        return False
    return True


def _remove_key_file(slot: Slot) -> None:
    from alknet.vault.durable import store_errors
    from alknet.vault.unlock import HOME_KEY_FILE

    path = the_home() / HOME_KEY_FILE
    with store_errors(f"slot {slot.id} is gone, but not the file that opened it, {path}"):
        path.unlink(missing_ok=True)


def _forget_in_keyring(header: Header, slot: Slot) -> None:
    from alknet.errors import AlknetError
    from alknet.vault.slots import SlotKind
    from alknet.vault.unlock import forget_keyring_key

    if slot.kind is SlotKind.KEYRING:
        try:
            forget_keyring_key(header.vault_id)
        except AlknetError as exc:
            note(f"The keyring keeps a key that opens nothing any more: {exc}.")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d") if at else "-"
