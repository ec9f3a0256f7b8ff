"""Which peers a node keeps a connection to: written, followed, ended with the peer."""

from __future__ import annotations

import msgspec
import pytest
import trio

from alknet.core.address import Address
from alknet.core.identity import NodeId, Peer
from alknet.core.outbound import OutboundConfig, OutboundTarget
from alknet.core.storage import Put
from alknet.errors import Conflict, NotFound
from alknet.stores.identities import StoredIdentities
from alknet.stores.outbound import StoredOutbound
from alknet.stores.tables import PEERS
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.stores.engines import Opener

ME, OTHER_NODE, HUB, SPARE = (NodeId(bytes([n]) * 32) for n in range(1, 5))


def hub(*scopes: str, name: str = "hub", key: NodeId = HUB, address: str = "h:1") -> Peer:
    return Peer(name=name, fingerprints=(key.fingerprint,), scopes=scopes, addresses=(address,))


async def test_to_join_makes_a_peer_and_a_target_in_one_step(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        outbound = StoredOutbound(identities, ME)
        assert outbound.targets() == []
        record = await outbound.join(hub("jobs:run"))
        assert (record.name, record.scopes) == ("hub", ("jobs:run",))
        [target] = outbound.targets()
        assert target == OutboundTarget(
            name="hub", keys=(HUB,), addresses=(Address("h", 1),), joined=target.joined
        )
        assert identities.peer("hub") == hub("jobs:run")
        [row] = await identities.audit.newest(None)
        assert (row.action, row.target) == ("outbound.add", "hub")
        assert row.details["scopes"] == "jobs:run"


async def test_to_join_again_changes_no_right_or_what_is_asked(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        outbound = StoredOutbound(identities, ME)
        await outbound.join(hub("a"))
        known = identities.version
        await outbound.join(hub("a"))
        await outbound.join(hub(), keep_scopes=True)
        assert identities.version == known
        assert len(await identities.audit.newest(None)) == 1
        await outbound.join(hub("b", address="h:2"))
        assert identities.peer("hub") == Peer(
            name="hub",
            fingerprints=(HUB.fingerprint,),
            scopes=("b",),
            addresses=("h:2", "h:1"),
        )
        await identities.remove_peer("hub")
        await identities.put_peer(hub("c"))  # the peer is known, but not dialled
        assert outbound.targets() == []
        await outbound.join(hub("c"))
        assert len(outbound.targets()) == 1


async def test_to_join_again_makes_a_target_that_differs_so_that_it_is_dialled_at_once(
    opener: Opener,
) -> None:
    async with opener() as store:
        outbound = StoredOutbound(StoredIdentities(store), ME)
        await outbound.join(hub("a"))
        [first] = outbound.targets()
        version = outbound.version
        await outbound.join(hub("a"))
        assert await outbound.wait_changed(version) > version
        [again] = outbound.targets()
        assert again != first
        assert (again.keys, again.addresses) == (first.keys, first.addresses)


async def test_what_conflicts_is_refused_and_changes_nothing(opener: Opener) -> None:
    fixed = Peer(name="fixed", fingerprints=(OTHER_NODE.fingerprint,), read_only=True)
    async with opener() as store:
        identities = StoredIdentities(store, [fixed])
        outbound = StoredOutbound(identities, ME)
        await identities.put_peer(hub())
        await identities.put_peer(
            Peer(name="off", fingerprints=(SPARE.fingerprint,), enabled=False)
        )
        version = store.version
        for peer, message in (
            (hub(key=ME), "exists, with another key"),
            (hub(name="other"), "belongs to peer 'hub'"),
            (hub(name="off", key=SPARE), "is disabled"),
            (hub("x", name="fixed", key=OTHER_NODE), "stands in node.toml"),
        ):
            with pytest.raises(Conflict, match=message):
                outbound.check_joinable(peer)
            with pytest.raises(Conflict, match=message):
                await outbound.join(peer)
        assert store.version == version
        await outbound.join(hub(name="fixed", key=OTHER_NODE))
        [target] = outbound.targets()
        assert (target.name, target.keys) == ("fixed", (OTHER_NODE,))
        assert target.problem == "no address is known for the peer"


async def test_nodes_that_share_a_store_dial_their_own(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        ours = StoredOutbound(StoredIdentities(first), ME)
        theirs = StoredOutbound(StoredIdentities(second), OTHER_NODE)
        await ours.join(hub())
        assert theirs.targets() == []
        with pytest.raises(NotFound):
            await theirs.leave("hub")
        await theirs.join(hub())
        await ours.leave("hub")
        assert ours.targets() == []
        assert [target.name for target in theirs.targets()] == ["hub"]


async def test_a_node_with_a_new_key_dials_whom_it_joined_by_the_old_one(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        await StoredOutbound(identities, ME).join(hub())
        rotated = StoredOutbound(identities, OTHER_NODE, former=[ME])
        assert [target.name for target in rotated.targets()] == ["hub"]
        await rotated.join(hub())
        assert [target.name for target in rotated.targets()] == ["hub"]
        await rotated.leave("hub")
        assert rotated.targets() == []
        assert StoredOutbound(identities, ME).targets() == []


async def test_a_target_ends_with_its_peer_and_moves_with_its_name(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        outbound = StoredOutbound(identities, ME)
        await outbound.join(hub())
        await identities.rename_peer("hub", "centre")
        assert [target.name for target in outbound.targets()] == ["centre"]
        await identities.remove_peer("centre")
        assert outbound.targets() == []
        await identities.put_peer(hub(name="centre", key=SPARE))
        assert outbound.targets() == []
        with pytest.raises(NotFound):
            await outbound.leave("centre")


async def test_a_target_says_why_it_cannot_be_dialled(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        config = [OutboundConfig("gone"), OutboundConfig("web"), OutboundConfig("off")]
        outbound = StoredOutbound(identities, ME, config)
        await identities.put_peer(Peer(name="web", fingerprints=("SHA256:" + "ab" * 32,)))
        await identities.put_peer(
            Peer(name="off", fingerprints=(HUB.fingerprint,), enabled=False, addresses=("h:1",))
        )
        assert {target.name: target.problem for target in outbound.targets()} == {
            "gone": "there is no peer named 'gone'",
            "web": "the peer has no Ed25519 key, so it cannot be dialled",
            "off": "the peer is disabled",
        }
        await outbound.join(hub(name="self", key=ME))
        assert {t.name: t.problem for t in outbound.targets()}["self"] == "this is the node itself"
        with pytest.raises(Conflict, match=r"stands in \[\[outbound\]\]"):
            await outbound.leave("gone")


async def test_the_file_s_addresses_come_first(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        outbound = StoredOutbound(identities, ME)
        outbound.set_config([OutboundConfig("hub", (Address("near", 1), Address("h", 1)))])
        await identities.put_peer(hub(address="far:1"))
        [target] = outbound.targets()
        assert list(map(str, target.addresses)) == ["near:1", "h:1", "far:1"]
        assert target.in_config


async def test_each_kind_of_change_is_noticed(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        identities = StoredIdentities(first)
        outbound = StoredOutbound(identities, ME)
        elsewhere = StoredOutbound(StoredIdentities(second), ME)

        async def change_config() -> None:
            outbound.set_config([OutboundConfig("hub")])

        async def add() -> None:
            await elsewhere.join(hub())

        async def disable() -> None:
            await identities.update_peer(Peer(name="hub", enabled=False))

        async def leave() -> None:
            await elsewhere.leave("hub")

        for change in (change_config, add, disable, leave):
            version = outbound.version
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(change)
                    assert await outbound.wait_changed(version) != version


async def test_a_row_that_was_edited_by_hand_is_a_problem_of_that_peer_alone(
    opener: Opener,
) -> None:
    async with opener() as store:
        outbound = StoredOutbound(StoredIdentities(store), ME)
        await outbound.join(hub())
        await outbound.join(hub(name="spare", key=SPARE))
        found = store.get(PEERS, "hub")
        assert found is not None
        await store.write(
            Put(PEERS, "hub", msgspec.structs.replace(found.value, addresses=("nonsense",)))
        )
        problems = {target.name: target.problem for target in outbound.targets()}
        assert "nonsense" in problems["hub"]
        assert problems["spare"] == ""


async def test_to_leave_cancelled_anywhere_is_done_or_not(opener: Opener) -> None:
    async with opener() as store:
        outbound = StoredOutbound(StoredIdentities(store), ME)
        await outbound.join(hub())

        async def check() -> None:
            await outbound.join(hub())
            assert len(outbound.targets()) == 1

        assert await cancel_at_every_checkpoint(lambda: outbound.leave("hub"), check) > 1


async def test_a_wait_for_changes_cancelled_anywhere_leaves_no_task(opener: Opener) -> None:
    async with opener() as store:
        outbound = StoredOutbound(StoredIdentities(store), ME)
        turn = 0

        async def wait() -> None:
            nonlocal turn
            turn += 1
            config = [OutboundConfig(f"hub{turn}")]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbound.wait_changed, outbound.version)
                await trio.testing.wait_all_tasks_blocked()
                outbound.set_config(config)

        assert await cancel_at_every_checkpoint(wait) > 1


async def test_to_join_cancelled_anywhere_is_done_or_not(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        outbound = StoredOutbound(identities, ME)

        async def check() -> None:
            assert bool(identities.peers()) == bool(outbound.targets())
            for peer in identities.peers():
                await identities.remove_peer(peer.name)

        assert await cancel_at_every_checkpoint(lambda: outbound.join(hub()), check) > 1
