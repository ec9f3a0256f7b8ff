"""``alknet call``: an operation of this node, of a peer, or of any node with a ticket."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.described import described
from alknet.cli.options import Command, is_json
from alknet.cli.output import emit_raw, say_json
from alknet.cli.remote import STDIN, TARGET, Remote, make_remote, remote_options, split_target
from alknet.cli.retry import call_again

if TYPE_CHECKING:
    import msgspec

    from alknet.call.session import Bidi, CallOptions, CallSession, Upload
    from alknet.cli.lines import LineReader

__all__ = ["call"]


@click.command(
    cls=Command,
    examples=[
        "alknet call node/ping                          the running node of this home",
        """alknet call @bob echo/stream '{"count": 3}'     one line an item, until Ctrl-C""",
        "alknet call @hub/w1 echo/upload < items.jsonl   to w1, over hub; a line of JSON an item",
        """alknet call @any echo/unary '{"message": 1}'    some peer of the running node""",
        "alknet call node.example.org:443 echo/unary - --token-file ci.token < input.json",
    ],
)
@click.argument("words", nargs=-1, metavar=f"{TARGET} OP [JSON|-]")
@remote_options
@click.option(
    "--retry",
    type=click.IntRange(1, 100),
    metavar="N",
    help="Call up to N times more while it fails in a way that may pass; see above.",
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Run a mutation or upload once, however often it is called with the same KEY.",
)
def call(
    words: Sequence[str], retry: int | None, idempotency_key: str | None, **options: Any
) -> None:
    """Call an operation and print its output.

    Without a node to call, it is the one that runs on this home, by its control socket, as its
    owner. @hub/w1 asks hub to pass the call on to its peer w1, @any lets the node of this home
    choose among its peers that offer the operation, and so does @hub/any at hub. OP always holds a
    '/'. The input is JSON, '-' reads it from standard input, without one it is {}. A subscription
    prints an item a line, as they come. An upload and a bidirectional operation read items from
    standard input, a line of JSON each, to its end. Ctrl-C aborts the call at the node that runs
    it. Tokens come by --token-file or ALKNET_TOKEN, never as an argument.

    --retry waits longer each time and connects anew, within --timeout as a whole. Called again is
    what no handler has seen; what may have begun, if it is a query or says that it is idempotent;
    and a mutation that may have begun, if it is for one node, for all attempts carry one
    idempotency key, by which that node knows what it has done, for ten minutes. It forgets that
    when it ends: where the node or worker that ran a mutation was itself killed, and is back, the
    mutation may run a second time. Never called again are a mutation for @any that may have begun,
    subscriptions, uploads, bidirectional calls, and what fails in a way that stays.

    To call again later, by hand or from a script, choose the key yourself (as from uuidgen) and
    use it for this one change only.
    """
    from alknet.cli.running import run

    target, operation, argument = _parse(words)
    if argument == STDIN and options["token_file"] == STDIN:
        raise click.UsageError("standard input cannot give both the input and the token")
    reads = "the input" if argument == STDIN else ""
    reads = "the token" if options["token_file"] == STDIN else reads
    # First what reads standard input, so that nothing is dialled for bad input.
    data = _input(argument)
    remote = make_remote(target, **options)
    about = remote.options
    if idempotency_key is not None:
        about["idempotency_key"] = _checked_key(idempotency_key)

    async def main() -> None:
        if retry is not None:
            _print(await call_again(remote, operation, data, about, retries=retry))
            return
        async with remote.session() as session:
            await _call(session, remote, operation, data, {**about, **remote.options}, reads)

    run(main)


def _parse(words: Sequence[str]) -> tuple[str | None, str, str | None]:
    target, rest = split_target(words)
    if not rest:
        raise click.UsageError("no operation: it holds a '/', as in node/ping")
    operation, *more = rest
    if "/" not in operation:
        raise click.UsageError(f"{operation!r} is no operation: it holds a '/', as in node/ping")
    if len(more) > 1:
        raise click.UsageError('more than one input: quote the JSON, as \'{"message": "hi"}\'')
    return target, operation, more[0] if more else None


def _checked_key(text: str) -> str:
    from alknet.call.proto import MAX_KEY_BYTES

    if not text.isprintable() or not 1 <= len(text.encode()) <= MAX_KEY_BYTES:
        why = f"it has 1 to {MAX_KEY_BYTES} bytes, all printable"
        raise click.BadParameter(why, param_hint="--idempotency-key")
    return text


def _input(argument: str | None) -> msgspec.Raw:
    return _json("{}" if argument is None else sys.stdin.read() if argument == STDIN else argument)


def _json(text: str, place: str = "JSON") -> msgspec.Raw:
    import msgspec

    try:
        # Checked here, sent as it is: numbers keep their digits.
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise click.BadParameter(f"not JSON: {exc}", param_hint=place) from exc
    return msgspec.Raw(text.strip().encode())


async def _call(
    session: CallSession,
    remote: Remote,
    operation: str,
    data: msgspec.Raw,
    options: CallOptions,
    reads: str,
) -> None:
    """Call *operation*; standard input is used up for *reads* already, if that is not empty."""
    op_type, options["large_output"], _ = await described(session, remote, operation)
    if op_type in {"upload", "bidi"} and reads:
        raise click.UsageError(
            f"{operation} reads its items from standard input, which cannot give {reads} too"
        )
    if op_type == "upload":
        async with session.upload(operation, data, **options) as upload:
            await _send_lines(upload)
            _print(await upload.finish())
    elif op_type == "bidi":
        await _talk(session, operation, data, options)
    elif op_type == "subscription":
        async with session.subscribe(operation, data, **options) as items:
            async for item in items:
                await _print_item(bytes(item))
    else:
        _print(await session.call(operation, data, **options))


async def _talk(
    session: CallSession, operation: str, data: msgspec.Raw, options: CallOptions
) -> None:
    import trio

    async with session.bidi(operation, data, **options) as talk, trio.open_nursery() as nursery:

        async def send() -> None:
            await _send_lines(talk)
            await talk.finish()

        nursery.start_soon(send)
        async for item in talk:
            await _print_item(bytes(item))
        nursery.cancel_scope.cancel()  # nobody listens to what is still to be read


async def _send_lines(call: Upload | Bidi) -> None:
    """Send each line of standard input as an item, until its end or until the node answers."""
    import trio

    from alknet.cli.lines import LineReader

    lines = LineReader(sys.stdin)
    number = 0
    while (line := await _next(lines)) is not None:
        number += 1
        if not line.strip():
            continue
        item = _json(line, f"line {number} of standard input")
        try:
            await call.send(item)
        except trio.BrokenResourceError:
            return


async def _next(lines: LineReader) -> str | None:
    try:
        return await lines.next()
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="standard input") from exc


def _print(output: msgspec.Raw) -> None:
    if is_json() or not sys.stdout.isatty():
        emit_raw(bytes(output))
    else:
        say_json(bytes(output))


async def _print_item(item: bytes) -> None:
    """Print in a thread: a reader that stands still must not keep us from answering the node."""
    import trio

    await trio.to_thread.run_sync(emit_raw, item, abandon_on_cancel=True)
