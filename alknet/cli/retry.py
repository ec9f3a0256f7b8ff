"""Calls that are tried again, over a new connection each time: the old one may be what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from alknet.cli.described import Described, described
from alknet.cli.failures import CommandError
from alknet.cli.output import note

if TYPE_CHECKING:
    import msgspec

    from alknet.call.codes import CallError
    from alknet.call.handles import CallOptions
    from alknet.call.session import CallSession
    from alknet.cli.remote import Remote

__all__ = ["call_again"]

FIRST_WAIT_S = 0.5
"""Longer than that of a program: a node that restarts needs a moment, and a person has it."""


async def call_again(
    remote: Remote, operation: str, data: msgspec.Raw, options: CallOptions, *, retries: int
) -> msgspec.Raw:
    """Call *operation*, and up to *retries* times more while it fails in a way that may pass.

    Each further attempt is noted on standard error, with what the one before met.

    Raises:
        CallError: As the operation; of the last attempt.
        DialError, CommandError: The last attempt did not reach the node.
        click.UsageError: The operation is not one to call again.
    """
    from alknet.call.codes import CallError
    from alknet.call.retrying import Retrier, RetryBudget, RetryPolicy

    failed: list[CallError] = []
    found: list[Described] = []

    async def once(
        name: str,
        given: object = None,
        /,
        **options: Unpack[CallOptions],
    ) -> msgspec.Raw:
        if failed:
            note(f"{failed[-1]}: attempt {len(failed) + 1} of {retries + 1}")
        try:
            return await _call_once(remote, name, given, options, found)
        except CallError as exc:
            failed.append(exc)
            raise

    async def is_idempotent(_name: str) -> bool:
        return bool(found) and found[-1].idempotent

    policy = RetryPolicy(attempts=retries + 1, first_wait_s=FIRST_WAIT_S)
    retrier = Retrier(
        once,
        budget=RetryBudget(most=retries),
        remembers_keys=not _is_for_any(remote.target),
        is_idempotent=is_idempotent,
    )
    try:
        return await retrier.call(operation, data, retry=policy, **options)
    except CallError as exc:
        if exc.__cause__ is None:
            raise
        raise exc.__cause__ from None


async def _call_once(
    remote: Remote,
    operation: str,
    data: object,
    options: CallOptions,
    found: list[Described],
) -> msgspec.Raw:
    from alknet.errors import Unavailable

    try:
        async with remote.session() as session:
            found.append(await _described(session, remote, operation))
            op_type, options["large_output"], _ = found[-1]
            if op_type not in {"query", "mutation"}:
                raise click.UsageError(
                    f"{operation} is of the kind {op_type}: --retry is for queries and mutations"
                )
            options["peer"] = remote.route or None
            return await session.call(operation, data, **options)
    except Unavailable as exc:
        raise _unreached(exc) from exc
    except CommandError as exc:
        if remote.target is not None or exc.code != "UNAVAILABLE":
            raise  # about what is known of a peer, which stays so; else: no node runs here yet
        raise _unreached(exc) from exc


async def _described(session: CallSession, remote: Remote, operation: str) -> Described:
    from alknet.call.codes import CallError

    try:
        return await described(session, remote, operation)
    except CallError as exc:
        exc.is_unsent = True  # what failed was the question
        raise


def _is_for_any(target: str | None) -> bool:
    """Whether another node may get the second attempt, who has not seen the key."""
    return target is not None and target.startswith("@") and "any" in target[1:].split("/")


def _unreached(why: Exception) -> CallError:
    from alknet.call.codes import CallError, ErrorCode

    error = CallError(ErrorCode.UNAVAILABLE, str(why))
    error.is_unsent = True
    return error
