"""From the vault's entropy to keys, in a child process that ends at once.

Words, seed and SLIP-0010 masters pass through Python's ``str`` and ``bytes``, which cannot be
wiped. They exist in the child only; what it derives arrives through a pipe in a `LockedBuffer`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from mnemonic import Mnemonic

from alknet.errors import LocalError
from alknet.vault.locked import LockedBuffer, harden_process, read_exactly
from alknet.vault.slip10 import derive, parse_path

__all__ = ["ENTROPY_BYTES", "derive_keys", "main"]

ENTROPY_BYTES = 32
KEY_BYTES = 32
# One request: all that an unlock wants, with room.
MAX_PATHS = 256


def derive_keys(entropy: memoryview, paths: Sequence[str]) -> list[LockedBuffer]:
    """Return the 32-byte private keys at *paths* below *entropy*; blocks for about 60 ms.

    The seed is BIP39's of the entropy's words with an empty passphrase, the keys SLIP-0010's for
    Ed25519.

    Raises:
        LocalError: A path is wrong (as in `slip10.parse_path`), or the child could not work.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise LocalError(f"a vault's entropy has {ENTROPY_BYTES} bytes, not {len(entropy)}")
    if len(paths) > MAX_PATHS:
        raise LocalError(f"{len(paths)} keys at once, at most {MAX_PATHS}")
    for path in paths:
        parse_path(path)
    child = subprocess.Popen(  # noqa: S603  our own interpreter, and paths that were checked
        # -P: whoever can write into the current directory shall not give it a module.
        [sys.executable, "-P", "-m", __name__, *paths],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    with child:  # waits for its end
        try:
            return _converse(child, entropy, len(paths))
        finally:
            child.kill()


def _converse(
    child: subprocess.Popen[bytes], entropy: memoryview, count: int
) -> list[LockedBuffer]:
    assert child.stdin is not None
    assert child.stdout is not None
    keys: list[LockedBuffer] = []
    try:
        os.writev(child.stdin.fileno(), [entropy])
        child.stdin.close()
        for _ in range(count):
            keys.append(LockedBuffer(KEY_BYTES))
            read_exactly(child.stdout.fileno(), keys[-1].view)
    except (OSError, EOFError) as exc:
        for key in keys:
            key.close()
        raise LocalError("the process that derives keys ended before it was done") from exc
    return keys


def main(paths: Sequence[str]) -> None:
    """Read entropy from standard input and write the keys at *paths* to standard output."""
    harden_process()
    entropy = sys.stdin.buffer.read(ENTROPY_BYTES)
    seed = Mnemonic.to_seed(Mnemonic("english").to_mnemonic(entropy), "")
    for path in paths:
        os.write(sys.stdout.fileno(), derive(seed, path).private_bytes)


if __name__ == "__main__":
    main(sys.argv[1:])
