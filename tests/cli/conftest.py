from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alknet.cli import absent, auditing, checks, hubs, own_ticket, peers
from tests.cli.kit import PATIENCE_S, Cli, RunningNode, running_node

UNLOCKING = ("ALKNET_UNLOCK_FILE", "CREDENTIALS_DIRECTORY")
# How long a command waits for what it can do without.
COURTESIES = (
    (absent, "ASK_WITHIN_S"),
    (auditing, "LONGEST_S"),
    (checks, "ASK_WITHIN_S"),
    (hubs, "ASK_WITHIN_S"),
    (own_ticket, "ASK_WITHIN_S"),
    (peers, "ANSWER_S"),
)


@pytest.fixture(autouse=True)
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user reaches a test."""
    for name in (
        "ALKNET_HOME",
        "ALKNET_TOKEN",
        "ALKNET_DEBUG",
        "ALKNET_QLOG",
        "COLUMNS",
        "LINES",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        *UNLOCKING,
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _without_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node or store of a loaded machine answers in the end."""
    for module, name in COURTESIES:
        monkeypatch.setattr(module, name, PATIENCE_S)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands on a home that does not exist yet."""
    return Cli(tmp_path / "home", monkeypatch)


@pytest.fixture
def made(cli: Cli, tmp_path: Path) -> Cli:
    """Commands on a home with a node, whose words are in ``words``."""
    cli.ok("init", "--words-file", tmp_path / "words")
    return cli


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A running node that the tests of a module share."""
    from alknet.cli.init import make_home
    from alknet.vault.words import generate_words

    home = tmp_path_factory.mktemp("shared") / "node"
    make_home(home, generate_words())
    with running_node(home) as running:
        yield running
