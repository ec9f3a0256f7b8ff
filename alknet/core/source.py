"""What connections are counted under: whoever has many addresses does not count many times."""

from __future__ import annotations

import ipaddress

from alknet.core.identity import Identity

__all__ = ["source_of"]


def source_of(remote_address: str, relay: Identity | None = None) -> str:
    """Name what connections from *remote_address* are counted under.

    Args:
        remote_address: ``ip:port`` or ``[ip]:port``; any other text stands for itself.
        relay: Who relays the stream; then it is counted under that identity.
    """
    if relay is not None:
        return f"relay:{relay.id}"
    host = remote_address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return remote_address
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
