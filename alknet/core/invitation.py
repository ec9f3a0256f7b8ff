"""Invitations: one string with all that a node needs to become a peer of another, once.

``alknet-invite://<z-base-32 key>@host:port[,host:port...]/<secret>``

Whoever has it gets in under the name that it was made for. So it is read from standard input or
a file, never from an argument, and no error repeats any of it.
"""

from __future__ import annotations

import re

import msgspec

from alknet.core.address import Address
from alknet.core.nodeid import NodeId
from alknet.core.ticket import MAX_ADDRESSES, Ticket
from alknet.errors import LocalError

__all__ = ["MAX_INVITATION_CHARS", "SCHEME", "Invitation"]

SCHEME = "alknet-invite://"
# Sixteen of the longest host names, a key and a secret; what is longer is another file.
MAX_INVITATION_CHARS = 8_192


class Invitation(msgspec.Struct, frozen=True):
    """Where to go, whom to meet there, and what to show. Its ``repr`` does not show the secret.

    Attributes:
        ticket: The inviting node's key, which must answer, and where it listens.
        secret: 22 to 128 letters, digits, ``-``, ``_`` and ``~``; what proves the invitation.
    """

    ticket: Ticket
    secret: str

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """Read an invitation; blanks around it do not matter.

        Raises:
            LocalError: Something is wrong with it; the message says what, and quotes nothing.
        """
        text = text.strip()
        if len(text) > MAX_INVITATION_CHARS:
            raise LocalError(f"an invitation has at most {MAX_INVITATION_CHARS} characters")
        if not text.lower().startswith(SCHEME):
            raise LocalError(_other_scheme(text))
        if not text.isprintable() or " " in text:
            raise LocalError("the invitation is broken up: it is one line, without blanks")
        at, slash, secret = text[len(SCHEME) :].partition("/")
        if not slash or not secret:
            raise LocalError("the invitation is cut off: its secret is missing")
        if not _SECRET.fullmatch(secret):
            raise LocalError("the invitation is damaged: its end cannot be a secret")
        return cls(_ticket(at), secret)

    def __str__(self) -> str:
        hosts = ",".join(map(str, self.ticket.addresses))
        return f"{SCHEME}{self.ticket.node_id}@{hosts}/{self.secret}"

    def __repr__(self) -> str:
        return f"<Invitation of node {self.ticket.node_id.short}>"


def _ticket(text: str) -> Ticket:
    # What these parsers say quotes what they were given, in which a secret may stand by mistake.
    key, _, hosts = text.partition("@")
    if not hosts:
        raise LocalError("the invitation has no address: expected <key>@host:port/<secret>")
    try:
        node_id = NodeId.parse(key)
    except LocalError:
        raise LocalError("the invitation is damaged: it does not begin with a key") from None
    try:
        found = dict.fromkeys(Address.parse(part) for part in hosts.split(","))
    except LocalError:
        raise LocalError("the invitation is damaged: an address is not 'host:port'") from None
    if len(found) > MAX_ADDRESSES:
        raise LocalError(f"an invitation has at most {MAX_ADDRESSES} addresses")
    return Ticket(node_id, tuple(found))


def _other_scheme(text: str) -> str:
    if not text:
        return "there is no invitation: nothing was given"
    if text.lower().startswith("alknet://"):
        return "this is a ticket, not an invitation: 'alknet peer invite' makes one"
    return f"not an invitation: it does not begin with {SCHEME!r}"


# 128 bits in base 64 are 22 characters; what is shorter could be guessed.
_SECRET = re.compile(r"[A-Za-z0-9_~-]{22,128}")
