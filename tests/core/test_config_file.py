"""``node.toml`` while it is being edited, in every way in which editors do that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from alknet.core.config import NodeConfig
from alknet.core.config_file import ConfigFile

BEFORE = '[log]\nlevel = "info"\n'
AFTER = '[log]\nlevel = "warning"\n'


class Edited(ConfigFile):
    """A file that somebody goes on to write between two looks at it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.looks = 0
        self.steps: dict[int, Callable[[], object]] = {}

    def _signature(self) -> tuple[int, int, int] | None:
        self.looks += 1
        self.steps.get(self.looks, lambda: None)()
        return super()._signature()

    async def edited(self) -> NodeConfig:
        await self.wait_edited()
        return self.load()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(BEFORE)
    return path


# The clock jumps while a thread looks at the file; nothing here has a deadline to miss by that.


async def test_an_edit_is_noticed(path: Path, autojump_clock: MockClock) -> None:
    file = Edited(path.parent)
    assert file.load().log.level == "info"
    path.write_text(AFTER)
    assert (await file.edited()).log.level == "warning"


@pytest.mark.parametrize("begin", [lambda path: path.write_text(""), Path.unlink])
async def test_a_file_that_is_emptied_or_removed_before_it_is_written_anew_is_waited_for(
    path: Path, begin: Callable[[Path], object], autojump_clock: MockClock
) -> None:
    file = Edited(path.parent)
    file.load()
    file.steps = {2: lambda: begin(path), 3: lambda: path.write_text(AFTER)}
    assert (await file.edited()).log.level == "warning"
    assert file.looks == 5  # it was loaded, gone, there again, and stayed; and was loaded


async def test_a_file_that_was_loaded_meanwhile_is_no_edit(
    path: Path, autojump_clock: MockClock
) -> None:
    file = Edited(path.parent)
    file.load()

    def load_edited() -> None:
        path.write_text(AFTER)
        file.load()

    with trio.CancelScope() as scope:
        file.steps = {
            2: lambda: path.write_text(""),
            3: load_edited,
            8: lambda: trio.from_thread.run_sync(scope.cancel),
        }
        await file.wait_edited()
    assert scope.cancelled_caught
