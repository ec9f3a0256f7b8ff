"""The vault: secrets in one file, opened by any of its slots, and keys derived from its entropy.

Everything here blocks (on the disk, on Argon2id, on the child that derives keys) and belongs into
one thread at a time. Values come and go as `LockedBuffer` or `memoryview`; locking wipes them all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.errors import Conflict, NotFound, Unavailable
from alknet.vault.container import (
    MAX_KEY_VERSIONS,
    Container,
    Header,
    Index,
    Secret,
    SecretVersion,
)
from alknet.vault.envelope import (
    FIRST_KEK,
    MAX_KEK,
    Damaged,
    Sealed,
    context_of,
    open_sealed,
    rewrap,
    seal,
    sealed_from_text_untrusted,
    sealed_to_text,
)
from alknet.vault.keys import VaultKeys
from alknet.vault.locked import LockedBuffer
from alknet.vault.paths import IDENTITY_SECRET, check_not_ours, check_secret_path
from alknet.vault.records import SecretInfo, info_of, without_version
from alknet.vault.slots import Slot
from alknet.vault.vaultfile import RolledBack, Signature, VaultFile

__all__ = ["IDENTITY_SECRET", "MAX_VERSIONS", "SecretInfo", "Vault", "create_vault"]

# What a mistaken `put` can be undone with; older values are forgotten.
MAX_VERSIONS = 10
# What is sealed for others to keep never meets a secret of the same name.
_OUTSIDE = "outside:"


def create_vault(
    file: VaultFile,
    entropy: LockedBuffer,
    make_slots: Callable[[bytes, memoryview], Sequence[Slot]],
    *,
    now: float,
    device: int = 0,
    public_key: bytes = b"",
    secrets: Iterable[tuple[str, bytes]] = (),
) -> Vault:
    """Write a new vault and return it unlocked; *entropy* is its own from now on.

    Args:
        make_slots: Called with the vault's id and the entropy, while no other process can make
            a vault of the same file.
        device: The number of the node's identity key.
        public_key: Of the node's identity, if it is not that of *device*.
        secrets: Paths and values that it has from the first.

    Raises:
        Conflict: There is one already; a vault is never replaced.
        StoreError: It cannot be written.
    """
    keys = VaultKeys(entropy)

    def first_header() -> Header:
        if file.exists():
            raise Conflict(f"{file.path} exists: a vault is never replaced")
        vault_id = os.urandom(16)
        return Header(
            vault_id=vault_id,
            generation=1,
            kek_version=FIRST_KEK,
            min_kek_version=FIRST_KEK,
            created_at=now,
            slots=tuple(make_slots(vault_id, entropy.view)),
            device=device,
            public_key=public_key,
        )

    try:
        with file.writing():
            header = first_header()
            keys.follow(header)
            if not public_key:
                header = msgspec.structs.replace(header, public_key=_public_key(keys.identity))
            index = Index(secrets={path: _first(keys, header, path, v) for path, v in secrets})
            file.write(keys.encrypt_file(header, index)[0], header)
    except BaseException:
        keys.close()
        raise
    return Vault(file, keys)


class Vault:
    """A vault file, locked at first.

    Attributes:
        opened_by: What it was unlocked with last, a kind of slot, if whoever did so has said it.
    """

    def __init__(self, file: VaultFile, keys: VaultKeys | None = None) -> None:
        """Read the header of *file*; raises like `VaultFile.read`.

        Args:
            keys: Those of the vault, which is unlocked then.
        """
        self._file = file
        self._signature = file.signature()
        self._container = file.read()
        self._keys = keys
        self._index = Index(secrets={})
        self.opened_by = ""
        # Of what this process has opened or written; what is locked was not proven.
        self._newest_met: Header | None = None
        if keys is not None:
            self._load()

    @property
    def header(self) -> Header:
        """What anyone may read of the vault, as last read or written."""
        return self._container.header

    @property
    def is_unlocked(self) -> bool:
        """Secrets and keys can be had."""
        return self._keys is not None

    def __repr__(self) -> str:
        return f"<Vault {'unlocked' if self.is_unlocked else 'locked'}>"

    # Locking.

    def unlock(self, entropy: LockedBuffer, *, accepts_older: bool = False, by: str = "") -> None:
        """Open the vault with what a slot, the words or shares have given.

        *entropy* is the vault's from now on, and is wiped if it is not the right one.

        Args:
            accepts_older: Go on with a file that is older than one that was here before.
            by: For `opened_by`.

        Raises:
            Damaged: It belongs to another vault, or the file was altered.
            RolledBack: The file is an old one.
        """
        self.lock()
        self._keys = VaultKeys(entropy)
        try:
            self._load_newest(accepts_older=accepts_older)
            self._file.meet(self.header, is_accepted=accepts_older)
        except BaseException:
            self.lock()
            raise
        self.opened_by = by

    def check(self, entropy: memoryview) -> None:
        """Raise Damaged if *entropy*, of words or shares, is not the vault's; stay as it is.

        Of a slot it is: what is wrapped there was taken from the unlocked vault.
        """
        keys = VaultKeys(LockedBuffer.of(entropy))
        try:
            keys.decrypt_index(self._container)
        except Damaged:
            raise Damaged(f"these are the words of another vault than {self._file.path}") from None
        finally:
            keys.close()

    def lock(self) -> None:
        """Wipe entropy and all keys, and forget the index. Idempotent."""
        if self._keys is not None:
            self._keys.close()
        self._keys = None
        self._index = Index(secrets={})

    def derive(self, paths: Sequence[str]) -> list[LockedBuffer]:
        """Return the private keys at *paths*; the caller closes them.

        Raises:
            Unavailable: The vault is locked.
            LocalError: A path is wrong.
        """
        return self._open_keys().derive(paths)

    def reread(self) -> None:
        """Take over what another process has written; locked, what anyone may read of it.

        Raises:
            RolledBack: An older file has taken its place.
        """
        if self._file.signature() != self._signature:
            if self.is_unlocked:
                self._load_newest()
            else:
                self._signature, self._container = self._file.signature(), self._file.read()

    def identity(self) -> Ed25519PrivateKey:
        """Return the node's key, which the header names: of its device, or one brought in.

        Raises:
            Unavailable: The vault is locked.
            Damaged: The vault has not the key that the header names.
        """
        derived = Ed25519PrivateKey.from_private_bytes(self._open_keys().identity)
        named = self.header.public_key
        if named in {b"", derived.public_key().public_bytes_raw()}:
            return derived
        secret = self._index.secrets.get(IDENTITY_SECRET)
        if secret is not None and (newest := secret.versions[-1]).sealed is not None:
            with self._unseal(IDENTITY_SECRET, newest.version, newest.sealed) as raw:
                key = Ed25519PrivateKey.from_private_bytes(raw.view)
            if key.public_key().public_bytes_raw() == named:
                return key
        raise Damaged("the vault's identity is not the one that its header names")

    # Slots.

    def add_slot(self, make_slot: Callable[[bytes, memoryview], Slot]) -> Slot:
        """Add a way to unlock; *make_slot* is called with the vault's id and the entropy."""
        slot = make_slot(self.header.vault_id, self._open_keys().entropy.view)
        with self._changing():
            self._write(slots=(*self.header.slots, slot))
        return slot

    def remove_slot(self, slot_id: str) -> None:
        """Remove a way to unlock.

        Raises:
            NotFound: There is no such slot.
            Conflict: It is the last one; the words alone would be left.
        """
        with self._changing():
            left = tuple(slot for slot in self.header.slots if slot.id != slot_id)
            if len(left) == len(self.header.slots):
                raise NotFound(f"no slot {slot_id}: 'alknet vault slots list' shows them")
            if not left:
                raise Conflict("this is the last slot: add another one first")
            self._write(slots=left)

    def set_identity(
        self, *, device: int, public_key: bytes, replacing: bytes, first: Callable[[], None]
    ) -> None:
        """Note which key is the node's identity from now on.

        Args:
            replacing: The public key of the identity until now.
            first: Called before the vault is written, while no other process writes it.

        Raises:
            Conflict: Another process has changed the identity meanwhile; *first* was not called.
        """
        with self._changing():
            if self.header.public_key not in {b"", replacing}:
                raise Conflict("another command has given the node a new key meanwhile")
            first()
            self._write(device=device, public_key=public_key)

    # Secrets.

    def put(
        self,
        path: str,
        value: bytes | memoryview,
        *,
        now: float,
        expect: int | None = None,
        expires_at: float | None = None,
    ) -> int:
        """Store a new version of a secret and return its number.

        Args:
            expect: The version that must be the newest now, 0 for none.

        Raises:
            Conflict: Another version is the newest.
            LocalError: The path is not of its form, or the value is too long.
            Unavailable: The vault is locked.
        """
        check_secret_path(path)
        check_not_ours(path)
        with self._changing():
            newest = self._newest(path)
            if expect is not None and expect != newest:
                raise Conflict(f"{path} is at version {newest}, not {expect}")
            self._set(path, self._with_value(path, value, now, expires_at))
        return newest + 1

    def put_all(
        self,
        secrets: Sequence[tuple[str, bytes, float | None]],
        *,
        now: float,
        replaces: bool,
    ) -> None:
        """Store secrets (path, value, when it expires) in one write.

        Args:
            replaces: Store new versions of those that exist.

        Raises:
            Conflict: One exists, and *replaces* is False; none was stored.
            LocalError: As `put`.
        """
        for path, _, _ in secrets:
            check_secret_path(path)
            check_not_ours(path)
        with self._changing():
            taken = [path for path, _, _ in secrets if self._newest(path)]
            if taken and not replaces:
                raise Conflict(f"these exist already: {', '.join(taken[:10])}")
            self._write(
                secrets={
                    **self._index.secrets,
                    **{path: self._with_value(path, v, now, at) for path, v, at in secrets},
                }
            )

    def get(self, path: str, *, now: float, version: int | None = None) -> LockedBuffer:
        """Return a secret's newest value, or the one of *version*; the caller closes it.

        Raises:
            NotFound: There is none, it was destroyed, or it has expired.
            Unavailable: The vault is locked.
            Damaged: The record was altered.
        """
        check_not_ours(path)
        self._refresh()
        secret = self._secret(path)
        if secret.expires_at is not None and secret.expires_at <= now:
            raise NotFound(f"{path} has expired")
        for entry in secret.versions:
            if entry.version == (version or secret.versions[-1].version) and entry.sealed:
                return self._unseal(path, entry.version, entry.sealed)
        raise NotFound(f"{path} has no version {version}")

    def secrets(self, prefix: str = "") -> Iterator[SecretInfo]:
        """Yield what may be shown of the secrets whose path begins with *prefix*."""
        self._refresh()
        for path, secret in sorted(self._index.secrets.items()):
            if path.startswith(prefix):
                yield info_of(path, secret)

    def newest_values(self) -> Iterator[tuple[SecretInfo, LockedBuffer]]:
        """Yield all secrets that have a value, of one generation; the caller closes the buffers.

        The node's own key is not among them, and what has expired is. Raises like `get`.
        """
        self._refresh()
        for path, secret in sorted(self._index.secrets.items()):
            with_value = [entry for entry in secret.versions if entry.sealed]
            if with_value and path != IDENTITY_SECRET:
                newest = with_value[-1]
                assert newest.sealed is not None
                yield info_of(path, secret), self._unseal(path, newest.version, newest.sealed)

    def remove(self, path: str, *, version: int | None = None) -> None:
        """Forget a secret, or destroy the value of one version.

        The generation before still holds it until the next write.

        Raises:
            NotFound: There is none.
        """
        check_not_ours(path)
        with self._changing():
            secret = self._secret(path)
            if version is None:
                self._write(secrets={p: s for p, s in self._index.secrets.items() if p != path})
            else:
                self._set(path, without_version(path, secret, version))

    # Sealing for others.

    def encrypt(self, name: str, value: bytes | memoryview) -> str:
        """Seal *value* for a store outside: ``alkv1:…``; *name* is needed again to open it."""
        self._refresh()
        return sealed_to_text(self._seal(_OUTSIDE + name, 0, value))

    def decrypt(self, name: str, text: str) -> LockedBuffer:
        """Open what `encrypt` returned.

        Raises:
            Malformed: It is something else.
            Damaged: It was altered, or sealed under another name or by another vault.
            NotFound: Its key version is not in use any more.
        """
        self._refresh()
        return self._unseal(_OUTSIDE + name, 0, sealed_from_text_untrusted(text))

    def rewrap_text(self, name: str, text: str) -> str:
        """Put what `encrypt` returned under the newest key; raises like `decrypt`."""
        self._refresh()
        sealed = sealed_from_text_untrusted(text)
        return sealed_to_text(self._rewrap(_OUTSIDE + name, 0, sealed))

    # Rotation.

    def rotate(self) -> int:
        """Begin a new key version for all that is written from now on, and return it.

        Raises:
            Conflict: There are 100 in use; `rewrap` with *retire* ends the old ones.
        """
        with self._changing():
            used = self.header.kek_version - self.header.min_kek_version + 1
            if used >= MAX_KEY_VERSIONS:
                raise Conflict(
                    f"{used} key versions are in use: 'alknet vault rewrap --retire' ends the old"
                )
            self._write(kek_version=self.header.kek_version + 1)
        return self.header.kek_version

    def rewrap(self, *, retire: bool = False, keep_from: int | None = None) -> int:
        """Put every secret under the newest key and return how many were not.

        Args:
            retire: Refuse older key versions from now on; what others keep sealed under them
                cannot be opened any more.
            keep_from: Do not refuse this version and later ones: what others keep was put under
                it, and another process may have begun a newer one since.
        """
        with self._changing():
            secrets, count = {}, 0
            for path, secret in self._index.secrets.items():
                secrets[path], moved = self._rewrap_secret(path, secret)
                count += moved
            oldest = self.header.min_kek_version
            if retire:
                oldest = max(oldest, min(self.header.kek_version, keep_from or MAX_KEK))
            self._write(secrets=secrets, min_kek_version=oldest)
        return count

    def verify(self) -> list[str]:
        """Open every value of every secret; return the paths (``path@version``) that fail."""
        self._refresh()
        return [
            f"{path}@{entry.version}"
            for path, secret in self._index.secrets.items()
            for entry in secret.versions
            if entry.sealed and not self._opens(path, entry.version, entry.sealed)
        ]

    # Inside.

    def _opens(self, path: str, version: int, sealed: Sealed) -> bool:
        try:
            self._unseal(path, version, sealed).close()
        except (Damaged, NotFound):
            return False
        return True

    def _seal(self, path: str, version: int, value: bytes | memoryview) -> Sealed:
        newest = self.header.kek_version
        return seal(self._open_keys().kek(newest), newest, self._context(path, version), value)

    def _unseal(self, path: str, version: int, sealed: Sealed) -> LockedBuffer:
        kek = self._open_keys().kek(sealed.kek_version)
        return open_sealed(kek, self._context(path, version), sealed)

    def _rewrap(self, path: str, version: int, sealed: Sealed) -> Sealed:
        newest = self.header.kek_version
        old, new = self._open_keys().kek(sealed.kek_version), self._open_keys().kek(newest)
        return rewrap(old, new, newest, self._context(path, version), sealed)

    def _rewrap_secret(self, path: str, secret: Secret) -> tuple[Secret, int]:
        versions, count = [], 0
        for entry in secret.versions:
            if entry.sealed and entry.sealed.kek_version != self.header.kek_version:
                sealed = self._rewrap(path, entry.version, entry.sealed)
                entry = msgspec.structs.replace(entry, sealed=sealed)  # noqa: PLW2901
                count += 1
            versions.append(entry)
        return msgspec.structs.replace(secret, versions=tuple(versions)), count

    def _newest(self, path: str) -> int:
        known = self._index.secrets.get(path)
        return known.versions[-1].version if known else 0

    def _with_value(
        self, path: str, value: bytes | memoryview, now: float, expires_at: float | None
    ) -> Secret:
        known = self._index.secrets.get(path)
        number = self._newest(path) + 1
        version = SecretVersion(
            version=number, created_at=now, sealed=self._seal(path, number, value)
        )
        kept = (*(known.versions if known else ()), version)[-MAX_VERSIONS:]
        return Secret(versions=kept, expires_at=expires_at)

    def _context(self, path: str, version: int) -> bytes:
        return context_of(self.header.vault_id, path, version)

    def _secret(self, path: str) -> Secret:
        secret = self._index.secrets.get(path)
        if secret is None:
            raise NotFound(f"no secret {path!r}: 'alknet vault list' shows them")
        return secret

    def _open_keys(self) -> VaultKeys:
        if self._keys is None:
            raise Unavailable("the vault is locked: 'alknet vault unlock' opens it")
        return self._keys

    def _refresh(self) -> None:
        self._open_keys()
        self.reread()

    def _load_newest(self, *, accepts_older: bool = False) -> None:
        """Read the file; one that is older than what was here is refused now and every time."""
        while True:
            loaded = self._read()
            try:
                if not accepts_older:
                    self._file.check_generation(loaded.container.header, self._newest_met)
            except RolledBack:
                # Another process may have written since; its note is newer than what we read.
                if self._file.signature() == loaded.signature:
                    raise
            else:
                self._take(loaded)
                return

    def _load(self) -> None:
        self._take(self._read())

    def _read(self) -> _Loaded:
        signature, container = self._file.signature(), self._file.read()
        try:
            index = self._open_keys().decrypt_index(container)
        except Damaged:
            raise Damaged(
                f"{self._file.path} does not open with this: it is the key of another vault, "
                f"or the file was altered{self._file.hint()}"
            ) from None
        return _Loaded(signature, container, index)

    def _take(self, loaded: _Loaded) -> None:
        self._signature, self._container = loaded.signature, loaded.container
        self._index, self._newest_met = loaded.index, loaded.container.header

    def _set(self, path: str, secret: Secret) -> None:
        self._write(secrets={**self._index.secrets, path: secret})

    def _write(self, *, secrets: dict[str, Secret] | None = None, **changes: object) -> None:
        header = msgspec.structs.replace(
            self.header, generation=self.header.generation + 1, **changes
        )
        index = self._index if secrets is None else Index(secrets=secrets)
        data, container = self._open_keys().encrypt_file(header, index)
        self._file.write(data, header)
        self._take(_Loaded(self._file.signature(), container, index))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the file against other writers, on its newest generation."""
        with self._file.writing():
            self._refresh()
            yield


class _Loaded(msgspec.Struct, frozen=True):
    """What a file held, before it is taken for the vault."""

    signature: Signature | None
    container: Container
    index: Index


def _public_key(private: memoryview) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _first(keys: VaultKeys, header: Header, path: str, value: bytes) -> Secret:
    check_secret_path(path)
    newest = header.kek_version
    sealed = seal(keys.kek(newest), newest, context_of(header.vault_id, path, 1), value)
    version = SecretVersion(version=1, created_at=header.created_at, sealed=sealed)
    return Secret(versions=(version,))
