from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from alknet.core.contracts import Connection, ProtocolHandler
from alknet.core.router import Router
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.core.endpoint_kit import Handler, echo


class One(Handler):
    pass


class Two(Handler):
    pass


class Living(Handler):
    """A handler with a lifespan that writes down when it is entered and left."""

    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__(echo, alpns=(name,))
        self._diary = diary

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self._diary.append(f"{self.alpns[0]} starts")
        try:
            yield
        finally:
            self._diary.append(f"{self.alpns[0]} stops")


def test_each_alpn_leads_to_its_handler_and_others_to_none() -> None:
    one, two = One(echo, alpns=("a", "b")), Two(echo, alpns=("c",))
    router = Router([one, two])
    assert router.handler("a") is one
    assert router.handler("b") is one
    assert router.handler("c") is two
    assert router.handler("d") is None


def test_alpns_come_in_the_order_of_registration() -> None:
    assert Router([Two(echo, alpns=("z", "a")), One(echo, alpns=("m",))]).alpns == ("z", "a", "m")


def test_a_duplicate_alpn_names_both_handlers() -> None:
    with pytest.raises(LocalError, match="'x' is claimed by two handlers: One and Two"):
        Router([One(echo, alpns=("x",)), Two(echo, alpns=("y", "x"))])


def test_one_handler_cannot_claim_an_alpn_twice() -> None:
    with pytest.raises(LocalError, match="One and One"):
        Router([One(echo, alpns=("x", "x"))])


@pytest.mark.parametrize("alpns", [(), ("",), ("x" * 256,)])
def test_names_that_tls_cannot_carry_are_refused(alpns: tuple[str, ...]) -> None:
    with pytest.raises(LocalError):
        Router([One(echo, alpns=alpns)])


async def test_lifespans_are_left_in_reverse_order() -> None:
    diary: list[str] = []
    async with Router([Living("a", diary), One(echo), Living("b", diary)]).lifespans():
        assert diary == ["a starts", "b starts"]
    assert diary[2:] == ["b stops", "a stops"]


async def test_a_lifespan_that_fails_leaves_those_before_it() -> None:
    diary: list[str] = []

    class Failing(Handler):
        @asynccontextmanager
        async def lifespan(self) -> AsyncGenerator[None]:
            if diary:
                raise OSError("no disk")
            yield

    router = Router([Living("a", diary), Failing(echo)])
    with pytest.raises(OSError, match="no disk"):
        async with router.lifespans():
            diary.append("entered")
    assert diary == ["a starts", "a stops"]


async def test_a_cancel_leaves_every_lifespan() -> None:
    diary: list[str] = []

    async def run() -> None:
        async with Router([Living("a", diary), Living("b", diary)]).lifespans():
            pass

    async def balanced() -> None:
        assert diary.count("a starts") == diary.count("a stops")
        assert diary.count("b starts") == diary.count("b stops")

    await cancel_at_every_checkpoint(run, balanced)


def test_a_handler_is_what_has_alpns_and_handle() -> None:
    class Incomplete:
        alpns = ("a",)

        async def handle(self, connection: Connection) -> None: ...

    assert isinstance(One(echo), ProtocolHandler)
    assert not isinstance(Incomplete(), ProtocolHandler)
