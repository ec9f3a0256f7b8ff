"""The soak fails on leaks, and on leaks only."""

from __future__ import annotations

import msgspec
import trio

from tests.soak.held import Held, held
from tests.soak.verdict import ends, growth, leftovers

CLEAN = Held(pss_kib=50_000, blocks=100_000, fds=14, tasks=20, kinds={"alknet.core.x.Y": 2})


def with_(**changes: object) -> Held:
    return msgspec.structs.replace(CLEAN, **changes)


def test_what_was_there_before_is_not_left() -> None:
    assert leftovers(CLEAN, CLEAN) == []
    assert leftovers(CLEAN, with_(tasks=19, fds=13, kinds={})) == []


def test_tasks_files_and_our_objects_are_named() -> None:
    more = {"alknet.core.x.Y": 3, "trio.lowlevel.Task": 1, "trio._util.Other": 9}
    assert leftovers(CLEAN, with_(tasks=21, fds=15, kinds=more)) == [
        "tasks: 20 -> 21",
        "fds: 14 -> 15",
        "alknet.core.x.Y: 2 -> 3",
        "trio.lowlevel.Task: 0 -> 1",
    ]


def test_what_is_remembered_on_purpose_is_not_left() -> None:
    remembered = {**CLEAN.kinds, "alknet.stores.file.Row": 7}
    assert leftovers(CLEAN, with_(kinds=remembered)) == []


def test_memory_may_wobble() -> None:
    pictures = [with_(pss_kib=50_000 + 2_000 * (n % 2)) for n in range(10)]
    pictures[-1] = with_(pss_kib=90_000)  # one that is off is noise
    assert growth(pictures, 5) == []
    pictures = [with_(pss_kib=kib) for kib in (50_000,) * 5 + (60_000, 60_000, 60_000, 49_000)]
    assert growth(pictures, 5) == []  # what malloc had kept it has given back
    for more in range(1, 20):  # a step, whenever it comes
        pictures = [with_(pss_kib=50_000)] * (20 - more) + [with_(pss_kib=58_000)] * more
        assert growth(pictures, 5) == []


def test_memory_that_grows_is_told_with_what_grew() -> None:
    pictures = [with_(pss_kib=50_000 + 500 * n, kinds={"alknet.Z": n}) for n in range(20)]
    found = growth(pictures, 5)
    assert found == ["pss_kib: 51,000 -> 58,500 KiB, +14.7%", "  alknet.Z: +19"]


def test_blocks_that_grow_a_little_are_a_leak() -> None:
    pictures = [with_(blocks=100_000 + 300 * n) for n in range(20)]
    assert growth(pictures, 5) == ["blocks: 100,600 -> 105,100, +4.5%"]
    assert ends(pictures, "blocks", 5) == (100_600, 105_100)


async def test_a_picture_shows_tasks_and_objects() -> None:
    before = held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        during = held()
        nursery.cancel_scope.cancel()
    del nursery
    assert during.tasks == before.tasks + 1
    found = leftovers(before, during)
    assert "tasks: " in found[0]
    assert any("trio.Nursery: " in line for line in found)
    assert any("trio.lowlevel.Task: " in line for line in found)
    assert leftovers(before, held()) == []
