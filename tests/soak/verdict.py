"""What has leaked, by pictures taken while nobody was connected. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.soak.held import Held

# How much of memory may have grown from the end of the warm-up to the end.
FLAT = 0.05
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
# Trio's objects that a leaked task would hold, with aioquic's and OpenSSL's connections.
FOREIGN = (
    "trio._core._run.Task",
    "trio._core._run.Nursery",
    "trio._core._run.CancelScope",
    "trio._socket._SocketType",
    "aioquic.quic.recovery.QuicPacketRecovery",
    "aioquic.quic.stream.QuicStream",
    "aioquic.quic.crypto.CryptoPair",
    "ssl.SSLObject",
    "_ssl._SSLSocket",
)
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
    leaked stays: so the least of the last pictures must be above the first ones too.

    Args:
        averaged: Pictures at the beginning, and at the end, that a median is taken of.
    """
    found = []
    for name, unit, flat in (("pss_kib", "KiB", FLAT), ("blocks", "blocks", FLAT_BLOCKS)):
        first, last = ends(pictures, name, averaged)
        least = min(getattr(picture, name) for picture in pictures[-averaged:])
        if last > first * (1 + flat) and least > first:
            found.append(f"{name}: {first:,.0f} -> {last:,.0f} {unit}, {last / first - 1:+.1%}")
    return found + (_grown_kinds(pictures) if found else [])


def ends(pictures: Sequence[Held], name: str, averaged: int) -> tuple[float, float]:
    """Return the medians of the first and the last pictures."""
    values = [getattr(picture, name) for picture in pictures]
    return statistics.median(values[:averaged]), statistics.median(values[-averaged:])


def _grown_kinds(pictures: Sequence[Held]) -> list[str]:
    first, last = pictures[0].kinds, pictures[-1].kinds
    grown = {kind: count - first.get(kind, 0) for kind, count in last.items()}
    most = sorted(grown, key=grown.__getitem__, reverse=True)[:MAX_NAMED]
    return [f"  {kind}: {grown[kind]:+}" for kind in most if grown[kind] > 0]
