"""``alknet call``: an operation of this node, of a peer, or of any node with a ticket."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.options import Command, is_json
from alknet.cli.output import emit_raw, say_json
from alknet.cli.remote import STDIN, TARGET, Remote, make_remote, remote_options, split_target

if TYPE_CHECKING:
    import msgspec

    from alknet.call.session import Bidi, CallOptions, CallSession, Upload
    from alknet.cli.lines import LineReader

__all__ = ["call"]


@click.command(
    cls=Command,
    examples=[
        "alknet call node/ping                          the running node of this home",
        """alknet call @bob echo/unary '{"message": "hi"}'""",
        """alknet call @bob echo/stream '{"count": 3}'     one line an item, until Ctrl-C""",
        "alknet call @bob echo/upload < items.jsonl      a line of JSON an item; the same for bidi",
        "alknet call node.example.org:443 echo/unary - --token-file ci.token < input.json",
    ],
)
@click.argument("words", nargs=-1, metavar=f"{TARGET} OP [JSON|-]")
@remote_options
def call(words: Sequence[str], **options: Any) -> None:
    """Call an operation and print its output.

    Without a node to call, it is the one that runs on this home, by its control socket, as its
    owner. OP always holds a '/'. The input is JSON, '-' reads it from standard input, without one
    it is {}. A subscription prints an item a line, as they come. An upload and a bidirectional
    operation read items from standard input, a line of JSON each, to its end. Ctrl-C aborts the
    call at the node that runs it. Tokens come by --token-file or ALKNET_TOKEN, never as an
    argument.
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

    async def main() -> None:
        async with remote.session() as session:
            await _call(session, remote, operation, data, reads)

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
    session: CallSession, remote: Remote, operation: str, data: msgspec.Raw, reads: str
) -> None:
    """Call *operation*; standard input is used up for *reads* already, if that is not empty."""
    op_type, large_output = await _described(session, remote, operation)
    options = remote.options
    options["large_output"] = large_output
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


async def _described(session: CallSession, remote: Remote, operation: str) -> tuple[str, bool]:
    """Ask the node what kind of operation it is; what it does not show is called as a query."""
    import msgspec

    from alknet.call.codes import CallError, ErrorCode

    try:
        found = await session.call(
            "services/schema", {"name": operation.removeprefix("/")}, **remote.options
        )
    except CallError as exc:
        if exc.code != ErrorCode.NOT_FOUND:
            raise
        return "query", False
    described = msgspec.json.decode(found, type=dict[str, Any])
    return str(described.get("op_type")), bool(described.get("large_output"))


def _print(output: msgspec.Raw) -> None:
    if is_json() or not sys.stdout.isatty():
        emit_raw(bytes(output))
    else:
        say_json(bytes(output))


async def _print_item(item: bytes) -> None:
    """Print in a thread: a reader that stands still must not keep us from answering the node."""
    import trio

    await trio.to_thread.run_sync(emit_raw, item, abandon_on_cancel=True)
