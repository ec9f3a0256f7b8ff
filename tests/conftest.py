"""For each test: the log is as it was, Ctrl-C reaches what it starts, and no clock fails it.

Nor does chance: the examples of properties, and all chance of tests under a virtual clock, come
from the test's name and ``ALKNET_CHANCE``. With 0, the default, they are the same in each run;
``make chances`` looks for those that other numbers fail.
"""

from __future__ import annotations

import os
import signal
import tempfile
import zlib
from collections.abc import Iterator

import pytest

from tests.chance import seed_chance
from tests.kept_log import LEVELS, kept_log, set_levels

# How long the path of the directory for temporary files may be: of a socket's 107 bytes, pytest
# takes up to 70 for the directory of a test, and that test's own names the rest.
LONGEST_TEMPORARY = 16
CHANCE = os.environ.get("ALKNET_CHANCE", "0")
VIRTUAL_CLOCKS = {"autojump_clock", "mock_clock"}


def pytest_configure() -> None:
    _settle_examples()
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY and os.access("/tmp", os.W_OK):
        tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"
    # What a shell starts in the background ignores SIGINT, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _settle_examples() -> None:
    from hypothesis import HealthCheck, settings  # not before pytest, which wants to see it come

    name = "unhurried"
    too_slow = [HealthCheck.too_slow]
    settings.register_profile(
        name,
        settings(),
        deadline=None,
        derandomize=CHANCE == "0",
        suppress_health_check=too_slow,
    )
    settings.load_profile(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if VIRTUAL_CLOCKS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("virtual_clock")


@pytest.fixture(autouse=True)
def _chance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("virtual_clock"):
        seed_chance(monkeypatch, zlib.crc32(f"{CHANCE} {request.node.nodeid}".encode()))


@pytest.fixture(autouse=True)
def _log_as_at_first() -> Iterator[None]:
    """What one test, or a fixture that several share, has set would hide records from others."""
    set_levels(LEVELS)
    with kept_log():
        yield
