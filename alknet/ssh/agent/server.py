"""The agent's Unix socket: private to its user, asked one request at a time by each client."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from alknet.core.endpoint.unixsocket import is_own_uid, listening, peer_of
from alknet.errors import AlknetError, Malformed
from alknet.ssh.agent.keys import AgentKeys, list_keys
from alknet.ssh.agent.proto import (
    FAILURE,
    ListKeys,
    MessageDecoder,
    Request,
    Sign,
    decode_request_untrusted,
    encode_keys,
    encode_signature,
)

__all__ = ["SOCKET_NAME", "serve_agent"]

log = logging.getLogger(__name__)

SOCKET_NAME = "ssh-agent.sock"
RECEIVE_BYTES = 64 * 1024
# Each may hold a message of 256 KiB; nobody runs so many SSH clients at once.
MAX_CLIENTS = 128


async def serve_agent(
    path: Path,
    keys: AgentKeys,
    *,
    count: int = 1,
    is_allowed: Callable[[int], bool] = is_own_uid,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the first *count* user keys on a Unix socket of mode 0600 at *path*.

    Reports the path as started. Runs until cancelled; then the socket file is removed.

    Args:
        is_allowed: Which user may ask, by uid; others are hung up on.

    Raises:
        LocalError: The path is too long, an agent runs there, or something else is in the way.
        OSError: The socket cannot be bound.
    """
    limiter = trio.CapacityLimiter(MAX_CLIENTS)
    taken, shorter = f"an agent serves {path} already", "name a shorter one with --socket"
    with listening(path, taken=taken, too_long=shorter) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        task_status.started(path)
        serve = partial(_serve_client, keys, count, is_allowed, limiter)
        await trio.serve_listeners(serve, [listener])


async def _serve_client(
    keys: AgentKeys,
    count: int,
    is_allowed: Callable[[int], bool],
    limiter: trio.CapacityLimiter,
    stream: trio.SocketStream,
) -> None:
    uid, pid = peer_of(stream.socket)
    async with stream:
        if not is_allowed(uid):
            log.warning("ssh_agent.refused", extra={"uid": uid, "pid": pid})
            return
        try:
            limiter.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:  # told so, a client goes on without an agent; else it would hang
            log.warning("ssh_agent.full", extra={"pid": pid, "clients": MAX_CLIENTS})
            return
        try:
            await _answer_all(keys, count, stream)
        except Malformed as exc:
            log.warning("ssh_agent.malformed", extra={"pid": pid, "error": str(exc)})
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it did not wait for the answer
        finally:
            limiter.release_on_behalf_of(stream)


async def _answer_all(keys: AgentKeys, count: int, stream: trio.SocketStream) -> None:
    decoder = MessageDecoder()
    while data := await stream.receive_some(RECEIVE_BYTES):
        decoder.receive_data_untrusted(data)
        while (message := decoder.next_message()) is not None:
            request = decode_request_untrusted(message)
            await stream.send_all(await _answer(keys, count, request))


async def _answer(keys: AgentKeys, count: int, request: Request) -> bytes:
    try:
        match request:
            case ListKeys():
                return encode_keys(await list_keys(keys, count))
            case Sign(public_key=public_key, data=data):
                for index, key in enumerate(await list_keys(keys, count)):
                    if key.public_key == public_key:
                        return encode_signature(await keys.sign(index, data))
    except AlknetError as exc:  # locked, or the node has gone; the next request may do
        log.info("ssh_agent.unavailable", extra={"error": str(exc)})
        return encode_keys([]) if isinstance(request, ListKeys) else FAILURE
    return FAILURE
