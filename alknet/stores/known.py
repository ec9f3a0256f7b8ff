"""Keys that were trusted on first use, by address: what ``known_hosts`` is to SSH."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio

from alknet.core.identity import NodeId
from alknet.errors import Denied, StoreError
from alknet.vault.durable import replace_file, store_errors

__all__ = ["KNOWN_FILE", "KnownNodes"]

log = logging.getLogger(__name__)

KNOWN_FILE = "known_nodes.json"


class KnownNodes:
    """``known_nodes.json`` in a home: the node id last seen at each ``host:port``."""

    def __init__(self, home: Path) -> None:
        self._path = home / KNOWN_FILE
        self._limiter = trio.CapacityLimiter(1)

    async def check(self, address: str, node_id: NodeId) -> None:
        """Remember who is at *address*, or compare with whom was there before.

        Cancelled, a first sight was remembered or not.

        Raises:
            Denied: It is another node than before. Nothing is changed: a person has to decide.
            StoreError: The file cannot be read or written.
        """
        before = await trio.to_thread.run_sync(
            self._check, address, str(node_id), limiter=self._limiter
        )
        if before is None:
            log.warning("node.trusted_on_first_use", extra={"address": address, "id": str(node_id)})
        elif before != str(node_id):
            raise Denied(
                f"THE KEY OF {address} HAS CHANGED: it was {before}, now {node_id} answers. "
                "Somebody may be in between, or the node was set up anew; if you know that it "
                f"was, remove the line of {address} from {self._path}"
            )

    def _check(self, address: str, node_id: str) -> str | None:
        with self._locked():
            known = self._load()
            before = known.get(address)
            if before is None:
                known[address] = node_id
                data = msgspec.json.format(msgspec.json.encode(known, order="sorted"))
                with store_errors(f"cannot write {self._path}"):
                    replace_file(self._path, data)
            return before

    def _load(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise StoreError(f"cannot read {self._path}: {exc.strerror}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise StoreError(f"cannot read {self._path}: it is damaged ({exc})") from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._path.with_name(f"{self._path.name}.lock")
        with store_errors(f"cannot lock {path}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
