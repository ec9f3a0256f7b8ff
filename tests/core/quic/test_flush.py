"""A handler may return right after its last send: what it sent still arrives."""

from __future__ import annotations

import pytest

from alknet.client import connect
from alknet.core.contracts import Connection
from alknet.testing.nodes import open_node

ANSWER = b"x" * 200_000


class Answering:
    alpns = ("answer/1",)
    requires_identity = False

    async def handle(self, connection: Connection) -> None:
        stream = await connection.accept_stream()
        await stream.send_all(ANSWER)
        await stream.send_eof()


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_the_last_answer_of_a_handler_arrives(transport: str) -> None:
    async with (
        open_node(handlers=[Answering()]) as node,
        connect(node.ticket, alpn="answer/1", transports=[transport]) as connection,
    ):
        stream = await connection.open_stream()
        await stream.send_all(b"?")
        received = b""
        while chunk := await stream.receive_some():
            received += chunk
        assert received == ANSWER
