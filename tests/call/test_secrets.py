"""Secrets in handlers: only those declared, only for the call, never shown."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.discovery import discovery_operations
from alknet.call.operations import operation, public
from alknet.call.proto.events import Requested
from alknet.call.registry import Registry
from alknet.call.secret import CallSecrets, Secret
from alknet.core.contracts import SecretProvider
from alknet.core.vault_service import VaultService
from alknet.errors import LocalError, Unavailable
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedSecrets, admit_request, call_operation, collect_items
from alknet.vault.locked import LockedBuffer
from alknet.vault.vault import create_vault
from alknet.vault.vaultfile import VaultFile

KEPT = {"mail/smtp": b"hunter2", "mail/imap": b"swordfish"}


async def reveal(ctx: Context, path: str) -> str:
    secret = await ctx.secret(path)
    with secret.revealed() as view:
        return str(view, "utf-8")


@operation("mail/read", access=public(), secrets=("mail/smtp",))
async def read(ctx: Context, path: str) -> str:
    try:
        return await reveal(ctx, path)
    except LocalError as exc:
        return str(exc)


@operation("mail/parent", access=public(), calls=("mail/read",), secrets=("mail/imap",))
async def parent(ctx: Context, path: str) -> list[str]:
    return [await reveal(ctx, "mail/imap"), msgspec.json.decode(await ctx.call("mail/read", path))]


@operation("mail/plain", access=public())
async def plain(ctx: Context) -> str:
    try:
        return await reveal(ctx, "mail/smtp")
    except LocalError as exc:
        return str(exc)


async def test_a_handler_reads_what_its_operation_declares_and_nothing_else() -> None:
    assert await call_operation(read, "mail/smtp", secrets=KEPT) == "hunter2"
    refused = "the operation does not declare the secret"
    assert refused in await call_operation(read, "mail/imap", secrets=KEPT)
    assert refused in await call_operation(plain, secrets=KEPT)


async def test_a_child_has_its_own_secrets_and_not_its_parents() -> None:
    got = await call_operation(parent, "mail/smtp", beside=[read], secrets=KEPT)
    assert got == ["swordfish", "hunter2"]
    _, refused = await call_operation(parent, "mail/imap", beside=[read], secrets=KEPT)
    assert refused == "the operation does not declare the secret 'mail/imap'"


@pytest.mark.parametrize("kept", [None, {}])
async def test_a_secret_that_cannot_be_had_is_unavailable_and_stays_unnamed(
    kept: dict[str, bytes] | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(CallError) as caught:
        await call_operation(read, "mail/smtp", secrets=kept)
    assert (caught.value.code, caught.value.retryable) == ("UNAVAILABLE", True)
    assert "mail/smtp" not in str(caught.value)
    (record,) = [one for one in caplog.records if one.message == "secret.unavailable"]
    assert record.__dict__["path"] == "mail/smtp"


async def test_the_vault_gives_secrets_until_it_is_locked(tmp_path: Path) -> None:
    entropy = LockedBuffer.of(bytes(range(32)))
    service = VaultService(create_vault(VaultFile(tmp_path), entropy, lambda *_: [], now=1.0))
    await service.put("mail/smtp", b"hunter2")
    assert await _run(service) == b'"hunter2"'
    await service.lock()
    with pytest.raises(CallError, match="UNAVAILABLE"):
        await _run(service)


async def _run(provider: SecretProvider) -> bytes:
    request = Requested(id="d1", operation="mail/read", input=msgspec.Raw(b'"mail/smtp"'))
    async with memory_connection_pair() as (_, connection):
        call = admit_request(Registry([read]), connection, request, secrets=provider)
        return await call.run()


async def test_it_is_wiped_when_the_call_ends_however_it_ends() -> None:
    kept: list[Secret] = []
    views: list[memoryview] = []

    @operation("mail/leak", access=public(), secrets=("mail/smtp",))
    async def leak(ctx: Context, fails: bool) -> None:
        kept.append(await ctx.secret("mail/smtp"))
        views.append(kept[-1]._buffer.view)
        if fails:
            raise Unavailable("it failed")

    @operation("mail/items", access=public(), secrets=("mail/smtp",))
    async def items(ctx: Context) -> AsyncIterator[str]:
        while True:
            kept.append(await ctx.secret("mail/smtp"))
            views.append(kept[-1]._buffer.view)
            yield await reveal(ctx, "mail/smtp")

    await call_operation(leak, False, secrets=KEPT)
    with pytest.raises(CallError):
        await call_operation(leak, True, secrets=KEPT)
    assert await collect_items(items, limit=2, secrets=KEPT) == ["hunter2", "hunter2"]
    assert kept[-1] is kept[-2]  # read once in a call
    for secret, view in zip(kept, views, strict=True):
        assert bytes(view) == bytes(7)
        with pytest.raises(LocalError, match="is over"), secret.revealed():
            pass


async def test_what_outlives_the_call_gets_no_more_secrets() -> None:
    contexts: list[Context] = []

    @operation("mail/keep", access=public(), secrets=("mail/smtp",))
    async def keep(ctx: Context) -> None:
        contexts.append(ctx)

    await call_operation(keep, secrets=KEPT)
    with pytest.raises(LocalError, match="is over"):
        await contexts[0].secret("mail/smtp")


async def test_tasks_of_one_call_that_ask_at_once_share_the_secret() -> None:
    secrets = CallSecrets(FixedSecrets(KEPT), ("mail/smtp",))
    got: list[Secret] = []

    async def ask() -> None:
        got.append(await secrets.get("mail/smtp"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    assert got[0] is got[1]
    secrets.close()


def test_it_shows_nothing_and_cannot_be_copied() -> None:
    secret = Secret(LockedBuffer.of(b"hunter2"))
    assert {repr(secret), str(secret), f"{secret:>20}", f"{secret!r}"} == {"<Secret>"}
    # Pickling begins with __reduce_ex__ too.
    for leak in (copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode):
        with pytest.raises(TypeError) as caught:
            leak(secret)
        assert "hunter2" not in str(caught.value)
    with secret.revealed() as view:
        with pytest.raises(TypeError):
            view[0] = 0
        assert bytes(view) == b"hunter2"
    with pytest.raises(ValueError, match="released"):
        bytes(view)


@pytest.mark.parametrize("path", ["", "/mail", "Mail/smtp", "mail//smtp", "node/identity"])
def test_paths_are_checked_when_the_operation_is_made(path: str) -> None:
    with pytest.raises(LocalError, match=r"mail/bad.*(no path|node's own key)"):

        @operation("mail/bad", access=public(), secrets=(path,))
        async def bad() -> None: ...


def test_one_string_is_no_sequence_of_paths() -> None:
    with pytest.raises(LocalError, match="sequence of paths"):

        @operation("mail/bad", access=public(), secrets="mail/smtp")
        async def bad() -> None: ...


async def test_callers_do_not_see_what_an_operation_declares() -> None:
    registry = Registry([read, parent])
    shown = {one.spec.name: one for one in discovery_operations(registry)}
    listed = await call_operation(shown["services/list"])
    described = await call_operation(shown["services/schema"], {"name": "mail/read"})
    assert "mail/read" in json.dumps(listed)
    for text in (json.dumps(listed), json.dumps(described)):
        assert "smtp" not in text
        assert "secrets" not in text
