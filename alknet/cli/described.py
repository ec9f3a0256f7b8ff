"""What a node says of an operation, for who is about to call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from alknet.call.session import CallSession
    from alknet.cli.remote import Remote

__all__ = ["Described", "described"]


class Described(NamedTuple):
    """What to know of an operation before it is called.

    Attributes:
        op_type: ``query``, ``mutation``, ``subscription``, ``upload`` or ``bidi``.
        large_output: Its output may be large.
        idempotent: To run it twice is the same as once.
    """

    op_type: str
    large_output: bool
    idempotent: bool


async def described(session: CallSession, remote: Remote, operation: str) -> Described:
    """Ask the node about an operation; what it does not show is called as a query.

    Raises:
        CallError: The node could not be asked.
    """
    import msgspec

    from alknet.call.codes import CallError, ErrorCode

    try:
        about = {"name": operation.removeprefix("/"), "peer": remote.route}
        found = await session.call("services/schema", about, **remote.direct_options)
    except CallError as exc:
        if exc.code != ErrorCode.NOT_FOUND:
            raise
        return Described("query", large_output=False, idempotent=False)
    found_out = msgspec.json.decode(found, type=dict[str, Any])
    return Described(
        str(found_out.get("op_type")),
        bool(found_out.get("large_output")),
        bool(found_out.get("idempotent")),
    )
