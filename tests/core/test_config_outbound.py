"""``[[outbound]]``: what is read and which mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from alknet.core.address import Address
from alknet.core.config import NodeConfig, check_config, load_config, what_changed
from alknet.core.outbound import OutboundConfig


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def test_names_and_addresses_are_read(path: Path) -> None:
    path.write_text(
        '[[outbound]]\nname = "hub"\naddresses = ["H:1", "[::1]:2", "h:1"]\n'
        '[[outbound]]\nname = "spare"\n'
    )
    assert load_config(path).outbound == (
        OutboundConfig("hub", (Address("h", 1), Address("::1", 2))),
        OutboundConfig("spare"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[outbound]]", "1: outbound[0]: the key 'name' is missing"),
        ('[[outbound]]\nname = "any"', "2: outbound[0].name: peer name 'any' is reserved"),
        (
            '[[outbound]]\nname = "a"\naddresses = ["h"]',
            "3: outbound[0].addresses[0]: address 'h' has no port, expected 'host:port'",
        ),
        (
            '[[outbound]]\nname = "a"\n[[outbound]]\nname = "a"',
            "4: outbound[1].name: the name 'a' stands there twice",
        ),
        (
            '[[outbound]]\nname = "a"\nadress = "h:1"',
            "3: outbound[0].adress: unknown key (did you mean 'addresses'?)",
        ),
    ],
)
def test_each_mistake_is_named(path: Path, text: str, expected: str) -> None:
    path.write_text(text)
    assert [str(problem) for problem in check_config(path)] == [f"{path}:{expected}"]


def test_a_change_is_seen_and_needs_no_restart() -> None:
    assert what_changed(NodeConfig(), NodeConfig(outbound=(OutboundConfig("a"),))) == ["outbound"]
