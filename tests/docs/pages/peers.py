"""docs/reference/peers.md: how peers are chosen, and what becomes of calls, tried out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.call.codes import CallError
from alknet.call.peers import (
    First,
    LatencyWeighted,
    LeastInFlight,
    PeerRef,
    RoundRobin,
    Sticky,
    health,
)
from alknet.call.peers.environment import MOST_TRIES, SMALL_BYTES
from alknet.call.peers.policies import DRAWS, EXACT, FEWEST
from alknet.call.peers.service import SILENT_S
from alknet.core.limits import Limits
from tests.call.peers.fleet import Fleet, Worker, open_fleet
from tests.docs.pages.markdown import GENERATED, first_line, table

__all__ = ["page"]

_USES = {
    First: ("constant", "one that works, and others in reserve"),
    RoundRobin: ("constant", "calls that all cost the same"),
    LeastInFlight: ("constant", "anything else: the default"),
    Sticky: ("logarithmic", "peers that keep something warm for a user or a document"),
    LatencyWeighted: ("constant", "peers that differ in speed or distance"),
}


def page() -> str:
    """Return the page."""
    return f"""{GENERATED}
# Peers

A node can call the operations of its *attached* peers: those that it dials
(`[[outbound]]`), and those that dial it, say that they serve calls, and
[may](federation.md#attaching). A peer is attached under the name of its record, as long as one
connection of it lives. What others may call through this node is another matter:
[federation.md](federation.md).

A handler names the peer beside the operation, and declares both in `calls`
([composition.md](composition.md#what-calls-may-say)):

{_EXAMPLE}
1. `PeerRef.specific("w1")` is that peer and nobody else, whatever becomes of it.
2. `PeerRef.any(policy)` is one of the healthy peers that offer the operation. This node is not
   among them. With `include_local=True` its own operation runs where no peer takes the call: no
   peer offers it, or each has refused it; it has to stand in `calls` too.
3. The peer checks the rights of *this node*: those of the caller and the operation stay here. The
   peer is told who asked first (`ctx.forwarded_for`), the trace context, and how much time is left.
   A cancel here is an abort there, and so on over any number of nodes.
4. Nobody to ask is `NOT_FOUND`: no attached peer has the name, or offers the operation. If those
   who offer it are all ejected, it is `UNAVAILABLE`.

## Policies

{table(["policy", "chooses", "cost", "for"], _policies())}
The costs are in the number of peers: a choice among ten thousand takes what one among ten takes,
some microseconds. `LeastInFlight` looks at all of {EXACT} peers, and at {DRAWS} drawn at random
where there are more and the next in turn is busy. `LatencyWeighted` weighs by the average time of
calls with outputs up to {SMALL_BYTES // 1024} KiB, times the calls in flight; the slower one of two
still gets one call in {round(1 / FEWEST)}. `Sticky` hashes the peers' names: each node that has the
same peers finds the same one for a key, and if a peer goes, only its own keys move.

## What moves, and what does not

A call that certainly has not started may go to another peer, {MOST_TRIES} in all. One that may have
started never does by itself: whether it may run twice, only its caller knows ([how to call
again](../howto/retry-calls.md)). Tried out when this page was made, with `PeerRef.any()`:

{table(["what happens at the first peer", "the call", "begun, first and second peer"], _moves())}
`PeerRef.specific` gets the error of the first peer, in each case. A subscription, upload or
bidirectional call moves only until its block is entered.

So workers can be stopped one after the other under load, without losing a call: one that stops in
good order refuses what is new, finishes what runs, and says at the end of its streams that it has
begun nothing else. A node that stops keeps its connections to peers until its own handlers have
ended, or their time is over, for they may still call by them.

## One peer, several connections

A peer that connects again before the old connection is known to be dead has two. The newest gets
the new calls; what runs on the older one goes on, and if that one outlives the newer, it takes over
again. What the peer offers is what the newest connection that has told us says. Only with its last
connection is the peer detached.

The older one is asked `node/ping`. If nothing at all comes on it for {SILENT_S:g} s, not even an
acknowledgement, the process that was there has been killed: it is ended, and its calls with
`UNAVAILABLE`. Of a peer that is killed and does not come back, its silence for `idle_timeout_s` is
all that tells ([limits](config.md#limits)); over TCP, its system says so at once.

## Peers that fail

A peer whose last {health.EJECT_AFTER} calls all ended with `UNAVAILABLE` or `TIMEOUT` is *ejected*:
`PeerRef.any` passes it by, `PeerRef.specific` does not. After {health.FIRST_S:g} s it is asked
`node/ping`, then after twice as long each time, up to {health.MOST_S:g} s, each at random between
half of that and all of it. Once it answers within {health.PROBE_S:g} s, with a refusal too, it is
chosen again; a new connection of the peer brings it back at once. Who has been well for
{health.FORGET_S:g} s begins anew.

1. Any other answer in between, an error too, begins the count anew.
2. A `TIMEOUT` of a call that had less than {health.FAIR_S:g} s does not count, and neither do calls
   that were lost with their connection: the peer is detached by that, or has another.
3. Never more than {health.MOST_SHARE:.0%} of the attached peers are ejected, rounded down: the only
   one never is. What seems to be the fault of all is likely to be none of theirs.
"""


def _policies() -> list[Sequence[str]]:
    return [
        (f"`{kind.__name__}`", first_line(kind), cost, use) for kind, (cost, use) in _USES.items()
    ]


Event = Callable[[Fleet, Worker], Awaitable[str]]


async def _had_ended(_fleet: Fleet, worker: Worker) -> str:
    worker.ours.end(0)
    return "echo/unary"


async def _shuts_down(_fleet: Fleet, worker: Worker) -> str:
    worker.theirs.serving.is_draining = True
    return "echo/unary"


async def _is_full(fleet: Fleet, worker: Worker) -> str:
    fleet.nursery.start_soon(fleet.environment.call, PeerRef.specific("w1"), "echo/slow")
    await wait_all_tasks_blocked()
    worker.operations.started -= 1
    return "echo/unary"


async def _is_lost(fleet: Fleet, worker: Worker) -> str:
    async def vanish() -> None:
        await wait_all_tasks_blocked()
        worker.vanish()

    fleet.nursery.start_soon(vanish)
    return "echo/slow"


def _fails(code: str) -> Event:
    async def fails(_fleet: Fleet, worker: Worker) -> str:
        async def fail(_given: msgspec.Raw) -> object:
            raise CallError(code, "no")

        worker.operations.queries["echo/unary"] = fail
        return "echo/unary"

    return fails


async def _is_slow(_fleet: Fleet, worker: Worker) -> str:
    worker.operations.timeouts["echo/slow"] = 0.01
    return "echo/slow"


_EVENTS: Mapping[str, Event] = {
    "its connection has ended": _had_ended,
    "it refuses the request, as it shuts down": _shuts_down,
    "it refuses the request, as it runs its limit of calls": _is_full,
    "its connection is lost after the request was sent": _is_lost,
    "the operation takes longer than it may": _is_slow,
    "the operation answers `UNAVAILABLE`": _fails("UNAVAILABLE"),
    "the operation answers `RESOURCE_EXHAUSTED`": _fails("RESOURCE_EXHAUSTED"),
    "the operation answers `FORBIDDEN`": _fails("FORBIDDEN"),
}


def _moves() -> list[Sequence[str]]:
    return [(when, *trio.run(_outcome, event)) for when, event in _EVENTS.items()]


async def _outcome(event: Event) -> tuple[str, str]:
    async with open_fleet(limits=Limits(calls_per_connection=1)) as fleet:
        first, second = await fleet.add("w1"), await fleet.add("w2")
        operation = await event(fleet, first)
        try:
            await fleet.environment.call(PeerRef.any(First()), operation)
            outcome = "moves"
        except CallError as exc:
            outcome = f"`{exc.code}`"
        begun = f"{first.operations.started}, {second.operations.started}"
        fleet.nursery.cancel_scope.cancel()
    return outcome, begun


_EXAMPLE = '''```python
import msgspec

from alknet import Context, PeerRef, Sticky, operation, public


class Page(msgspec.Struct):
    id: str


@operation("site/page", access=public(), calls=["@any/render/page", "@archive/pages/put"])
async def show(ctx: Context, page: Page) -> str:
    """Have some worker render a page, the same one for the same page, and keep it."""
    html = await ctx.call("render/page", page, peer=PeerRef.any(Sticky(page.id)))
    await ctx.call("pages/put", html, peer=PeerRef.specific("archive"))
    return msgspec.json.decode(html, type=str)
```
'''
