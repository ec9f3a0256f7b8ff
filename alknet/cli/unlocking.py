"""What opens a vault, from the command line: key files, passphrases, words, and what else there is.

Passphrases are read into memory that can be wiped, from a terminal or a file, never from argv. What
lives long opens its vault by `alknet.cli.opening` instead.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from alknet.cli.failures import CommandError, explain
from alknet.cli.options import the_home

if TYPE_CHECKING:
    from alknet.errors import AlknetError
    from alknet.vault.container import Header
    from alknet.vault.locked import LockedBuffer
    from alknet.vault.unlock import UnlockWith
    from alknet.vault.vault import Vault

__all__ = [
    "ask_passphrase",
    "choose_passphrase",
    "find_key",
    "is_terminal",
    "make_unlock",
    "open_vault",
    "read_passphrase",
    "unlock",
    "unlock_options",
]

F = TypeVar("F", bound=Callable[..., Any])

STDIN = "-"
# A line of text; what is longer is another file.
MAX_PASSPHRASE_BYTES = 1024
# An age identity file has a comment or two, and a key on a line of its own.
MAX_IDENTITY_FILE_BYTES = 64 * 1024
# How often a person may mistype the passphrase before we stop asking.
TRIES = 3
ENVIRONMENT = "ALKNET_UNLOCK_FILE"
HINT = (
    "give one with --unlock-file, --passphrase-file, --age-identity or --keyring, or the 24 words "
    "with --words-file, or run it on a terminal to be asked"
)


def unlock_options(function: F) -> F:
    """Add the options of `make_unlock`; the command gets them as keywords for it."""
    for option in reversed(
        (
            click.option(
                "--unlock-file",
                metavar="FILE",
                type=click.Path(path_type=Path, dir_okay=False),
                envvar=ENVIRONMENT,
                show_envvar=True,
                help="Unlock the vault with this key file instead of the one in the home.",
            ),
            click.option(
                "--passphrase-file",
                metavar="FILE|-",
                type=click.Path(allow_dash=True, dir_okay=False),
                help="Unlock the vault with the passphrase on the first line of FILE "
                "('-': standard input).",
            ),
            click.option(
                "--age-identity",
                metavar="FILE",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Unlock the vault with an age identity (AGE-SECRET-KEY-1…).",
            ),
            click.option(
                "--keyring", is_flag=True, help="Unlock the vault with the system's keyring."
            ),
            click.option(
                "--words-file",
                metavar="FILE|-",
                type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
                help="Unlock the vault with the 24 words in FILE ('-': standard input, or asked "
                "for on a terminal).",
            ),
            click.option(
                "--shares-file",
                metavar="FILE|-",
                type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
                help="Unlock the vault with enough shares of its words, one after another.",
            ),
        )
    ):
        function = option(function)
    return function


def make_unlock(
    *,
    unlock_file: Path | None,
    passphrase_file: str | None,
    age_identity: Path | None,
    keyring: bool,
    words_file: Path | None,
    shares_file: Path | None,
) -> UnlockWith | None:
    """Build from the values of `unlock_options`; None if none was given."""
    has_words = words_file is not None or shares_file is not None
    if not (unlock_file or passphrase_file or age_identity or keyring or has_words):
        return None
    from alknet.cli.words import entropy_from_files
    from alknet.vault.unlock import UnlockWith

    return UnlockWith(
        key_files=(unlock_file,) if unlock_file else (),
        passphrase=None if passphrase_file is None else read_passphrase(passphrase_file),
        age_identities=() if age_identity is None else read_age_identities(age_identity),
        keyring=keyring,
        words=entropy_from_files(words_file, shares_file) if has_words else None,
    )


def open_vault(given: UnlockWith | None, *, accepts_older: bool = False) -> Vault:
    """Return the home's vault, unlocked with what was given, else by itself, else by asking."""
    from alknet.vault.homevault import open_home_vault

    vault = open_home_vault(the_home())
    unlock(vault, *find_key(vault.header, given), accepts_older=accepts_older)
    return vault


def unlock(vault: Vault, entropy: LockedBuffer, by: str, *, accepts_older: bool = False) -> None:
    """Unlock *vault* with what `find_key` has found; the audit log has it if that fails."""
    from alknet.cli.auditing import record_failed_unlock
    from alknet.vault.envelope import Damaged
    from alknet.vault.vaultfile import RolledBack

    try:
        vault.unlock(entropy, accepts_older=accepts_older, by=by)
    except RolledBack as exc:
        record_failed_unlock("ROLLED_BACK", by)
        raise CommandError("ROLLED_BACK", str(exc)) from exc
    except Damaged:
        record_failed_unlock("DAMAGED", by)
        raise


def find_key(
    header: Header, given: UnlockWith | None, *, by_itself: bool = True
) -> tuple[LockedBuffer, str]:
    """Return the entropy of the home's vault, and the kind of slot that had it.

    What was tried in vain is in the audit log then.

    Args:
        given: What to try; None for what is at hand, and then to ask for a passphrase.
        by_itself: Whether a key file in the home counts as being at hand.
    """
    from alknet.cli.auditing import record_failed_unlock
    from alknet.core.log import configure
    from alknet.errors import AlknetError, NotFound, Unavailable
    from alknet.vault.envelope import Damaged
    from alknet.vault.homevault import what_unlocks
    from alknet.vault.unlock import find_opener

    # The vault goes on where it cannot note its generation, and warns of that.
    configure("warning", "human", sys.stderr)
    is_open = given is None
    if given is None:
        from alknet.vault.unlock import UnlockWith

        given = what_unlocks(the_home()) if by_itself else UnlockWith()
    try:
        entropy, by = find_opener(header, given)
        return _checked(entropy, given), by
    except AlknetError as exc:
        is_refused = isinstance(exc, (Unavailable, Damaged))
        if is_refused and is_open and _has_passphrase(header) and is_terminal():
            return _ask(header), "passphrase"
        failure = _failure_of(exc)
        if given.kinds and not isinstance(exc, NotFound):  # else nothing was tried
            record_failed_unlock(explain(failure).code, *given.kinds)
        if failure is exc:
            raise
        raise failure from exc


def wrong_key(exc: Exception) -> CommandError:
    """Say that what was given opens nothing, and what would."""
    hint = "'alknet vault slots list' shows what opens it; --words-file with the 24 words does, too"
    return CommandError("WRONG_KEY", str(exc), hint=hint, status=3)


def _failure_of(exc: AlknetError) -> Exception:
    from alknet.errors import Unavailable
    from alknet.vault.envelope import Damaged

    if isinstance(exc, Damaged):
        return wrong_key(exc)
    if isinstance(exc, Unavailable):
        return CommandError("UNAVAILABLE", str(exc), hint=HINT, status=4)
    return exc


def is_terminal() -> bool:
    """Whether there is a person to be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask_passphrase(prompt: str) -> bytearray:
    """Ask on the terminal, without echo, straight into memory that can be wiped."""
    import termios

    terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        before = termios.tcgetattr(terminal)
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        try:  # with what takes the echo away, for a Ctrl-C may come as it returns
            termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
            os.write(terminal, prompt.encode())
            return _line(terminal)
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
            os.write(terminal, b"\n")
    finally:
        os.close(terminal)


def choose_passphrase() -> bytearray:
    """Ask for a new passphrase, twice."""
    for tries_left in range(TRIES - 1, -1, -1):
        first = ask_passphrase("new passphrase: ")
        second = ask_passphrase("once more: ")
        if first == second:
            wipe(second)
            return first
        wipe(first)
        wipe(second)
        if tries_left:
            click.echo("They differ. Once more:", err=True)
    raise CommandError("CONFLICT", "the two passphrases differ")


def read_passphrase(file: str) -> bytearray:
    """Return the first line of a file, or of standard input for ``-``."""
    if file == STDIN:
        try:
            return _line(sys.stdin.fileno())
        except (io.UnsupportedOperation, AttributeError):  # a stream without a file behind it
            return bytearray(sys.stdin.readline(MAX_PASSPHRASE_BYTES).rstrip("\r\n").encode())
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _line(descriptor)
    finally:
        os.close(descriptor)


def read_age_identities(path: Path) -> tuple[str, ...]:
    """Return the keys of an age identity file."""
    with path.open(encoding="ascii", errors="replace") as file:
        text = file.read(MAX_IDENTITY_FILE_BYTES)
    found = tuple(line.strip() for line in text.splitlines() if line.startswith("AGE-SECRET-KEY-"))
    if not found:
        raise CommandError("FAILED", f"{path} has no age identity: no line AGE-SECRET-KEY-1…")
    return found


def wipe(secret: bytearray) -> None:
    """Overwrite."""
    secret[:] = bytes(len(secret))


def _ask(header: Header) -> LockedBuffer:
    from alknet.cli.auditing import record_failed_unlock
    from alknet.vault.envelope import Damaged
    from alknet.vault.unlock import UnlockWith, find_entropy

    for tries_left in range(TRIES - 1, -1, -1):
        passphrase = ask_passphrase("passphrase of the vault: ")
        try:
            return find_entropy(header, UnlockWith(passphrase=passphrase))
        except Damaged as exc:
            record_failed_unlock("WRONG_KEY", "passphrase")
            if not tries_left:
                raise wrong_key(exc) from exc
            click.echo(f"{exc}. Once more:", err=True)
        finally:
            wipe(passphrase)
    raise AssertionError("unreachable")


def _checked(entropy: LockedBuffer, given: UnlockWith) -> LockedBuffer:
    """Return *entropy* if it is this vault's; any words are some vault's."""
    from alknet.vault.homevault import open_home_vault

    if given.words is None:
        return entropy
    try:
        open_home_vault(the_home()).check(entropy.view)
    except BaseException:  # raised again: nobody else can wipe it
        entropy.close()
        raise
    return entropy


def _has_passphrase(header: Header) -> bool:
    from alknet.vault.slots import SlotKind

    return any(slot.kind is SlotKind.PASSPHRASE for slot in header.slots)


def _line(descriptor: int) -> bytearray:
    """Read one line byte by byte, for what follows it is not ours."""
    line = bytearray()
    byte = bytearray(1)
    while os.readv(descriptor, [byte]) and byte != b"\n":
        line += byte
        if len(line) > MAX_PASSPHRASE_BYTES:
            raise CommandError("FAILED", f"a passphrase has at most {MAX_PASSPHRASE_BYTES} bytes")
    wipe(byte)
    if line.endswith(b"\r"):
        del line[-1:]
    if not line:
        raise CommandError("FAILED", "no passphrase was given")
    return line
