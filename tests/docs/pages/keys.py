"""docs/reference/keys.md: from `alknet.vault.roles.ROLES` and tests/vectors/vault.json."""

from __future__ import annotations

import json
from typing import Any

from alknet.vault.container import MAX_KEY_VERSIONS
from alknet.vault.envelope import FIRST_KEK, MAX_SECRET_BYTES
from alknet.vault.roles import ROLES, KeyRole, path_of
from alknet.vault.slots import MIN_ITERATIONS, MIN_MEMORY_KIB, PassphraseCost, SlotKind
from alknet.vault.vault import MAX_VERSIONS
from tests.docs.blocks import ROOT
from tests.docs.pages.markdown import GENERATED, table

__all__ = ["page"]

VECTORS = ROOT / "tests" / "vectors" / "vault.json"

_OPENS = {
    SlotKind.PASSPHRASE: "Argon2id (RFC 9106) of the passphrase",
    SlotKind.KEY_FILE: "HKDF-SHA256 of the file's 32 random bytes",
    SlotKind.KEYRING: "HKDF-SHA256 of 32 random bytes in the system's keyring",
    SlotKind.AGE: "32 random bytes, encrypted for an age recipient (X25519)",
}


def page() -> str:
    """Return the page."""
    ours = json.loads(VECTORS.read_text(encoding="utf-8"))
    cost = PassphraseCost()
    return f"""{GENERATED}
# Keys

All keys of a node come from 32 random bytes, the **entropy** of its vault. BIP39 writes them as 24
words; the seed is BIP39's of those words with an empty passphrase (PBKDF2-HMAC-SHA512, 2,048
rounds, 64 bytes); every key below is SLIP-0010's for Ed25519 at its path, all steps hardened.
SLIP-39 shares are of the same 32 bytes. Coin type 74 is not registered in SLIP-0044.

{_roles()}
Where the algorithm is X25519, the 32 bytes at the path are the private key as they are (RFC 7748
clamps them). Identity and host keys sign nothing but handshakes; `vault/sign` signs
`"alknet-sign-v1" ‖ 00 ‖ purpose ‖ 00 ‖ data`: no signature of it is worth anything elsewhere.

## Encryption

{_steps()}
What is authenticated with a value, its *context*: u8 16 ‖ vault id ‖ u16 length ‖ path ‖ u64
version of the secret; for a value that is kept outside, the path is `outside:` and its name, the
version 0. With a DEK: `dek` ‖ u32 key version ‖ context. Integers are big-endian. A sealed value
outside of the vault is `alkv1:v<key version>:<base64url of sealed DEK and sealed value>`. A value
has at most {MAX_SECRET_BYTES:,} bytes, a secret its last {MAX_VERSIONS} values, and a vault at most
{MAX_KEY_VERSIONS} key versions in use; `rewrap --retire` ends the old ones.

## Slots

Each slot encrypts the entropy (AES-256-GCM) under a key of its own; so does LUKS. The words, and
enough shares, *are* the entropy and need no slot.

{_slots()}
A passphrase costs {cost.memory_kib // 1024} MiB, {cost.iterations} passes and {cost.lanes} lanes.
A file that asks for less than {MIN_MEMORY_KIB // 1024} MiB or {MIN_ITERATIONS} passes is refused:
it may be somebody's trap.

## Files in the home

{_files()}
Files of format version 1 open in all later versions of alknet.

## Vectors

`tests/vectors/vault.json` has these and more, `tests/vectors/vault-1.alk` is a whole file.

{_vectors(ours)}"""


def _roles() -> str:
    rows = [
        (
            f"`{role.value}`",
            f"`{info.prefix}/n'`" if info.is_indexed else f"`{path_of(role)}`",
            info.algorithm,
            f"{info.use[0].upper()}{info.use[1:]}.",
        )
        for role, info in ROLES.items()
    ]
    return table(("role", "path", "algorithm", "use"), rows)


def _steps() -> str:
    first = path_of(KeyRole.ENCRYPTION)
    rows = [
        (
            f"key version *v* (KEK), from {FIRST_KEK} on",
            (
                f"HKDF-SHA256 of the key at `{first}` for v = {FIRST_KEK}, `…/1'` for "
                f"{FIRST_KEK + 1} and so on; salt: the vault id; info: `alknet kek v`, in decimals"
            ),
        ),
        ("key of the index", "the same with info `alknet index v`"),
        ("key of a value (DEK)", "32 random bytes, used once"),
        ("a value", "AES-256-GCM under its DEK; random nonce (12), ciphertext, tag (16)"),
        ("a DEK", "AES-256-GCM under the KEK; random nonce, ciphertext, tag: 60 bytes"),
    ]
    return table(("step", "what"), rows)


def _files() -> str:
    rows = [
        (
            "`vault.alk`",
            (
                "`alknet vault 1\\n`, u32 length, header (JSON: vault id, generation, key "
                "versions, slots, the node's public key), nonce, index (MessagePack: paths, "
                "versions, sealed values), tag. The tag covers all of it"
            ),
        ),
        ("`vault.alk.prev`", "the generation before"),
        ("`vault.key`", "the key file of the home's own slot, unless it has none"),
        ("`vault.seen`", "the newest generation that was met here: an older file is refused"),
        ("`vault.lock`", "held by whoever writes"),
    ]
    return table(("file", "what"), rows)


def _slots() -> str:
    return table(("slot", "its key"), [(f"`{kind.value}`", text) for kind, text in _OPENS.items()])


def _vectors(ours: dict[str, Any]) -> str:
    rows = [("entropy", f"`{ours['entropy']}`"), ("words", f"`{ours['words']}`")]
    rows += [("seed", f"`{ours['seed']}`")]
    for key in ours["keys"]:
        rows.append((f"`{key['path']}`, private", f"`{key['private']}`"))
        if key["public"]:
            rows.append((f"`{key['path']}`, public", f"`{key['public']}`"))
    rows.append(("vault id", f"`{ours['vault_id']}`"))
    for key in ours["key_versions"]:
        rows.append((f"KEK {key['version']}", f"`{key['kek']}`"))
    sealed = ours["sealed"]
    rows.append(
        (f"sealed `{sealed['path']}`, version {sealed['version']}", f"`{sealed['sealed']}`")
    )
    rows.append(("its value", f"`{sealed['plaintext']}`"))
    return table(("what", "hex or text"), rows)
