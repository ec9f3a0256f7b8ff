"""Runs commands for calls: how many at once, what comes out, what an exit status means."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import msgspec

from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Context
from alknet.call.proto.scan import is_too_deep
from alknet.call.spec import OperationError
from alknet.commands.policy import ProgramLimits, ProgramPolicy
from alknet.commands.process import CommandFailed, Ended, NotStarted, Program, open_program
from alknet.commands.sandbox import Confinement
from alknet.core.config_command import CommandConfig
from alknet.errors import Unavailable

__all__ = ["CommandRunner"]

STDERR_LINES = 20
"""Lines of standard error that a log record holds; the last ones tell what went wrong."""


class CommandRunner:
    """Runs the commands of one node.

    Attributes:
        running: How many run now, by name of the operation.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        """Make one; *most* returns how many may run at once, of all commands together."""
        self.running: Counter[str] = Counter()
        self._most = most

    async def run(
        self, ctx: Context, command: CommandConfig, confinement: Confinement, value: object
    ) -> msgspec.Raw:
        """Run *command* with *value* as its input, and return its output.

        Cancelled, the program and all that it started have ended when this raises.

        Raises:
            OperationError: What its exit status means.
            CallError: RESOURCE_EXHAUSTED: too many run.
            Unavailable: It cannot be started.
            CommandFailed: It did what it must not; for the log.
        """
        async with self._program(ctx, command, confinement, value) as program:
            output = await _read_all(program, command.table.output_bytes)
            ended = await program.wait()
            self._judge(ctx, command, ended)
        return _one_value(output)

    async def lines(
        self, ctx: Context, command: CommandConfig, confinement: Confinement, value: object
    ) -> AsyncGenerator[msgspec.Raw, None]:
        """Run *command* and yield each line of its output when it is asked for.

        What nobody takes stays in the pipe, and the program waits. Raises like `run`.
        """
        async with self._program(ctx, command, confinement, value) as program:
            async with aclosing(_read_lines(program, command.table.output_bytes)) as lines:
                async for line in lines:
                    yield _one_value(line)
            self._judge(ctx, command, await program.wait())

    @asynccontextmanager
    async def _program(
        self, ctx: Context, command: CommandConfig, confinement: Confinement, value: object
    ) -> AsyncIterator[Program]:
        policy = _policy(command, confinement)
        with self._place(command):
            try:
                async with open_program(policy, msgspec.json.encode(value)) as program:
                    yield program
            except NotStarted as exc:
                fields = {"command": command.name, "program": policy["argv"][0]}
                ctx.log.error("command.not_started", extra={**fields, "error": str(exc)})  # noqa: TRY400  the text says it all
                raise Unavailable("the program cannot be started") from None

    @contextmanager
    def _place(self, command: CommandConfig) -> Iterator[None]:
        """Hold one of the places for running programs."""
        name = command.name
        if self.running[name] >= command.table.concurrent:
            raise _exhausted("as many of this command run as may")
        if self.running.total() >= self._most():
            raise _exhausted("as many commands run on this node as may")
        self.running[name] += 1
        try:
            yield
        finally:
            self.running[name] -= 1
            if not self.running[name]:
                del self.running[name]

    def _judge(self, ctx: Context, command: CommandConfig, ended: Ended) -> None:
        """Log what the program said, and raise what its exit status means."""
        level = logging.INFO if ended.exit == 0 else logging.WARNING
        lines = _printable(ended.stderr)
        if lines or ended.exit:
            fields = {"command": command.name, "exit": _exit_words(ended.exit), "stderr": lines}
            ctx.log.log(level, "command.ended", extra=fields)
        if ended.exit == 0:
            return
        declared = command.errors.get(ended.exit)
        if declared is None:
            raise CommandFailed(f"the program ended with {_exit_words(ended.exit)}")
        raise OperationError(declared.code, declared.message, retryable=declared.retryable)


def _policy(command: CommandConfig, confinement: Confinement) -> ProgramPolicy:
    table = command.table
    return ProgramPolicy(
        argv=list(command.argv),
        environment=table.environment,
        directory=table.directory,
        temporary=tempfile.gettempdir(),
        sandbox=confinement.sandbox,
        bwrap=confinement.bwrap,
        read=list(table.read),
        write=list(table.write),
        network=table.network,
        user=confinement.user,
        grace_s=table.grace_s,
        limits=ProgramLimits(
            cpu_s=table.cpu_s,
            memory_bytes=table.memory_bytes,
            processes=table.processes,
            open_files=table.open_files,
            file_bytes=table.file_bytes,
        ),
    )


async def _read_all(program: Program, most_bytes: int) -> bytes:
    output = bytearray()
    while data := await program.read():
        output += data
        if len(output) > most_bytes:
            raise _too_long("the output", most_bytes)
    return bytes(output)


async def _read_lines(program: Program, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield lines that are not blank, without their ends; the last needs none."""
    rest = bytearray()
    while data := await program.read():
        rest += data
        if b"\n" in data:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if len(line) > most_bytes:
                    raise _too_long("a line", most_bytes)
                if line.strip():
                    yield bytes(line)
        if len(rest) > most_bytes:
            raise _too_long("a line", most_bytes)
    if rest.strip():
        yield bytes(rest)


def _too_long(what: str, most_bytes: int) -> CommandFailed:
    return CommandFailed(f"{what} is longer than {most_bytes} bytes")


def _one_value(output: bytes) -> msgspec.Raw:
    """Return *output* if it is one JSON value.

    Raises:
        CommandFailed: It is not, with the reason.
    """
    output = output.strip()
    if not output:
        raise CommandFailed("the output is empty, and not a JSON value")
    if is_too_deep(output):
        raise CommandFailed("the output is nested too deep")
    try:
        msgspec.json.decode(output)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        # msgspec names the place and not the content.
        raise CommandFailed(f"the output is not one JSON value: {exc}") from None
    return msgspec.Raw(output)


def _printable(stderr: str) -> list[str]:
    lines = [
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
        for line in stderr.splitlines()
    ]
    return [line for line in lines if line.strip()][-STDERR_LINES:]


def _exit_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _exhausted(message: str) -> CallError:
    return CallError(ErrorCode.RESOURCE_EXHAUSTED, message, retryable=True)
