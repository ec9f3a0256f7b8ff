"""What aioquic keeps for each connection although all could share it, or nobody needs it any more.

Of 90 KiB, 48 are three buffers for TLS messages, which only the handshake fills; another ten are a
table of frame handlers with sets that are equal in all connections, and ten what a handshake leaves
behind: the TLS context with its keys, two packet number spaces, two streams, empty queues. Building
these also takes a twentieth of a handshake's time. tests/core/quic/test_memory.py holds the sum.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic._crypto import AEAD_TAG_LENGTH
from aioquic.quic import connection as aioquic_connection
from aioquic.quic.connection import (
    MAX_LOCAL_CHALLENGES,
    NetworkAddress,
    QuicConnection,
    QuicReceiveContext,
)
from aioquic.quic.crypto import (
    INITIAL_CIPHER_SUITE,
    Callback,
    CryptoContext,
    CryptoPair,
    NoCallback,
)
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from alknet.core.quic.keys import PacketKeys, initial_secrets

__all__ = ["InitialPair", "LeanConnection"]

FrameHandler = Callable[[QuicReceiveContext, int, Buffer], None]
# The connection IDs that we ask a peer for, and so the number that it asks us for if it is like
# us: one in use, and three for a peer that moves thrice before we hear of it. aioquic's eight cost
# seven frames in each direction of each handshake.
ACTIVE_CONNECTION_IDS = 4

# The sets of epochs in which a frame may come: equal for equal letters.
aioquic_connection.EPOCHS = functools.cache(aioquic_connection.EPOCHS)


class InitialPair(CryptoPair):
    """Keys for Initial packets of one version, made when a packet of that version needs them.

    aioquic makes those of all versions for each connection: 55 us for one that nobody speaks.
    """

    _arguments: tuple[bytes, bool, int]
    _opened: tuple[bytes, tuple[bytes, bytes, int]] | None = None

    def __init__(
        self,
        recv_setup_cb: Callback = NoCallback,
        recv_teardown_cb: Callback = NoCallback,
        send_setup_cb: Callback = NoCallback,
        send_teardown_cb: Callback = NoCallback,
    ) -> None:  # as the base's, which makes keys of its own kind
        self.aead_tag_size = AEAD_TAG_LENGTH
        self.recv = PacketKeys(setup_cb=recv_setup_cb, teardown_cb=recv_teardown_cb)
        self.send = PacketKeys(setup_cb=send_setup_cb, teardown_cb=send_teardown_cb)
        self._update_key_requested = False

    def setup_initial(self, cid: bytes, is_client: bool, version: int) -> None:
        """Remember what the keys are made from."""
        self._arguments = cid, is_client, version
        del self.recv, self.send

    def __getattr__(self, name: str) -> CryptoContext:
        if name not in {"recv", "send"}:
            raise AttributeError(name)
        self.recv, self.send = PacketKeys(), PacketKeys()
        cid, is_client, version = self._arguments
        suite = INITIAL_CIPHER_SUITE
        ours, theirs = initial_secrets(cid, version)[:: 1 if is_client else -1]
        self.recv.setup(cipher_suite=suite, secret=theirs, version=version)
        self.send.setup(cipher_suite=suite, secret=ours, version=version)
        return cast(CryptoContext, self.__dict__[name])

    @property
    def is_used(self) -> bool:
        """A packet has needed them."""
        return "recv" in self.__dict__

    def open_first(self, packet: bytes, encrypted_offset: int) -> bytes:
        """Decrypt a client's first packet; the connection will not do it again.

        Raises:
            CryptoError: It does not open.
        """
        self._opened = packet, self.decrypt_packet(packet, encrypted_offset, 0)
        return self._opened[1][1]

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        """Decrypt *packet*, as aioquic does, or remember what `open_first` has made of it."""
        opened = self._opened
        if opened is not None:
            self._opened = None
            if opened[0] == packet and not expected_packet_number:
                return opened[1]
        return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)


# aioquic sets handlers that log on all other pairs.
vars(aioquic_connection)[CryptoPair.__name__] = InitialPair

# What stands for the handshake's own once it is over. Nothing is ever written to the buffer, for no
# tickets are issued; nothing touches the others, for no packet opens without keys.
_UNUSED = Buffer(capacity=0)
_NO_KEYS = InitialPair()
_NO_STREAM = QuicStream()
_NO_SPACE = QuicPacketSpace()
_NO_SPACE.discarded = True
_HANDSHAKE_EPOCHS = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE)


class ShortQueue(list[bytes]):
    """A queue that is almost always empty: then a deque takes 760 bytes, this a tenth of it."""

    def popleft(self) -> bytes:
        """Remove and return the first."""
        return self.pop(0)


class RecentChallenges(ShortQueue):
    """The path challenges sent last, as many as aioquic keeps."""

    def append(self, challenge: bytes) -> None:
        """Add *challenge*, perhaps for the oldest."""
        super().append(challenge)
        del self[:-MAX_LOCAL_CHALLENGES]


def _do_nothing(*_: object) -> None:
    """Stand for a callback."""


# What aioquic asks of a TLS context after the handshake, and `Engine` of ours.
KEPT_OF_TLS = (
    *("_Context__logger", "_is_client", "_receive_buffer", "_session_resumed", "alpn_negotiated"),
    *("early_data_accepted", "new_session_ticket_cb", "state", "peer_key", "server_name"),
)


def _settled(context: tls.Context) -> tls.Context:
    """Return *context* without secrets, keys and offers: good for what follows a handshake."""
    rest = object.__new__(type(context))
    vars(rest).update({name: vars(context)[name] for name in KEPT_OF_TLS})
    return rest


def _silence(pair: CryptoPair) -> None:
    for keys in (pair.recv, pair.send):
        keys._setup_cb = keys._teardown_cb = _do_nothing


# By class: for each type of frame the function that handles it, and the epochs.
_handlers: dict[type, dict[int, tuple[Callable[..., None], frozenset[tls.Epoch]]]] = {}


class LeanConnection(QuicConnection):
    """aioquic's connection, with less of its own.

    Attributes:
        first_keys: What has opened the first packet of a client already, see `packets`.
    """

    first_keys: InitialPair | None = None
    _is_settled = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._local_active_connection_id_limit = ACTIVE_CONNECTION_IDS
        self._datagrams_pending = cast("deque[bytes]", ShortQueue())

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self.first_keys is not None and self._version is not None:
            self._cryptos_initial[self._version] = self.first_keys
            self._cryptos[tls.Epoch.INITIAL] = self.first_keys
            self.first_keys = None

    def _handle_padding_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        if self._quic_logger is not None:
            super()._handle_padding_frame(context, frame_type, buf)
            return
        start = buf.tell()
        rest = buf.data_slice(start, buf.capacity)  # aioquic looks at each of a thousand bytes
        buf.seek(start + len(rest) - len(rest.lstrip(b"\0")))

    # aioquic assigns the table, and reads it for each frame, under the name that Python makes of
    # a private one.
    @property
    def _QuicConnection__frame_handlers(self) -> _FrameHandlers:  # noqa: N802  as there
        return cast(_FrameHandlers, self.__dict__["_QuicConnection__frame_handlers"])

    @_QuicConnection__frame_handlers.setter
    def _QuicConnection__frame_handlers(  # noqa: N802  as there
        self, table: dict[int, tuple[MethodType, frozenset[tls.Epoch]]]
    ) -> None:
        kind = type(self)
        if kind not in _handlers:
            _handlers[kind] = {
                frame_type: (method.__func__, epochs)
                for frame_type, (method, epochs) in table.items()
            }
        self.__dict__["_QuicConnection__frame_handlers"] = _FrameHandlers(self)

    def _discard_epoch(self, epoch: tls.Epoch) -> None:
        for version, pair in self._cryptos_initial.items():
            if not cast(InitialPair, pair).is_used:
                self._cryptos_initial[version] = _NO_KEYS  # aioquic would make them to drop them
        super()._discard_epoch(epoch)

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._crypto_buffers = dict.fromkeys(self._crypto_buffers, _UNUSED)
        # Their keys are gone; packets that come too late find that out.
        self._cryptos_initial = dict.fromkeys(self._cryptos_initial, _NO_KEYS)
        for epoch in (*_HANDSHAKE_EPOCHS, tls.Epoch.ZERO_RTT):
            self._cryptos[epoch] = _NO_KEYS
        if self._is_client:
            self._settle()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Build what can be sent now, as in aioquic."""
        # A server confirms amid a TLS message: what it still uses goes with the next pass, which
        # comes here, for it says HANDSHAKE_DONE.
        if self._handshake_confirmed and not self._is_settled:
            self._settle()
            space = self._spaces[tls.Epoch.ONE_RTT]
            if space.ack_at is not None:  # rides along
                space.ack_at = min(space.ack_at, now)
        return super().datagrams_to_send(now)

    def _settle(self) -> None:
        """Free what only the handshake has used, and let `get_timer` look at one space only."""
        self._is_settled = True
        for epoch in _HANDSHAKE_EPOCHS:
            self._crypto_streams[epoch] = _NO_STREAM
            self._spaces[epoch] = _NO_SPACE
        self._loss.spaces = [self._spaces[tls.Epoch.ONE_RTT]]
        if self._quic_logger is None:  # all that aioquic's callbacks do is to write there
            _silence(self._cryptos[tls.Epoch.ONE_RTT])
        for path in self._network_paths:
            path.local_challenges = cast("deque[bytes]", RecentChallenges(path.local_challenges))
            path.remote_challenges = cast("deque[bytes]", ShortQueue(path.remote_challenges))
        self.__dict__["tls"] = _settled(self.__dict__["tls"])

    def let_go(self) -> None:
        """Nothing will be sent or received any more: free what is large when the last user goes.

        aioquic's callbacks lead back to the connection; without this, 30 KiB of each that has
        ended would wait for a garbage collection, which is rare in a node (`core.collector`).
        """
        self._loss._send_probe = _do_nothing
        for space in self._spaces.values():
            space.sent_packets.clear()
        for pair in self._cryptos.values():
            _silence(pair)
        self._cryptos = {}
        self._cryptos_initial = {}
        self.__dict__["_QuicConnection__frame_handlers"] = {}
        context = self.__dict__.get("tls")
        if context is not None:
            context.alpn_cb = None
            context.update_traffic_key_cb = _do_nothing


class _FrameHandlers:
    """The handlers of one connection, looked up like in aioquic's table of its own."""

    __slots__ = ("_connection", "_table")

    def __init__(self, connection: QuicConnection) -> None:
        self._connection = connection
        self._table = _handlers[type(connection)]

    def __contains__(self, frame_type: object) -> bool:
        return frame_type in self._table

    def __getitem__(self, frame_type: int) -> tuple[FrameHandler, frozenset[tls.Epoch]]:
        handle, epochs = self._table[frame_type]
        return MethodType(handle, self._connection), epochs
