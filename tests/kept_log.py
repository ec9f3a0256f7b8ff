"""The settings of the log, which belong to the process that all tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Of the loggers that alknet and its commands set: as Python makes them.
LEVELS = {"": logging.WARNING, "alknet": logging.NOTSET, "quic": logging.NOTSET}


@contextmanager
def kept_log() -> Iterator[None]:
    """Put handlers and levels back at the end of the block."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in LEVELS}
    try:
        yield
    finally:
        root.handlers[:] = handlers
        set_levels(levels)


def set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
