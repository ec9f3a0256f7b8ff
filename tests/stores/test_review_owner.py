"""A home of another user: its state is not written, for its owner could not read it any more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alknet.core.identity import Peer
from alknet.errors import StoreError
from alknet.stores.file import FileIdentityStore


async def test_the_state_of_another_user_is_read_but_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    await FileIdentityStore(path).put_peer(Peer(name="a"))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)  # as `sudo alknet …` does it
    store = FileIdentityStore(path)
    assert store.peers() == [Peer(name="a")]
    with pytest.raises(StoreError, match=rf"belongs to another user .*uid {owner}.*sudo -u"):
        await store.put_peer(Peer(name="b"))
    monkeypatch.undo()
    assert FileIdentityStore(path).peers() == [Peer(name="a")]
    assert {entry.name for entry in tmp_path.iterdir()} == {"state.json", "state.json.lock"}
