"""What stands on a store does as well on PostgreSQL."""

# ruff: noqa: F403  the tests of other modules, which find `opener` here
from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from alknet.core.storage import Store
from alknet.stores.postgres import open_postgres_store
from alknet.stores.tables import NODE_TABLES
from tests.stores.engines import Opener
from tests.stores.postgres.harness import PostgresHarness
from tests.stores.test_audit import *
from tests.stores.test_credentials import *
from tests.stores.test_enrolment import *
from tests.stores.test_identities import *
from tests.stores.test_lease import *
from tests.stores.test_outbound import *
from tests.stores.test_ownership import *


@pytest.fixture
def opener(harness: PostgresHarness) -> Opener:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[Store]:
        async with open_postgres_store(harness.url, NODE_TABLES) as store:
            yield store

    return opened
