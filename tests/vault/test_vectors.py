"""Official vectors of what the vault is built of, and our own, derived once more without alknet."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import struct
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyrage
import pytest
import shamir_mnemonic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from alknet.core.home import NODE_FILES
from alknet.vault.derivation import derive_keys
from alknet.vault.envelope import (
    Damaged,
    context_of,
    decrypt,
    derive_kek,
    kek_path,
    open_sealed,
    sealed_from_text_untrusted,
)
from alknet.vault.homevault import home_identity, home_public_key, home_vault
from alknet.vault.recovery import entropy_from_words, words_from_entropy
from alknet.vault.roles import ROLES, KeyRole, path_of
from alknet.vault.unlock import UnlockWith, find_entropy
from alknet.vault.vault import Vault
from alknet.vault.vaultfile import VAULT_FILE, VaultFile

VECTORS = Path(__file__).parent.parent / "vectors"
OURS = json.loads((VECTORS / "vault.json").read_text())
ENTROPY = bytes.fromhex(OURS["entropy"])
VAULT_ID = bytes.fromhex(OURS["vault_id"])
FILE = OURS["file"]
SHARES = json.loads((VECTORS / "slip39.json").read_text())["vectors"]
GCM = json.loads((VECTORS / "aes-gcm.json").read_text())["vectors"]
AGE = zipfile.ZipFile(VECTORS / "age-testkit.zip")
# Where our library (rage) differs: it has no post-quantum identities, refuses white space around
# armor, and opens two files whose headers are badly formed, if rightly authenticated.
AGE_UNKNOWN, AGE_STRICTER = "AGE-SECRET-KEY-PQ-1", {"armor_whitespace_outside"}
AGE_LAXER = {"stanza_missing_body", "stanza_missing_final_line"}
# It also does the work of 2^23 that this one asks for, which takes minutes.
AGE_NAMES = [name for name in AGE.namelist() if name != "scrypt_work_factor_23"]


# Our own.


def slip10(seed: bytes, path: str) -> bytes:
    """SLIP-0010 for Ed25519, in six lines."""
    node = hmac.digest(b"ed25519 seed", seed, "sha512")
    for step in path.removeprefix("m/").split("/"):
        number = int(step.removesuffix("'")) | 2**31
        node = hmac.digest(node[32:], b"\0" + node[:32] + struct.pack(">I", number), "sha512")
    return node[:32]


def hkdf(key: bytes, salt: bytes, info: str) -> bytes:
    """RFC 5869, one block."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info.encode() + b"\1", "sha256")


def public_key(algorithm: str, private: bytes) -> str | None:
    if algorithm == "Ed25519":
        return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()
    if algorithm == "X25519":
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()
    return None


def test_the_words_and_the_seed_are_those_of_the_entropy() -> None:
    words = OURS["words"]
    assert words_from_entropy(memoryview(ENTROPY)) == words
    with entropy_from_words(words) as entropy:
        assert bytes(entropy.view) == ENTROPY
    seed = hashlib.pbkdf2_hmac("sha512", words.encode(), b"mnemonic", 2048)
    assert seed.hex() == OURS["seed"]


def test_there_is_a_vector_of_every_role() -> None:
    assert {vector["role"] for vector in OURS["keys"]} == {role.value for role in ROLES}


@pytest.mark.parametrize("vector", OURS["keys"], ids=lambda v: str(v["path"]))
def test_every_key_is_where_it_says(vector: dict[str, Any]) -> None:
    role = KeyRole(vector["role"])
    assert path_of(role, vector["index"]) == vector["path"]
    (key,) = derive_keys(memoryview(ENTROPY), [vector["path"]])
    with key:
        private = bytes(key.view)
    assert private.hex() == vector["private"]
    assert private == slip10(bytes.fromhex(OURS["seed"]), vector["path"])
    assert vector["public"] == public_key(ROLES[role].algorithm, private)


@pytest.mark.parametrize("vector", OURS["key_versions"], ids=lambda v: str(v["version"]))
def test_every_key_version_is_where_it_says(vector: dict[str, Any]) -> None:
    version = vector["version"]
    assert kek_path(version) == vector["path"]
    child = slip10(bytes.fromhex(OURS["seed"]), vector["path"])
    for what in ("kek", "index"):
        info = f"alknet {what} {version}"
        expected = vector["kek" if what == "kek" else "index_key"]
        assert hkdf(child, VAULT_ID, info).hex() == expected
        with derive_kek(memoryview(child), VAULT_ID, info) as key:
            assert bytes(key.view).hex() == expected


def test_a_sealed_text_opens_with_ours_and_with_aes_gcm_alone() -> None:
    vector = OURS["sealed"]
    context = context_of(VAULT_ID, vector["path"], vector["version"])
    assert context.hex() == vector["context"]
    sealed = sealed_from_text_untrusted(vector["sealed"])
    kek = bytes.fromhex(OURS["key_versions"][0]["kek"])
    with open_sealed(memoryview(kek), context, sealed) as plain:
        assert bytes(plain.view).hex() == vector["plaintext"]
    wrap, wrapped = sealed.wrapped_dek[:12], sealed.wrapped_dek[12:]
    dek = AESGCM(kek).decrypt(wrap, wrapped, b"dek" + struct.pack(">I", 2) + context)
    assert (dek.hex(), wrap.hex()) == (vector["dek"], vector["wrap_nonce"])
    opened = AESGCM(dek).decrypt(sealed.ciphertext[:12], sealed.ciphertext[12:], context)
    assert opened.hex() == vector["plaintext"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the vault file of format version 1."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    shutil.copyfile(VECTORS / FILE["name"], home / VAULT_FILE)
    (home / VAULT_FILE).chmod(0o600)
    return home


@pytest.mark.parametrize("way", ["key file", "passphrase", "age", "words"])
def test_a_file_of_format_version_1_opens_in_every_way(home: Path, way: str) -> None:
    key_file = home / "key"
    key_file.write_bytes(bytes.fromhex(FILE["key_file"]))
    key_file.chmod(0o600)
    vault = Vault(VaultFile(home))
    given = {
        "key file": UnlockWith(key_files=(key_file,)),
        "passphrase": UnlockWith(passphrase=bytearray(FILE["passphrase"].encode())),
        "age": UnlockWith(age_identities=(FILE["age_identity"],)),
    }
    words = OURS["words"]
    vault.unlock(
        entropy_from_words(words) if way == "words" else find_entropy(vault.header, given[way])
    )
    assert vault.verify() == []
    for path, versions in FILE["secrets"].items():
        for number, value in versions.items():
            with vault.get(path, now=0.0, version=int(number)) as secret:
                assert bytes(secret.view).hex() == value
    public = vault.identity().public_key().public_bytes_raw().hex()
    assert public == FILE["public_key"] == OURS["keys"][0]["public"]


def test_a_home_from_before_there_were_vaults_keeps_its_id(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(VECTORS / "home-1", home)
    home.chmod(0o700)
    for path in home.iterdir():
        path.chmod(0o600)
    public = bytes.fromhex(OURS["keys"][0]["public"])
    before = (home / "node.key").read_bytes()
    assert home_public_key(home) == public
    assert home_identity(home).public_key().public_bytes_raw() == public
    assert {name for name in NODE_FILES if (home / name).exists()} == {"node.key"}
    vault = home_vault(home, now=1.0)
    assert vault.identity().public_key().public_bytes_raw() == public == home_public_key(home)
    assert (home / "backup" / "node.key").read_bytes() == before
    assert {name for name in NODE_FILES if (home / name).exists()} == {"vault.alk"}


# Official.


def test_all_official_shares_are_here() -> None:
    assert len(SHARES) == 45


@pytest.mark.parametrize("vector", SHARES, ids=lambda v: str(v["name"]))
def test_official_shares(vector: dict[str, Any]) -> None:
    if vector["secret"]:
        secret = shamir_mnemonic.combine_mnemonics(vector["shares"], b"TREZOR")
        assert secret.hex() == vector["secret"]
        return
    with pytest.raises(shamir_mnemonic.MnemonicError):
        shamir_mnemonic.combine_mnemonics(vector["shares"], b"TREZOR")


@pytest.mark.parametrize("vector", GCM, ids=lambda v: str(v["name"]))
def test_official_aes_gcm(vector: dict[str, str]) -> None:
    raw = {name: bytes.fromhex(text) for name, text in vector.items() if name != "name"}
    data = raw["iv"] + raw["ciphertext"] + raw["tag"]
    with decrypt(memoryview(raw["key"]), data, raw["aad"]) as plain:
        assert bytes(plain.view) == raw["plaintext"]
    altered = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(Damaged):
        decrypt(memoryview(raw["key"]), altered, raw["aad"])


def test_official_argon2id() -> None:
    # RFC 9106 sec. 5.3.
    key = Argon2id(
        salt=bytes([2]) * 16,
        length=32,
        iterations=3,
        lanes=4,
        memory_cost=32,
        secret=bytes([3]) * 8,
        ad=bytes([4]) * 12,
    ).derive(bytes([1]) * 32)
    assert key.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


@pytest.mark.parametrize("name", AGE_NAMES)
def test_official_age_files(name: str) -> None:
    head, _, body = AGE.read(name).partition(b"\n\n")
    said = defaultdict(list)
    for line in head.decode().splitlines():
        key, _, value = line.partition(": ")
        said[key].append(value)
    if said["compressed"]:
        body = zlib.decompress(body)
    if unknown := [text for text in said["identity"] if text.startswith(AGE_UNKNOWN)]:
        with pytest.raises(pyrage.IdentityError):
            pyrage.x25519.Identity.from_str(unknown[0])
    elif name in AGE_LAXER:
        _opened(body, said)
    elif said["expect"] == ["success"] and name not in AGE_STRICTER:
        assert hashlib.sha256(_opened(body, said)).hexdigest() == said["payload"][0]
    else:
        with pytest.raises(pyrage.DecryptError):
            _opened(body, said)


def _opened(body: bytes, said: dict[str, list[str]]) -> bytes:
    identities = [pyrage.x25519.Identity.from_str(text) for text in said["identity"]]
    if said["passphrase"] and not identities:
        return bytes(pyrage.passphrase.decrypt(body, said["passphrase"][0]))
    return bytes(pyrage.decrypt(body, identities))
