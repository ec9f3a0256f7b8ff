"""For each test: the log is as it was, Ctrl-C reaches what it starts, and no clock fails it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

from tests.kept_log import LEVELS, kept_log, set_levels

# How long the path of the directory for temporary files may be: of a socket's 107 bytes, pytest
# takes up to 70 for the directory of a test, and that test's own names the rest.
LONGEST_TEMPORARY = 16


def pytest_configure() -> None:
    _let_examples_take_their_time()
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY and os.access("/tmp", os.W_OK):
        tempfile.tempdir = os.environ["TMPDIR"] = "/tmp"
    # What a shell starts in the background ignores SIGINT, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _let_examples_take_their_time() -> None:
    from hypothesis import HealthCheck, settings  # not before pytest, which wants to see it come

    name = "unhurried"
    too_slow = [HealthCheck.too_slow]
    settings.register_profile(name, settings(), deadline=None, suppress_health_check=too_slow)
    settings.load_profile(name)


@pytest.fixture(autouse=True)
def _log_as_at_first() -> Iterator[None]:
    """What one test, or a fixture that several share, has set would hide records from others."""
    set_levels(LEVELS)
    with kept_log():
        yield
