"""The keys of an unlocked vault: its entropy and what is derived from it for each key version."""

from __future__ import annotations

from collections.abc import Sequence

from alknet.errors import NotFound
from alknet.vault.container import (
    Container,
    Header,
    Index,
    decode_index_untrusted,
    encode_header,
    encode_index,
)
from alknet.vault.derivation import derive_keys
from alknet.vault.envelope import decrypt, derive_kek, encrypt, kek_path
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of

__all__ = ["VaultKeys"]


class VaultKeys:
    """Owns *entropy* and every key made of it; `close` wipes them all."""

    def __init__(self, entropy: LockedBuffer) -> None:
        self.entropy = entropy
        self._keks: dict[int, LockedBuffer] = {}
        self._index_keys: dict[int, LockedBuffer] = {}
        self._identity: LockedBuffer | None = None
        self._device: int | None = None

    def close(self) -> None:
        """Wipe. Idempotent."""
        for buffer in (*self._keks.values(), *self._index_keys.values(), self.entropy):
            buffer.close()
        if self._identity is not None:
            self._identity.close()
        self._identity = self._device = None
        self._keks.clear()
        self._index_keys.clear()

    def derive(self, paths: Sequence[str]) -> list[LockedBuffer]:
        """Return the private keys at *paths*; raises like `derivation.derive_keys`."""
        return derive_keys(self.entropy.view, paths)

    @property
    def identity(self) -> memoryview:
        """The private key of the device that the header followed last names."""
        assert self._identity is not None
        return self._identity.view

    def follow(self, header: Header) -> None:
        """Make the keys that *header* names, and wipe the versions that it has retired."""
        versions = range(header.min_kek_version, header.kek_version + 1)
        wanted = [version for version in versions if version not in self._keks]
        paths = [kek_path(version) for version in wanted]
        if header.device != self._device:
            paths.append(path_of(KeyRole.IDENTITY, header.device))
        # All at once: what costs is the start of the child.
        children = self.derive(paths) if paths else []
        for version, child in zip(wanted, children, strict=False):
            with child:
                self._keks[version] = derive_kek(
                    child.view, header.vault_id, f"alknet kek {version}"
                )
                self._index_keys[version] = derive_kek(
                    child.view, header.vault_id, f"alknet index {version}"
                )
        if len(children) > len(wanted):
            if self._identity is not None:
                self._identity.close()
            self._identity, self._device = children[-1], header.device
        for version in [known for known in self._keks if known not in versions]:
            self._keks.pop(version).close()
            self._index_keys.pop(version).close()

    def kek(self, version: int) -> memoryview:
        """Return one key version.

        Raises:
            NotFound: It was retired, or never made.
        """
        if version not in self._keks:
            raise NotFound(f"key version {version} is not in use: it was retired, or never made")
        return self._keks[version].view

    def encrypt_file(self, header: Header, index: Index) -> tuple[bytes, Container]:
        """Return a whole generation of the file, also taken apart."""
        self.follow(header)
        head = encode_header(header)
        encrypted = encrypt(self._index_keys[header.kek_version].view, encode_index(index), head)
        return head + encrypted, Container(header, head, encrypted)

    def decrypt_index(self, container: Container) -> Index:
        """Open a generation.

        Raises:
            Damaged: These are the keys of another vault, or the file was altered.
        """
        header = container.header
        self.follow(header)
        key = self._index_keys[header.kek_version]
        with decrypt(key.view, container.encrypted_index, container.authenticated) as plain:
            return decode_index_untrusted(plain.view)
