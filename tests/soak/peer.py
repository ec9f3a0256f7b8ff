"""A peer of the node, a process of its own: ``KEY TICKET TRANSPORT SEED``, until it is killed.

It does in random order what peers do: calls that succeed, fail, are aborted or time out,
subscriptions that are read, left or never read, connections that come and go without a word. On
its standard output it says once in a while how much it has done.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import connect, open_session
from alknet.core.contracts import ConnectionEnded
from alknet.core.endpoint.dial import DialError
from alknet.errors import AlknetError
from tests.soak.parent import cancel_with_parent

PARALLEL = 6
CALLS = 20
BAD_TOKEN = "alk_" + "0" * 8 + "_" + "A" * 43
# What may happen to a peer that misbehaves, or whose node is flooded.
ENDS = (AlknetError, DialError, CallError, ConnectionEnded, trio.BrokenResourceError)


class Tally:
    """What was done, and what came out otherwise than it should."""

    def __init__(self) -> None:
        self.calls = 0
        self.wrong: list[str] = []

    def check(self, claim: bool, what: str) -> None:
        self.calls += 1
        if not claim:
            self.wrong.append(what)


class PeerLife:
    def __init__(self, key: bytes, ticket: str, transport: str, seed: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(key)
        self._ticket = ticket
        self._transports = [transport]
        self._chance = random.Random(seed)
        self.tally = Tally()

    async def live(self) -> None:
        """Connect, do something, leave; again and again."""
        while True:
            with suppress(*ENDS), trio.move_on_after(10):
                await self._chance.choice((self._visit, self._visit, self._visit, self._stray))()
            await trio.sleep(self._chance.random() * 0.1)

    async def _visit(self) -> None:
        async with (
            open_session(self._ticket, key=self._key, transports=self._transports) as session,
            trio.open_nursery() as nursery,
        ):
            for _ in range(CALLS):
                nursery.start_soon(self._guarded, self._chance.choice(self._habits), session)

    async def _stray(self) -> None:
        """A stranger: guesses a token, or says nothing at all."""
        if self._chance.random() < 0.5:
            async with connect(self._ticket, alpn="alknet/call", transports=self._transports):
                await trio.sleep(self._chance.random() * 0.2)
            return
        async with open_session(self._ticket, transports=self._transports) as session:
            with suppress(CallError):
                await session.call("node/ping", token=BAD_TOKEN)
                self.tally.check(False, "a bad token was taken")

    async def _guarded(
        self, habit: Callable[[PeerLife, CallSession], Awaitable[None]], session: CallSession
    ) -> None:
        with suppress(*ENDS):
            await habit(self, session)

    # habits

    async def _query(self, session: CallSession) -> None:
        number = self._chance.randrange(10**6)
        found = await session.call("echo/unary", {"message": number})
        right = msgspec.json.decode(found) == {"message": number}
        self.tally.check(right, "another echo than what was said")

    async def _mutation(self, session: CallSession) -> None:
        size = self._chance.choice((0, 100, 5_000, 200_000))
        found = await session.call("soak/note", {"text": "x" * size})
        self.tally.check(msgspec.json.decode(found) == size, "a note of another length")

    async def _subscription(self, session: CallSession) -> None:
        async with session.subscribe("echo/stream", {"count": 50}) as items:
            numbers = [msgspec.json.decode(item)["n"] async for item in items]
        self.tally.check(numbers == list(range(50)), "other items than were due")

    async def _left_early(self, session: CallSession) -> None:
        async with session.subscribe("soak/pour") as items:
            async for _ in items:
                break
        self.tally.check(True, "")

    async def _unread(self, session: CallSession) -> None:
        async with session.subscribe("soak/pour"):
            await trio.sleep(self._chance.random())
        self.tally.check(True, "")

    async def _aborted(self, session: CallSession) -> None:
        with trio.move_on_after(self._chance.random() * 0.05):
            await session.call("echo/unary", {"message": 1, "delay_ms": 60_000})
        self.tally.check(True, "")

    async def _too_late(self, session: CallSession) -> None:
        try:
            await session.call("echo/unary", {"message": 1, "delay_ms": 60_000}, timeout_s=0.05)
        except CallError as exc:
            self.tally.check(exc.code in {"TIMEOUT", "UNAVAILABLE"}, f"late, but {exc.code}")

    async def _refused(self, session: CallSession) -> None:
        for name in ("nobody/serves", "node/status"):
            try:
                await session.call(name)
                self.tally.check(False, f"{name} was let in")
            except CallError as exc:
                right = exc.code in {"NOT_FOUND", "FORBIDDEN", "UNAVAILABLE"}
                self.tally.check(right, f"{name}: {exc.code}")

    _habits = (
        _query,
        _query,
        _query,
        _mutation,
        _subscription,
        _left_early,
        _unread,
        _aborted,
        _too_late,
        _refused,
    )


async def main() -> None:
    key, ticket, transport, seed = sys.argv[1:]
    life = PeerLife(bytes.fromhex(key), ticket, transport, int(seed))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_with_parent, nursery.cancel_scope)
        for _ in range(PARALLEL):
            nursery.start_soon(life.live)
        while True:
            await trio.sleep(0.5)
            sys.stdout.write(f"{life.tally.calls} {'; '.join(life.tally.wrong[:3])}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    trio.run(main)
