"""What holds for each test: the log is as it was, and Ctrl-C reaches what the test starts."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

# Loggers whose levels alknet and its commands set.
SET = ("", "alknet", "quic")


def pytest_configure() -> None:
    # What a shell starts in the background ignores SIGINT, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A level that one test left behind would hide records from the tests after it."""
    root = logging.getLogger()
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in SET}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
