"""A vault opened by a process of its own, for commands that live long: `alknet up`, the SSH agent.

A passphrase, an age identity, the words: what a person or a file gives passes through objects of
Python's that are copied and freed without being wiped, and would lie in the memory of a node whose
vault was locked long since. Here it ends with a child, which hands over the 32 bytes of entropy
through a pipe into locked memory. A key file alone needs no child: it is read straight into it.

``python -m alknet.cli.opening --home HOME --command NAME`` and the options of `unlock_options` is
that child. It writes the entropy and the kind of its slot to standard output, or exits with 1 and
writes its error there, as JSON.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from alknet.cli.auditing import command_name, on_behalf_of
from alknet.cli.failures import CommandError, explain
from alknet.cli.interrupts import INTERRUPTED, Interrupted
from alknet.cli.options import Command, the_home
from alknet.cli.unlocking import (
    find_key,
    is_terminal,
    make_unlock,
    open_vault,
    unlock,
    unlock_options,
)

if TYPE_CHECKING:
    from alknet.vault.locked import LockedBuffer
    from alknet.vault.vault import Vault

__all__ = ["open_vault_apart"]

ENTROPY_BYTES = 32
# To put the terminal's echo back when Ctrl-C came.
TIDIES_WITHIN_S = 1.0
# Of the options, the only one whose key never is an object of Python's.
_KEY_FILE = "unlock_file"


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str
    hint: str
    status: int


def open_vault_apart(**options: Any) -> Vault:
    """Return the home's vault, unlocked; nothing but its entropy comes into this process.

    Args:
        options: The values of `unlock_options`.

    Raises:
        CommandError: As `open_vault`.
    """
    named = {name: value for name, value in options.items() if value}
    if named.keys() == {_KEY_FILE}:
        return open_vault(make_unlock(**options))
    if not named and _opens_itself():
        return open_vault(None)
    from alknet.vault.homevault import open_home_vault

    vault = open_home_vault(the_home())
    unlock(vault, *_from_child(_flags(named)))
    return vault


def _opens_itself() -> bool:
    """Whether a key file opens the vault, or nobody can be asked."""
    from alknet.errors import Unavailable
    from alknet.vault.envelope import Damaged
    from alknet.vault.homevault import open_home_vault, what_unlocks
    from alknet.vault.unlock import find_entropy

    if not is_terminal():
        return True
    try:
        find_entropy(open_home_vault(the_home()).header, what_unlocks(the_home())).close()
    except (Unavailable, Damaged):
        return False
    return True


def _flags(named: dict[str, Any]) -> list[str]:
    flags = ["--command", command_name()]
    for name, value in named.items():
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(str(value))
    return flags


def _from_child(flags: list[str]) -> tuple[LockedBuffer, str]:
    child = subprocess.Popen(  # noqa: S603  our own interpreter, and names of files
        # -P: whoever can write into the current directory shall not give it a module.
        [sys.executable, "-P", "-m", __name__, "--home", str(the_home()), *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    with _ended(child):
        assert child.stdout is not None
        return _received(child, child.stdout.fileno())


def _received(child: subprocess.Popen[bytes], pipe: int) -> tuple[LockedBuffer, str]:
    from alknet.vault.locked import LockedBuffer, read_exactly

    entropy = LockedBuffer(ENTROPY_BYTES)
    try:
        with contextlib.suppress(EOFError):
            read_exactly(pipe, entropy.view)
        rest = _read_all(pipe)
        child.wait()
        if child.returncode != 0:
            _fail(bytes(entropy.view) + rest, child.returncode)
    except BaseException:  # raised again: nobody else can wipe it
        entropy.close()
        raise
    return entropy, rest.decode()


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no child behind; an interrupted one first puts the terminal back."""
    with child:
        try:
            yield
        except BaseException:  # raised again: the child must not outlive us
            # Ctrl-C reached it, too, and another one shall not keep us from waiting.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for number in (signal.SIGINT, signal.SIGKILL):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(TIDIES_WITHIN_S)
                child.send_signal(number)  # does nothing to one that has ended
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise


def _fail(said: bytes, returncode: int) -> NoReturn:
    if returncode in {INTERRUPTED, -signal.SIGINT}:
        raise Interrupted
    try:
        error = msgspec.json.decode(said, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CommandError(
            "INTERNAL", f"what opens the vault ended with status {returncode}"
        ) from None
    raise CommandError(error.code, error.message, hint=error.hint, status=error.status)


def _read_all(pipe: int) -> bytes:
    parts = []
    while part := os.read(pipe, 65536):
        parts.append(part)
    return b"".join(parts)


# The child.


@click.command(cls=Command)
@click.option("--command")
@unlock_options
def _open(command: str, **options: Any) -> None:
    from alknet.cli.vault_access import locked_header

    on_behalf_of(command)
    entropy, by = find_key(locked_header(), make_unlock(**options))
    with entropy:
        os.writev(sys.stdout.fileno(), [entropy.view, by.encode()])


def _main() -> int:
    from alknet.vault.locked import end_with_parent, harden_process

    harden_process()
    end_with_parent(signal.SIGINT)
    try:
        _open.main(sys.argv[1:], standalone_mode=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as exc:  # noqa: BLE001  # boundary: the parent says what it was
        failure = explain(exc)
        error = _Error(failure.code, failure.message, failure.hint, int(failure.status))
        os.write(sys.stdout.fileno(), msgspec.json.encode(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
