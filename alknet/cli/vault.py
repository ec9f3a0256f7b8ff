"""``alknet vault``: secrets that are encrypted at rest, and the keys that open them."""

from __future__ import annotations

import base64
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Duration, Group, is_json, the_home
from alknet.cli.output import emit, fields, say, table
from alknet.cli.ssh_agent import ssh_agent
from alknet.cli.unlocking import is_terminal, make_unlock, unlock_options
from alknet.cli.vault_access import Call, at_node, locked_header, use_vault
from alknet.cli.vault_keys import export_secrets, import_secrets, rewrap, rotate, verify
from alknet.cli.vault_run import run_command
from alknet.cli.vault_shares import shares
from alknet.cli.vault_slots import slots

__all__ = ["vault"]


@click.group(
    cls=Group,
    examples=[
        "alknet vault put mail/smtp < password      keep a secret",
        "alknet vault run --secret SMTP=mail/smtp -- ./send    use it",
        "alknet vault status                        is it open, and what opens it",
        "alknet vault slots add passphrase          another way to open it",
    ],
)
def vault() -> None:
    """Keep secrets, encrypted at rest.

    The vault is one file in the home. Its keys come from the node's 24 words; each of its slots
    opens it: the key file that 'alknet init' made, a passphrase, the system's keyring, an age
    identity. While a node runs, commands ask it, and a vault that is locked there stays locked;
    without one they open the file themselves. A secret is never in an argument.
    """


@vault.command(examples=["alknet vault init"])
def init() -> None:
    """Give a home from before there were vaults one; 'alknet up' does it too.

    The node keeps its key, and the file that held it is kept in the home's backup directory. A
    new node gets its vault from 'alknet init'.
    """
    from alknet.core.clock import wall_clock
    from alknet.vault.homevault import BACKUP, has_node, home_vault, needs_vault

    home = the_home()
    if not has_node(home):
        raise CommandError("NOT_FOUND", f"no node in {home}", hint="'alknet init' makes one")
    if not needs_vault(home):
        raise CommandError(
            "CONFLICT", f"{home} has a vault already", hint="'alknet vault status' shows it"
        )
    made = home_vault(home, now=wall_clock())
    vault_id = made.header.vault_id.hex()
    made.lock()
    if is_json():
        emit({"vault_id": vault_id, "backup": str(home / BACKUP)})
    else:
        say(f"vault {vault_id} made; the old key file is in {home / BACKUP}")


@vault.command(examples=["alknet vault status", "alknet vault status --json"])
def status() -> None:
    """Show whether the vault is open in the running node, and what opens it."""

    async def ask(call: Call) -> dict[str, Any]:
        return dict(await call("status"))

    header = locked_header()
    answer = at_node(ask)
    is_unlocked = bool(answer[0]["unlocked"]) if answer else None
    if is_json():
        slots_of = [{"id": s.id, "kind": s.kind.value, "label": s.label} for s in header.slots]
        emit(
            {
                "vault_id": header.vault_id.hex(),
                "unlocked": is_unlocked,
                "generation": header.generation,
                "kek_version": header.kek_version,
                "min_kek_version": header.min_kek_version,
                "slots": slots_of,
            }
        )
        return
    state = {True: "unlocked", False: "locked", None: "no node runs: commands open the file"}
    kinds = ", ".join(slot.kind.value for slot in header.slots)
    fields(
        {
            "vault": header.vault_id.hex(),
            "state": state[is_unlocked],
            "opened by": f"{kinds}, the 24 words",
            "key": f"version {header.kek_version}, the oldest in use is {header.min_kek_version}",
            "generation": header.generation,
        }
    )


@vault.command(
    examples=[
        "alknet vault unlock                             asks for the passphrase",
        "alknet vault unlock --unlock-file /media/stick/vault.key",
    ]
)
@unlock_options
def unlock(**options: Any) -> None:
    """Open the vault of the running node.

    This command opens a slot and hands the key over through a pipe in the home: the passphrase
    never reaches the node.
    """
    from alknet.cli.unlocking import find_key
    from alknet.core.vault_pipe import offer_entropy

    header = locked_header()
    _need_running()
    entropy, by = find_key(header, make_unlock(**options))
    with entropy, offer_entropy(the_home(), entropy.view) as pipe:
        entropy.close()

        async def open_it(call: Call) -> Any:
            return await call("unlock", pipe=pipe, by=by)

        _report_lock(at_node(open_it))


@vault.command(examples=["alknet vault lock"])
def lock() -> None:
    """Make the running node forget all secrets and keys but its identity.

    It goes on serving; what needs a secret says UNAVAILABLE until 'alknet vault unlock'.
    """

    async def close_it(call: Call) -> Any:
        return await call("lock")

    locked_header()
    _report_lock(at_node(close_it))


@vault.command(
    examples=[
        "alknet vault put mail/smtp                      asks for it, without echo",
        "pass smtp | alknet vault put mail/smtp          from a pipe",
        "alknet vault put tls/key --from-file key.pem    a file, byte for byte",
        "alknet vault put api/token --expires 30d < t    not handed out after that",
    ]
)
@click.argument("path")
@click.option(
    "--from-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Take the value from FILE, all of it.",
)
@click.option("--expires", type=Duration(), metavar="TIME", help="Forget it after 12h, 30d, 2w …")
@click.option(
    "--expect",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only if version N is the newest; 0: only if there is none.",
)
@unlock_options
def put(
    path: str, from_file: Path | None, expires: float | None, expect: int | None, **options: Any
) -> None:
    """Store a secret, or a new version of it.

    PATH is up to eight names with '/' between them. The value comes from standard input, less one
    line end, or from --from-file as it is. The last ten versions are kept.
    """
    from alknet.core.clock import wall_clock

    given = make_unlock(**options)
    value = _value(from_file)
    expires_at = None if expires is None else wall_clock() + expires

    async def store(call: Call) -> int:
        made = await call(
            "put", path=path, value=_text(value), expect=expect, expires_at=expires_at
        )
        return int(made["version"])

    version = use_vault(store, given)
    if is_json():
        emit({"path": path, "version": version})
    else:
        say(f"{path}: version {version} stored")


@vault.command(
    examples=[
        "alknet vault get mail/smtp | msmtp-login        into a program",
        "alknet vault get mail/smtp --show               on the terminal",
        "alknet vault get mail/smtp --version 2 --json   base64, for programs",
    ]
)
@click.argument("path")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Not the newest one.")
@click.option("--show", is_flag=True, help="Print it even onto a terminal.")
@unlock_options
def get(path: str, version: int | None, show: bool, **options: Any) -> None:
    """Print a secret to standard output, byte for byte; onto a terminal only with --show."""
    if sys.stdout.isatty() and not show:
        raise click.UsageError("standard output is a terminal: --show prints the secret there")

    async def fetch(call: Call) -> str:
        return str((await call("get", path=path, version=version))["value"])

    text = use_vault(fetch, make_unlock(**options))
    if is_json():
        emit({"path": path, "value": text})
        return
    _write(base64.b64decode(text))
    if show and sys.stdout.isatty():
        say()


@vault.command("list", examples=["alknet vault list", "alknet vault list mail/"])
@click.argument("prefix", default="")
@unlock_options
def list_secrets(prefix: str, **options: Any) -> None:
    """List the secrets whose path begins with PREFIX, without their values."""

    async def look(call: Call) -> list[dict[str, Any]]:
        return list((await call("list", prefix=prefix))["secrets"])

    found = use_vault(look, make_unlock(**options))
    if is_json():
        emit({"secrets": found})
        return
    rows = [
        (
            one["path"],
            one["versions"][-1] if one["versions"] else "-",
            _when(one["created_at"]),
            "never" if one["expires_at"] is None else _when(one["expires_at"]),
            one["kek_version"] or "-",
        )
        for one in found
    ]
    headers = ("path", "version", "stored", "expires", "key")
    table(headers, rows, empty="no secrets; 'alknet vault put PATH' stores one")


@vault.command(
    examples=["alknet vault remove mail/smtp", "alknet vault remove mail/smtp --version 2"]
)
@click.argument("path")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="This version alone.")
@unlock_options
def remove(path: str, version: int | None, **options: Any) -> None:
    """Forget a secret, or destroy one version of it.

    The generation of the file before, vault.alk.prev, holds it until the next change.
    """

    async def forget(call: Call) -> None:
        await call("remove", path=path, version=version)

    use_vault(forget, make_unlock(**options))
    what = path if version is None else f"{path}, version {version},"
    if is_json():
        emit({"path": path, "version": version, "done": "removed"})
    else:
        say(f"{what} removed")


for command in (
    slots,
    shares,
    rotate,
    rewrap,
    verify,
    export_secrets,
    import_secrets,
    run_command,
    ssh_agent,
):
    vault.add_command(command)


def _need_running() -> None:
    async def ask(call: Call) -> None:
        await call("status")

    if at_node(ask) is None:
        _report_lock(None)


def _report_lock(answer: tuple[Any] | None) -> None:
    if answer is None:
        raise CommandError(
            "UNAVAILABLE",
            f"no node runs on {the_home()}, so there is nothing to lock or unlock",
            hint="other commands open the vault's file by themselves",
            status=4,
        )
    if is_json():
        emit({"unlocked": answer[0]["unlocked"]})
    else:
        say("unlocked" if answer[0]["unlocked"] else "locked")


def _value(from_file: Path | None) -> bytes:
    if from_file is not None:
        return from_file.read_bytes()
    if is_terminal():
        from alknet.cli.unlocking import ask_passphrase

        return bytes(ask_passphrase("secret: "))
    stream = getattr(sys.stdin, "buffer", None)
    value = stream.read() if stream is not None else sys.stdin.read().encode()
    if not value:
        raise click.UsageError("standard input is empty: there is no secret in it")
    return bytes(value.removesuffix(b"\n"))


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _write(value: bytes) -> None:
    sys.stdout.flush()
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        sys.stdout.write(value.decode(errors="backslashreplace"))
    else:
        stream.write(value)
    sys.stdout.flush()


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M %Z")
