"""How log records get their ids and their form. All modules log with the standard library.

A record is an event name and fields: ``log.info("peer.accepted", extra={"alpn": alpn})``. Which
peer, connection and call it belongs to comes from context variables, which Trio copies into child
tasks, so nobody passes them along. Types that hold secrets never show them; the formatters still
blank what looks like one, in case a third party's message carries it. Events that strangers can
cause are withheld from a certain number a minute on (`logfloods`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Literal, TextIO

from alknet.core.logfloods import FloodFilter

__all__ = ["ContextFilter", "HumanFormatter", "JsonFormatter", "bind", "configure"]

_CONTEXT = {
    name: ContextVar[str | None](f"alknet.log.{name}", default=None)
    for name in ("peer", "connection", "call")
}
# What every record has; the rest came by `extra` or from the context.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_FIELD = re.compile(r"(?i)(^|_)(token|secret|password|words|mnemonic|private_key)$")
_SECRET_TEXT = re.compile(r"(alk_[A-Za-z0-9]+_|alknet-invite://[^/\s]+/?[^/\s]*/)[A-Za-z0-9_~-]+")
_BLANK = "***"
# One field is cut there: a log line is for people, and a peer may choose what is in it.
MAX_FIELD_CHARS = 2_048


@contextmanager
def bind(
    *, peer: str | None = None, connection: str | None = None, call: str | None = None
) -> Iterator[None]:
    """Add ids to every record logged inside the block, also by tasks started there."""
    given = {"peer": peer, "connection": connection, "call": call}
    tokens = [(_CONTEXT[k], _CONTEXT[k].set(v)) for k, v in given.items() if v is not None]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


class ContextFilter(logging.Filter):
    """Put the ids of `bind` on each record; a field of the same name in ``extra`` wins."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, variable in _CONTEXT.items():
            if name not in vars(record) and (value := variable.get()) is not None:
                setattr(record, name, value)
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (RFC 3339), ``level``, ``logger``, ``event``, fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _redact(record.getMessage()),
        }
        line |= {k: v for k, v in _fields(record).items() if k not in line}
        if record.exc_info:
            line["traceback"] = _redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


class HumanFormatter(logging.Formatter):
    """``12:00:01 warning event.name  key=value``, a traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {record.levelname.lower():<7} {_printable(_redact(record.getMessage()))}"
        fields = [f"{k}={_human(v)}" for k, v in _fields(record).items()]
        if fields:
            line += "  " + " ".join(fields)
        if record.exc_info:
            traceback = _redact(self.formatException(record.exc_info))
            line += "".join("\n" + _printable(part) for part in traceback.splitlines())
        return line


def configure(
    level: str,
    format: Literal["human", "json"],  # noqa: A002  the user's word for it
    stream: TextIO,
) -> None:
    """Send log records to *stream*; called again, replace what the last call set up.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``, of alknet's own records; other
            libraries are heard from ``warning`` on.
        format: For people or for programs.
        stream: Where lines go; the caller keeps and closes it.

    Raises:
        ValueError: The level is none of the four.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or level not in {"debug", "info", "warning", "error"}:
        raise ValueError(f"{level!r} is not a log level: use debug, info, warning or error")
    handler = _Handler(stream)
    handler.addFilter(FloodFilter())
    handler.addFilter(ContextFilter())
    handler.setFormatter(JsonFormatter() if format == "json" else HumanFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("alknet").setLevel(number)


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure` made, so that it can be replaced."""


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {k: _safe(k, v) for k, v in vars(record).items() if k not in _STANDARD}


def _safe(name: str, value: object) -> object:
    """Make *value* fit for a log: no secret, no endless text, nothing that JSON cannot hold."""
    if _SECRET_FIELD.search(name):
        return _BLANK
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict):
        return {str(k): _safe(str(k), v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_safe(name, v) for v in value]
    text = value.hex() if isinstance(value, bytes) else str(value)
    return _redact(text if len(text) <= MAX_FIELD_CHARS else text[:MAX_FIELD_CHARS] + "…")


def _redact(text: str) -> str:
    return _SECRET_TEXT.sub(lambda found: found.group(1) + _BLANK, text)


def _human(value: object) -> str:
    text = _printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s\"=]", text) else text


def _printable(text: str) -> str:
    """Escape control characters: a peer's text must not drive the terminal or fake a line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)  # noqa: UP017  3.11 has both
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
