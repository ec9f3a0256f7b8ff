"""Addresses, tickets and targets: what parses, what is refused, and that the text round-trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.identity import NodeId
from alknet.core.ticket import Address, Ticket, parse_target
from alknet.errors import LocalError

HEX = "e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc"
Z32 = "h6gnq3i81majz9gmkfru14fcgete84gorgtoya5ajsyg1kmsf5gy"
NODE = NodeId(bytes.fromhex(HEX))


@pytest.mark.parametrize(
    ("text", "host", "port", "printed"),
    [
        ("127.0.0.1:4433", "127.0.0.1", 4433, None),
        ("Example.ORG:1", "example.org", 1, "example.org:1"),
        ("[::1]:65535", "::1", 65535, None),
        ("[2001:DB8:0::1]:4433", "2001:db8::1", 4433, "[2001:db8::1]:4433"),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1, None),
        ("localhost:80", "localhost", 80, None),
        ("xn--bcher-kva.example:80", "xn--bcher-kva.example", 80, None),
        (" a_b.c:7 ", "a_b.c", 7, "a_b.c:7"),
    ],
)
def test_addresses_parse(text: str, host: str, port: int, printed: str | None) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == (printed or text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no port"),
        ("host", "has no port"),
        ("host:", "port ''"),
        ("host:0", "number from 1 to 65535"),
        ("host:65536", "number from 1 to 65535"),
        ("host:٤٤", "number from 1 to 65535"),
        ("host:-1", "number from 1 to 65535"),
        (":1", "is no host name"),
        ("-a:1", "is no host name"),
        ("a b:1", "is no host name"),
        ("a..b:1", "is no host name"),
        ("é:1", "is no host name"),
        ("300.1.1.1:1", "is no IPv4 address"),
        ("1.2.3:1", "is no IPv4 address"),
        ("::1:4433", "in brackets"),
        ("[::1]", "is not '[ipv6]:port'"),
        ("[::1", "is not '[ipv6]:port'"),
        ("[1.2.3.4]:1", "is no IPv6 address"),
    ],
)
def test_bad_addresses_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        Address.parse(text)
    assert message in str(caught.value)


def test_port_zero_only_where_any_is_meant() -> None:
    assert Address.parse("0.0.0.0:0", allow_any_port=True) == Address("0.0.0.0", 0)


def test_unspecified_addresses_are_known() -> None:
    assert Address.parse("[::]:1").is_unspecified
    assert Address.parse("0.0.0.0:1").is_unspecified
    assert not Address.parse("localhost:1").is_unspecified
    assert not Address.parse("127.0.0.1:1").is_unspecified


@pytest.mark.parametrize(
    "text",
    [
        f"alknet://{Z32}@127.0.0.1:4433",
        f"alknet://{Z32}@[::1]:4433,example.org:1,10.0.0.1:2",
        f"alknet://{Z32}",
    ],
)
def test_a_ticket_prints_as_it_was_written(text: str) -> None:
    ticket = Ticket.parse(text)
    assert ticket.node_id == NODE
    assert str(ticket) == text


@pytest.mark.parametrize("key", [HEX, f"ed25519:{HEX}", Z32.upper()])
def test_a_ticket_takes_every_form_of_the_key_and_prints_one(key: str) -> None:
    assert str(Ticket.parse(f"ALKNET://{key}@a:1,A:1/")) == f"alknet://{Z32}@a:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Z32, "does not begin with 'alknet://'"),
        ("alknet://", "is not a node id"),
        (f"alknet://{Z32}@", "without an address"),
        (f"alknet://{Z32}@a:1,", "has no port"),
        (f"alknet://{Z32}@a:1,,b:2", "has no port"),
        (f"alknet://{Z32[:-1]}@a:1", "51 characters"),
        (f"alknet://{Z32}@" + ",".join(f"h{n}:1" for n in range(17)), "17 addresses, at most 16"),
    ],
)
def test_bad_tickets_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        Ticket.parse(text)
    assert message in str(caught.value)


def test_targets_of_each_kind() -> None:
    assert parse_target(f"alknet://{Z32}@a:1") == Ticket(NODE, (Address("a", 1),))
    assert parse_target(Z32) == NODE
    assert parse_target(HEX) == NODE
    assert parse_target(f"ed25519:{HEX}") == NODE
    assert parse_target("example.org:443") == Address("example.org", 443)
    assert parse_target("[::1]:443") == Address("::1", 443)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alknet-invite://secret", "invitation"),
        ("https://example.org", "unknown scheme"),
        ("SHA256:" + "a" * 64, "cannot be dialled"),
        ("hub", "is not a node id"),
    ],
)
def test_what_cannot_be_dialled(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        parse_target(text)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=100) | st.text("alknet:/@[]0123456789.,yb", max_size=100))
def test_any_text_is_a_target_or_a_local_error(text: str) -> None:
    try:
        target = parse_target(text)
    except LocalError:
        return
    assert parse_target(str(target)) == target
