"""How the node tells the launcher to run a program."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["ProgramLimits", "ProgramPolicy"]


class ProgramLimits(TypedDict):
    """Limits of the kernel; see `alknet.core.config_command.CommandTable`."""

    cpu_s: int
    memory_bytes: int
    processes: int
    open_files: int
    file_bytes: int


class ProgramPolicy(TypedDict):
    """How to run a program. All of it comes from the configuration, nothing from a caller.

    Attributes:
        argv: Absolute path first.
        environment: All of it.
        directory: Where it runs; None for a new empty one, which goes when it ends.
        temporary: In which such directories are made.
        sandbox: ``landlock``, ``bwrap``, ``user`` or ``none``.
        bwrap: The absolute path of bubblewrap, for that sandbox.
        read: Paths to read and run, beside the system's.
        write: Paths to change too.
        network: Whether it may use the network.
        user: Ids of the user and group to become; None to stay.
        grace_s: Between SIGTERM and SIGKILL.
        limits: Of the kernel.
    """

    argv: list[str]
    environment: dict[str, str]
    directory: str | None
    temporary: str
    sandbox: str
    bwrap: str
    read: list[str]
    write: list[str]
    network: bool
    user: tuple[int, int] | None
    grace_s: float
    limits: ProgramLimits
