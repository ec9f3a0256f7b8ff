"""A TLS 1.3 stream over any byte stream, driven through OpenSSL's memory BIOs.

One task may send while another receives. Ciphertext that the transport has not taken yet stays
with the stream, so over a socket a cancelled send tears no record: the next send, or the close,
goes on where it stopped. Other transports cannot say how much of a cancelled `send_all` they
took; over them a cancelled send breaks the sending side.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import trio
from OpenSSL import SSL

from alknet.core.budget import UNMETERED, Account
from alknet.core.conflict import ConflictDetector
from alknet.core.tcp.contexts import (
    Handshake,
    client_connection,
    peer_certificate,
    server_connection,
)
from alknet.core.tcp.failures import TlsBroken, broken, handshake_failure
from alknet.core.tls.errors import HandshakeFailed
from alknet.core.tls.x509 import node_id_of_certificate
from alknet.errors import AlknetError

if TYPE_CHECKING:
    from alknet.core.identity import NodeId
    from alknet.core.tcp.turns import Turn
    from alknet.core.tls.credentials import NodeCredentials
    from alknet.core.tls.trust import Trust

__all__ = ["TlsStream"]

RECORD_BYTES = 16_384
# More ciphertext in one read of the BIO crosses malloc's mmap threshold: twice the CPU (measured).
RECORDS_PER_WRITE = 7
# What one read of the transport takes, and so the most that is read ahead of the application.
READ_BYTES = 65_536
# The same for who wants no more, and when the node's memory is short: a record, which is what it
# takes to make progress.
FLOOR_BYTES = RECORD_BYTES
# How long a close waits for the other side to close too. Closing a socket whose unread bytes are
# still arriving makes the kernel send RST, which can destroy what we sent last.
LINGER_S = 0.5
# How long a goodbye may take to get out when the peer does not read.
GOODBYE_S = 1.0
# How long a refused handshake may take to get its alert out.
ALERT_S = 1.0


class TlsStream(trio.abc.HalfCloseableStream):
    """TLS 1.3 on *transport*, which belongs to it from now on.

    Make one with `server` or `client`, then await `do_handshake`.

    Attributes:
        account: Charged for ciphertext that the application or the transport has not taken.
    """

    def __init__(
        self, transport: trio.abc.Stream, connection: SSL.Connection, handshake: Handshake
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._handshake = handshake
        self.account = Account(UNMETERED)
        self._outgoing = memoryview(b"")
        self._undecrypted = self._charged_undecrypted = self._charged_unsent = 0
        self._transport_lock = trio.Lock()
        self._send_conflict = ConflictDetector("another task is sending on this TLS stream")
        self._receive_conflict = ConflictDetector("another task is receiving on this TLS stream")
        self._send_failure: str | None = None
        self._receive_failure: TlsBroken | None = None
        self._has_sent_eof = False
        self._peer_has_finished = False
        self._is_closed = False

    @classmethod
    def server(
        cls,
        transport: trio.abc.Stream,
        credentials: NodeCredentials,
        alpns: Sequence[str],
        *,
        serves_without_alpn: bool = False,
    ) -> TlsStream:
        """Be the server: serve *alpns*, the one that we prefer first."""
        return cls(
            transport,
            *server_connection(credentials, alpns, serves_without_alpn=serves_without_alpn),
        )

    @classmethod
    def client(
        cls,
        transport: trio.abc.Stream,
        *,
        alpn: str,
        credentials: NodeCredentials | None,
        trust: Trust,
        server_name: str | None,
    ) -> TlsStream:
        """Be the client: offer *alpn*, show the key of *credentials* (None: no key), if asked.

        Raises:
            LocalError: *server_name* is no DNS name.
        """
        return cls(transport, *client_connection(credentials, alpn, trust, server_name))

    @property
    def transport(self) -> trio.abc.Stream:
        """The stream that carries the records."""
        return self._transport

    @property
    def alpn(self) -> str | None:
        """The protocol agreed, or None if the client offered none."""
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "replace") or None

    @property
    def server_name(self) -> str | None:
        """The SNI of the handshake."""
        name = self._connection.get_servername()
        return None if name is None else name.decode("ascii", "replace")

    @property
    def peer_key(self) -> NodeId | None:
        """The Ed25519 key that the peer has proven to hold; None for no key, or another kind."""
        certificate = peer_certificate(self._connection)
        return None if certificate is None else node_id_of_certificate(certificate)

    async def do_handshake(self, turn: Turn = nullcontext) -> None:
        """Shake hands. Cancelled, the stream is good for nothing but `aclose`.

        Args:
            turn: Waits for a turn before each step that follows from the peer's bytes.

        A client that returns from here has not been admitted: a server that refuses its key says
        so afterwards, to the first `receive_some`.

        Raises:
            HandshakeFailed: One side refused the other, the link broke, or it is not TLS 1.3.
            LocalError: The trust is unusable (see `check_server`).
        """
        step: Turn = nullcontext  # before the first bytes there is little to compute
        while True:
            try:
                async with step():
                    is_done = self._shake_once()
            except AlknetError:
                await self._send_alert()
                raise
            if is_done and self._handshake.trust is None:
                # What OpenSSL has made now are tickets: they can wait for our first bytes, and so
                # cannot block us when the client is not reading.
                self._pull()
                return
            try:
                await self._flush()
                if is_done:
                    return
                data = await self._transport.receive_some(READ_BYTES)
            except trio.BrokenResourceError as exc:
                raise HandshakeFailed(f"the link broke during the TLS handshake: {exc}") from exc
            if not data:
                raise HandshakeFailed(
                    "the other side closed the link during the TLS handshake", by_peer=True
                )
            self._connection.bio_write(data)
            step = turn

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send. Cancelled, some, all or none of *data* may have been accepted.

        Raises:
            TlsBroken: The peer or the link ended the stream.
        """
        with self._send_conflict:
            self._check_can_send()
            await self._flush()
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[self._encrypt(rest) :]
                await self._flush()

    def send_now(self, data: bytes) -> bool:
        """Encrypt and send all of *data*, or nothing, without waiting; return whether it was.

        What the socket does not take of it, if its buffer is full, waits in `flush`.
        """
        transport = self._transport
        if len(data) > RECORD_BYTES or not isinstance(transport, trio.SocketStream):
            return False
        with self._send_conflict:
            if self._is_closed or self._has_sent_eof or self._send_failure is not None:
                return False
            if self._outgoing or self._transport_lock.locked():  # behind what is on its way
                return False
            self._encrypt(memoryview(data))
            self._pull()
            self._write_now(transport)
            return True

    @property
    def has_unsent(self) -> bool:
        """Ciphertext waits for the transport."""
        return bool(self._outgoing)

    async def flush(self) -> None:
        """Wait until the transport has taken what was accepted. Cancelled, the rest waits on.

        Raises:
            TlsBroken: The link broke.
        """
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes bytes. Cancelled, nothing happens."""
        with self._send_conflict:
            self._check_can_send()
            await self._transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send close_notify and go on receiving. Idempotent; cancelled, the close still sends it.

        Raises:
            TlsBroken: The peer or the link ended the stream.
        """
        with self._send_conflict:
            if not self._has_sent_eof:
                self._check_can_send()
                self._queue_close_notify()
            await self._flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for decrypted bytes; ``b""`` after the peer's close_notify. Cancelled, takes none.

        Raises:
            TlsBroken: An alert, or the link broke, or it ended without close_notify (truncation).
        """
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        with self._receive_conflict:
            await trio.lowlevel.checkpoint_if_cancelled()
            has_waited = False
            while True:
                if self._is_closed:
                    raise trio.ClosedResourceError("the TLS stream is closed")
                data = self._decrypt(max_bytes or READ_BYTES)
                if data is not None:
                    if not has_waited:
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    return data
                # OpenSSL may want to answer (KeyUpdate); a sender that is at work takes it along.
                if not self._transport_lock.locked() and self._pull():
                    await self._flush()
                await self._read_transport(max_bytes or READ_BYTES)
                has_waited = True

    async def wait_transport_ended(self) -> None:
        """After ``b""`` from `receive_some`: wait until the peer closes the transport too.

        Nothing may follow close_notify, so whatever does is dropped. Cancelled, nothing happens.

        Raises:
            trio.BrokenResourceError: The link broke instead.
        """
        with self._receive_conflict:
            while await self._transport.receive_some(READ_BYTES):
                pass

    async def say_goodbye(self) -> None:
        """Send close_notify if that is possible, and on a socket wait a moment for the peer's end.

        Nothing can be sent afterwards. Cancelled, it can be called again to go on.
        """
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if self._send_failure is None:
                if not self._has_sent_eof:
                    self._queue_close_notify()
                await self._flush()
            if isinstance(self._transport, trio.SocketStream):
                await self._transport.send_eof()
                with trio.move_on_after(LINGER_S):
                    while await self._transport.receive_some(READ_BYTES):
                        pass

    async def aclose(self) -> None:
        """`say_goodbye`, for a second at most, and close the transport. Idempotent.

        Cancelled, the transport is closed at once.
        """
        was_closed, self._is_closed = self._is_closed, True
        try:
            if not was_closed:
                with trio.move_on_after(GOODBYE_S):
                    await self.say_goodbye()
        finally:
            await trio.aclose_forcefully(self._transport)
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Close the transport without close_notify: the peer sees a broken stream, not an end."""
        self._is_closed = True
        await trio.aclose_forcefully(self._transport)

    # The handshake

    def _shake_once(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except (SSL.Error, HandshakeFailed) as exc:
            raise handshake_failure(self._handshake, exc) from exc
        self._check_client_outcome()
        return True

    def _check_client_outcome(self) -> None:
        # Before our Finished leaves: what OpenSSL does not insist on, we do.
        handshake = self._handshake
        if handshake.trust is None:
            return
        if not handshake.is_server_trusted:
            raise HandshakeFailed("the server has not shown who it is")
        if self.alpn is None:
            wanted = handshake.alpns[0].decode()
            raise HandshakeFailed(f"the server did not agree to speak {wanted}")

    async def _send_alert(self) -> None:
        with trio.move_on_after(ALERT_S), contextlib.suppress(trio.BrokenResourceError):
            await self._flush()

    # Between the application and OpenSSL

    def _check_can_send(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("the TLS stream is closed")
        if self._has_sent_eof:
            raise trio.ClosedResourceError("the sending side is finished")
        if self._send_failure is not None:
            raise TlsBroken(self._send_failure)

    def _encrypt(self, data: memoryview) -> int:
        taken = 0
        for _ in range(1 if self.account.is_tight else RECORDS_PER_WRITE):
            try:
                taken += self._connection.send(data[taken : taken + RECORD_BYTES])
            except SSL.Error as exc:
                raise broken(self._handshake, exc) from exc
            if taken == len(data):
                break
        return taken

    def _queue_close_notify(self) -> None:
        self._has_sent_eof = True
        try:
            self._connection.shutdown()
        except SSL.Error as exc:
            raise broken(self._handshake, exc) from exc

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Return what can be had now: bytes, ``b""`` at the end, None if OpenSSL needs more."""
        if self._receive_failure is not None:
            raise self._receive_failure
        chunks: list[bytes] = []
        room = 0 if self._peer_has_finished else max_bytes
        while room:
            try:
                chunk = self._connection.recv(min(room, RECORD_BYTES))
            except SSL.WantReadError:
                self._undecrypted = 0  # but for a record that has not all come
                break
            except SSL.ZeroReturnError:
                self._peer_has_finished = True
                self._undecrypted = 0  # nothing may follow
                break
            except SSL.Error as exc:
                self._receive_failure = broken(self._handshake, exc)
                break
            chunks.append(chunk)
            room -= len(chunk)
            if not room:
                self._undecrypted = max(0, self._undecrypted - max_bytes)
        self._charge_undecrypted()
        if chunks:
            return b"".join(chunks)
        if self._receive_failure is not None:
            raise self._receive_failure
        return b"" if self._peer_has_finished else None

    # Between OpenSSL and the transport

    async def _flush(self) -> None:
        async with self._transport_lock:
            while self._outgoing or self._pull():
                await self._write_transport()

    def _pull(self) -> bool:
        """Move what OpenSSL wants to send to the end of `_outgoing`; say if there was any."""
        try:
            data = self._connection.bio_read(RECORDS_PER_WRITE * (RECORD_BYTES + 256))
        except SSL.WantReadError:
            return False
        self._outgoing = memoryview(bytes(self._outgoing) + data if self._outgoing else data)
        return True

    # Mostly all is taken at once, and nothing is charged in between.

    def _charge_unsent(self) -> None:
        if len(self._outgoing) != self._charged_unsent:
            self._charged_unsent = len(self._outgoing)
            self.account.set_sending(0, self._charged_unsent)

    def _charge_undecrypted(self) -> None:
        if self._undecrypted != self._charged_undecrypted:
            self.account.add_unread(self._undecrypted - self._charged_undecrypted)
            self._charged_undecrypted = self._undecrypted

    def _write_now(self, transport: trio.SocketStream) -> None:
        try:
            taken = os.write(transport.socket.fileno(), self._outgoing)
        except BlockingIOError:
            taken = 0
        except OSError as exc:  # the next send, or `flush`, says so
            self._send_failure = f"the link broke: {exc.strerror or exc}"
            return
        self._outgoing = self._outgoing[taken:]
        self._charge_unsent()

    async def _write_transport(self) -> None:
        if isinstance(self._transport, trio.SocketStream):
            await self._write_socket(self._transport)
            return
        data, self._outgoing = self._outgoing, memoryview(b"")
        before, self._send_failure = self._send_failure, "a send was cancelled in mid-record"
        try:
            await self._transport.send_all(data)
        except trio.BrokenResourceError as exc:
            self._send_failure = f"the link broke: {exc}"
            raise TlsBroken(self._send_failure) from exc
        self._send_failure = before

    async def _write_socket(self, transport: trio.SocketStream) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while self._outgoing:
            self._write_now(transport)
            if self._send_failure is not None:
                raise TlsBroken(self._send_failure)
            if self._outgoing:
                await trio.lowlevel.wait_writable(transport.socket)
                has_waited = True
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _read_transport(self, wanted: int) -> None:
        most = FLOOR_BYTES if self.account.is_tight or wanted <= FLOOR_BYTES else READ_BYTES
        try:
            data = await self._transport.receive_some(most)
        except trio.BrokenResourceError as exc:
            self._receive_failure = TlsBroken(f"the link broke: {exc.__cause__ or exc}")
            raise self._receive_failure from exc
        if not data:
            self._receive_failure = TlsBroken("the link ended without close_notify")
            raise self._receive_failure
        self._connection.bio_write(data)
        self._undecrypted += len(data)
