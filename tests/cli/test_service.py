from __future__ import annotations

import getpass
import shutil
import subprocess
from pathlib import Path

import pytest

from alknet.cli.unit import unit_text
from alknet.errors import LocalError
from tests.cli.kit import Cli


def test_the_unit_of_a_user_is_installed_and_removed(made: Cli, tmp_path: Path) -> None:
    units = tmp_path / "units"
    made.ok("service", "install", "--unit-dir", units)
    text = (units / "alknet.service").read_text()
    assert text == made.ok("service", "print", "--unit-dir", units).out
    assert "Type=notify" in text
    assert f"--home {made.home} up" in text
    assert "WantedBy=default.target" in text
    assert "User=" not in text
    made.ok("service", "uninstall", "--unit-dir", units)
    assert list(units.iterdir()) == []
    assert made.home.exists()
    assert "there is no" in made.fails(1, "service", "uninstall", "--unit-dir", units).err


def test_the_unit_of_the_system_is_hardened(made: Cli) -> None:
    text = made.ok("service", "print", "--system", "--user", getpass.getuser()).out
    for line in (
        f"User={getpass.getuser()}",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths={made.home}",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "WantedBy=multi-user.target",
    ):
        assert line in text.splitlines()


def test_wrong_usage(made: Cli) -> None:
    made.fails(2, "service", "print", "--user", "root")
    assert "there is no user" in made.fails(2, "service", "print", "--system", "--user", "n-o").err


def test_without_a_node_nothing_is_installed(cli: Cli, tmp_path: Path) -> None:
    cli.fails(1, "service", "install", "--unit-dir", tmp_path / "units")
    assert not (tmp_path / "units").exists()


def test_a_home_whose_key_is_for_another_user_will_do(made: Cli, tmp_path: Path) -> None:
    # Root installs the unit of a user whose key it must not need to read.
    (made.home / "vault.alk").chmod(0o604)
    made.fails(1, "id")
    made.ok("service", "install", "--unit-dir", tmp_path / "units")


def test_paths_are_quoted() -> None:
    text = unit_text(program=["/a b/alknet"], home=Path("/h%i/$X y"), user="root")
    assert 'ExecStart="/a b/alknet" --home "/h%%i/$$X y" up' in text
    assert 'ReadWritePaths="/h%%i/$X y"' in text
    with pytest.raises(LocalError):
        unit_text(program=["alknet"], home=Path("/a\nb"), user=None)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--system",)])
def test_systemd_understands_the_unit(made: Cli, tmp_path: Path, options: tuple[str, ...]) -> None:
    analyze = shutil.which("systemd-analyze")
    made.ok("service", "install", "--unit-dir", tmp_path / "units", *options)
    unit = tmp_path / "units" / "alknet.service"
    if analyze is None:  # no systemd, no service: nothing to be understood by
        return
    done = subprocess.run(
        [analyze, "verify", *(() if options else ("--user",)), unit],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "alknet.service" in line]
    assert complaints == []
