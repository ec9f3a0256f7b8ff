from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.kit import Cli, RunningNode, running_node

UNLOCKING = ("ALKNET_UNLOCK_FILE", "CREDENTIALS_DIRECTORY")


@pytest.fixture(autouse=True)
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user reaches a test."""
    for name in (
        "ALKNET_HOME",
        "ALKNET_TOKEN",
        "ALKNET_DEBUG",
        "NO_COLOR",
        "NOTIFY_SOCKET",
        *UNLOCKING,
    ):
        monkeypatch.delenv(name, raising=False)


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
