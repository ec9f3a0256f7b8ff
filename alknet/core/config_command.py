"""``[[command]]``: programs as operations. What a table says, checked as far as it can be read.

Whether this machine can confine the program is seen when a node is wired
(`alknet.commands.operations`).
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from alknet.core.access import AccessRules
from alknet.core.config_errors import KeyPath
from alknet.core.config_read import Reader
from alknet.core.identity import check_scope
from alknet.core.json_schema import compile_schema, read_schema
from alknet.errors import LocalError

__all__ = ["CommandConfig", "CommandError", "CommandErrorTable", "CommandTable", "read_commands"]

KIB = 1024
MIB = 1024 * KIB

Seconds = Annotated[float, Meta(gt=0, le=3600)]
Count = Annotated[int, Meta(ge=1, le=10_000)]


class CommandTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[command]]``; paths are absolute, but for schemas.

    Attributes:
        name: Of the operation: `seg(/seg)+`.
        run: The program and its arguments, each a string, as they are: there is no shell, and
            nothing of a call is ever put into them. The program is an absolute path, or a name
            that is looked for in `PATH` when the file is read.
        op_type: A query changes nothing, a mutation may, a subscription answers with an item for
            each line.
        idempotent: For a mutation: the same input twice does the same as once, so that callers may
            repeat it as they like. Queries are so anyway.
        title: One line for people.
        description: The whole story.
        public: Everybody may call it, strangers too.
        scopes_all: Who holds all of these may call it.
        scopes_any: Who holds at least one of these may.
        internal: Only other operations of this node may call it; to all others it is missing.
        input_schema: JSON Schema (2020-12) of the input: a table, or the path of a JSON or TOML
            file, counted from the directory of `node.toml`. Without it, any JSON object.
        output_schema: The same of the output, or of each item. Without it, any JSON.
        errors: What an exit status means to the caller, by its number: see below.
        sandbox: What confines the program: `auto` is `landlock` where the kernel has it, else
            `bwrap` where it is installed, else `user` where the node runs as root. Where none is
            to be had, the node does not start before `none` is written here.
        user: Whom the program runs as, if the node runs as root.
        network: Whether the program may use the network. It may never connect to Unix sockets.
            Without a sandbox, it may do both.
        read: Files and directories that it may read and run, beside the system's own.
        write: Those that it may change too.
        environment: All of its environment.
        directory: Where it runs, and may write. By default a new empty directory, which goes when
            it ends.
        timeout_s: It is ended after so long; a subscription by default never.
        grace_s: Between SIGTERM, when it is to end, and SIGKILL.
        concurrent: How many of it run at once; more are refused with `RESOURCE_EXHAUSTED`.
        output_bytes: The longest output, or line of a subscription.
        cpu_s: Processor time of each of its processes.
        memory_bytes: Address space of each of its processes.
        processes: Processes and threads that it may have, beside those that its user has anyway.
        open_files: Files that each of its processes may have open.
        file_bytes: The longest file that it may write.
    """

    name: str
    run: tuple[str, ...]
    op_type: Literal["query", "mutation", "subscription"] = "query"
    idempotent: bool = False
    title: str = ""
    description: str = ""
    public: bool = False
    scopes_all: tuple[str, ...] = ()
    scopes_any: tuple[str, ...] = ()
    internal: bool = False
    input_schema: dict[str, Any] | str | None = None
    output_schema: dict[str, Any] | str | None = None
    errors: dict[str, dict[str, Any]] = {}
    sandbox: Literal["auto", "landlock", "bwrap", "user", "none"] = "auto"
    # The user that owns nothing, on every Unix.
    user: str = "nobody"
    network: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    directory: str | None = None
    timeout_s: Seconds | None = None
    # A script has nothing to finish that takes longer, and the caller waits.
    grace_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    # Programs cost a process each; who needs more knows his machine.
    concurrent: Count = 4
    # Frames carry 16 MiB at most; more belongs into a file.
    output_bytes: Annotated[int, Meta(ge=1, le=16 * MIB)] = MIB
    # Twice the default deadline of a call: for programs that the deadline somehow missed.
    cpu_s: Annotated[int, Meta(ge=1, le=86_400)] = 60
    # Enough for interpreters, which reserve far more than they use.
    memory_bytes: Annotated[int, Meta(ge=MIB, le=1024 * 1024 * MIB)] = 2048 * MIB
    # Pipelines and thread pools fit in, and a fork bomb is noticed by nobody.
    processes: Count = 64
    open_files: Annotated[int, Meta(ge=8, le=65_536)] = 256
    # A disk takes this from a few calls at once.
    file_bytes: Annotated[int, Meta(ge=0, le=1024 * 1024 * MIB)] = 64 * MIB


class CommandErrorTable(msgspec.Struct, frozen=True, kw_only=True):
    """What an exit status means.

    Attributes:
        code: What the caller gets: a name of your own in capitals, or one of the protocol's such
            as `NOT_FOUND`.
        message: One sentence for people; the same each time.
        retryable: The same request may succeed later. By default, what the code says.
        http_status: What an HTTP gateway answers to a code of your own.
    """

    code: Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
    message: Annotated[str, Meta(min_length=1, max_length=500)]
    retryable: bool | None = None
    http_status: Annotated[int, Meta(ge=400, le=599)] = 422


class CommandError(msgspec.Struct, frozen=True):
    """See `CommandErrorTable`."""

    code: str
    message: str
    retryable: bool | None
    http_status: int


class CommandConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A command, understood; what is not here is as in `CommandTable`.

    Attributes:
        where: File and line, for messages.
        home: The node's, which no command may reach.
        argv: The program's absolute path, and its arguments.
        access: Who may call it.
        input_schema: A document.
        output_schema: A document.
        errors: By exit status.
        table: All else.
    """

    where: str
    home: Path
    argv: tuple[str, ...]
    access: AccessRules
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    errors: dict[int, CommandError]
    table: CommandTable

    @property
    def name(self) -> str:
        """Of the operation."""
        return self.table.name


ANY_OBJECT: dict[str, Any] = {"type": "object"}
ANYTHING: dict[str, Any] = {}

MAX_SCHEMA_FILE_BYTES = MIB
"""A schema of this size is no longer one that people wrote."""


def read_commands(
    reader: Reader, rows: list[dict[str, Any]], directory: Path
) -> tuple[CommandConfig, ...]:
    """Read all ``[[command]]``; *directory* is the node's home, and out of reach for them."""
    commands: list[CommandConfig] = []
    for index, raw in enumerate(rows):
        command = _Command(reader, raw, ("command", index), directory).read()
        if command is None:
            continue
        for other in commands:
            if other.name == command.name:
                place = f"line {reader.line(('command', commands.index(other)))}"
                reader.report(("command", index, "name"), f"{other.name!r} is taken by {place}")
        commands.append(command)
    return tuple(commands)


class _Command:
    """Reads one table."""

    def __init__(self, reader: Reader, raw: dict[str, Any], key: KeyPath, directory: Path) -> None:
        self._reader = reader
        self._raw = raw
        self._key = key
        self._home = directory

    def read(self) -> CommandConfig | None:
        found = self._reader.table(self._raw, CommandTable, self._key)
        if "name" not in found or "run" not in found:
            return None
        table = CommandTable(**found)
        self._check_paths(table)
        self._check_environment(table)
        self._check_user(table)
        return CommandConfig(
            where=f"{self._reader.path}:{self._reader.line(self._key)}",
            home=self._home.resolve(),
            argv=self._argv(table),
            access=self._access(table),
            input_schema=self._schema("input_schema", table.input_schema, ANY_OBJECT),
            output_schema=self._schema("output_schema", table.output_schema, ANYTHING),
            errors=dict(self._errors(table)),
            table=table,
        )

    def _report(self, name: str, message: str, *more: str | int) -> None:
        self._reader.report((*self._key, name, *more), message)

    def _argv(self, table: CommandTable) -> tuple[str, ...]:
        if not table.run or not table.run[0]:
            self._report("run", "found no program, expected its path and its arguments")
            return table.run
        if any("\0" in argument for argument in table.run):
            self._report("run", "found a NUL character, which no argument can hold")
            return table.run
        name = table.run[0]
        if "/" in name and not name.startswith("/"):
            self._report("run", f"found {name!r}, expected an absolute path or a bare name", 0)
            return table.run
        path = name if name.startswith("/") else shutil.which(name)
        if path is None:
            self._report("run", f"there is no program {name!r} in PATH", 0)
            return table.run
        if not _is_program(path):
            self._report("run", f"{path!r} is not a file that can be run", 0)
        elif self._touches_home(path, above=False):
            message = f"{path!r} lies in the node's home, which no command may read"
            self._report("run", message, 0)
        return (os.path.abspath(path), *table.run[1:])  # noqa: PTH100  links stay

    def _access(self, table: CommandTable) -> AccessRules:
        for name in ("scopes_all", "scopes_any"):
            self._reader.parse_all((*self._key, name), getattr(table, name), _scope)
        has_scopes = bool(table.scopes_all or table.scopes_any)
        ways = [name for name in ("public", "internal") if getattr(table, name)]
        ways += ["scopes"] if has_scopes else []
        if not ways:
            message = "nobody may call it: write 'scopes_all', 'scopes_any', 'public' or 'internal'"
            self._reader.report(self._key, message)
        elif table.public and len(ways) > 1:
            self._report("public", f"found 'public' beside {ways[-1]!r}, expected one of the two")
        if table.public:
            return AccessRules(public=True)
        return AccessRules(scopes_all=table.scopes_all, scopes_any=table.scopes_any)

    def _schema(
        self, name: str, given: dict[str, Any] | str | None, default: dict[str, Any]
    ) -> dict[str, Any]:
        if given is None:
            return default
        try:
            if isinstance(given, str):
                given = read_schema(self._home / given, MAX_SCHEMA_FILE_BYTES)
            compile_schema(given)
        except LocalError as exc:
            self._report(name, str(exc))
            return default
        return given

    def _errors(self, table: CommandTable) -> Iterator[tuple[int, CommandError]]:
        codes: set[str] = set()
        for status, raw in table.errors.items():
            if not (status.isdecimal() and status.isascii() and 1 <= int(status) <= 255):
                message = f"found {status[:20]!r}, expected an exit status, 1 to 255"
                self._report("errors", message, status)
                continue
            key = (*self._key, "errors", status)
            found = self._reader.table(raw, CommandErrorTable, key)
            if "code" not in found or "message" not in found:
                continue
            row = CommandErrorTable(**found)
            if row.code in _NEVER_DECLARED:
                self._reader.report((*key, "code"), f"{row.code} is for the node itself to say")
            codes.add(row.code)
            yield int(status), CommandError(row.code, row.message, row.retryable, row.http_status)

    def _check_paths(self, table: CommandTable) -> None:
        paths: list[tuple[KeyPath, str]] = [
            (("read", n), path) for n, path in enumerate(table.read)
        ]
        paths += [(("write", n), path) for n, path in enumerate(table.write)]
        if table.directory is not None:
            paths.append((("directory",), table.directory))
        for place, path in paths:
            key = (*self._key, *place)
            if not path.startswith("/") or "\0" in path:
                self._reader.report(key, f"found {path!r}, expected an absolute path")
            elif not os.path.exists(path):  # noqa: PTH110  a text may be no path at all
                self._reader.report(key, f"there is no {path!r}")
            elif self._touches_home(path, above=True):
                message = f"{path!r} holds the node's home, or is in it: no command may reach that"
                self._reader.report(key, message)
        if table.directory is not None and not os.path.isdir(table.directory):  # noqa: PTH112
            self._report("directory", f"{table.directory!r} is not a directory")

    def _check_environment(self, table: CommandTable) -> None:
        for name, value in table.environment.items():
            if not name or "=" in name or "\0" in name + value:
                self._report("environment", f"{name!r} cannot be in an environment")

    def _check_user(self, table: CommandTable) -> None:
        try:
            uid = pwd.getpwnam(table.user).pw_uid
        except (KeyError, ValueError):
            if os.geteuid() == 0:
                self._report("user", f"there is no user {table.user[:80]!r}")
            return
        if uid == 0 and table.sandbox != "none":
            self._report("user", 'root is confined by nothing: choose another, or sandbox = "none"')

    def _touches_home(self, path: str, *, above: bool) -> bool:
        home, found = self._home.resolve(), Path(path).resolve()
        return found.is_relative_to(home) or (above and home.is_relative_to(found))


def _is_program(path: str) -> bool:
    try:
        return Path(path).is_file() and os.access(path, os.X_OK)
    except OSError:
        return False


def _scope(text: str) -> str:
    check_scope(text)
    return text


# What a handler cannot say of itself (alknet.call.boundary).
_NEVER_DECLARED = frozenset({"INTERNAL", "ABORTED", "INVALID_OPERATION_TYPE"})
