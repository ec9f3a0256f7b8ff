"""What aioquic keeps for each connection although all could share it, or nobody needs it any more.

Of 90 KiB, 48 are three buffers for TLS messages, which only the handshake fills; another ten are a
table of frame handlers with sets that are equal in all connections. Building these also takes a
twentieth of a handshake's time. tests/core/quic/test_memory.py holds the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection as aioquic_connection
from aioquic.quic.connection import QuicConnection, QuicReceiveContext
from aioquic.quic.crypto import CryptoContext, CryptoPair

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

    def setup_initial(self, cid: bytes, is_client: bool, version: int) -> None:
        """Remember what the keys are made from."""
        self._arguments = cid, is_client, version
        del self.recv, self.send

    def __getattr__(self, name: str) -> CryptoContext:
        if name not in {"recv", "send"}:
            raise AttributeError(name)
        self.recv, self.send = CryptoContext(), CryptoContext()
        super().setup_initial(*self._arguments)
        return cast(CryptoContext, self.__dict__[name])

    @property
    def is_used(self) -> bool:
        """A packet has needed them."""
        return "recv" in self.__dict__


# aioquic sets handlers that log on all other pairs.
vars(aioquic_connection)[CryptoPair.__name__] = InitialPair

# Nothing is ever written here: no tickets are issued, so TLS has no more to say.
_UNUSED = Buffer(capacity=0)
_NO_KEYS = InitialPair()


def _do_nothing(*_: object) -> None:
    """Stand for a callback."""


# By class: for each type of frame the function that handles it, and the epochs.
_handlers: dict[type, dict[int, tuple[Callable[..., None], frozenset[tls.Epoch]]]] = {}


class LeanConnection(QuicConnection):
    """aioquic's connection, with less of its own.

    Attributes:
        first_keys: What has opened the first packet of a client already, see `packets`.
    """

    first_keys: InitialPair | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._local_active_connection_id_limit = ACTIVE_CONNECTION_IDS

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self.first_keys is not None and self._version is not None:
            pair = self._cryptos_initial[self._version]
            pair.recv, pair.send = self.first_keys.recv, self.first_keys.send
            self.first_keys = None

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
        for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, tls.Epoch.ZERO_RTT):
            self._cryptos[epoch] = _NO_KEYS

    def let_go(self) -> None:
        """Nothing will be sent or received any more: free what is large when the last user goes.

        aioquic's callbacks lead back to the connection; without this, 30 KiB of each that has
        ended would wait for a garbage collection, which is rare in a node (`core.collector`).
        """
        self._loss._send_probe = _do_nothing
        for space in self._spaces.values():
            space.sent_packets.clear()
        for pair in self._cryptos.values():
            for keys in (pair.recv, pair.send):
                keys._setup_cb = keys._teardown_cb = _do_nothing
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
