"""From ``[[command]]`` to operations."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import msgspec

from alknet.call.codes import ErrorCode
from alknet.call.context import Context
from alknet.call.documents import DocumentShape
from alknet.call.operations import Operation
from alknet.call.registry import BUILTIN_NAMESPACES
from alknet.call.signature import Signature
from alknet.call.spec import ErrorSpec, OperationSpec, OpType, check_operation_name
from alknet.commands.contain import SYSTEM_PATHS
from alknet.commands.runner import CommandRunner
from alknet.commands.sandbox import Confinement, choose
from alknet.core.config_command import CommandConfig
from alknet.errors import LocalError

__all__ = ["command_operations", "warn_of_unconfined"]

log = logging.getLogger(__name__)


def command_operations(
    commands: Iterable[CommandConfig], runner: CommandRunner
) -> Sequence[Operation[..., Any]]:
    """Return an operation for each of *commands*, to be registered.

    Blocks for 10 ms, once, where bubblewrap is tried out.

    Raises:
        LocalError: A name or an error code is not valid, or nothing confines the program; it
            begins with the file and line.
    """
    return [_operation(command, runner) for command in commands]


def warn_of_unconfined(commands: Iterable[CommandConfig]) -> None:
    """Log which of *commands* nothing confines, as the configuration wants it."""
    for command in commands:
        if command.table.sandbox == "none":
            log.warning("command.unconfined", extra={"command": command.name})


def _operation(command: CommandConfig, runner: CommandRunner) -> Operation[..., Any]:
    try:
        _check_name(command.name)
        confinement = choose(command.table.sandbox, command.table.user)
        _check_home(command, confinement)
        operation = Operation(
            _handler(command, confinement, runner), _spec(command), _signature(command)
        )
    except LocalError as exc:
        raise LocalError(f"{command.where}: command {command.name!r}: {exc}") from exc
    return operation


def _check_name(name: str) -> None:
    check_operation_name(name)
    if name.partition("/")[0] in BUILTIN_NAMESPACES:
        raise LocalError("the namespace is reserved for the node itself")


def _check_home(command: CommandConfig, confinement: Confinement) -> None:
    if confinement.sandbox not in {"landlock", "bwrap"}:
        return
    for path in SYSTEM_PATHS:
        if command.home.is_relative_to(path):
            raise LocalError(
                f"the node's home lies in {path}, which every command may read: move the home"
            )


def _spec(command: CommandConfig) -> OperationSpec:
    table = command.table
    codes = {error.code: error for error in command.errors.values()}
    return OperationSpec(
        name=table.name,
        op_type=OpType(table.op_type),
        access=command.access,
        internal=table.internal,
        errors=tuple(
            ErrorSpec(error.code, error.message, http_status=error.http_status)
            for error in codes.values()
            if error.code not in ErrorCode.__members__
        ),
        max_duration_s=table.timeout_s,
        idempotent=table.idempotent,
        large_output=table.op_type == "subscription",
        title=table.title,
        description=table.description or table.title,
    )


def _signature(command: CommandConfig) -> Signature:
    return Signature(
        context_name="ctx",
        input_name="value",
        input_type=DocumentShape(command.input_schema),
        items_name=None,
        item_type=None,
        output_type=DocumentShape(command.output_schema),
        is_generator=command.table.op_type == "subscription",
        unbound=False,
    )


def _handler(
    command: CommandConfig, confinement: Confinement, runner: CommandRunner
) -> Callable[..., object]:
    async def run(ctx: Context, value: object) -> msgspec.Raw:
        return await runner.run(ctx, command, confinement, value)

    def items(ctx: Context, value: object) -> AsyncGenerator[msgspec.Raw, None]:
        return runner.lines(ctx, command, confinement, value)

    return items if command.table.op_type == "subscription" else run
