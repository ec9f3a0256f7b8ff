"""Dialling: the race, the pinned key, and errors that say what each attempt met."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.address import Address
from alknet.core.contracts import Connection
from alknet.core.endpoint.dial import DialError, _interleaved, dial
from alknet.core.limits import Limits
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey, Trust, WebPki
from alknet.errors import LocalError
from alknet.node import Node
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.nodes import open_node

ALPN = "alknet/call"
# For what succeeds, or is refused: no machine is so slow, and TCP begins when QUIC has failed.
PATIENT = Limits(dial_timeout_s=120, handshake_timeout_s=60, quic_head_start_s=120)
# For what is not answered.
IMPATIENT = Limits(dial_timeout_s=120, handshake_timeout_s=0.1, quic_head_start_s=0.02)


def pin(node: Node) -> Trust:
    return PinnedKey(node.id)


@asynccontextmanager
async def dialled(
    node: Node, *, trust: Trust | None = None, **options: object
) -> AsyncGenerator[Connection]:
    async with dial(
        node.ticket.addresses,
        alpn=ALPN,
        trust=trust or pin(node),
        limits=PATIENT,
        **options,  # type: ignore[arg-type]
    ) as connection:
        yield connection


@contextlib.contextmanager
def held_port() -> Iterator[tuple[socket.socket, socket.socket]]:
    """TCP and UDP of one number, which nobody else gets meanwhile."""
    with contextlib.ExitStack() as stack:
        while True:
            tcp = stack.enter_context(socket.socket())
            udp = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):  # another program may have it on UDP
                udp.bind(tcp.getsockname())
                break
        yield tcp, udp


@contextlib.contextmanager
def silent_port() -> Iterator[Address]:
    """UDP and TCP that take everything and answer nothing."""
    with held_port() as (tcp, _udp):
        tcp.listen(8)
        yield Address("127.0.0.1", tcp.getsockname()[1])


@contextlib.contextmanager
def dead_port() -> Iterator[Address]:
    """UDP and TCP where nobody listens."""
    with held_port() as (tcp, udp):
        udp.connect(("127.0.0.1", 9))  # for what comes from elsewhere it is not there
        yield Address("127.0.0.1", tcp.getsockname()[1])


async def test_quic_wins_when_both_answer() -> None:
    async with open_node() as node, dialled(node) as connection:
        assert connection.carrier.name == "quic"
        assert connection.peer_key == node.id


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_one_transport_can_be_asked_for(transport: str) -> None:
    async with open_node() as node, dialled(node, transports=[transport]) as connection:
        assert connection.carrier.name == transport


async def test_an_address_that_answers_wins_over_one_that_does_not() -> None:
    async with open_node() as node:
        port = node.ticket.addresses[0].port
        with silent_port() as silent:
            # The first address is a black hole for both; the second answers.
            async with dial(
                [silent, Address("127.0.0.1", port)], alpn=ALPN, trust=pin(node), limits=PATIENT
            ) as connection:
                assert connection.remote_address == f"127.0.0.1:{port}"


async def test_a_wrong_key_is_refused_on_every_path_and_named() -> None:
    other = NodeCredentials(Ed25519PrivateKey.generate()).node_id
    async with open_node() as node:
        with pytest.raises(DialError) as caught:
            async with dialled(node, trust=PinnedKey(other)):
                pytest.fail("connected to the wrong node")
    assert {attempt.transport for attempt in caught.value.attempts} == {"quic", "tcp"}
    for attempt in caught.value.attempts:
        assert other.short in attempt.outcome
        assert node.id.short in attempt.outcome


async def test_no_common_alpn_is_said_so_on_both() -> None:
    async with open_node() as node:
        with pytest.raises(DialError) as caught:
            async with dial(
                node.ticket.addresses, alpn="nobody/1", trust=pin(node), limits=PATIENT
            ):
                pytest.fail("connected")
    outcomes = {attempt.transport: attempt.outcome for attempt in caught.value.attempts}
    assert all("no_application_protocol" in outcome for outcome in outcomes.values())
    assert len(outcomes) == 2


async def test_a_port_where_nobody_listens_fails_at_once() -> None:
    trust = PinnedKey(NodeCredentials(Ed25519PrivateKey.generate()).node_id)
    with dead_port() as address, pytest.raises(DialError) as caught:
        async with dial([address], alpn=ALPN, trust=trust, limits=PATIENT):
            pytest.fail("connected")
    outcomes = {attempt.transport: attempt.outcome for attempt in caught.value.attempts}
    assert outcomes == {"quic": "nobody listens there", "tcp": "connection refused"}


async def test_a_silent_port_ends_with_the_time_out() -> None:
    trust = PinnedKey(NodeCredentials(Ed25519PrivateKey.generate()).node_id)
    with silent_port() as address:
        with pytest.raises(DialError) as caught:
            async with dial([address], alpn=ALPN, trust=trust, limits=IMPATIENT):
                pytest.fail("connected")
    assert len(caught.value.attempts) == 2
    assert all("0.1 s" in attempt.outcome for attempt in caught.value.attempts)


async def test_a_bare_name_needs_the_web_pki() -> None:
    async with open_node() as node:
        with pytest.raises(DialError, match="certificate"):
            async with dialled(node, trust=WebPki("127.0.0.1")):
                pytest.fail("connected without a trusted certificate")


class NoNames(trio.abc.HostnameResolver):
    """A name service that knows none: what a machine's says, and how soon, is its own affair."""

    async def getaddrinfo(self, host: object, *_: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is unknown")

    async def getnameinfo(self, *_: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")


async def test_a_name_that_does_not_resolve_is_named() -> None:
    trio.socket.set_custom_hostname_resolver(NoNames())
    trust = PinnedKey(NodeCredentials(Ed25519PrivateKey.generate()).node_id)
    with pytest.raises(DialError, match=r"dns nowhere\.invalid:1: the name does not resolve"):
        async with dial([Address("nowhere.invalid", 1)], alpn=ALPN, trust=trust):
            pytest.fail("connected")


@pytest.mark.parametrize("transports", [[], ["pigeon"], ["quic", "pigeon"]])
async def test_unknown_transports_are_a_mistake_of_the_caller(transports: list[str]) -> None:
    async with open_node() as node:
        with pytest.raises(LocalError, match="transports are"):
            async with dialled(node, transports=transports):
                pytest.fail("connected")


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    async with open_node() as node:
        with pytest.raises(KeyError, match="mine"):
            async with dialled(node):
                raise KeyError("mine")


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_cancelled_dial_leaves_nothing_on_either_side(transport: str) -> None:
    async with open_node() as node:

        async def attempt() -> None:
            async with dialled(node, transports=[transport]):
                pass

        async def nothing_is_left() -> None:
            with trio.fail_after(60):
                while node.endpoint.connections() or node.endpoint.handshakes:
                    await trio.sleep(0.005)

        assert await cancel_at_every_checkpoint(attempt, nothing_is_left) > 3


def test_addresses_alternate_between_families_ipv6_first() -> None:
    v4 = [Address("192.0.2.1", 1), Address("192.0.2.2", 1)]
    v6 = [Address("2001:db8::1", 1), Address("2001:db8::2", 1), Address("2001:db8::3", 1)]
    assert _interleaved([*v4, *v6, *v4]) == [v6[0], v4[0], v6[1], v4[1], v6[2]]
