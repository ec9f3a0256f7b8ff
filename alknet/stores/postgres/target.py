"""Where a database is, and what may be said about it: never the password."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from alknet.errors import LocalError
from alknet.stores.postgres import SCHEMES

__all__ = ["Target"]

# A server that does not answer for so long, on a network that works, is down.
CONNECT_TIMEOUT_S = 5.0
# The kernel's own notice of a dead peer, for a connection on which nothing is asked.
DEFAULTS = {
    "application_name": "alknet",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
}
FORM = "expected postgresql://user:password@host:port/database"

MISREAD = (
    f"the address of the PostgreSQL database cannot be understood: {FORM}; in a password, write "
    "'@', ':', '/', '%' and the like as percent escapes (%40)"
)


class Target:
    """The address of a database. Its text and repr leave the password and all options out.

    Attributes:
        connect_timeout_s: How long one address may take to answer.
    """

    def __init__(self, url: str) -> None:
        """Read *url*. Raises LocalError, which does not quote it: a password may be anywhere."""
        if not url.startswith(SCHEMES):
            raise LocalError(f"this is no address of a PostgreSQL database: {FORM}")
        try:
            found = conninfo_to_dict(url)
            self.connect_timeout_s = float(found.pop("connect_timeout", None) or CONNECT_TIMEOUT_S)
        except (psycopg.Error, ValueError):
            raise LocalError(MISREAD) from None
        self._parameters = {name: str(value) for name, value in found.items() if value is not None}
        _check_parts(self._parameters)
        self._name = _name_of(self._parameters)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<Target {self._name}>"

    async def attempts(self) -> Sequence[str]:
        """Return libpq's connection strings to try in turn, with all names looked up.

        libpq itself would block while it asks the resolver. Cancelled, no effect.

        Raises:
            OSError: No host has an address.
        """
        found: list[str] = []
        failure: OSError | None = None
        for one in _hosts(self._parameters):
            try:
                addresses = await _addresses(one)
            except OSError as exc:
                failure = exc
                continue
            for address in addresses:
                more = {} if address is None else {"hostaddr": address}
                found.append(
                    make_conninfo("", **{**DEFAULTS, **one, **more, "client_encoding": "UTF8"})
                )
        if not found:
            assert failure is not None
            raise failure
        return found


def _check_parts(parameters: dict[str, str]) -> None:
    """Raise LocalError where a part of a password seems to have become another part."""
    ports = [port for port in parameters.get("port", "").split(",") if port]
    hosts = parameters.get("host", "").split(",")
    names = [parameters.get("dbname", ""), *(host[1:] for host in hosts)]
    if not all(map(str.isdecimal, ports)) or any("@" in name for name in names):
        raise LocalError(MISREAD)


def _name_of(parameters: dict[str, str]) -> str:
    user = parameters.get("user")
    host = parameters.get("host") or parameters.get("hostaddr", "")
    port = parameters.get("port")
    return "".join(
        [
            SCHEMES[0],
            f"{user}@" if user else "",
            host,
            f":{port}" if port else "",
            f"/{parameters.get('dbname', '')}",
        ]
    )


def _hosts(parameters: dict[str, str]) -> list[dict[str, str]]:
    """Split the lists that "host", "hostaddr" and "port" may be, as libpq does."""
    lists = {
        name: parameters[name].split(",")
        for name in ("host", "hostaddr", "port")
        if parameters.get(name)
    }
    count = max((len(values) for name, values in lists.items() if name != "port"), default=1)
    rest = {name: value for name, value in parameters.items() if name not in lists}
    return [
        rest | {name: values[min(n, len(values) - 1)] for name, values in lists.items()}
        for n in range(count)
    ]


async def _addresses(parameters: dict[str, str]) -> list[str | None]:
    """Return the addresses of one host; None where libpq has nothing to look up."""
    host = parameters.get("host", "")
    if not host or host[0] in "/@" or parameters.get("hostaddr"):
        return [None]
    found = await trio.socket.getaddrinfo(
        host, parameters.get("port") or None, type=trio.socket.SOCK_STREAM
    )
    return list(dict.fromkeys(str(address[4][0]) for address in found))
