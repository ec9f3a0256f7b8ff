"""How commands reach the vault: through the running node, else in the file itself.

Either way they call the operations ``vault/…`` with JSON values, and get JSON values. With no node
running the file is opened in this process, by the key file in the home or whatever else was given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from alknet.cli.auditing import Done, record_done, record_failed_unlock
from alknet.cli.failures import CommandError
from alknet.cli.home import need_node

if TYPE_CHECKING:
    from pathlib import Path

    from alknet.call.operations import Operation
    from alknet.vault.container import Header
    from alknet.vault.locked import LockedBuffer
    from alknet.vault.unlock import UnlockWith
    from alknet.vault.vault import Vault

__all__ = ["Call", "at_node", "in_file", "locked_header", "second_unlock", "use_vault"]

T = TypeVar("T")
Call = Callable[..., Awaitable[Any]]
"""``await call("put", path=…, value=…)``: an operation's name without ``vault/``, its input."""


def use_vault(work: Callable[[Call], Awaitable[T]], given: UnlockWith | None = None) -> T:
    """Do *work* with the vault of the running node, or with its file if none runs.

    Args:
        given: What opens the file; given, the node is not asked.

    Raises:
        CommandError: It is locked, or says no.
    """
    _need_vault()
    if given is None:
        done = at_node(work)
        if done is not None:
            return done[0]
    return in_file(work, given)


def at_node(work: Callable[[Call], Awaitable[T]]) -> tuple[T] | None:
    """Do *work* with the vault of the running node; None if none runs."""
    import msgspec

    from alknet.call.codes import CallError
    from alknet.cli.running import run
    from alknet.client import open_control_session
    from alknet.errors import Unavailable

    home = need_node()

    async def main() -> tuple[T] | None:
        is_open = False
        try:
            async with open_control_session(home) as session:
                is_open = True

                async def call(name: str, /, **values: Any) -> Any:
                    try:
                        output = await session.call(f"vault/{name}", values)
                    except CallError as exc:
                        _say(exc.code, exc.message)
                    return msgspec.json.decode(output)

                return (await work(call),)
        except Unavailable:
            if is_open:
                raise
            return None

    return run(main)


def in_file(work: Callable[[Call], Awaitable[T]], given: UnlockWith | None = None) -> T:
    """Do *work* with the vault's file, opened in this process."""
    from alknet.cli.unlocking import open_vault

    # Before the loop begins: it may ask, and Ctrl-C must end that.
    vault = open_vault(given)
    done: list[Done] = []
    try:
        return _with(vault, work, done)
    finally:
        vault.lock()
        record_done(*done)


def locked_header() -> Header:
    """Return what anyone who may read the file can know of the vault."""
    from alknet.vault.homevault import open_home_vault

    return open_home_vault(_need_vault()).header


def second_unlock(given: UnlockWith | None, what: str) -> tuple[LockedBuffer, str]:
    """Return the entropy and its kind of slot, of something that the user gives now, for *what*.

    A node that is unlocked and a key file in the home do not count: whoever sits down at an open
    terminal shall not carry everything away.
    """
    from alknet.cli.unlocking import find_key, is_terminal

    header = locked_header()
    if given is None and not is_terminal():
        record_failed_unlock("FORBIDDEN")
        raise CommandError(
            "FORBIDDEN",
            f"{what} needs an unlock of its own",
            hint="name what opens the vault: --unlock-file, --passphrase-file, --age-identity, "
            "--keyring, --words-file or --shares-file; the key file of a home is HOME/vault.key",
            status=3,
        )
    return find_key(header, given, by_itself=False)


def _with(vault: Vault, work: Callable[[Call], Awaitable[T]], done: list[Done]) -> T:
    from alknet.cli.running import run

    async def main() -> T:
        from alknet.call.spec import OperationError
        from alknet.call.vault_operations import vault_operations
        from alknet.core.vault_service import VaultService

        service = VaultService(vault)
        known = {
            operation.spec.name: operation
            for operation in vault_operations(
                service, receive_entropy=_no_pipe, rewrap_stored=_rewrap_stored
            )
        }

        async def call(name: str, /, **values: Any) -> Any:
            try:
                return await _run(known[f"vault/{name}"], values, done)
            except OperationError as exc:
                _say(exc.code, exc.message)

        return await work(call)

    return run(main)


async def _run(operation: Operation[..., Any], values: dict[str, Any], done: list[Done]) -> Any:
    """Run as a peer would: with JSON values, no defaults of Python's own."""
    import msgspec

    from alknet.call.audited import action_of, is_audited, target_of

    takes_input = bool(msgspec.structs.fields(operation.input.type))
    arguments = (msgspec.convert(values, operation.input.type),) if takes_input else ()
    result = await operation(*arguments)
    if is_audited(operation):
        done.append((action_of(operation), target_of(*arguments) if arguments else ""))
    return msgspec.to_builtins(result)


async def _no_pipe(name: str) -> LockedBuffer:
    raise AssertionError(f"only a running node reads {name}")


async def _rewrap_stored(seal_anew: Callable[[str, str], Awaitable[str]]) -> int:
    from alknet.cli.home import open_store
    from alknet.stores.credentials import Credentials

    async with open_store() as identities:
        return await Credentials(identities).rewrap(seal_anew)


def _say(code: str, message: str) -> NoReturn:
    from alknet.call.codes import code_info

    hint = ""
    if "is locked" in message:
        hint = "the node goes on without its secrets until then"
    raise CommandError(code, message, hint=hint, status=int(code_info(code).exit_status))


def _need_vault() -> Path:
    from alknet.vault.homevault import has_vault

    home = need_node()
    if not has_vault(home):
        raise CommandError(
            "NOT_FOUND",
            f"the home {home} is from before there were vaults",
            hint="the next 'alknet up' makes its vault, and keeps the node's id",
        )
    return home
