"""A rotated key: the node has another id, its statement leads there, and peers can follow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.config import load_config
from alknet.core.home import CONFIG_FILE
from alknet.core.nodeid import NodeId
from alknet.core.succession import sign_succession
from alknet.errors import Conflict, StoreError
from alknet.stores.home import open_home_identities
from alknet.stores.succession import SUCCESSION_FILE, read_succession, rotate_identity
from alknet.stores.successors import StoredSuccessors
from alknet.vault.homevault import home_public_key, home_vault
from alknet.vault.keyfile import create_home
from alknet.vault.slip10 import derive
from alknet.vault.words import seed_from_words
from tests.cli.homes import WORDS, make_vault_home, open_vault
from tests.cli.kit import PATIENCE_S, Cli, RunningNode, running_node, terminal
from tests.vault.oldhome import write_key


def id_of(home: Path) -> str:
    return str(NodeId(home_public_key(home)))


def device_id(number: int) -> str:
    key = derive(seed_from_words(WORDS), f"m/74'/0'/0'/{number}'").private_key()
    return str(NodeId.from_public_key(key.public_key()))


@pytest.fixture
def hub(cli: Cli) -> Cli:
    make_vault_home(cli.home)
    return cli


def test_the_new_key_is_the_next_device_of_the_words(hub: Cli) -> None:
    made = hub.ok("key", "rotate", "--yes", "--json").json
    assert (made["old"], made["id"], made["device"]) == (device_id(0), device_id(1), 1)
    assert id_of(hub.home) == device_id(1)
    vault = open_vault(hub.home)
    assert str(NodeId.from_public_key(vault.identity().public_key())) == device_id(1)
    vault.lock()
    assert hub.ok("key", "rotate", "--yes", "--device", 7, "--json").json["id"] == device_id(7)
    history = hub.ok("key", "history", "--json").json["statements"]
    assert [one["id"] for one in history] == [device_id(1), device_id(7)]
    assert device_id(7) in hub.ok("key", "history").out


def test_a_key_that_was_is_not_taken_again(hub: Cli) -> None:
    hub.ok("key", "rotate", "--yes")
    for number in (0, 1):
        assert "was" in hub.fails(1, "key", "rotate", "--yes", "--device", number).err
    assert id_of(hub.home) == device_id(1)


def test_a_rotation_is_confirmed(hub: Cli) -> None:
    assert "--yes" in hub.fails(1, "key", "rotate").err
    with terminal("key", "rotate", home=hub.home) as asked:
        asked.expect(r"Go on\? \[y/N\]: ")
        asked.type("n\n")
        assert asked.end() != 0
    assert id_of(hub.home) == device_id(0)
    assert not (hub.home / SUCCESSION_FILE).exists()


def test_a_key_that_was_brought_in_is_followed_by_that_of_the_words(tmp_path: Path) -> None:
    create_home(tmp_path / "h")
    brought = Ed25519PrivateKey.generate()
    write_key(tmp_path / "h", brought)
    vault = home_vault(tmp_path / "h", now=1.0)
    assert vault.identity().private_bytes_raw() == brought.private_bytes_raw()
    made = rotate_identity(vault, tmp_path / "h", now=2.0)
    assert made.old == brought.public_key().public_bytes_raw()
    assert vault.header.device == 0
    assert vault.identity().public_key().public_bytes_raw() == made.new
    vault.lock()


def test_killed_before_the_vault_changes_it_goes_on_the_next_time(hub: Cli) -> None:
    vault = open_vault(hub.home)
    old = home_public_key(hub.home)
    vault_file = (hub.home / "vault.alk").read_bytes()
    first = rotate_identity(vault, hub.home, now=1.0)
    vault.lock()
    (hub.home / "vault.alk").write_bytes(vault_file)
    (hub.home / "vault.seen").unlink()
    assert read_succession(hub.home, old) == []
    vault = open_vault(hub.home)
    again = rotate_identity(vault, hub.home, now=2.0)
    assert (again.old, again.new) == (first.old, first.new)
    assert read_succession(hub.home, again.new) == [again]
    with pytest.raises(Conflict):
        rotate_identity(vault, hub.home, now=3.0, device=0)
    vault.lock()


def test_of_two_rotations_at_once_one_is_refused(hub: Cli) -> None:
    slow, fast = open_vault(hub.home), open_vault(hub.home)
    done = rotate_identity(fast, hub.home, now=1.0, device=5)
    with pytest.raises(Conflict, match="another command has given the node a new key"):
        rotate_identity(slow, hub.home, now=2.0, device=6)
    assert read_succession(hub.home, done.new) == [done]
    assert id_of(hub.home) == device_id(5)
    slow.lock()
    fast.lock()


@pytest.mark.parametrize("content", [b"", b"[", b'["AAAA"]', b"{}", b"\xff"])
def test_a_damaged_history_is_named(hub: Cli, content: bytes) -> None:
    (hub.home / SUCCESSION_FILE).write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        read_succession(hub.home, home_public_key(hub.home))


# Two nodes.


def follower_of(hub: RunningNode, home: Path, cli: Cli) -> Path:
    make_vault_home(home, entropy=bytes(32))
    cli.ok("peer", "add", "hub", hub.ticket, home=home)
    return home


def address_of(node: RunningNode) -> str:
    return str(node.ready["listen"][0]["address"])


@pytest.mark.slow
def test_a_peer_follows_two_rotations_at_once(hub: Cli, tmp_path: Path) -> None:
    with running_node(hub.home) as running:
        home = follower_of(running, tmp_path / "p", hub)
        hub.ok("call", "@hub", "node/ping", home=home)
        same = hub.ok("peer", "follow", "hub", "--json", home=home).json
        assert same["done"] == "has the key that is known"
    hub.ok("key", "rotate", "--yes")
    hub.ok("key", "rotate", "--yes")
    with running_node(hub.home) as running:
        where = ("--address", address_of(running))
        hub.ok("peer", "set", "hub", *where, home=home)
        assert "peer follow" in hub.fails(4, "call", "@hub", "node/ping", home=home).err
        assert "--yes" in hub.fails(1, "peer", "follow", "hub", *where, home=home).err
        hub.fails(4, "call", "@hub", "node/ping", home=home)
        followed = hub.ok("peer", "follow", "hub", *where, "--yes", "--json", home=home).json
        assert followed["done"] == "followed"
        shown = hub.ok("peer", "show", "hub", "--json", home=home).json
        assert shown["ids"] == [device_id(2)]
        hub.ok("call", "@hub", "node/ping", home=home)


@pytest.mark.slow
def test_a_stranger_at_the_address_is_not_followed(hub: Cli, tmp_path: Path) -> None:
    with running_node(hub.home) as running:
        home = follower_of(running, tmp_path / "p", hub)
    make_vault_home(tmp_path / "stranger", entropy=bytes(31) + b"\1")
    hub.ok("key", "rotate", "--yes", home=tmp_path / "stranger")
    with running_node(tmp_path / "stranger") as running:
        where = ("--address", address_of(running))
        said = hub.fails(3, "peer", "follow", "hub", *where, "--yes", home=home).err
    assert "not signed over by a known one" in said
    assert hub.ok("peer", "show", "hub", "--json", home=home).json["ids"] == [device_id(0)]


@pytest.mark.slow
def test_a_peer_that_was_told_follows_without_a_dial(hub: Cli, tmp_path: Path) -> None:
    """Rotate, restart: the peer's node hears of it, shows it, and its owner accepts it."""
    home = tmp_path / "p"
    make_vault_home(home, entropy=bytes(32))
    hub.ok("peer", "add", "hub", f"ed25519:{bytes(home_public_key(hub.home)).hex()}", home=home)
    with running_node(home) as friend:
        hub.ok("peer", "add", "friend", friend.ticket)
        hub.ok("key", "rotate", "--yes")
        with running_node(hub.home):
            shown = told(hub, home)
        assert shown["waiting_keys"] == [device_id(1)]
        said = hub.ok("peer", "list", home=home).out
        assert device_id(1) in said
        assert "alknet peer follow hub" in said
        assert "alknet peer follow hub" in hub.ok("peer", "show", "hub", home=home).out
        assert "alknet peer follow hub" in hub.ok("status", home=home).out
        status = hub.ok("status", "--json", home=home).json
        assert status["peers"][0]["waiting_keys"] == [device_id(1)]
        rows = hub.ok("audit", "--json", home=home).lines
        assert "peer.new_key" in {row["action"] for row in rows}
        # The hub is off, and no address of it is known: nobody is asked.
        followed = hub.ok("peer", "follow", "hub", "--yes", "--json", home=home).json
        assert (followed["done"], followed["peer"]) == ("followed", "hub")
        shown = hub.ok("peer", "show", "hub", "--json", home=home).json
        assert (shown["ids"], shown["waiting_keys"]) == ([device_id(1)], [])


def told(cli: Cli, home: Path) -> dict[str, Any]:
    """Wait until a key waits for the peer ``hub``; return the peer."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        shown: dict[str, Any] = cli.ok("peer", "show", "hub", "--json", home=home).json
        if shown["waiting_keys"]:
            return shown
        time.sleep(0.05)
    raise AssertionError("it was not told")


def test_of_two_keys_that_wait_none_is_followed(hub: Cli, tmp_path: Path) -> None:
    home = tmp_path / "p"
    make_vault_home(home, entropy=bytes(32))
    keys = [Ed25519PrivateKey.generate() for _ in range(3)]
    ids = [NodeId.from_public_key(key.public_key()) for key in keys]
    hub.ok("peer", "add", "hub", ids[0], home=home)

    async def hear() -> None:
        async with open_home_identities(home, load_config(home / CONFIG_FILE)) as identities:
            for new in keys[1:]:
                await StoredSuccessors(identities).hear(
                    [sign_succession(keys[0], new, now=1.0)], "192.0.2.1:1"
                )

    trio.run(hear)
    said = hub.fails(1, "peer", "follow", "hub", "--yes", home=home).err
    assert "stolen" in said
    assert "peer set hub --key" in said
    assert "a thief" in hub.ok("peer", "list", home=home).out
    shown = hub.ok("peer", "show", "hub", "--json", home=home).json
    assert shown["waiting_keys"] == [str(one) for one in ids[1:]]
    assert shown["ids"] == [str(ids[0])]
