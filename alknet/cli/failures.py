"""Where errors end: what is said on standard error, and with which status the program exits."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from alknet.cli.interrupts import INTERRUPTED, Interrupted
from alknet.cli.output import paint
from alknet.cli.table import printable
from alknet.errors import AlknetError, LocalError

__all__ = ["CommandError", "Failure", "explain", "leaves", "report"]

# As `alknet.core.tls.trust` says it.
OTHER_KEY = re.compile(r"expected .+, got ")


class CommandError(AlknetError):
    """A command cannot do its work, and knows what the user can do about it.

    Attributes:
        code: For programs, as in ``call.error`` or a word of the command's own.
        hint: What to do next.
        status: Exit status, see `alknet.call.codes.ExitStatus`.
    """

    def __init__(self, code: str, message: str, *, hint: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.status = status


class Failure:
    """An error as it is shown.

    Attributes:
        code: For programs.
        message: What was tried and what happened.
        status: Exit status.
        hint: What to do next, or nothing.
        details: More for programs, JSON values.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int,
        *,
        hint: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.status = status
        self.hint = hint
        self.details = dict(details or {})

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.hint:
            error["hint"] = self.hint
        return {"error": {**error, **self.details}}


def report(exc: BaseException, arguments: Sequence[str]) -> int:
    """Say on standard error what *exc* means, and return the exit status.

    Args:
        arguments: Of the program: whether JSON was asked for must be known even where they
            could not be parsed.
    """
    _give_up_unwritten_output()
    exc = _single(exc)
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    if isinstance(exc, BrokenPipeError):
        return _reader_left()
    if os.environ.get("ALKNET_DEBUG") == "1":
        traceback.print_exception(exc)
    if isinstance(exc, Interrupted):
        return exc.status
    if isinstance(exc, KeyboardInterrupt | click.exceptions.Abort):
        return INTERRUPTED
    if _wants_json(arguments):
        _print_json(explain(exc))
    elif isinstance(exc, click.ClickException):
        exc.show()
    else:
        _print_text(explain(exc))
    return exc.exit_code if isinstance(exc, click.ClickException) else explain(exc).status


def explain(exc: BaseException) -> Failure:
    """Say what *exc*, which is no interrupt, means to the user."""
    if isinstance(exc, CommandError):
        return Failure(exc.code, str(exc), exc.status, hint=exc.hint)
    if isinstance(exc, click.ClickException):
        return Failure("USAGE", exc.format_message(), exc.exit_code)
    from alknet.call import codes
    from alknet.core.config_errors import ConfigError
    from alknet.core.endpoint.dial import DialError

    if isinstance(exc, DialError):
        return _unreachable(exc.attempts, str(exc), _noted(exc))
    if isinstance(exc, codes.CallError):
        return _call_failed(exc, hint=_noted(exc) or _HINTS.get(exc.code, ""))
    if isinstance(exc, ConfigError):
        problems = list(map(str, exc.problems))
        return Failure("CONFIG", str(exc), 1, details={"problems": problems})
    known = codes.call_error_from(exc)
    if known is not None and not isinstance(exc, OSError):
        return _call_failed(known)
    if isinstance(exc, AlknetError):
        return Failure(_name(exc), str(exc), codes.ExitStatus.FAILED, hint=_noted(exc))
    if isinstance(exc, OSError):
        where = f"{exc.filename}: " if exc.filename else ""
        return Failure("OS", f"{where}{(exc.strerror or str(exc)).lower()}", 1)
    return Failure(
        "INTERNAL",
        f"this is a bug in alknet: {type(exc).__name__}: {exc}",
        1,
        hint="run it again with ALKNET_DEBUG=1 and report the traceback",
    )


def _noted(exc: BaseException) -> str:
    """Return what a command has noted on an error of others, for its user to do."""
    return "; ".join(getattr(exc, "__notes__", ()))


def _unreachable(attempts: Sequence[Any], message: str, noted: str) -> Failure:
    tried = [
        {"transport": a.transport, "address": a.address, "outcome": a.outcome} for a in attempts
    ]
    hint = noted or _IS_IT_THERE
    if any(OTHER_KEY.search(one["outcome"]) for one in tried):
        hint = (
            "another key answers there; if the node was given a new one, "
            "'alknet peer follow NAME' proves and takes it over"
        )
    return Failure(
        "UNAVAILABLE",
        message,
        4,
        hint=hint,
        details={"attempts": tried},
    )


_IS_IT_THERE = "is it running ('alknet up'), and is the ticket or the peer's address still right?"


def _call_failed(error: Any, *, hint: str = "") -> Failure:
    from alknet.call.codes import code_info

    details: dict[str, Any] = {"retryable": error.retryable}
    if error.details:
        details["details"] = error.details
    message = error.message
    if error.by:
        details["by"] = list(error.by)
        message += f" (said by {'/'.join(error.by)})"
    if path := (error.details or {}).get("path"):
        message += f" (at {path} of the input)"
    if error.correlation_id:
        message += f" (the node's log has it under {error.correlation_id})"
    return Failure(
        error.code,
        message,
        code_info(error.code).exit_status,
        hint=hint,
        details=details,
    )


# What the other node's errors call for; ours say it themselves.
_HINTS = {
    "FORBIDDEN": "'alknet whoami' with the same target and token shows what you are granted; "
    "the node's owner grants more with 'alknet peer set' or 'alknet token create'",
    "NOT_FOUND": "'alknet ops' with the same target lists what you may call; with --peers, what "
    "its peers offer",
    "TIMEOUT": "give it more time with --timeout",
    "RESOURCE_EXHAUSTED": "wait a little and try again",
}


# Codes that tell people nothing that the message does not.
_UNSPOKEN = frozenset({"FAILED", "USAGE", "OS", "INTERNAL"})


def _print_text(failure: Failure) -> None:
    prefix = paint("error:", sys.stderr, fg="red", bold=True)
    is_spoken = failure.code.isupper() and failure.code not in _UNSPOKEN
    code = f"{printable(failure.code)}: " if is_spoken else ""
    message, *lines = _lines(failure)
    click.echo(f"{prefix} {code}{printable(message)}", err=True)
    for line in lines:
        click.echo(f"  {printable(line)}", err=True)
    if failure.hint:
        click.echo(f"{paint('hint:', sys.stderr, bold=True)} {failure.hint}", err=True)


def _lines(failure: Failure) -> list[str]:
    """Return the message, with what it enumerates on lines of their own."""
    if attempts := failure.details.get("attempts"):
        tried = [f"{a['transport']:<4} {a['address']}: {a['outcome']}" for a in attempts]
        return [failure.message.partition(": ")[0], *tried]
    problems = failure.details.get("problems", ())
    if len(problems) > 1:
        return [f"{len(problems)} problems in {problems[0].partition(':')[0]}", *problems]
    return [failure.message]


def _print_json(failure: Failure) -> None:
    import msgspec

    click.echo(msgspec.json.encode(failure.as_json()).decode(), err=True)


def _wants_json(arguments: Sequence[str]) -> bool:
    options = list(arguments)
    if "--" in options:
        options = options[: options.index("--")]
    return "--json" in options


def _reader_left() -> int:
    """Whoever read our output has seen enough, as in ``| head``; say no more to it."""
    _discard_output()
    return 141  # 128 + SIGPIPE, as a program says that does not catch it


def _give_up_unwritten_output() -> None:
    """Drop what standard output does not take; Python would try again at its end: status 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard_output()


def _discard_output() -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(devnull, sys.stdout.fileno())


def _name(exc: AlknetError) -> str:
    """``StoreError`` is STORE, ``RolledBack`` ROLLED_BACK; ``LocalError`` says nothing: FAILED."""
    if type(exc) is LocalError:
        return "FAILED"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(exc).__name__.removesuffix("Error")).upper()


def _single(exc: BaseException) -> BaseException:
    """Return the error in a group that says most: an interrupt, else one of ours, else any."""
    found = list(leaves(exc))
    for kind in (Interrupted, KeyboardInterrupt, AlknetError, click.ClickException):
        for leaf in found:
            if isinstance(leaf, kind):
                return leaf
    return found[0]


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """Iterate over the errors in *exc*, which is one, or a group of some."""
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from leaves(part)
    else:
        yield exc
