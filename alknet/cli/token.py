"""``alknet token``: bearer tokens for callers that have no key of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Duration, Group, is_json, usage_errors
from alknet.cli.output import emit, note, say, table
from alknet.cli.rights import check_scopes, grants, listed, rights_options

if TYPE_CHECKING:
    from alknet.core.contracts import IdentityStore
    from alknet.core.identity import ApiKey
    from alknet.core.tokens import MintedToken

__all__ = ["token"]


@click.group(
    cls=Group,
    examples=[
        "alknet token create ci --scope echo --expires 30d",
        "alknet token list",
        "alknet token revoke 8hkcxqne",
    ],
)
def token() -> None:
    """Make and revoke API tokens.

    A token gives a single request the rights that it was made with, whoever sends it. Its text
    is shown once; the node keeps a hash. Changes act on a running node within a second.
    """


@token.command(
    examples=[
        "alknet token create ci --scope echo",
        "alknet token create backup --scope fs:read --resource share:photos --expires 12h",
        "alknet token create ci --scope echo --json | jq -r .token > ci.token",
    ],
)
@click.argument("name")
@rights_options
@click.option("--expires", type=Duration(), metavar="TIME", help="End after 90s, 12h, 30d, 2w …")
def create(
    name: str, scopes: Sequence[str], resources: Sequence[str], expires: float | None
) -> None:
    """Make a token and print it, this once.

    NAME is for people; in lists and logs a token goes by its prefix. Without --scope it may call
    public operations only.
    """
    from alknet.core.clock import wall_clock
    from alknet.core.identity import ApiKey

    minted = _mint()
    now = wall_clock()
    key = ApiKey(
        prefix=minted.prefix,
        name=name,
        hash=minted.hash,
        scopes=check_scopes(scopes),
        resources=grants(resources),
        created_at=now,
        expires_at=None if expires is None else now + expires,
    )
    with usage_errors("NAME"):
        key.validate()
    _write(lambda store: store.put_api_key(key))
    _show(minted, key)


@token.command("list", examples=["alknet token list", "alknet token list --json"])
def list_tokens() -> None:
    """List the tokens, expired ones included; their texts are kept nowhere."""
    from alknet.cli.home import read_store

    keys = read_store(lambda identities: identities.api_keys())
    if is_json():
        emit({"tokens": [_as_json(key) for key in keys]})
        return
    rows = [
        (key.prefix, key.name, listed(key.scopes), listed(key.resources), _expiry(key))
        for key in keys
    ]
    headers = ("prefix", "name", "scopes", "resources", "expires")
    table(headers, rows, empty="no tokens; 'alknet token create NAME --scope S' makes one")


@token.command(
    examples=[
        "alknet token rotate 8hkcxqne                the same rights, a new text",
        "alknet token rotate ci --expires 30d        by its name, if only one has it",
    ],
)
@click.argument("prefix", metavar="PREFIX|NAME")
@click.option("--expires", type=Duration(), metavar="TIME", help="End after that, from now on.")
def rotate(prefix: str, expires: float | None) -> None:
    """Replace a token by a new one of the same name, scopes and resources.

    The old one ends at once, and calls that run under it are aborted.
    """
    import msgspec

    from alknet.core.clock import wall_clock
    from alknet.errors import NotFound

    old = _find(prefix)
    minted, now = _mint(), wall_clock()
    # Without --expires, the new one lives as long as the old one was made for.
    lifetime = expires
    if lifetime is None and old.expires_at is not None:
        lifetime = old.expires_at - old.created_at
    new = msgspec.structs.replace(
        old,
        prefix=minted.prefix,
        hash=minted.hash,
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
    )

    async def replace(store: IdentityStore) -> None:
        await store.put_api_key(new)
        try:
            await store.remove_api_key(old.prefix)
        except NotFound:  # revoked meanwhile: then its rights end, too
            await store.remove_api_key(new.prefix)
            raise

    _write(replace)
    _show(minted, new)


@token.command(examples=["alknet token revoke 8hkcxqne"])
@click.argument("prefix", metavar="PREFIX|NAME")
def revoke(prefix: str) -> None:
    """End a token; calls that run under it are aborted within a second."""
    old = _find(prefix)
    _write(lambda store: store.remove_api_key(old.prefix))
    if is_json():
        emit({"prefix": old.prefix, "done": "revoked"})
    else:
        say(f"token {old.prefix} ({old.name}) revoked")


def _mint() -> MintedToken:
    """Make a token whose prefix is free; 40 bits are not unique by force."""
    from alknet.cli.home import read_store
    from alknet.core.tokens import mint_token

    taken = {key.prefix for key in read_store(lambda identities: identities.api_keys())}
    while (minted := mint_token()).prefix in taken:
        pass
    return minted


def _find(text: str) -> ApiKey:
    """Find a token by its prefix, or by its name if only one has it."""
    from alknet.cli.home import read_store

    keys = read_store(lambda identities: identities.api_keys())
    # Whoever pastes the whole token means its prefix; the message must not repeat the secret.
    prefix = text[4:12] if text.startswith("alk_") else text
    named = [key for key in keys if key.name == prefix]
    for key in keys:
        if key.prefix == prefix:
            return key
    if len(named) == 1:
        return named[0]
    if named:
        raise CommandError(
            "CONFLICT",
            f"{len(named)} tokens are named {prefix!r}",
            hint="name one by its prefix: " + ", ".join(key.prefix for key in named),
        )
    raise CommandError("NOT_FOUND", f"no token {prefix!r}", hint="'alknet token list' lists them")


def _write(change: Callable[[IdentityStore], Awaitable[None]]) -> None:
    from alknet.cli.home import open_store
    from alknet.cli.running import run

    async def write() -> None:
        async with open_store() as identities:
            await change(identities)

    run(write)


def _show(minted: MintedToken, key: ApiKey) -> None:
    if is_json():
        emit({"token": minted.text, "prefix": minted.prefix, "expires_at": key.expires_at})
        return
    say(minted.text)
    note(f"Token {key.prefix} ({key.name}), expires: {_expiry(key)}. It is shown only now.")
    note("Use it by ALKNET_TOKEN or --token-file, never as an argument.")


def _as_json(key: ApiKey) -> dict[str, object]:
    return {
        "prefix": key.prefix,
        "name": key.name,
        "scopes": key.scopes,
        "resources": [str(grant) for grant in key.resources],
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "expired": _is_expired(key),
    }


def _expiry(key: ApiKey) -> str:
    if key.expires_at is None:
        return "never"
    when = datetime.fromtimestamp(key.expires_at).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return f"{when} (expired)" if _is_expired(key) else when


def _is_expired(key: ApiKey) -> bool:
    from alknet.core.clock import wall_clock

    return key.expires_at is not None and key.expires_at <= wall_clock()
