"""Which of this machine's addresses a ticket should name."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence

import ifaddr

from alknet.core.address import Address
from alknet.errors import LocalError

__all__ = ["reachable_addresses"]

# A ticket has to fit a line; containers and bridges can give a host dozens of addresses.
MAX_ADVERTISED = 8


def reachable_addresses(listening: Sequence[Address]) -> tuple[Address, ...]:
    """Return what others can dial, best first: wildcards are replaced by the interfaces' addresses.

    Global addresses come before private ones, loopback only if there is nothing else, link-local
    ones never (they need a scope that means nothing elsewhere).

    Raises:
        LocalError: The system does not say what they are; it may be out of descriptors.
    """
    found: dict[Address, None] = {}
    for address in listening:
        if address.is_unspecified:
            found |= dict.fromkeys(_on_interfaces(address))
        else:
            found[address] = None
    ordered = sorted(found, key=lambda address: _rank(address.host))
    public = [address for address in ordered if not _is_loopback(address.host)]
    return tuple((public or ordered)[:MAX_ADVERTISED])


def _on_interfaces(wildcard: Address) -> Iterable[Address]:
    takes_ipv6 = ":" in wildcard.host
    for adapter in _adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            parsed = ipaddress.ip_address(host)
            # "::" is dual-stack, "0.0.0.0" is IPv4 alone.
            if not parsed.is_link_local and (takes_ipv6 or parsed.version == 4):
                yield Address(str(parsed), wildcard.port)


def _adapters() -> Iterable[ifaddr.Adapter]:
    try:
        return ifaddr.get_adapters()
    except OSError as exc:
        why = os.strerror(exc.errno).lower() if exc.errno else str(exc)
        raise LocalError(f"cannot list this machine's addresses: {why}") from exc


def _rank(host: str) -> tuple[bool, bool]:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return (False, False)
    return (parsed.is_loopback, not parsed.is_global)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
