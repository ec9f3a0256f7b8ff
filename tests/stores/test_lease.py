"""One live process for each identity on a shared store."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from alknet.core.identity import NodeId
from alknet.core.storage import Put, RowConflict
from alknet.errors import Conflict
from alknet.stores import lease as lease_module
from alknet.stores.lease import BEAT_S, LIFE_S, hold_lease
from alknet.stores.memory_store import MemoryDatabase, open_memory_store
from alknet.stores.tables import API_KEYS, LEASES, NODE_TABLES, PEERS, PeerRow
from tests.stores.engines import Opener

NODE, OTHER = NodeId(b"\x01" * 32), NodeId(b"\x02" * 32)


@pytest.fixture
def shared() -> MemoryDatabase:
    return MemoryDatabase()


async def test_a_second_process_is_refused_and_told_where_the_first_is(
    shared: MemoryDatabase, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with (
        open_memory_store(NODE_TABLES, shared) as one,
        open_memory_store(NODE_TABLES, shared) as two,
        hold_lease(one, NODE) as lease,
    ):
        nursery.start_soon(lease.keep)
        began = trio.current_time()
        with pytest.raises(Conflict, match=r"runs already on this store, on .* \(process \d+\)"):
            async with hold_lease(two, NODE):
                pass
        assert trio.current_time() - began <= 2 * BEAT_S
        async with hold_lease(two, OTHER):
            pass
        nursery.cancel_scope.cancel()


async def test_a_lease_that_was_given_back_is_free_at_once(opener: Opener) -> None:
    async with opener() as store:
        epochs = []
        for _ in range(3):
            async with hold_lease(store, NODE) as lease:
                epochs.append(lease.epoch)
        assert epochs == [1, 2, 3]


async def test_a_lease_expires_when_its_holder_is_silent_and_fences_it_off(
    shared: MemoryDatabase, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        open_memory_store(NODE_TABLES, shared) as one,
        open_memory_store(NODE_TABLES, shared) as two,
        hold_lease(one, NODE) as old,
    ):
        began = trio.current_time()
        async with hold_lease(two, NODE) as new:
            assert trio.current_time() - began == pytest.approx(LIFE_S, abs=BEAT_S)
            assert new.epoch == old.epoch + 1
            row = PeerRow(name="a")
            with pytest.raises(RowConflict):
                await one.write([old.fence, Put(PEERS, "a", row)])
            await two.write([new.fence, Put(PEERS, "a", row)])
            with pytest.raises(Conflict, match="identity is now in use by"):
                await old.keep()
        assert one.get(API_KEYS, "x") is None


async def test_a_holder_that_lost_its_lease_ends_as_soon_as_it_hears_of_it(
    shared: MemoryDatabase, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    lost: list[str] = []
    async with (
        open_memory_store(NODE_TABLES, shared) as one,
        open_memory_store(NODE_TABLES, shared) as two,
        hold_lease(one, NODE) as lease,
    ):

        async def keep() -> None:
            with pytest.raises(Conflict) as caught:
                await lease.keep()
            lost.append(str(caught.value))

        nursery.start_soon(keep)
        await trio.sleep(BEAT_S / 2)
        row = two.get(LEASES, str(NODE))
        assert row is not None
        taken = msgspec.structs.replace(row.value, holder="thief", host="elsewhere", pid=7)
        await two.write(Put(LEASES, str(NODE), taken))
        await trio.testing.wait_all_tasks_blocked()
        assert ["elsewhere (process 7)" in text for text in lost] == [True]


async def test_a_process_that_is_gone_from_this_machine_is_not_waited_for(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LIFE_S", 3_600.0)
    process = await trio.run_process(["/bin/sh", "-c", "echo $$"], capture_stdout=True)
    async with opener() as store:
        async with hold_lease(store, NODE) as lease:
            row = store.get(LEASES, str(NODE))
            assert row is not None
            dead = msgspec.structs.replace(row.value, pid=int(process.stdout))
            await store.write(Put(LEASES, str(NODE), dead))
            with trio.fail_after(60):
                async with hold_lease(store, NODE) as again:
                    assert again.epoch == lease.epoch + 1
