"""``node/succession``: which keys a node had before, for peers that know it by one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from alknet.call.operations import Operation, operation, public
from alknet.core.succession import Succession, decode_succession_untrusted
from alknet.errors import Malformed

__all__ = ["OPERATION", "decode_answer_untrusted", "succession_operation"]

OPERATION = "node/succession"


class Statements(msgspec.Struct, frozen=True):
    """Signed statements, oldest first; the last one leads to the key that the node has now."""

    statements: list[bytes]


def succession_operation(statements: Sequence[Succession]) -> Operation[..., Any]:
    """Return the operation, to be registered with ``builtin=True``."""
    answer = Statements([one.encode() for one in statements])

    @operation(OPERATION, access=public())
    async def succession() -> Statements:
        """Say which keys the node had before, each signed over to the next."""
        return answer

    return succession


def decode_answer_untrusted(output: bytes) -> list[Succession]:
    """Read what the operation returned; nothing of it is verified.

    Raises:
        Malformed: It is something else.
    """
    try:
        answer = msgspec.json.decode(output, type=Statements)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed("not an answer of node/succession") from exc
    return [decode_succession_untrusted(one) for one in answer.statements]
