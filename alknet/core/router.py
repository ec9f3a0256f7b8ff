"""From the ALPN that a handshake agreed on to the handler that serves it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from alknet.core.contracts import CloseReason, HasFarewell, HasLifespan, ProtocolHandler
from alknet.errors import LocalError

__all__ = ["Router"]

# RFC 7301 sec. 3.1: a protocol name is 1 to 255 bytes long.
MAX_ALPN_BYTES = 255


class Router:
    """The services of a node, fixed for its life: handlers come in the order of preference.

    Attributes:
        handlers: All handlers, in the order given.
        alpns: All ALPN names, in the order of registration; offered to clients in that order.

    Raises:
        LocalError: Two handlers claim one ALPN, a name is not one, or a handler has none.
    """

    def __init__(self, handlers: Iterable[ProtocolHandler]) -> None:
        self.handlers = tuple(handlers)
        self._by_alpn: dict[str, ProtocolHandler] = {}
        # Asked once: to look whether a handler has the method takes 30 us.
        self._farewells: dict[str, Callable[[CloseReason], bytes]] = {}
        for handler in self.handlers:
            self._register(handler)
        self.alpns = tuple(self._by_alpn)

    def __repr__(self) -> str:
        return f"<Router {', '.join(self.alpns)}>"

    def handler(self, alpn: str) -> ProtocolHandler | None:
        """Return who serves *alpn*, or None."""
        return self._by_alpn.get(alpn)

    def farewell(self, alpn: str) -> Callable[[CloseReason], bytes] | None:
        """Return what makes the last bytes of connections that speak *alpn* (`HasFarewell`)."""
        return self._farewells.get(alpn)

    @asynccontextmanager
    async def lifespans(self) -> AsyncGenerator[None]:
        """Enter the lifespan of each handler that has one; leave them in reverse order.

        If entering one fails or is cancelled, those entered before are left.
        """
        async with AsyncExitStack() as stack:
            for handler in self.handlers:
                if isinstance(handler, HasLifespan):
                    await stack.enter_async_context(handler.lifespan())
            yield

    def _register(self, handler: ProtocolHandler) -> None:
        name = type(handler).__name__
        if not handler.alpns:
            raise LocalError(f"handler {name} has no ALPN")
        for alpn in handler.alpns:
            if not 1 <= len(alpn.encode()) <= MAX_ALPN_BYTES:
                raise LocalError(f"handler {name}: ALPN {alpn!r} is not 1 to 255 bytes long")
            if (other := self._by_alpn.get(alpn)) is not None:
                both = f"{type(other).__name__} and {name}"
                raise LocalError(f"ALPN {alpn!r} is claimed by two handlers: {both}")
            self._by_alpn[alpn] = handler
            if isinstance(handler, HasFarewell):
                self._farewells[alpn] = handler.farewell
