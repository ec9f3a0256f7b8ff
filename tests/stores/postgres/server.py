"""A PostgreSQL server of our own: in a directory that goes away, on a Unix socket alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

__all__ = ["PostgresServer", "has_server", "open_server"]

# The superuser whom initdb makes; who runs the tests comes in under any name.
ADMIN = "postgres"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "80",
    "log_min_messages": "fatal",
}
START_TIMEOUT_S = 60.0
POLL_S = 0.02
# One role must give its password.
HBA = """
local all locked scram-sha-256
local all all trust
local replication all trust
"""


class PostgresServer:
    """A server that can be stopped and started, and its databases.

    Attributes:
        directory: Of its socket and its data.
    """

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.directory = directory
        self._settings = {**SETTINGS, **settings, "unix_socket_directories": str(directory)}
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket_path(self) -> Path:
        return self.directory / ".s.PGSQL.5432"

    def url(self, database: str = "postgres", user: str = ADMIN, **more: str) -> str:
        options = "".join(f"&{name}={quote(value, safe='')}" for name, value in more.items())
        host = quote(str(self.directory), safe="")
        return f"postgresql://{user}@/{database}?host={host}{options}"

    def make(self) -> None:
        data = self.directory / "data"
        self._run(
            _program("initdb"),
            *("--no-sync", "--no-instructions", "--auth=trust"),
            *("--username", ADMIN, "--encoding=UTF8", "--locale=C", "--pgdata", str(data)),
        )
        (data / "pg_hba.conf").write_text(HBA)

    def copy(self, primary: PostgresServer) -> None:
        """Become a standby of *primary*."""
        place = ("-h", str(primary.directory), "-U", ADMIN, "-D", str(self.directory / "data"))
        self._run(_program("pg_basebackup"), *place, "--checkpoint=fast", "-R", "--no-sync")

    def start(self) -> None:
        arguments = [f"--{name}={value}" for name, value in self._settings.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(self.directory / "data"), *arguments],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **_as_server(),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            said = (self.directory / "log").read_text()
            assert self._process.poll() is None, f"the server did not start:\n{said}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{said}"
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop as in a crash; sessions are lost. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def new_database(self, more: str = "") -> str:
        """Make an empty database and return its name."""
        self._count += 1
        name = f"test{self._count}"
        self.execute(f"CREATE DATABASE {name} {more}")
        return name

    def clear(self, database: str) -> None:
        """Make a database as it was new, whoever uses it."""
        self.execute(
            f"ALTER DATABASE {database} RESET ALL;"
            "SET client_min_messages = warning;"
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )
        self.execute(
            "SET default_transaction_read_only = off; SET client_min_messages = warning;"
            "DROP SCHEMA IF EXISTS alknet CASCADE; DROP FUNCTION IF EXISTS fail CASCADE",
            database,
        )

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as an administrator, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, *command: str) -> None:
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
            **_as_server(),  # type: ignore[call-overload]
        )


def has_server() -> bool:
    return _find("initdb") is not None


@contextmanager
def open_server(primary: PostgresServer | None = None, **settings: str) -> Iterator[PostgresServer]:
    """Run a server, or a standby of *primary*, while the block does; it takes a second."""
    with tempfile.TemporaryDirectory(prefix="alknet-postgres-") as name:
        directory = Path(name)
        if os.geteuid() == 0:
            shutil.chown(directory, ADMIN)
        server = PostgresServer(directory, settings)
        if primary is None:
            server.make()
        else:
            server.copy(primary)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _as_server() -> dict[str, object]:
    """Say as whom to run: the server refuses root."""
    return {"user": ADMIN, "extra_groups": []} if os.geteuid() == 0 else {}


def _program(name: str) -> str:
    found = _find(name)
    assert found is not None, f"{name} is not installed: run tests/install-foreign"
    return found


def _find(name: str) -> str | None:
    """Find a program of the server; Debian keeps them out of the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    places = [*map(str, reversed(installed)), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(places))
