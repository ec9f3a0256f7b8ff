"""What holds for each test: the log is as it was, and Ctrl-C reaches what the test starts."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.kept_log import LEVELS, kept_log, set_levels


def pytest_configure() -> None:
    # What a shell starts in the background ignores SIGINT, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_as_at_first() -> Iterator[None]:
    """What one test, or a fixture that several share, has set would hide records from others."""
    set_levels(LEVELS)
    with kept_log():
        yield
