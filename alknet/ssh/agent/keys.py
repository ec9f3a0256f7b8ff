"""Whose keys an agent serves: a vault's in this process, or that of a running node."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from alknet.call.session import CallSession
from alknet.core.vault_service import VaultService
from alknet.ssh.agent.proto import AgentKey
from alknet.vault.roles import KeyRole

__all__ = ["AgentKeys", "NodeKeys", "ServiceKeys", "list_keys"]


class AgentKeys(Protocol):
    """The user keys of a vault, numbered from 0."""

    async def public_key(self, index: int) -> bytes:
        """Return the 32 bytes of an Ed25519 public key; raises Unavailable while locked."""
        ...

    async def sign(self, index: int, data: bytes) -> bytes:
        """Return the 64 bytes of a signature; raises Unavailable while the vault is locked."""
        ...


class ServiceKeys:
    """Those of a vault that this process has opened."""

    def __init__(self, service: VaultService) -> None:
        self._service = service

    async def public_key(self, index: int) -> bytes:
        return await self._service.public_key(KeyRole.SSH_USER, index)

    async def sign(self, index: int, data: bytes) -> bytes:
        return await self._service.ssh_sign(data, index=index)


class NodeKeys:
    """Those of a running node: each request is a call over its control socket.

    So that the node may be restarted, or its vault locked and unlocked, while the agent runs.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[CallSession]]) -> None:
        self._connect = connect

    async def public_key(self, index: int) -> bytes:
        wanted = {"role": KeyRole.SSH_USER.value, "index": index}
        return await self._value("vault/derive", wanted)

    async def sign(self, index: int, data: bytes) -> bytes:
        return await self._value("vault/ssh-sign", {"data": data, "key": index})

    async def _value(self, operation: str, given: dict[str, Any]) -> bytes:
        async with self._connect() as session:
            output = await session.call(operation, msgspec.to_builtins(given))
        return msgspec.json.decode(output, type=_Value).value


class _Value(msgspec.Struct):
    value: bytes


async def list_keys(keys: AgentKeys, count: int) -> list[AgentKey]:
    """Return the first *count* keys, with the comments that ``ssh-add -l`` shows.

    Raises what `AgentKeys.public_key` raises.
    """
    return [AgentKey(await keys.public_key(n), f"alknet:{n}") for n in range(count)]


_: tuple[type[AgentKeys], type[AgentKeys]] = (ServiceKeys, NodeKeys)
