"""What PostgreSQL's errors mean to a caller: what was tried, what happened, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from alknet.errors import AlknetError, StoreError, Unavailable
from alknet.stores.postgres.target import Target

__all__ = ["explain", "explained"]

RETRY_AFTER_S = 1.0
# A server may say much; the rest is in its own log.
TEXT_KEPT = 400


def explain(exc: psycopg.Error, verb: str, target: Target) -> AlknetError:
    """Return the error to raise for *exc*, which happened when we wanted to *verb* the database."""
    text = _one_line(exc)
    what = f"cannot {verb} {target}"
    for state, is_for_now, meaning in _STATES:
        if exc.sqlstate is not None and exc.sqlstate.startswith(state):
            return _error(f"{what}: {meaning} ({text})", is_for_now=is_for_now)
    if exc.sqlstate is None and isinstance(exc, psycopg.OperationalError):
        # libpq tells no state of a connection that failed, only the server's words.
        for words, is_for_now, meaning in _WORDS:
            if any(word in text for word in words):
                return _error(f"{what}: {meaning} ({text})", is_for_now=is_for_now)
        return _error(
            f"{what}: the server cannot be reached ({text}): check that it runs there, and the "
            "network",
            is_for_now=True,
        )
    return StoreError(f"{what}: {text}")


@contextmanager
def explained(verb: str, target: Target) -> Iterator[None]:
    """Turn psycopg's errors of the block into ours; see `explain`."""
    try:
        yield
    except psycopg.Error as exc:
        raise explain(exc, verb, target) from exc


def _error(message: str, *, is_for_now: bool) -> AlknetError:
    if is_for_now:
        return Unavailable(message, retry_after_s=RETRY_AFTER_S)
    return StoreError(message)


def _one_line(exc: psycopg.Error) -> str:
    text = exc.diag.message_primary or str(exc)
    return " ".join(text.split()).rstrip(".")[:TEXT_KEPT]


_GRANTS = (
    "let an owner run: GRANT CREATE ON DATABASE … TO …, or, once the schema is there, GRANT USAGE "
    "ON SCHEMA alknet, and SELECT, INSERT, UPDATE, DELETE on its tables"
)
# Beginning of the state (PostgreSQL, appendix A), whether it may pass, meaning. First match wins.
_STATES: Sequence[tuple[str, bool, str]] = (
    ("53100", False, "the server's disk is full: free some space there"),
    ("53200", True, "the server's memory is exhausted"),
    ("53300", True, "the server has no connection left: raise its max_connections"),
    ("25006", False, "the server is read-only, as a standby is: name the primary"),
    ("42501", False, f"the role may not do it: {_GRANTS}"),
    ("55P03", True, "another node, or a session in psql, keeps the rows locked"),
    ("57014", True, "the server broke it off; is statement_timeout set too low?"),
    ("40", True, "it met with another transaction"),
    ("57P", True, "the server shuts down or restarts"),
    ("08", True, "the connection was lost"),
    ("3F000", False, "the schema alknet is gone: restore a backup"),
    ("42P01", False, "a table of the schema alknet is gone: restore a backup"),
    ("42883", False, "a function of the schema alknet is gone: restore a backup"),
    ("58", False, "the server's disk failed: look into its log"),
    ("XX", False, "the server found its data damaged: look into its log, restore a backup"),
)
# What a server says that refuses a connection, in English; other languages get the last resort.
_WORDS: Sequence[tuple[tuple[str, ...], bool, str]] = (
    (
        ("password authentication failed", "no password supplied", "authentication failed"),
        False,
        "user or password is wrong: check both, also in ~/.pgpass and PGPASSWORD",
    ),
    (
        ("no pg_hba.conf entry",),
        False,
        "the server lets nobody in from here under this name: add a line to its pg_hba.conf",
    ),
    (("role ",), False, "there is no such role: make one with createuser, or name another"),
    (("database ",), False, "there is no such database: make it with createdb"),
    (
        ("too many", "remaining connection slots"),
        True,
        "the server has no connection left: raise its max_connections",
    ),
    (
        ("starting up", "shutting down", "recovery mode", "not yet accepting"),
        True,
        "the server is starting or stopping",
    ),
    (
        ("certificate", "SSL", "sslmode", "channel binding"),
        False,
        "TLS with the server failed: check sslmode, sslrootcert and the server's certificate",
    ),
)
