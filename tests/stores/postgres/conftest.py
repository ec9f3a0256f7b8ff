"""One server for all tests here, started by the first that needs it, with one database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from alknet.stores.postgres import follower
from tests.stores.postgres.harness import PostgresHarness
from tests.stores.postgres.server import PostgresServer, open_server


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    with open_server() as found:
        yield found


@pytest.fixture(scope="session")
def database(server: PostgresServer) -> str:
    return server.new_database()


@pytest.fixture
def harness(
    server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PostgresHarness]:
    # What a look without a bell finds is found soon enough for a test.
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.05)
    yield PostgresHarness(server, database)
    server.clear(database)
