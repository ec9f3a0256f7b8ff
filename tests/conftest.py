"""What holds for each test: the log is as it was, and Ctrl-C reaches what the test starts."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

# Of the loggers that alknet and its commands set: as Python makes them.
LEVELS = {"": logging.WARNING, "alknet": logging.NOTSET, "quic": logging.NOTSET}


def pytest_configure() -> None:
    # What a shell starts in the background ignores SIGINT, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_as_at_first() -> Iterator[None]:
    """What one test, or a fixture that several share, has set would hide records from others."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    yield
    root.handlers[:] = handlers
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
