from __future__ import annotations

import msgspec
import trio

from alknet.call.operations import operation, scopes
from alknet.core.limits import Limits
from alknet.testing.nodes import open_node, open_peer_session


@operation("m/scoped", access=scopes("m"))
async def scoped() -> int:
    return 1


async def test_a_watcher_sees_new_rights_and_does_not_hold_up_the_end() -> None:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def watch(task_status: trio.TaskStatus[None]) -> None:
            async with (
                open_peer_session(node) as session,
                session.subscribe_as(dict[str, str], "services/watch") as versions,
            ):
                seen = [await anext(versions)]
                [peer] = node.identities.peers()
                wider = msgspec.structs.replace(peer, scopes=("m",))
                await node.identities.update_peer(wider)
                seen.append(await anext(versions))
                assert seen[0] != seen[1]
                task_status.started()
                assert await anext(versions, None) is None
            ended.set()

        async with open_node(operations=[scoped], limits=Limits(drain_timeout_s=60.0)) as node:
            await nursery.start(watch)
            with trio.fail_after(30):  # less than the drain would wait for a call
                await node.endpoint.drain()
                await ended.wait()
