"""What handlers spawn: it has an owner as long as it lives, and lives as long as it has to."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.call.codes import CallError
from alknet.call.resource import ResourceLife
from alknet.call.resources import Resources
from alknet.core.identity import ANONYMOUS, OWNER, Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.ownership import OwnedResource
from alknet.errors import Conflict, Denied, LocalError, NotFound, StoreError, Unavailable
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.ownership import StoredOwnership
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.operations import peer
from alknet.testing.resources import open_resources

NODE = NodeId(b"\x01" * 32)
A, B = peer("a"), peer("b")


class Lives:
    """Lives to run, and the ids of those that run."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.ends = trio.Event()

    def life(self, name: str) -> ResourceLife[str]:
        async def run(*, task_status: trio.TaskStatus[str]) -> None:
            self.running.append(name)
            try:
                await trio.lowlevel.checkpoint()
                task_status.started(f"up {name}")
                await self.ends.wait()
            finally:
                with trio.CancelScope(shield=True):  # tearing down takes its time
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                self.running.remove(name)

        return run


class SlowOwnership(StoredOwnership):
    """One whose writes take some time, and can fail."""

    def __init__(self, identities: MemoryIdentityStore) -> None:
        super().__init__(identities, NODE)
        self.fails: Exception | None = None
        self.hangs = False
        self.before_release: Callable[[], None] = lambda: None

    async def record(
        self,
        identity_id: str,
        resource_type: str,
        resource_id: str,
        *,
        ends_with_node: bool = False,
    ) -> None:
        await trio.lowlevel.checkpoint()
        await super().record(identity_id, resource_type, resource_id, ends_with_node=ends_with_node)
        await trio.lowlevel.checkpoint()

    async def release(self, resource_type: str, resource_id: str) -> None:
        self.before_release()
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.fails is not None:
            raise self.fails
        await super().release(resource_type, resource_id)

    async def release_all(self, resources: object) -> None:
        if self.fails is not None:
            raise self.fails
        await super().release_all(resources)  # type: ignore[arg-type]  # passed on


def ownership() -> SlowOwnership:
    return SlowOwnership(MemoryIdentityStore([Peer(name="a"), Peer(name="b")]))


@asynccontextmanager
async def opened(
    owned: StoredOwnership | None = None, limits: Limits | None = None
) -> AsyncGenerator[tuple[Resources, StoredOwnership, Lives]]:
    rows = owned or ownership()
    async with open_resources(ownership=rows, limits=limits) as resources:
        yield resources, rows, Lives()


async def until(claim: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not claim():
            await trio.sleep(0.01)


async def test_it_is_owned_while_it_lives_and_not_after() -> None:
    async with opened() as (resources, rows, lives):
        assert await resources.own(A, "tty", "1", lives.life("1")) == "up 1"
        assert rows.owns("peer:a", "tty", "1")
        assert not rows.owns("peer:b", "tty", "1")
        assert resources.counts() == {"tty": 1}
        await resources.release("tty", "1")
        assert lives.running == []
        assert rows.recorded() == []
        assert resources.counts() == {}


async def test_it_outlives_whoever_spawned_it() -> None:
    async with opened() as (resources, rows, lives):
        with trio.CancelScope() as call:
            await resources.own(A, "tty", "1", lives.life("1"))
            call.cancel()
            await trio.sleep_forever()
        await wait_all_tasks_blocked()
        assert lives.running == ["1"]
        assert rows.owns("peer:a", "tty", "1")


async def test_ownership_is_durable_before_its_life_begins() -> None:
    async with opened() as (resources, rows, _):
        seen = []

        async def life(*, task_status: trio.TaskStatus[None]) -> None:
            seen.append(rows.owned_by("tty", "1"))
            task_status.started()

        await resources.own(A, "tty", "1", life)
        assert seen == ["peer:a"]


async def test_its_row_goes_when_it_ends_by_itself_after_its_life() -> None:
    owned = ownership()
    async with opened(owned) as (resources, rows, lives):
        await resources.own(A, "tty", "1", lives.life("1"))
        running = []
        owned.before_release = lambda: running.append(list(lives.running))
        lives.ends.set()
        await until(lambda: not rows.recorded())
        assert running == [[]]
        with pytest.raises(NotFound, match="there is no tty '1'"):
            await resources.release("tty", "1")


async def test_a_crash_ends_one_resource_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    crash = trio.Event()

    async def crashing(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            task_status.started()
            await crash.wait()
            raise ZeroDivisionError

    async with opened() as (resources, rows, lives):
        await resources.own(A, "tty", "1", crashing)
        await resources.own(A, "tty", "2", lives.life("2"))
        crash.set()
        await until(lambda: rows.owned("peer:a", "tty") == ["2"])
        assert lives.running == ["2"]
    [record] = [r for r in caplog.records if r.getMessage() == "resource.crashed"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.__dict__["resource"] == "tty:1"
    assert record.__dict__["owner"] == "peer:a"


async def test_a_crash_while_it_is_cancelled_ends_only_it() -> None:
    async def crashing(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    async with opened() as (resources, rows, lives):
        await resources.own(A, "tty", "1", crashing)
        await resources.own(A, "tty", "2", lives.life("2"))
        await resources.release("tty", "1")
        assert rows.owned("peer:a", "tty") == ["2"]
        await resources.own(A, "tty", "3", crashing)  # crashes when the node stops
    assert rows.recorded() == []


async def test_what_fails_before_it_is_up_leaves_nothing_and_tells_who_spawned_it() -> None:
    async def failing(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()
        raise NotFound("no such program")

    async def returning(*, task_status: trio.TaskStatus[None]) -> None:
        pass

    async with opened() as (resources, rows, _):
        with pytest.raises(NotFound, match="no such program"):
            await resources.own(A, "tty", "1", failing)
        with pytest.raises(LocalError, match="ended before"):
            await resources.own(A, "tty", "1", returning)
        assert rows.recorded() == []
        assert resources.counts() == {}


async def test_it_says_once_that_it_is_up() -> None:
    async def twice(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        with pytest.raises(RuntimeError, match="said twice"):
            task_status.started()

    async with opened() as (resources, _, _):
        await resources.own(A, "tty", "1", twice)


async def test_the_same_twice_is_a_conflict_also_for_its_owner() -> None:
    async with opened() as (resources, rows, lives):
        await resources.own(A, "tty", "1", lives.life("1"))
        for who in (A, B):
            with pytest.raises(Conflict, match="there is a tty '1' already"):
                await resources.own(who, "tty", "1", lives.life("1"))
        await resources.own(B, "pod", "1", lives.life("pod"))
        await rows.record("peer:a", "tty", "2")  # by somebody else
        with pytest.raises(Conflict):
            await resources.own(A, "tty", "2", lives.life("2"))
        assert lives.running == ["1", "pod"]


async def test_of_two_at_once_one_gets_it() -> None:
    conflicts = []
    async with opened() as (resources, rows, lives):

        async def own(who: Identity) -> None:
            try:
                await resources.own(who, "tty", "1", lives.life("1"))
            except Conflict:
                conflicts.append(who)

        async with trio.open_nursery() as nursery:
            for who in (A, B):
                nursery.start_soon(own, who)
        assert len(conflicts) == 1
        assert len(rows.recorded()) == len(lives.running) == 1


async def test_the_anonymous_own_nothing_and_the_owner_of_the_node_may() -> None:
    async with opened() as (resources, rows, lives):
        with pytest.raises(Denied, match="authentication required"):
            await resources.own(ANONYMOUS, "tty", "1", lives.life("1"))
        await resources.own(OWNER, "tty", "1", lives.life("1"))
        assert rows.owned_by("tty", "1") == "owner"


async def test_who_is_gone_owns_nothing() -> None:
    async with opened() as (resources, rows, lives):
        await rows.identities.remove_peer("a")
        with pytest.raises(NotFound, match="peer:a any more"):
            await resources.own(A, "tty", "1", lives.life("1"))
        assert lives.running == []
        assert resources.counts() == {}


async def test_a_removed_peer_loses_it_and_it_can_still_be_ended() -> None:
    async with opened() as (resources, rows, lives):
        await resources.own(A, "tty", "1", lives.life("1"))
        await rows.identities.remove_peer("a")
        await rows.identities.put_peer(Peer(name="a"))
        assert not rows.owns("peer:a", "tty", "1")
        with pytest.raises(Conflict):
            await resources.own(A, "tty", "1", lives.life("2"))
        await resources.release("tty", "1")
        assert lives.running == []


async def test_the_number_is_bounded_per_identity_and_per_node() -> None:
    limits = Limits(resources=3, resources_per_identity=2)
    async with opened(limits=limits) as (resources, _, lives):
        for number in ("1", "2"):
            await resources.own(A, "tty", number, lives.life(number))
        with pytest.raises(CallError, match="peer:a owns too many") as caught:
            await resources.own(A, "pod", "3", lives.life("3"))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        await resources.own(B, "tty", "3", lives.life("3"))
        with pytest.raises(CallError, match="the node has too many"):
            await resources.own(B, "tty", "4", lives.life("4"))
        await resources.release("tty", "1")
        await resources.own(A, "tty", "4", lives.life("4"))


async def test_released_while_it_starts_it_is_a_conflict_for_who_spawns_it() -> None:
    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    async with opened() as (resources, rows, _):
        caught = []

        async def own() -> None:
            with pytest.raises(Conflict, match="released while it started"):
                await resources.own(A, "tty", "1", slow)
            caught.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(own)
            await wait_all_tasks_blocked()
            await resources.release("tty", "1")
        assert caught
        assert rows.recorded() == []


async def test_cancelled_at_every_checkpoint_owning_leaves_both_or_neither() -> None:
    async with opened() as (resources, rows, lives):
        outcomes = set()

        async def own() -> None:
            try:
                await resources.own(A, "tty", "1", lives.life("1"))
            except trio.Cancelled:
                assert rows.recorded() == []
                assert lives.running == []
                raise

        async def check() -> None:
            await wait_all_tasks_blocked()
            ids = [found.resource_id for found in rows.recorded()]
            assert ids == lives.running
            assert resources.counts() == ({"tty": 1} if ids else {})
            outcomes.add(bool(ids))
            if ids:
                await resources.release("tty", "1")

        assert await cancel_at_every_checkpoint(own, check) > 0
        assert outcomes == {True, False}


async def test_cancelled_after_any_time_owning_leaves_both_or_neither() -> None:
    """The task that lives has checkpoints of its own: cancel while it is at each of them."""
    async with opened() as (resources, rows, lives):
        outcomes = set()
        for rounds in range(30):
            has_it = False

            async def own() -> None:
                nonlocal has_it
                await resources.own(A, "tty", "1", lives.life("1"))
                has_it = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(own)
                for _ in range(rounds):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            # At once: who was cancelled need not wait for anything to be gone.
            ids = [found.resource_id for found in rows.recorded()]
            assert ids == lives.running == (["1"] if has_it else [])
            outcomes.add(has_it)
            if has_it:
                await resources.release("tty", "1")
        assert outcomes == {True, False}


async def test_cancelled_at_every_checkpoint_a_release_goes_on() -> None:
    async with opened() as (resources, rows, lives):

        async def release() -> None:
            with trio.CancelScope(shield=True):
                await resources.own(A, "tty", "1", lives.life("1"))
            await resources.release("tty", "1")

        async def check() -> None:
            await wait_all_tasks_blocked()
            if rows.recorded():  # cancelled before it was asked for
                await resources.release("tty", "1")
            assert lives.running == []
            assert rows.recorded() == []

        assert await cancel_at_every_checkpoint(release, check) > 0


async def test_what_cannot_be_written_is_not_run() -> None:
    class Refusing(SlowOwnership):
        async def record(self, *args: str, ends_with_node: bool = False) -> None:
            raise StoreError("the disk is full")

    owned = Refusing(MemoryIdentityStore([Peer(name="a")]))
    async with opened(owned) as (resources, _, lives):
        with pytest.raises(StoreError, match="disk is full"):
            await resources.own(A, "tty", "1", lives.life("1"))
        assert lives.running == []
        assert resources.counts() == {}


async def test_a_row_that_another_got_first_stays_his() -> None:
    class Beaten(SlowOwnership):
        async def record(self, *args: str, ends_with_node: bool = False) -> None:
            await super().record("peer:b", *args[1:])
            await super().record(*args)

    owned = Beaten(MemoryIdentityStore([Peer(name="a"), Peer(name="b")]))
    async with opened(owned) as (resources, rows, lives):
        with pytest.raises(Conflict, match="another owner"):
            await resources.own(A, "tty", "1", lives.life("1"))
        assert rows.owns("peer:b", "tty", "1")
        assert resources.counts() == {}


async def test_a_row_that_cannot_be_removed_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    owned = ownership()
    async with opened(owned) as (resources, rows, lives):
        await resources.own(A, "tty", "1", lives.life("1"))
        owned.fails = StoreError("the disk is full")
        with pytest.raises(StoreError, match="disk is full"):
            await resources.release("tty", "1")
        assert lives.running == []
        with pytest.raises(Conflict):
            await resources.own(B, "tty", "1", lives.life("1"))
        owned.fails = None
        await until(lambda: not rows.recorded())
        await until(lambda: not resources.counts())
        await resources.own(B, "tty", "1", lives.life("1"))


async def test_a_store_that_hangs_holds_up_nobody_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    owned = ownership()
    async with opened(owned) as (resources, rows, lives):
        await resources.own(A, "tty", "1", lives.life("1"))
        owned.hangs = True
        start = trio.current_time()
        with pytest.raises(Unavailable, match="does not answer"):
            await resources.release("tty", "1")
        assert trio.current_time() - start <= 5.1
    assert len(rows.recorded()) == 1


async def test_at_the_end_of_the_node_all_are_released_within_a_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened() as (resources, rows, lives):
        for number in ("1", "2", "3"):
            await resources.own(A, "tty", number, lives.life(number))
    assert lives.running == []
    assert rows.recorded() == []
    with pytest.raises(Unavailable, match="stops"):
        await resources.own(A, "tty", "4", lives.life("4"))


# What is left behind when a node was killed.


async def left_behind(*kinds: str, ends_with_node: bool) -> SlowOwnership:
    owned = ownership()
    for kind in kinds:
        for number in ("1", "2"):
            await owned.record("peer:a", kind, number, ends_with_node=ends_with_node)
    return owned


async def test_what_lived_in_the_killed_process_is_released_at_the_next_start() -> None:
    owned = await left_behind("tty", "pod", ends_with_node=True)
    async with opened(owned) as (resources, rows, lives):
        assert rows.recorded() == []
        assert resources.counts() == {}
        await resources.own(B, "tty", "1", lives.life("1"))


async def test_what_lived_there_is_released_later_if_the_store_cannot_be_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    owned = await left_behind("tty", ends_with_node=True)
    owned.fails = StoreError("the disk is full")
    async with opened(owned) as (resources, rows, lives):
        assert len(rows.recorded()) == 2
        with pytest.raises(Unavailable, match="not known yet"):
            await resources.release("tty", "1")
        owned.fails = None
        await until(lambda: not rows.recorded())
        await resources.own(B, "tty", "1", lives.life("1"))


async def test_rows_of_a_type_that_nobody_asks_for_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owned = await left_behind("pod", ends_with_node=False)
    async with opened(owned) as (resources, rows, lives):
        assert rows.owned("peer:a", "pod") == ["1", "2"]
        with pytest.raises(Conflict):
            await resources.own(B, "pod", "1", lives.life("1"))
        with pytest.raises(Unavailable, match="not known yet"):
            await resources.release("pod", "1")
    assert rows.owned("peer:a", "pod") == ["1", "2"]
    assert "resource.kept_unasked" in [record.getMessage() for record in caplog.records]


class BackEnd:
    """Holds things that outlive a node, when it answers."""

    def __init__(self, lives: Lives, *living: str) -> None:
        self.lives = lives
        self.living = living
        self.answers = trio.Event()
        self.failures = 0

    async def find(self, ids: Sequence[str]) -> Mapping[str, ResourceLife[object]]:
        await self.answers.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("no such socket")
        return {name: self.lives.life(name) for name in ids if name in self.living}


async def test_a_back_end_says_what_has_outlived_the_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    owned = await left_behind("pod", ends_with_node=False)
    lives = Lives()
    back_end = BackEnd(lives, "2")
    back_end.failures = 3
    resources = Resources(owned, Limits())
    resources.outlive("pod", back_end.find)
    async with trio.open_nursery() as nursery:
        await nursery.start(resources.serve)
        assert owned.owned("peer:a", "pod") == ["1", "2"]  # unknown is not gone
        back_end.answers.set()
        await until(lambda: owned.owned("peer:a", "pod") == ["2"])
        assert lives.running == ["2"]
        assert resources.counts() == {"pod": 1}
        await resources.own(B, "pod", "1", lives.life("1"))
        await resources.release("pod", "2")
        assert lives.running == ["1"]
        await resources.aclose()
    assert lives.running == []
    # The node has let go of it; whether it lives, the next start finds out.
    assert owned.recorded() == [OwnedResource("pod", "1", "peer:b", ends_with_node=False)]


async def test_types_are_declared_before_the_node_runs() -> None:
    async with opened() as (resources, _, lives):
        with pytest.raises(LocalError, match="runs already"):
            resources.outlive("pod", BackEnd(lives).find)
