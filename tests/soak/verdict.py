"""What has leaked, by pictures taken while nobody was connected. Pure functions."""

from __future__ import annotations

import ssl
import statistics
from collections.abc import Sequence

import trio
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.recovery import QuicPacketRecovery
from aioquic.quic.stream import QuicStream
from OpenSSL import SSL

from tests.soak.held import Held, kind_of

# How much of memory may have grown from the end of the warm-up to the end.
FLAT = 0.05
# Of all growth, each half of the time must have had this part: a steady leak has half in each.
STEADY = 0.25
# Blocks hold no noise of malloc's: a leak shows in them before.
FLAT_BLOCKS = 0.03
# Classes whose instances belong to a connection, a stream, a call or a timer: none may be left.
OURS = "alknet."
# Ours that do not: values in bounded caches and tables of the past.
REMEMBERED = (
    "alknet.core.endpoint.admission.",
    "alknet.core.quic.reset.Budget",
    "alknet.stores.",
    "alknet.core.identity.",
    "alknet.core.tcp.contexts.",  # made when first needed
)
# What a leaked task or connection would hold of Trio, aioquic and OpenSSL. Not cancel scopes: Trio
# keeps up to a thousand of those that have ended in its heap of deadlines.
_FOREIGN_CLASSES = (
    trio.lowlevel.Task,
    trio.Nursery,
    QuicPacketRecovery,
    QuicStream,
    CryptoPair,
    ssl.SSLObject,
    SSL.Connection,
)
FOREIGN = frozenset({*map(kind_of, _FOREIGN_CLASSES), "trio._socket._SocketType"})
MAX_NAMED = 12


def leftovers(baseline: Held, now: Held) -> list[str]:
    """Say what *now* holds that *baseline* did not: tasks, files, and objects of connections."""
    found = []
    for name in ("tasks", "fds"):
        before, after = getattr(baseline, name), getattr(now, name)
        if after > before:
            found.append(f"{name}: {before} -> {after}")
    for kind, count in sorted(now.kinds.items()):
        if _is_watched(kind) and count > baseline.kinds.get(kind, 0):
            found.append(f"{kind}: {baseline.kinds.get(kind, 0)} -> {count}")
    return found


def _is_watched(kind: str) -> bool:
    return kind in FOREIGN or (kind.startswith(OURS) and not kind.startswith(REMEMBERED))


def growth(pictures: Sequence[Held], averaged: int) -> list[str]:
    """Say by how much memory has grown over *pictures*, if it is more than noise.

    How much malloc keeps differs from round to round, and more on a busy machine, but what has
    leaked stays: so the least of the last pictures must be above the first ones too. And it goes
    on leaking: what came in one half of the time alone is a step, the rounds' new worst.

    Args:
        averaged: Pictures at the beginning, in the middle and at the end that a median is taken of.
    """
    found = []
    first, last = ends(pictures, "pss_kib", averaged)
    least = min(picture.pss_kib for picture in pictures[-averaged:])
    if last > first * (1 + FLAT) and least > first and not _is_step(pictures, averaged):
        found.append(f"pss_kib: {first:,.0f} -> {last:,.0f} KiB, {last / first - 1:+.1%}")
    first, last = ends(pictures, "blocks", averaged)
    if last > first * (1 + FLAT_BLOCKS):
        found.append(f"blocks: {first:,.0f} -> {last:,.0f}, {last / first - 1:+.1%}")
    return found + (_grown_kinds(pictures) if found else [])


def _is_step(pictures: Sequence[Held], averaged: int) -> bool:
    first, last = ends(pictures, "pss_kib", averaged)
    begin = (len(pictures) - averaged) // 2
    middle = statistics.median(p.pss_kib for p in pictures[begin : begin + averaged])
    return min(middle - first, last - middle) < (last - first) * STEADY


def ends(pictures: Sequence[Held], name: str, averaged: int) -> tuple[float, float]:
    """Return the medians of the first and the last pictures."""
    values = [getattr(picture, name) for picture in pictures]
    return statistics.median(values[:averaged]), statistics.median(values[-averaged:])


def _grown_kinds(pictures: Sequence[Held]) -> list[str]:
    first, last = pictures[0].kinds, pictures[-1].kinds
    grown = {kind: count - first.get(kind, 0) for kind, count in last.items()}
    most = sorted(grown, key=grown.__getitem__, reverse=True)[:MAX_NAMED]
    return [f"  {kind}: {grown[kind]:+}" for kind in most if grown[kind] > 0]
