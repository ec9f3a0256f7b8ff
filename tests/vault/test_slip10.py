"""SLIP-0010 for Ed25519: the official vectors, our own, and the paths that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.core.identity import NodeId
from alknet.errors import LocalError
from alknet.vault.derive import IDENTITY_PATH, identity_key
from alknet.vault.slip10 import ExtendedKey, derive, parse_path

VECTORS = Path(__file__).parent.parent / "vectors"
OFFICIAL = json.loads((VECTORS / "slip10.json").read_text())["vectors"]
OURS = json.loads((VECTORS / "identity.json").read_text())["vectors"]


def test_all_official_vectors_are_here() -> None:
    assert len(OFFICIAL) == 12


@pytest.mark.parametrize("vector", OFFICIAL, ids=lambda v: f"{v['seed'][:8]} {v['path']}")
def test_official_vectors(vector: dict[str, str]) -> None:
    key = derive(bytes.fromhex(vector["seed"]), vector["path"])
    assert key.private_bytes.hex() == vector["private"]
    assert key.chain_code.hex() == vector["chain_code"]
    public = key.private_key().public_key().public_bytes_raw()
    assert "00" + public.hex() == vector["public"]


@pytest.mark.parametrize("vector", OURS)
def test_words_give_the_node_its_key(vector: dict[str, str]) -> None:
    assert vector["path"] == IDENTITY_PATH
    key = identity_key(vector["words"], vector["passphrase"])
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    assert raw.hex() == vector["private"]
    assert bytes(NodeId.from_public_key(key.public_key())).hex() == vector["public"]


def test_the_repr_shows_no_key() -> None:
    key = ExtendedKey.master(bytes(16))
    assert key.private_bytes.hex()[:8] not in repr(key)
    assert key.chain_code.hex()[:8] not in repr(key)


@pytest.mark.parametrize(
    ("path", "indices"),
    [("m", ()), ("m/0'", (0,)), ("m/74'/1h/2H", (74, 1, 2)), ("m/2147483647'", (2147483647,))],
)
def test_paths(path: str, indices: tuple[int, ...]) -> None:
    assert parse_path(path) == indices


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "does not begin with 'm'"),
        ("M/0'", "does not begin with 'm'"),
        ("/0'", "does not begin with 'm'"),
        ("m/0", "must be hardened for Ed25519: 0'"),
        ("m/", "is not a number"),
        ("m/'", "is not a number"),
        ("m/01'", "is not a number"),
        ("m/-1'", "is not a number"),
        ("m/2147483648'", "is not a number from 0 to 2147483647"),
        ("m/0''", "is not a number"),
        ("m/٣'", "is not a number"),
        ("m" + "/0'" * 256, "256 steps, at most 255"),
    ],
)
def test_bad_paths_say_what_is_wrong(path: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        parse_path(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("size", [0, 15, 65])
def test_seeds_of_a_wrong_size_are_refused(size: int) -> None:
    with pytest.raises(LocalError, match=f"16 to 64 bytes, not {size}"):
        derive(bytes(size), "m")


@pytest.mark.parametrize("index", [-1, 1 << 31])
def test_child_indices_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(LocalError, match="child index"):
        ExtendedKey.master(bytes(16)).child(index)
