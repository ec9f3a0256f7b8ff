"""Sealed secrets: kept, listed and sealed anew, and never in the clear."""

from __future__ import annotations

import pytest

from alknet.errors import LocalError, NotFound
from alknet.stores.credentials import Credentials
from alknet.stores.identities import StoredIdentities
from alknet.stores.memory_store import MemoryDatabase, open_memory_store
from alknet.stores.tables import NODE_TABLES
from tests.stores.engines import Opener

SEALED = "alkv1:AAAA"


async def test_what_is_sealed_is_kept_and_listed(opener: Opener) -> None:
    async with opener() as store:
        credentials = Credentials(StoredIdentities(store))
        await credentials.put("openai", "key", SEALED)
        await credentials.put("openai", "other key", SEALED)
        await credentials.put("github", "key", SEALED)
        await credentials.put("openai", "key", f"{SEALED}2")
    async with opener() as again:
        identities = StoredIdentities(again)
        credentials = Credentials(identities)
        assert credentials.get("openai", "key") == f"{SEALED}2"
        assert credentials.get("openai", "none") is None
        assert credentials.services() == ["github", "openai"]
        assert credentials.names("openai") == ["key", "other key"]
        await credentials.remove("github", "key")
        assert credentials.services() == ["openai"]
        with pytest.raises(NotFound, match="no credential github/key"):
            await credentials.remove("github", "key")
        rows = await identities.audit.newest(None)
        assert {(row.action, row.target) for row in rows} == {
            ("credential.put", "openai/key"),
            ("credential.put", "openai/other key"),
            ("credential.put", "github/key"),
            ("credential.remove", "github/key"),
        }
        assert SEALED not in str(rows)


@pytest.mark.parametrize(
    ("service", "name", "text"),
    [
        ("x", "y", "in the clear"),
        ("X", "y", SEALED),
        ("a/b", "y", SEALED),
        ("x", "", SEALED),
        ("x", "a\nb", SEALED),
        ("x", "y" * 257, SEALED),
    ],
)
async def test_what_is_not_sealed_or_not_named_is_refused(
    opener: Opener, service: str, name: str, text: str
) -> None:
    async with opener() as store:
        with pytest.raises(LocalError) as caught:
            await Credentials(StoredIdentities(store)).put(service, name, text)
        assert "in the clear" not in str(caught.value)


@pytest.mark.parametrize(
    ("put", "found_then", "count"), [("newest", "newest", 3), ("old9", "new9", 4)]
)
async def test_all_are_put_under_a_new_key_and_none_is_lost(
    opener: Opener, put: str, found_then: str, count: int
) -> None:
    async with opener() as store:
        credentials = Credentials(StoredIdentities(store))
        for number in range(5):
            await credentials.put("s", str(number), f"alkv1:old{number}")

        async def seal_anew(path: str, sealed: str) -> str:
            if path == "s/1":
                return sealed  # is new already
            if path == "s/2" and sealed == "alkv1:old2":  # somebody is faster
                await credentials.put("s", "2", f"alkv1:{put}")
            return sealed.replace("old", "new")

        assert await credentials.rewrap(seal_anew) == count
        found = [credentials.get("s", str(number)) for number in range(5)]
        assert found == [
            "alkv1:new0",
            "alkv1:old1",
            f"alkv1:{found_then}",
            "alkv1:new3",
            "alkv1:new4",
        ]


async def test_what_memory_has_not_heard_of_is_put_under_the_new_key_too() -> None:
    database = MemoryDatabase()
    async with (
        open_memory_store(NODE_TABLES, database) as store,
        open_memory_store(NODE_TABLES, database) as other,
    ):
        credentials, others = (Credentials(StoredIdentities(one)) for one in (store, other))
        await credentials.put("s", "0", "alkv1:old0")
        store.lose_listener()
        await others.put("s", "0", "alkv1:old1")
        await others.put("s", "1", "alkv1:old2")

        async def seal_anew(_: str, sealed: str) -> str:
            return sealed.replace("old", "new")

        assert await credentials.rewrap(seal_anew) == 2
        assert [others.get("s", name) for name in "01"] == ["alkv1:new1", "alkv1:new2"]
