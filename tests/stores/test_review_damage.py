"""Files of a home that are damaged or of another version: said as it is, never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from alknet.core.nodeid import NodeId
from alknet.errors import StoreError
from alknet.stores.known import KNOWN_FILE, KnownNodes


@pytest.mark.parametrize("data", [b'{"a":"\xff"}', b'{"\xff":"a"}', b"[]", b"", b"{"])
async def test_a_damaged_list_of_known_nodes_trusts_nobody(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / KNOWN_FILE
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        await KnownNodes(tmp_path).check("h:1", NodeId(bytes(32)))
    assert path.read_bytes() == data
