"""Where a node may be reached: ``host:port``, with IPv6 addresses in brackets."""

from __future__ import annotations

import ipaddress
import re

import msgspec

from alknet.errors import LocalError

__all__ = ["Address"]


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host and a port, the same number for UDP and TCP.

    Attributes:
        host: An IP address in its shortest form without brackets, or a DNS name in lower case.
        port: 1 to 65535; 0 only where any free port is meant.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, allow_any_port: bool = False) -> Address:
        """Read ``host:port`` or ``[ipv6]:port``.

        Args:
            allow_any_port: Take port 0, which asks the system for a free one when listening.

        Raises:
            LocalError: Host or port is missing or not valid; the message says which.
        """
        text = text.strip()
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or not rest.startswith(":"):
                raise LocalError(f"address {text[:80]!r} is not '[ipv6]:port'")
            return cls(_ipv6(host, text), _port(rest[1:], text, allow_any_port))
        host, colon, port = text.rpartition(":")
        if not colon:
            raise LocalError(f"address {text[:80]!r} has no port, expected 'host:port'")
        if ":" in host:
            raise LocalError(f"address {text[:80]!r}: write an IPv6 address in brackets, [::1]:443")
        return cls(_host(host, text), _port(port, text, allow_any_port))

    @property
    def is_unspecified(self) -> bool:
        """The wildcard of listeners (``0.0.0.0``, ``::``), which no one can dial."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _port(port: str, text: str, allow_any: bool) -> int:
    lowest = 0 if allow_any else 1
    if not _DIGITS.fullmatch(port) or not lowest <= int(port) <= 65535:
        raise LocalError(
            f"address {text[:80]!r}: port {port[:80]!r} is not a number from {lowest} to 65535"
        )
    return int(port)


def _ipv6(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as exc:
        raise LocalError(f"address {text[:80]!r}: {host[:80]!r} is no IPv6 address") from exc


def _host(host: str, text: str) -> str:
    last_label = host.rpartition(".")[2]
    if last_label.isdecimal():  # no top-level domain is a number: this was meant as IPv4
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as exc:
            raise LocalError(f"address {text[:80]!r}: {host[:80]!r} is no IPv4 address") from exc
    if len(host) > 253 or not _DNS_NAME.fullmatch(host):
        raise LocalError(f"address {text[:80]!r}: {host[:80]!r} is no host name")
    return host.lower()


_DIGITS = re.compile(r"[0-9]{1,5}")
# RFC 1123 sec. 2.1; the underscore occurs in names that resolvers serve all the same.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
