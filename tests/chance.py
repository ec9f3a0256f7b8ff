"""All chance from one seed, so that a run that fails fails again.

That is the order in which Trio runs tasks that are ready together (pytest-trio has told it to draw
that from one source alone), keys, connection IDs, packet numbers that are left out, and the jitter
of timers. What threads and other processes do stays as it is.
"""

from __future__ import annotations

import os
import random  # noqa: TID251  seeded

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio._core import _run

__all__ = ["seed_chance", "seed_scheduler"]


def seed_chance(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Draw all chance from *seed* until the end of the test."""
    seed_scheduler(seed)
    random.seed(seed)
    source = random.Random(seed)
    monkeypatch.setattr(os, "urandom", source.randbytes)
    monkeypatch.setattr(random, "_urandom", source.randbytes)  # of `secrets` and `SystemRandom`
    monkeypatch.setattr(Ed25519PrivateKey, "generate", lambda: _key(source))


def seed_scheduler(seed: int) -> None:
    """Draw the order in which Trio runs what is ready from *seed*."""
    assert _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r.seed(seed)


def _key(source: random.Random) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(source.randbytes(32))
