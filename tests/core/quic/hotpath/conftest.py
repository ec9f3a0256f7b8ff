"""What makes aioquic repeatable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from aioquic.quic import connection
from aioquic.quic.stream import QuicStream

from tests.core.quic.hotpath.differential import random_bytes


class InOrder(dict[Any, None]):
    """What stands for a set: its items come in the order in which they were added."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: object) -> None:
        self[item] = None


@pytest.fixture(scope="module", autouse=True)
def _streams_in_one_order() -> Iterator[None]:
    """aioquic keeps its streams in a set while it sends, in the order of their addresses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuicStream, "__hash__", lambda self: hash(self.stream_id))
        patch.setattr(connection, "set", InOrder, raising=False)
        yield


@pytest.fixture(autouse=True)
def _same_random_bytes() -> Iterator[None]:
    """The same connection IDs and left-out packet numbers each time."""
    with random_bytes(0):
        yield
