"""Noticing that this machine got another network: what could not be reached may be reachable now.

Linux tells of changed addresses by netlink (rtnetlink(7)); elsewhere, and where a sandbox forbids
that, the addresses are compared every few seconds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import ifaddr
import trio

__all__ = ["AddressWatch", "local_addresses"]

log = logging.getLogger(__name__)

# Where nothing tells: soon enough for a laptop that wakes up, and 0.1 ms of work each.
POLL_S = 5.0
# Several messages come for one change, and the address is usable only when all have come.
SETTLE_S = 0.5
# The groups of rtnetlink(7), as <linux/rtnetlink.h> numbers them.
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
# What a message says is not looked at, only that there is one.
READ_BYTES = 65_536


def local_addresses() -> frozenset[str]:
    """Return the addresses of this machine's interfaces by which others could be reached.

    Without loopback and link-local ones: those of containers that come and go are no news.
    """
    found = set()
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            parsed = ipaddress.ip_address(host)
            if not (parsed.is_link_local or parsed.is_loopback):
                found.add(str(parsed))
    return frozenset(found)


class AddressWatch:
    """Compares the addresses of this machine whenever they may have changed.

    A context manager, for it holds a socket.

    Args:
        addresses: Says what they are.
        poll_s: How often to look where nothing tells.
        use_netlink: Listen to the kernel, if it lets us.
    """

    def __init__(
        self,
        *,
        addresses: Callable[[], frozenset[str]] = local_addresses,
        poll_s: float = POLL_S,
        use_netlink: bool = True,
    ) -> None:
        self._addresses = addresses
        self._poll_s = poll_s
        self._known = self._look()
        self._socket = _netlink() if use_netlink else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            self._socket.close()

    async def wait_changed(self) -> None:
        """Wait until the addresses differ from those last seen here. Cancelled, none is missed."""
        while True:
            await self._wait_told()
            now = self._look()
            if now is not None and now != self._known:
                self._known = now
                return

    def _look(self) -> frozenset[str] | None:
        try:
            return self._addresses()
        except OSError as exc:  # out of descriptors: nothing is known, and no task may end of it
            log.debug("network.unknown", extra={"error": exc.strerror})
            return None

    async def _wait_told(self) -> None:
        if self._socket is None:
            await trio.sleep(self._poll_s)
            return
        await trio.lowlevel.wait_readable(self._socket)
        await trio.sleep(SETTLE_S)
        with contextlib.suppress(OSError):  # EAGAIN: all was read; ENOBUFS: some was lost
            while self._socket.recv(READ_BYTES):
                pass


def _netlink() -> socket.socket | None:
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    opened = None
    try:
        opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        opened.setblocking(False)
        opened.bind((0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
    except OSError:
        if opened is not None:
            opened.close()
        return None
    return opened
