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

from alknet.cli.absent import advised
from alknet.cli.failures import CommandError
from alknet.cli.options import Duration, usage_errors

if TYPE_CHECKING:
    from alknet.call.handles import CallOptions
    from alknet.call.session import CallSession
    from alknet.core.ticket import Target
    from alknet.stores.known import KnownNodes

__all__ = [
    "ANY",
    "STDIN",
    "TARGET",
    "Remote",
    "ask_node",
    "is_target",
    "make_remote",
    "read_token",
    "remote_options",
    "split_target",
]

F = TypeVar("F", bound=Callable[..., Any])

TARGET = "[@PEER[/PEER…]|@any|TICKET|HOST:PORT]"

STDIN = "-"
# The name of no peer: whichever offers the operation.
ANY = "any"
# The shortest form of a node id, z-base-32.
NODE_ID_LETTERS = 52
# One line of text; what is longer is another file.
MAX_TOKEN_BYTES = 4096


@dataclass
class Remote:
    """A node to talk to, and how.

    Attributes:
        target: As the user typed it; None for the running node of the home. ``@hub/w1`` is the
            peer w1 of hub, ``@any`` some peer of the running node; so is ``@w1`` where no address
            of it is known.
        route: Whom that node is to pass calls on to; known once `session` is entered.
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
    route: tuple[str, ...] = ()

    @property
    def options(self) -> CallOptions:
        """What every call is made with."""
        return {"token": self.token, "timeout_s": self.timeout_s, "peer": self.route or None}

    @property
    def direct_options(self) -> CallOptions:
        """What a call to the node itself is made with, not to whom it would pass it on."""
        return {"token": self.token, "timeout_s": self.timeout_s}

    def not_passed_on(self, operation: str, hint: str) -> CommandError:
        """Return the error for *operation*, which a node does not pass on for others.

        Args:
            hint: What to do instead; ``{near}`` in it is the node that was asked.
        """
        near = (self.target or "").partition("/")[0]
        last = self.route[-1] if self.route else ""
        why = f"{near} does not pass {operation} on to {last}, or there is no such peer"
        return CommandError("NOT_FOUND", why, hint=hint.format(near=near))

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[CallSession]:
        """Connect. Raises DialError, or CommandError with what to do."""
        way = await _way_to(self.target)
        self.route = way.route
        if way.target is None:
            async with _own_node(way.why) as session, advised(session, self.target, is_own=True):
                yield session
            return
        from alknet.cli.home import key_if_any
        from alknet.client import open_session
        from alknet.core.limits import Limits

        limits = Limits()
        if self.timeout_s is not None:
            limits = Limits(dial_timeout_s=min(limits.dial_timeout_s, self.timeout_s))
        async with (
            open_session(
                way.target,
                addresses=way.addresses,
                key=key_if_any(),
                transports=self.transports,
                ca_file=self.ca_file,
                known_nodes=_known_nodes() if self.trust_first_use else None,
                limits=limits,
            ) as session,
            advised(session, self.target, is_own=False),
        ):
            yield session


async def ask_node(session: CallSession, remote: Remote, operation: str) -> bytes:
    """Call *operation*, which each node has for itself, at the node that *remote* names.

    Raises:
        CallError: It failed.
        CommandError: A node on the way does not pass it on.
    """
    from alknet.call.codes import CallError, ErrorCode

    try:
        return bytes(await session.call(operation, {}, **remote.options))
    except CallError as exc:
        if exc.code != ErrorCode.NOT_FOUND or not remote.route:
            raise
        hint = "only its owner is passed on by {near} for this: ask the node itself"
        raise remote.not_passed_on(operation, hint) from exc


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


@dataclass
class _Way:
    """Whom to dial (None for the node of this home), where else to look, and the route then.

    Attributes:
        why: What is said beside, if the node of this home does not run.
    """

    target: Target | None
    addresses: Sequence[str] = ()
    route: tuple[str, ...] = ()
    why: str = ""


async def _way_to(text: str | None) -> _Way:
    from alknet.core.ticket import parse_target

    if text is None:
        return _Way(None)
    if not text.startswith("@"):
        with usage_errors("target"):
            _refuse_bare_name(text)
            return _Way(parse_target(text))
    name, *route = text.removeprefix("@").split("/")
    _check_route(name, *route)
    if name == ANY:
        return _Way(None, route=(name, *route))
    return await _way_to_peer(name, tuple(route))


def _refuse_bare_name(text: str) -> None:
    """Raise LocalError for what is too short for a key: most likely a peer without its ``@``."""
    from alknet.errors import LocalError

    if ":" not in text and len(text) < NODE_ID_LETTERS:
        raise LocalError(
            f"{text!r} is no ticket, node id or HOST:PORT; a peer is written '@{text}'"
        )


def _check_route(first: str, *others: str) -> None:
    from alknet.core.identity import check_peer_name
    from alknet.errors import LocalError

    with usage_errors("target"):
        if not first:
            raise LocalError("after '@' comes the name of a peer, or 'any'")
        for name in others:
            if name != ANY:
                check_peer_name(name)
        if ANY in (first, *others)[:-1]:
            raise LocalError(f"'{ANY}' can only be the last name of a route")


async def _way_to_peer(name: str, route: tuple[str, ...]) -> _Way:
    from alknet.cli.home import open_store, peer_of
    from alknet.core.nodeid import NodeId

    async with open_store() as identities:
        peer = peer_of(identities, name)
    if not peer.addresses:
        # It may be a worker that dials us: then the node that runs here has a connection to it.
        why = f"no address is known for peer {peer.name!r}, and "
        return _Way(None, route=(peer.name, *route), why=why)
    keys = [key for key in peer.fingerprints if key.startswith("ed25519:")]
    if not keys:
        raise CommandError(
            "UNAVAILABLE", f"peer {peer.name!r} has no Ed25519 key, so it cannot be dialled"
        )
    return _Way(NodeId.parse(keys[0]), peer.addresses, route)


def _known_nodes() -> KnownNodes:
    from alknet.cli.home import need_node
    from alknet.stores.known import KnownNodes

    return KnownNodes(need_node())  # what is trusted is remembered in a home


@asynccontextmanager
async def _own_node(why: str) -> AsyncGenerator[CallSession]:
    from alknet.cli.home import need_node
    from alknet.client import open_control_session
    from alknet.errors import Unavailable

    home = need_node()
    or_else = "give the peer an --address by 'alknet peer set'" if why else _OR_ELSE
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
            f"{why}no node runs on {home}",
            hint=f"start it with 'alknet up', or {or_else}",
            status=4,
        ) from exc


_OR_ELSE = "name a node to talk to: @PEER or a ticket"
