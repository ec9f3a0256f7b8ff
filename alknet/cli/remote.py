"""Commands that talk to a node: which node, by which transport, with which token."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Duration, usage_errors

if TYPE_CHECKING:
    from alknet.call.handles import CallOptions
    from alknet.call.session import CallSession
    from alknet.stores.known import KnownNodes

__all__ = [
    "STDIN",
    "TARGET",
    "Remote",
    "is_target",
    "make_remote",
    "read_token",
    "remote_options",
    "split_target",
]

F = TypeVar("F", bound=Callable[..., Any])

TARGET = "[@PEER|TICKET|HOST:PORT]"

STDIN = "-"
# One line of text; what is longer is another file.
MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True)
class Remote:
    """A node to talk to, and how.

    Attributes:
        target: As the user typed it; None for the running node of the home.
        transports: Which to try.
        token: Runs each call as its identity.
        timeout_s: For each call; None leaves it to the operation.
        ca_file: Authorities for ``host:port``.
        trust_first_use: Take the key that a ``host:port`` shows first, and only that from then on.
    """

    target: str | None
    transports: Sequence[str]
    token: str | None
    timeout_s: float | None
    ca_file: Path | None
    trust_first_use: bool = False

    @property
    def options(self) -> CallOptions:
        """What every call is made with."""
        return {"token": self.token, "timeout_s": self.timeout_s}

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[CallSession]:
        """Connect. Raises DialError, or CommandError with what to do."""
        if self.target is None:
            async with _own_node() as session:
                yield session
            return
        from alknet.cli.home import key_if_any
        from alknet.client import open_session
        from alknet.core.limits import Limits

        target, addresses = await _resolve(self.target)
        limits = Limits()
        if self.timeout_s is not None:
            limits = Limits(dial_timeout_s=min(limits.dial_timeout_s, self.timeout_s))
        async with open_session(
            target,
            addresses=addresses,
            key=key_if_any(),
            transports=self.transports,
            ca_file=self.ca_file,
            known_nodes=_known_nodes() if self.trust_first_use else None,
            limits=limits,
        ) as session:
            yield session


def remote_options(function: F) -> F:
    """Add the options of `Remote`; the command gets them as keywords for `make_remote`."""
    for option in reversed(
        (
            click.option(
                "--transport",
                type=click.Choice(["quic", "tcp"]),
                help="Use this one alone; by default both race.",
            ),
            click.option(
                "--token-file",
                metavar="FILE|-",
                type=click.Path(allow_dash=True, dir_okay=False),
                help="Act as the token in the file ('-': standard input), or in ALKNET_TOKEN.",
            ),
            click.option(
                "--timeout",
                type=Duration(),
                metavar="TIME",
                help="Give up a call after 5, 5s, 2m …",
            ),
            click.option(
                "--ca-file",
                metavar="FILE",
                type=click.Path(path_type=Path, dir_okay=False, exists=True),
                help="Authorities (PEM) to trust for HOST:PORT instead of the usual ones.",
            ),
            click.option(
                "--trust-first-use",
                is_flag=True,
                help="Of HOST:PORT, take the key that it shows first, and no other from then on.",
            ),
        )
    ):
        function = option(function)
    return function


def make_remote(
    target: str | None,
    *,
    transport: str | None,
    token_file: str | None,
    timeout: float | None,
    ca_file: Path | None,
    trust_first_use: bool,
) -> Remote:
    """Build from the values of `remote_options`."""
    if target is None and transport is not None:
        raise click.UsageError("--transport needs a node to call; this home's goes by its socket")
    transports = ("quic", "tcp") if transport is None else (transport,)
    token = read_token(token_file)
    return Remote(target, transports, token, timeout, ca_file, trust_first_use)


def is_target(text: str) -> bool:
    """Whether *text* names a node, as opposed to an operation, which always holds a ``/``."""
    return text.startswith("@") or "://" in text or "/" not in text


def split_target(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take the node to call, if there is one, from the front of *arguments*."""
    rest = list(arguments)
    if rest and is_target(rest[0]):
        return rest[0], rest[1:]
    return None, rest


def read_token(token_file: str | None) -> str | None:
    """Return the token from the file, standard input or ALKNET_TOKEN, if one is given."""
    if token_file is None:
        text = os.environ.get("ALKNET_TOKEN")
        return _checked_token(text, "ALKNET_TOKEN") if text else None
    if token_file == STDIN:
        text = sys.stdin.readline(MAX_TOKEN_BYTES)
    else:
        # What is no ASCII is no token, whatever it decodes to.
        with Path(token_file).open(encoding="ascii", errors="replace") as file:
            text = file.read(MAX_TOKEN_BYTES)
    return _checked_token(text, "--token-file")


def _checked_token(text: str, where: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise click.BadParameter("there is no token in it", param_hint=where)
    return token


async def _resolve(text: str) -> tuple[Any, Sequence[str]]:
    """Return what to dial and where else to look."""
    from alknet.core.nodeid import NodeId
    from alknet.core.ticket import parse_target

    if not text.startswith("@"):
        with usage_errors("target"):
            return parse_target(text), ()
    if "/" in text:
        raise click.BadParameter("routes over several nodes are not known", param_hint="target")
    from alknet.cli.home import open_store, peer_of

    async with open_store() as identities:
        peer = peer_of(identities, text)
    keys = [key for key in peer.fingerprints if key.startswith("ed25519:")]
    if not keys:
        raise CommandError(
            "UNAVAILABLE", f"peer {peer.name!r} has no Ed25519 key, so it cannot be dialled"
        )
    if not peer.addresses:
        raise CommandError(
            "UNAVAILABLE",
            f"no address is known for peer {peer.name!r}",
            hint=f"'alknet peer set {peer.name} --address HOST:PORT' gives one",
            status=4,
        )
    return NodeId.parse(keys[0]), peer.addresses


def _known_nodes() -> KnownNodes:
    from alknet.cli.home import need_node
    from alknet.stores.known import KnownNodes

    return KnownNodes(need_node())  # what is trusted is remembered in a home


@asynccontextmanager
async def _own_node() -> AsyncGenerator[CallSession]:
    from alknet.cli.home import need_node
    from alknet.client import open_control_session
    from alknet.errors import Unavailable

    home = need_node()
    opened = False
    try:
        async with open_control_session(home) as session:
            opened = True
            yield session
    except Unavailable as exc:
        if opened:
            raise
        raise CommandError(
            "UNAVAILABLE",
            f"no node runs on {home}",
            hint="start it with 'alknet up', or name a node to talk to: @PEER or a ticket",
            status=4,
        ) from exc
