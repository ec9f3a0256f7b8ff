"""A node that has rotated its key tells its peers: over real connections, once, and for a while."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.succeed import OPERATION, PER_SOURCE_BURST, PER_SOURCE_PER_S
from alknet.call.telling import TOLD_FOR_S, SuccessionTeller
from alknet.client import open_session
from alknet.core.address import Address
from alknet.core.clock import wall_clock
from alknet.core.config import NodeConfig
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.succession import Answer, Succession, sign_succession
from alknet.core.tls.credentials import NodeCredentials
from alknet.node import Node
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.succession import rotate_identity
from alknet.testing.nodes import open_node
from tests.cli.homes import make_vault_home, open_vault
from tests.scenarios.homes import steady_address
from tests.scenarios.rig import TRANSPORTS, bystander, eventually

OLD, NEW = (Ed25519PrivateKey.generate() for _ in range(2))


def fingerprint(key: Ed25519PrivateKey) -> str:
    return NodeId.from_public_key(key.public_key()).fingerprint


def statement(old: Ed25519PrivateKey = OLD, new: Ed25519PrivateKey = NEW) -> Succession:
    return sign_succession(old, new, now=wall_clock())


def hub_as_known(**fields: object) -> Peer:
    peer = Peer(name="hub", fingerprints=(fingerprint(OLD),), scopes=("echo",))
    return msgspec.structs.replace(peer, **fields)


def reachable(name: str, node: Node) -> Peer:
    return Peer(
        name=name,
        fingerprints=(node.id.fingerprint,),
        addresses=tuple(map(str, node.ticket.addresses)),
    )


class Told:
    """Who has heard, in memory."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    def has(self, name: str) -> bool:
        return name in self.answers

    async def note(self, name: str, answer: Answer) -> None:
        await trio.lowlevel.checkpoint()
        self.answers[name] = answer


def teller(
    told: Told, *peers: Peer, since_s: float = 0.0, limits: Limits | None = None
) -> SuccessionTeller:
    signed = sign_succession(OLD, NEW, now=wall_clock() - since_s)
    return SuccessionTeller(
        [signed],
        peers=MemoryIdentityStore(peers),
        told=told,
        credentials=NodeCredentials(NEW),
        limits=limits or Limits(),
        first_s=0.02,
    )


def keys_that_wait(node: Node, name: str = "hub") -> list[str]:
    peer = node.identities.peer(name)
    assert peer is not None
    return [one.key.fingerprint for one in node.successors.waiting(peer)]


async def test_all_who_can_be_reached_are_told_and_what_they_answer_is_kept(
    nursery: trio.Nursery,
) -> None:
    told = Told()
    async with (
        open_node(peers=[hub_as_known()]) as friend,
        open_node(peers=[hub_as_known(enabled=False)]) as offended,
        open_node(peers=[hub_as_known(fingerprints=(fingerprint(NEW),))]) as fresh,
    ):
        peers = [
            reachable("friend", friend),
            reachable("offended", offended),
            reachable("fresh", fresh),
            Peer(name="nowhere", fingerprints=(fingerprint(OLD),)),
        ]
        nursery.start_soon(teller(told, *peers).run)
        await eventually(lambda: len(told.answers) == 3, 10)
        assert told.answers == {"friend": "waits", "offended": "unknown", "fresh": "known"}
        assert keys_that_wait(friend) == [fingerprint(NEW)]
        assert friend.status()["peers"][0]["waiting_keys"] == [
            str(NodeId.from_public_key(NEW.public_key()))
        ]
        assert friend.identities.identify_key(NodeId.from_public_key(NEW.public_key())) is None
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_who_is_away_is_told_on_coming_back(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="alknet.call.telling")
    told = Told()
    key = Ed25519PrivateKey.generate()
    address = steady_address()
    async with Node(key, config=NodeConfig(listen=(address,))) as node:
        peer = reachable("friend", node)
    hurried = Limits(dial_timeout_s=0.3, handshake_timeout_s=0.3)
    nursery.start_soon(teller(told, peer, limits=hurried).run)
    await eventually(lambda: bool(caplog.records), 5)
    assert caplog.records[0].message == "succession.not_told_yet"
    assert told.answers == {}
    config = NodeConfig(listen=(address,), peers=(hub_as_known(),))
    async with Node(key, config=config) as node:
        await eventually(lambda: told.answers == {"friend": "waits"}, 10)
        assert keys_that_wait(node) == [fingerprint(NEW)]
        nursery.cancel_scope.cancel()


async def test_another_node_at_the_address_is_told_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    caplog.set_level(logging.INFO, logger="alknet.call.telling")
    async with open_node(peers=[hub_as_known()]) as impostor:
        peer = msgspec.structs.replace(
            reachable("friend", impostor), fingerprints=(fingerprint(Ed25519PrivateKey.generate()),)
        )
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(teller(told, peer).run)
                await eventually(lambda: bool(caplog.records), 5)
                nursery.cancel_scope.cancel()
        assert "another key" in caplog.records[0].__dict__["reason"]
        assert (told.answers, keys_that_wait(impostor)) == ({}, [])


async def test_after_a_month_nobody_is_told_and_the_log_says_whom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_node(peers=[hub_as_known()]) as friend:
        with trio.fail_after(30):
            await teller(Told(), reachable("friend", friend), since_s=TOLD_FOR_S + 1).run()
        assert keys_that_wait(friend) == []
    (record,) = [r for r in caplog.records if r.message == "succession.not_told"]
    assert record.__dict__["peers"] == ["friend"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_hostile_announcements_change_nothing_and_disturb_nobody(transport: str) -> None:
    """Forged, replayed by others, of strangers' keys, and a flood of good ones."""
    thief, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    good = statement().encode()
    forged = bytearray(sign_succession(thief, NEW, now=1.0).encode())
    forged[:32] = OLD.public_key().public_bytes_raw()
    async with open_node(peers=[hub_as_known()]) as node, bystander(node, transport):

        async def announce(key: Ed25519PrivateKey, data: bytes) -> str:
            async with open_session(node.ticket, key=key, transports=[transport]) as session:
                try:
                    output = await session.call(OPERATION, {"statements": [data]})
                except CallError as exc:
                    return exc.code
            return str(msgspec.json.decode(output)["state"])

        began_at = trio.current_time()
        assert await announce(NEW, bytes(forged)) == "FORBIDDEN"
        assert await announce(thief, good) == "FORBIDDEN"
        assert await announce(stranger, statement(thief, stranger).encode()) == "unknown"
        assert keys_that_wait(node) == []
        version = node.identities.store.version
        codes = [await announce(stranger, statement(thief, stranger).encode()) for _ in range(10)]
        # The forged one was verified too. In the time that this takes, one or two more are.
        more = (trio.current_time() - began_at) * PER_SOURCE_PER_S + 1
        assert PER_SOURCE_BURST - 2 <= codes.count("unknown") <= PER_SOURCE_BURST - 2 + more
        assert set(codes) <= {"unknown", "UNAVAILABLE"}
        assert node.identities.store.version == version


async def test_a_flood_of_one_connection_is_bounded() -> None:
    async with (
        open_node(peers=[hub_as_known()]) as node,
        open_session(node.ticket, key=NEW, transports=["quic"]) as session,
    ):
        answers: list[str] = []

        async def announce() -> None:
            try:
                output = await session.call(OPERATION, {"statements": [statement().encode()]})
                answers.append(str(msgspec.json.decode(output)["state"]))
            except CallError as exc:
                answers.append(exc.code)

        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(announce)
        # In the time that the flood takes, one or two more are let through.
        more = (trio.current_time() - began_at) * PER_SOURCE_PER_S + 1
        assert PER_SOURCE_BURST <= answers.count("waits") <= PER_SOURCE_BURST + more
        rows = await node.identities.audit.newest(None)
        assert [row.action for row in rows].count("peer.new_key") == 1


@pytest.mark.slow
async def test_a_node_of_a_home_tells_once_over_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="alknet.call.telling")
    old = make_vault_home(tmp_path / "h")
    loopback = [Address("127.0.0.1", 0)]
    peer = hub_as_known(fingerprints=(fingerprint(old),))
    async with open_node(peers=[peer]) as friend:
        async with Node.from_home(tmp_path / "h", listen=loopback) as hub:
            await hub.identities.put_peer(reachable("friend", friend))
            assert hub.status()["not_told_of_new_key"] == []
        vault = open_vault(tmp_path / "h")
        rotate_identity(vault, tmp_path / "h", now=wall_clock())
        vault.lock()
        async with Node.from_home(tmp_path / "h", listen=loopback) as hub:
            await eventually(lambda: hub.status()["not_told_of_new_key"] == [], 10)
            assert keys_that_wait(friend) == [hub.id.fingerprint]
        async with Node.from_home(tmp_path / "h", listen=loopback) as hub:
            assert hub.status()["not_told_of_new_key"] == []
            # One of whom it has not heard is tried, so the round is over when that is noted.
            await hub.identities.put_peer(hub_as_known(name="nobody", addresses=("127.0.0.1:1",)))
            await eventually(lambda: hub.status()["not_told_of_new_key"] == ["nobody"])
    assert [r.message for r in caplog.records].count("succession.told") == 1
