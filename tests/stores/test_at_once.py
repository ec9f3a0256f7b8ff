"""Commands that look at a home while other processes come and go there."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from alknet.core.config import NodeConfig
from alknet.stores.backup import archive_home
from alknet.stores.checking import examine_database
from alknet.stores.home import DATABASE_FILE, HomeStore
from tests.cli.homes import make_vault_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which files that are there when one asks are gone when one reads."""
    make_vault_home(tmp_path / "h")
    apsw.Connection(str(tmp_path / "h" / DATABASE_FILE)).close()
    exists = Path.exists
    names = {"state.json", "node.db-wal", "node.db-shm"}
    monkeypatch.setattr(Path, "exists", lambda self: self.name in names or exists(self))
    return tmp_path / "h"


def test_a_backup_does_not_miss_what_the_store_takes_over_meanwhile(home: Path) -> None:
    assert archive_home(home)


def test_a_log_that_another_process_removes_has_no_size(home: Path) -> None:
    assert HomeStore(home, NodeConfig()).size_bytes() == 0


def test_a_log_that_another_process_removes_has_no_mode(home: Path) -> None:
    (home / DATABASE_FILE).chmod(0o644)
    problems = [str(problem) for problem in examine_database(home / DATABASE_FILE)]
    assert any("others may use" in problem for problem in problems)
