"""docs/reference/ownership.md: what becomes of a resource and its owner, tried out."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.call.codes import call_error_from
from alknet.call.resource import ResourceLife
from alknet.call.resources import Resources
from alknet.core.identity import ANONYMOUS, Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.errors import Unavailable
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.ownership import StoredOwnership
from alknet.testing.resources import open_resources
from tests.docs.pages.markdown import GENERATED, table

__all__ = ["page"]

_BOB, _EVE = Identity("peer:bob"), Identity("peer:eve")


def page() -> str:
    """Return the page."""
    return f"""{GENERATED}
# Ownership

Who spawns something on a node owns it there: a shell, a job, a container. A handler spawns it by
`ctx.own(type, id, life)`; `life` is an async function that runs as long as the resource lives, in a
scope of its own in the node, not in the call.

1. The owner is the identity that the access check saw: the peer or token of the caller, or
   `op:<label>` where an operation called. Never `forwarded_for`: a hub that spawns something on a
   worker for its user is the owner there, and the user's name stands in the worker's log.
2. Ownership is durable before the life begins. It goes after the life has ended, and with the peer
   or token that owned; never with the call or the connection. Who connects again still owns.
3. Operations on the resource have `access=resource(type, action=...)` and a `resource_id_path`: the
   owner passes, and whoever holds a grant `type:id[:action]` ([access.md](access.md)). The same
   rules guard `ctx.release(type, id)`; it asks nobody itself. Lists filter by `ctx.visible`.
4. Who administers the node (scope `admin:node`) lists all by `node/resources`, also what nobody
   owns any more, and ends any by `node/release`.
5. Ownership cannot be given away. Who shares a resource calls it for others, or grants.
6. A node sees and reconciles its own resources alone, also in a store that nodes share.

## What becomes of it

Tried out when this page was made, for a resource of `peer:bob`:

{table(["when", "it runs", "its owner"], _fates())}
A type of resources ends with the node's process, unless its back end says before the start that it
can be asked: `node.resources.outlive(type, find)`. For such a type the cancel of a life means "let
go of it", and the operation that removes one tells the back end before it calls `ctx.release`. What
the back end does not answer for stays: unknown is not gone.

## What spawning answers

{table(["when", "code"], _answers())}
Whatever is raised, and wherever the call is cancelled: there is a resource with an owner, or
neither of them. The limits are `resources` and `resources_per_identity` ([config.md](config.md)).

## An example

{_EXAMPLE}"""


class _Trial:
    """A resource of bob's, and the node that holds it."""

    def __init__(self) -> None:
        self.running = 0
        self.end = trio.Event()
        self.crash = trio.Event()
        peers = [Peer(name=name) for name in ("bob", "eve")]
        self.identities = MemoryIdentityStore(peers)
        self.ownership = StoredOwnership(self.identities, NodeId(b"\x01" * 32))

    @asynccontextmanager
    async def node(self, limits: Limits | None = None) -> AsyncGenerator[Resources]:
        async with open_resources(ownership=self.ownership, limits=limits) as resources:
            yield resources

    async def life(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.running += 1
        try:
            task_status.started()
            await self.end.wait()
            if self.crash.is_set():
                raise ZeroDivisionError
        finally:
            self.running -= 1

    async def spawn(self, resources: Resources, who: Identity = _BOB, name: str = "1") -> None:
        await resources.own(who, "job", name, self.life)

    async def fate(self) -> tuple[str, str]:
        await wait_all_tasks_blocked()
        owner = self.ownership.owned_by("job", "1")
        return "yes" if self.running else "no", "nobody" if owner is None else f"`{owner}`"

    async def find(self, ids: Sequence[str]) -> Mapping[str, ResourceLife[object]]:
        return dict.fromkeys(ids, self.life)

    async def find_nothing(self, _: Sequence[str]) -> Mapping[str, ResourceLife[object]]:
        return {}

    async def find_out_nothing(self, _: Sequence[str]) -> Mapping[str, ResourceLife[object]]:
        raise Unavailable("the back end does not answer")


async def _call_ends(trial: _Trial, resources: Resources) -> None:
    await wait_all_tasks_blocked()


async def _life_returns(trial: _Trial, resources: Resources) -> None:
    trial.end.set()


async def _life_crashes(trial: _Trial, resources: Resources) -> None:
    trial.crash.set()
    trial.end.set()


async def _is_released(trial: _Trial, resources: Resources) -> None:
    await resources.release("job", "1")


async def _node_stops(trial: _Trial, resources: Resources) -> None:
    await resources.aclose()


async def _peer_goes(trial: _Trial, resources: Resources) -> None:
    await trial.identities.remove_peer("bob")


async def _peer_comes_back(trial: _Trial, resources: Resources) -> None:
    await trial.identities.remove_peer("bob")
    await trial.identities.put_peer(Peer(name="bob"))


_EVENTS: Mapping[str, Callable[[_Trial, Resources], Awaitable[None]]] = {
    "the call or the connection that spawned it ends": _call_ends,
    "its life returns": _life_returns,
    "its life crashes (which is logged, and ends nothing else)": _life_crashes,
    "it is released": _is_released,
    "the node stops": _node_stops,
    "the peer is removed; `node/release` ends it": _peer_goes,
    "the peer is removed, and another gets its name": _peer_comes_back,
}

_FINDERS: Mapping[str, str | None] = {
    "the node was killed, and starts again": None,
    "the same, of a type that can outlive it: the back end says that it lives": "find",
    "the same: it says that it is gone": "find_nothing",
    "the same: it cannot be asked (it is asked again)": "find_out_nothing",
}


def _fates() -> list[Sequence[str]]:
    # One crashes on purpose; its traceback need not stand on the terminal of `make docs`.
    logging.getLogger("alknet").addHandler(logging.NullHandler())
    return trio.run(_all_fates, strict_exception_groups=True)


async def _all_fates() -> list[Sequence[str]]:
    return [
        *[(when, *await _after(event)) for when, event in _EVENTS.items()],
        *[(when, *await _after_a_kill(finder)) for when, finder in _FINDERS.items()],
    ]


async def _after(event: Callable[[_Trial, Resources], Awaitable[None]]) -> tuple[str, str]:
    trial = _Trial()
    async with trial.node() as resources:
        with trio.CancelScope() as call:
            await trial.spawn(resources)
            call.cancel()
            await trio.sleep_forever()
        await event(trial, resources)
        return await trial.fate()


async def _after_a_kill(finder: str | None) -> tuple[str, str]:
    trial = _Trial()
    await trial.ownership.record("peer:bob", "job", "1", ends_with_node=finder is None)
    resources = Resources(trial.ownership, Limits())
    if finder is not None:
        resources.outlive("job", getattr(trial, finder))
    async with trio.open_nursery() as nursery:
        await nursery.start(resources.serve)
        found = await trial.fate()
        await resources.aclose()
    if finder is not None and found[0] == "no" and found[1] != "nobody":
        return "not known", found[1]
    return found


def _answers() -> list[Sequence[str]]:
    return trio.run(_all_answers, strict_exception_groups=True)


async def _all_answers() -> list[Sequence[str]]:
    limits = msgspec.structs.replace(Limits(), resources=2, resources_per_identity=1)
    trial = _Trial()
    rows: list[Sequence[str]] = []
    async with trial.node(limits) as resources:
        rows.append(("all is well", await _code(trial.spawn(resources))))
        again = trial.spawn(resources, _EVE)
        rows.append(("there is one of that type and id, whoever owns it", await _code(again)))
        more = trial.spawn(resources, name="2")
        rows.append(("the caller owns `resources_per_identity` already", await _code(more)))
        await trial.spawn(resources, _EVE, "2")
        most = trial.spawn(resources, _EVE, "3")
        rows.append(("the node holds `resources` already", await _code(most)))
        nobody = trial.spawn(resources, ANONYMOUS, "4")
        rows.append(("the caller is anonymous", await _code(nobody)))
    stopped = trial.spawn(resources, name="5")
    rows.append(("the node stops", await _code(stopped)))
    rows.append(("the life raises before it is up", "what it raised"))
    return rows


async def _code(spawning: Awaitable[None]) -> str:
    try:
        await spawning
    except Exception as exc:  # noqa: BLE001  boundary: whatever it is, it is looked at
        error = call_error_from(exc)
        return repr(exc) if error is None else f"`{error.code}`"
    return "it is up"


_EXAMPLE = '''```python
import secrets
from functools import partial

import msgspec
import trio

from alknet import CallError, Context, operation, resource, scopes
from alknet.testing.operations import call_operation, peer
from alknet.testing.resources import open_resources


class Job(msgspec.Struct):
    id: str


TICKS: dict[str, int] = {}


async def run_job(name: str, *, task_status: trio.TaskStatus[None]) -> None:
    TICKS[name] = 0
    try:
        task_status.started()
        while True:
            await trio.sleep(0.001)
            TICKS[name] += 1
    finally:  # released, or the node stops
        del TICKS[name]


@operation("job/start", access=scopes("jobs"))
async def start(ctx: Context) -> Job:
    """Start a job, and own it."""
    name = secrets.token_hex(4)
    await ctx.own("job", name, partial(run_job, name))
    return Job(name)


@operation("job/stop", access=resource("job", action="stop"), resource_id_path="/id")
async def stop(ctx: Context, job: Job) -> None:
    """Stop a job: its owner may, and whoever is granted `job:*:stop`."""
    await ctx.release("job", job.id)


@operation("job/list", access=resource("job", scopes_all=["jobs"]))
async def list_jobs(ctx: Context) -> list[str]:
    """List the jobs that the caller may stop."""
    return ctx.visible("job", list(TICKS), action="stop")


async def try_it() -> None:
    bob, eve = peer("bob", "jobs"), peer("eve", "jobs")
    async with open_resources(["bob", "eve"]) as node:
        job = await call_operation(start, identity=bob, ownership=node)
        assert await call_operation(list_jobs, identity=bob, ownership=node) == [job["id"]]
        assert await call_operation(list_jobs, identity=eve, ownership=node) == []
        try:
            await call_operation(stop, job, identity=eve, ownership=node)
        except CallError as error:
            assert error.code == "FORBIDDEN"
        await call_operation(stop, job, identity=bob, ownership=node)
        assert TICKS == {}


trio.run(try_it)
```
'''
