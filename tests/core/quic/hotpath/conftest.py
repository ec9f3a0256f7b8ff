"""What makes aioquic repeatable."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aioquic.quic.stream import QuicStream


@pytest.fixture(scope="module", autouse=True)
def _streams_in_one_order() -> Iterator[None]:
    """aioquic keeps its streams in a set while it sends, in the order of their addresses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuicStream, "__hash__", lambda self: hash(self.stream_id))
        yield
