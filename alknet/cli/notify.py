"""Telling systemd how the node is (sd_notify(3)), where it wants to know."""

from __future__ import annotations

import contextlib
import os
import socket

import trio

__all__ = ["feed_watchdog", "notify"]


def notify(state: str) -> bool:
    """Send *state*, such as ``READY=1``, to the service manager; False if there is none.

    It never waits and never fails: a manager that does not listen is no reason to stop.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
        return True
    return False


async def feed_watchdog() -> None:
    """Tell the manager twice per WATCHDOG_USEC that the loop turns; returns if it does not ask.

    Cancelled, nothing more is sent.
    """
    interval_s = _watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        notify("WATCHDOG=1")  # a manager that is busy now gets the next one
        await trio.sleep(interval_s)


def _watchdog_interval_s() -> float | None:
    if not os.environ.get("NOTIFY_SOCKET"):
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 2_000_000 if microseconds > 0 else None
