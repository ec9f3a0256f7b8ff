"""Noticing another network: by being told, or by looking."""

from __future__ import annotations

import socket

import trio

from alknet.core.endpoint.netwatch import (
    POLL_S,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV6_IFADDR,
    AddressWatch,
    local_addresses,
)


class Addresses:
    def __init__(self) -> None:
        self.now = frozenset({"192.0.2.1"})
        self.looks = 0
        self.fails = False

    def __call__(self) -> frozenset[str]:
        self.looks += 1
        if self.fails:
            raise OSError(24, "Too many open files")
        return self.now


async def test_without_the_kernel_the_addresses_are_compared_now_and_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    addresses = Addresses()
    with AddressWatch(addresses=addresses, use_netlink=False) as watch:
        with trio.move_on_after(10 * POLL_S + 1) as unchanged:
            await watch.wait_changed()
        assert unchanged.cancelled_caught
        assert addresses.looks == 11
        addresses.now = frozenset({"192.0.2.2"})
        with trio.fail_after(POLL_S + 1):
            await watch.wait_changed()


async def test_told_by_the_kernel_it_looks_once_for_many_messages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    addresses = Addresses()
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with kernels, AddressWatch(addresses=addresses, use_netlink=False) as watch:
        watch._socket = ours
        for _ in range(5):
            kernels.send(b"RTM_NEWADDR")
        with trio.move_on_after(60) as unchanged:
            await watch.wait_changed()
        assert unchanged.cancelled_caught
        assert addresses.looks == 2
        addresses.now |= {"2001:db8::1"}
        kernels.send(b"RTM_NEWADDR")
        with trio.fail_after(5):
            await watch.wait_changed()


async def test_what_cannot_be_looked_up_is_no_news(
    autojump_clock: trio.testing.MockClock,
) -> None:
    addresses = Addresses()
    with AddressWatch(addresses=addresses, use_netlink=False) as watch:
        addresses.fails = True
        with trio.move_on_after(10 * POLL_S + 1) as unchanged:
            await watch.wait_changed()
        assert unchanged.cancelled_caught
        addresses.fails = False
        addresses.now = frozenset({"192.0.2.2"})
        with trio.fail_after(POLL_S + 1):
            await watch.wait_changed()


async def test_a_wait_that_is_cancelled_misses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    addresses = Addresses()
    with AddressWatch(addresses=addresses, use_netlink=False) as watch:
        with trio.move_on_after(POLL_S / 2):
            await watch.wait_changed()
        addresses.now = frozenset({"192.0.2.2"})
        with trio.fail_after(POLL_S + 1):
            await watch.wait_changed()


def test_the_kernel_can_be_asked_without_rights() -> None:
    with AddressWatch() as watch:
        if watch._socket is not None:
            _port, groups = watch._socket.getsockname()
            assert groups == RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
            assert not watch._socket.getblocking()


def test_loopback_and_link_local_addresses_are_no_news() -> None:
    found = local_addresses()
    assert not {address for address in found if address.startswith(("127.", "fe80:"))}
    assert "::1" not in found
