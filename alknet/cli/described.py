"""What a node says of an operation, for who is about to call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alknet.call.session import CallSession
    from alknet.cli.remote import Remote

__all__ = ["described"]


async def described(session: CallSession, remote: Remote, operation: str) -> tuple[str, bool]:
    """Ask the node of which kind an operation is, and whether its output may be large.

    What it does not show is called as a query.

    Raises:
        CallError: The node could not be asked.
    """
    import msgspec

    from alknet.call.codes import CallError, ErrorCode

    try:
        found = await session.call(
            "services/schema", {"name": operation.removeprefix("/")}, **remote.options
        )
    except CallError as exc:
        if exc.code != ErrorCode.NOT_FOUND:
            raise
        return "query", False
    described = msgspec.json.decode(found, type=dict[str, Any])
    return str(described.get("op_type")), bool(described.get("large_output"))
