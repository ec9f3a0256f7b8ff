"""docs/reference/federation.md: who may call operations of peers through a node, asked of it."""

from __future__ import annotations

import trio

from alknet.call.codes import CallError
from alknet.call.discovery import WATCH_INTERVAL_S
from alknet.call.peers import announce, forwarding, imports
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.foreign_schema import MAX_SCHEMA_BYTES
from alknet.call.peers.forwarding import Forwarder
from alknet.call.peers.listing import ListedPeer, PeerFilter
from alknet.call.proto import Requested
from alknet.call.session import CallSession
from alknet.core.access import AccessRules
from alknet.core.config_re_export import NEVER_PASSED_ON, ReExport
from alknet.core.contracts import Connection
from alknet.core.globs import Glob
from alknet.core.identity import ANONYMOUS, OWNER, Identity, NodeId
from alknet.core.limits import Limits
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import peer
from tests.call.peers.fleet import offers
from tests.docs.pages.markdown import GENERATED, attributes, prose, table

__all__ = ["page"]

NODE = NodeId(bytes(32))
OTHER = NodeId(bytes(31) + b"\1")

_RULES = (
    ReExport((Glob("w*"), Glob("any")), (Glob("math/*"),), AccessRules(scopes_all=("math",))),
    ReExport((Glob("hub/*"),), (Glob("math/*"),), AccessRules(scopes_all=("math",))),
)

_CALLERS: dict[str, Identity] = {
    "a peer with `math`": peer("user", "math"),
    "a peer without": peer("user"),
    "a peer with `*`": peer("user", "*"),
    "a stranger": ANONYMOUS,
    "the owner": OWNER,
}

# What is asked for: route, operation, path.
_REQUESTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "`@w1 math/add`": (("w1",), "math/add", ()),
    "`@any math/add`": (("any",), "math/add", ()),
    "`@w1 math/none`, which `w1` does not offer": (("w1",), "math/none", ()),
    "`@w1 db/read`, which no rule names": (("w1",), "db/read", ()),
    "`@w1 node/ping`": (("w1",), "node/ping", ()),
    "`@w2 math/add`, a peer that is not connected": (("w2",), "math/add", ()),
    "`@w3 math/add`, and there is no such peer": (("w3",), "math/add", ()),
    "`@db math/add`, a peer that no rule names": (("db",), "math/add", ()),
    "`@hub/w1 math/add`": (("hub", "w1"), "math/add", ()),
    "`@hub/w1 math/add`, having passed this node": (("hub", "w1"), "math/add", (str(NODE),)),
    "`@hub/w1 math/add`, having passed eight": (("hub", "w1"), "math/add", (str(OTHER),) * 8),
}


def page() -> str:
    """Return the page."""
    hidden = ", ".join(f"`{name}`" for name in sorted(NEVER_PASSED_ON))
    return f"""{GENERATED}
# Federation

Nodes call one another's operations. A node knows what each *attached* peer offers, can call it from
its own handlers ([composition.md](composition.md)), and passes calls of others on to it as far as
its `[[re_export]]` rules say. By default it passes on nothing. [How to let others call your
workers](../howto/pass-calls-on.md) shows it from the command line.

## Attaching

A peer is attached as long as a connection with it lives on which it has called `peers/offer`
(input and output `{{}}`). Only peers that this node knows by their key can, and of these only those
that *may offer*: who offers what others offer, too, is given calls for `any`, with their input. By
default no peer may. It is said of a peer

- by inviting it (`alknet peer invite`): who joins as a worker comes to be called;
- by `alknet peer add NAME … --may-offer` or `alknet peer set NAME --may-offer`, and
  `may_offer = true` in [`[[peers]]`](config.md#peers);
- by whatever asks for its operations: `[[outbound]]` names it, this node has joined it, or a
  `[[re_export]]` rule has its whole name, not a pattern, first on a route.

Another peer gets `FORBIDDEN` with the detail `reason`, `may_not_offer`. Its connection goes on, it
may call, and is attached as soon as it may offer. One that may not any more loses its connection,
within a second, and dials again as one that may only call.

A node calls `peers/offer` at each peer of its `[[outbound]]`, and attaches that peer too, so that
both can call. A client that offers nothing costs nothing.

The node then subscribes to the peer's `services/watch` and fetches `services/list` with schemas:
two round trips, one if the peer comes back and offers what it did. When the version changes, the
list is fetched again: at once, and then at most every {announce.REIMPORT_S} s, less often if it is
long. A watcher hears of changes at most every {WATCH_INTERVAL_S} s, so a change is known within a
second.

What a peer says is checked. Too much, a bad name or one name twice ends the connection, with
`limit` or `protocol` ([transports.md](transports.md#close-codes)), and the log says
`peer.broke_protocol`. Operations in
{hidden} are left out, and so are those of a kind that is
not known or with a schema that cannot be followed: the log says `peer.operations_unusable`.

{_bounds()}
## Routes

`alknet call @w1 math/add` asks the node for the operation of its peer `w1`, `@any` for that of
whichever peer offers it, `@hub/w1` for that of the peer `w1` of its peer `hub`. On the wire the
names stand in `peer` ([call-protocol.md](call-protocol.md)); each node takes the first off, and
puts its own id at the end of `path`. A route has {forwarding.MOST_HOPS} names at most; only the
last may be `any`.

```toml
[[re_export]]
peers = ["w*", "any"]
operations = ["math/*"]
scopes_all = ["math"]

[[re_export]]
peers = ["hub/*"]
operations = ["math/*"]
scopes_all = ["math"]
```

{_patterns()}
A node decides in this order; the first that fails is all that the caller learns:

1. The **direct caller** needs one rule that is about the route and the operation, and lets it pass.
   No rule about it is `NOT_FOUND`, exactly as if nothing were there; rules about it that ask for
   scopes which the caller lacks, `FORBIDDEN`. The owner, at the control socket, needs no rule.
2. `path` must not hold this node, nor {forwarding.MOST_HOPS} others: `INVALID_INPUT`.
3. The peer must be connected (else `UNAVAILABLE`, if there is such a peer) and, at the end of the
   route, offer the operation to *this node* (else `NOT_FOUND`).

What each caller gets under the rules above, asked when this page was made. `w1` and `hub` are
connected, and `w1` offers `math/add` and `db/read`:

{trio.run(_table)}
**passed on** is not yet an answer: the next node decides for itself, by its own rules, and what it
sees is *this* node. The rights of the caller end here; so does a token. `forwarded_for` tells all
nodes who asked first, as data: the first node sets it to its caller, unless that has said for whom
it asks. `traceparent`, `idempotency_key` and what is left of the time go on as well; the key of a
caller that asks for somebody else is made its own first, so that it gets no answer of theirs; so is
that of a stranger, by its key or else by its connection.

Errors come back as the last node raised them. `by`, beside their code, says who that was: the part
of the caller's route that leads there, so `["w1"]` of a call by `@hub/w1` that the worker has
refused, and nothing where the hub itself has. `any` becomes the peer's name if this caller could
call the operation there by that name. Each node makes it of the route that it was given; no address
or key is in it. `NOT_FOUND` never has it: how far a call came that found nothing would tell what is
behind the rules. `alknet call` shows `(said by w1)`, and `by` with `--json`; in Python it is
`CallError.by`.

A call that may have begun when its connection broke is `UNAVAILABLE` and is not repeated by itself;
one that had certainly not begun goes to another peer, where the route says `any`. An abort, a
deadline, a disconnect ends the call on every node. Items wait at each node until the next has room.

## services/list-peers

Lists the attached peers of which the caller may call something, by name; the owner sees all. Others
see nothing unless `node.toml` says so:

```toml
[federation]
list_peers = true
```

Input:

{_fields(PeerFilter)}
Output: `peers`, and `next`, to be given as `after` for the next page, or null. Each peer has:

{_fields(ListedPeer)}"""


def _bounds() -> str:
    rows = [
        ("Operations of one peer", f"{imports.MAX_OPERATIONS:,}"),
        ("Its list, with schemas", _size(imports.MAX_LIST_BYTES)),
        ("The lists of all peers, equal ones once", _size(imports.MAX_ALL_BYTES)),
        ("One schema", f"{_size(MAX_SCHEMA_BYTES)}; references within it, in no circle"),
        ("Errors of one operation", str(imports.MAX_ERRORS)),
        ("Title, description", f"{imports.MAX_TITLE}, {imports.MAX_DESCRIPTION:,} characters"),
        ("Announced changes", f"{announce.ANNOUNCEMENTS_PER_S:g} a second, in the long run"),
        (
            "Imports",
            f"{_size(announce.REIMPORT_BYTES_PER_S)} a second, every {announce.REIMPORT_S} s",
        ),
        (
            "`peers/offer`",
            f"{announce.OFFERS_PER_S:g} a second for each peer, {announce.OFFERS_BURST} at once",
        ),
    ]
    return table(("what", "at most"), rows)


def _patterns() -> str:
    rows = [
        ("`w1`", "that peer"),
        ("`w*`", "peers whose names begin with `w`; `*` stands for anything but a slash"),
        ("`*`", "all peers, and `any`"),
        ("`any`", "the route `any`, wherever it ends"),
        ("`hub/*`", "all peers of the peer `hub`, and its `any`"),
        ("`hub/**`", "all routes by the peer `hub`"),
    ]
    return table(("pattern in `peers`", "is about"), rows) + (
        "\nPatterns in `operations` are made alike: `math/*`, `docker/**`. "
        + ", ".join(f"`{name}/…`" for name in sorted(NEVER_PASSED_ON))
        + " are never passed on.\n"
    )


async def _table() -> str:
    environment = PeerEnvironment(NODE)
    forwarder = Forwarder(
        environment,
        node_id=NODE,
        limits=Limits,
        rules=_RULES,
        why_absent=dict.fromkeys(("w1", "w2", "hub", "db"), "not connected").get,
    )
    async with memory_connection_pair() as (connection, other):
        w1, hub = (CallSession(one, None, limits=Limits()) for one in (connection, other))
        with environment.attach("w1", w1) as attached, environment.attach("hub", hub):
            attached.set_operations(w1, offers(["math/add", "db/read"]), "1")
            rows = [
                (
                    what,
                    *(
                        _answer(forwarder, caller, connection, request)
                        for caller in _CALLERS.values()
                    ),
                )
                for what, request in _REQUESTS.items()
            ]
    return table(("the request", *_CALLERS), rows)


def _answer(
    forwarder: Forwarder,
    caller: Identity,
    connection: Connection,
    request: tuple[tuple[str, ...], str, tuple[str, ...]],
) -> str:
    route, operation, path = request
    asked = Requested(id="d1", operation=operation, peer=route, path=path)
    try:
        forwarder.admit(asked, identity=caller, connection=connection)
    except CallError as exc:
        return exc.code
    return "**passed on**"


def _fields(cls: type) -> str:
    return table(
        ("key", "meaning"),
        [(f"`{name}`", prose(text)) for name, text in attributes(cls).items()],
    )


def _size(size_bytes: int) -> str:
    mib = 1024 * 1024
    return f"{size_bytes // mib} MiB" if size_bytes >= mib else f"{size_bytes // 1024} KiB"
