"""Files of a home that are damaged or of another version: said as it is, never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alknet.core.nodeid import NodeId
from alknet.errors import StoreError
from alknet.stores.file import FileIdentityStore
from alknet.stores.known import KNOWN_FILE, KnownNodes


@pytest.mark.parametrize("content", [{}, {"rooms": []}, {"peers": {"by": "name"}}])
def test_a_file_of_a_later_version_is_not_called_damaged(
    tmp_path: Path, content: dict[str, object]
) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": 2, **content}))
    with pytest.raises(StoreError, match="has format 2: written by another alknet") as caught:
        FileIdentityStore(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("data", [b'{"a":"\xff"}', b'{"\xff":"a"}', b"[]", b"", b"{"])
async def test_a_damaged_list_of_known_nodes_trusts_nobody(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / KNOWN_FILE
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        await KnownNodes(tmp_path).check("h:1", NodeId(bytes(32)))
    assert path.read_bytes() == data
