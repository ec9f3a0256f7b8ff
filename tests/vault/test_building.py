"""A home appears whole or not at all, also when several processes make it at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest

from alknet.errors import Conflict, StoreError
from alknet.vault import building
from alknet.vault.building import building_home
from alknet.vault.keyfile import create_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def begin(home: Path) -> tuple[contextlib.ExitStack, Path]:
    """Begin to make *home*, as another process would."""
    stack = contextlib.ExitStack()
    directory = stack.enter_context(building_home(home))
    (directory / "vault.alk").write_bytes(b"keys")
    return stack, directory


def left(home: Path) -> list[str]:
    return sorted(path.name for path in home.parent.iterdir())


def test_what_a_killed_one_left_behind_is_removed(home: Path) -> None:
    killed = home.with_name(".home.0123abcd")
    killed.mkdir()
    (killed / "vault.alk").write_bytes(b"keys")
    with building_home(home):
        pass
    assert left(home) == ["home"]


def test_what_another_process_builds_is_left_alone(home: Path) -> None:
    other, directory = begin(home)
    with pytest.raises(KeyError), building_home(home):
        raise KeyError
    assert (directory / "vault.alk").exists()
    other.close()
    assert (home / "vault.alk").read_bytes() == b"keys"


def test_of_two_that_make_a_home_at_once_one_is_told(home: Path) -> None:
    first, _ = begin(home)
    second, _ = begin(home)
    first.close()
    with pytest.raises(Conflict, match=f"{re.escape(str(home))} was made by another process"):
        second.close()
    assert (home / "vault.alk").read_bytes() == b"keys"
    assert left(home) == ["home"]


def test_a_directory_that_cannot_be_held_does_not_stay(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> int | None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(building, "_hold", fail)
    with pytest.raises(StoreError, match="No locks available"), building_home(home):
        pass
    assert left(home) == []


@pytest.mark.parametrize("ends_well", [True, False])
@pytest.mark.parametrize("sees", ["_is_a_home", "_hold"])
def test_another_that_ends_while_it_is_looked_at_is_no_fault(
    home: Path, sees: str, ends_well: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, _ = begin(home)
    look = getattr(building, sees)

    def end_first(directory: Path) -> object:
        monkeypatch.undo()
        with contextlib.suppress(KeyError), other:
            if not ends_well:
                raise KeyError
        if ends_well:
            shutil.rmtree(home)
        return look(directory)

    monkeypatch.setattr(building, sees, end_first)
    with building_home(home):
        pass
    assert left(home) == ["home"]


@pytest.mark.parametrize("has_lock", [True, False])
def test_one_that_is_taken_for_abandoned_as_it_begins_begins_again(
    home: Path, has_lock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = contextlib.ExitStack()

    def look_after(directory: Path) -> None:
        create_home(directory)
        monkeypatch.undo()
        if has_lock:
            held = building._hold(directory)
            assert held is not None
            others.callback(os.close, held)
        else:
            building._remove_abandoned(home)

    monkeypatch.setattr(building, "create_home", look_after)
    with others, building_home(home) as directory:
        (directory / "vault.alk").write_bytes(b"keys")
    assert (home / "vault.alk").read_bytes() == b"keys"
