"""The text of the systemd unit (systemd.unit(5), systemd.service(5), systemd.exec(5))."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from alknet.errors import LocalError

__all__ = ["UNIT_NAME", "unit_text"]

UNIT_NAME = "alknet.service"


def unit_text(*, program: Sequence[str], home: Path, user: str | None) -> str:
    """Return the unit.

    Args:
        program: The command that is ``alknet``.
        home: The node's home.
        user: Whom a unit of the system runs as; None for a unit of a user's own manager.

    Raises:
        LocalError: The home has a line break or quote in its path, which units cannot say.
    """
    command = [*program, "--home", str(home), "up"]
    return _UNIT.format(
        exec_start=" ".join(map(_argument, command)),
        user="" if user is None else f"User={user}\n",
        only_system="" if user is None else _SYSTEM.format(home=_path(home)),
        wanted_by="default.target" if user is None else "multi-user.target",
        after="" if user is None else "Wants=network-online.target\nAfter=network-online.target\n",
    )


def _argument(text: str) -> str:
    """Write an argument of a command: as `_word`, and without variables."""
    return _word(text.replace("$", "$$"))


def _path(path: Path) -> str:
    return _word(str(path))


def _word(text: str) -> str:
    """Write *text* so that systemd reads it back as one word, without specifiers."""
    if re.search(r"[\x00-\x1f\x7f\"\\]", text):
        raise LocalError(f"a unit cannot name {text!r}: choose a simpler path")
    escaped = text.replace("%", "%%")
    return escaped if re.fullmatch(r"[\w./:=@%$-]+", escaped) else f'"{escaped}"'


# A drain takes 10 s by default; systemd waits longer before it kills. MemoryDenyWriteExecute is
# left out: pyOpenSSL's callbacks need memory that is written and then run.
_UNIT = """\
# Made by 'alknet service install'.
[Unit]
Description=alknet node
{after}StartLimitIntervalSec=60
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={exec_start}
ExecReload=kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
# Wrong usage does not mend itself.
RestartPreventExitStatus=2
WatchdogSec=30
TimeoutStopSec=30
KillMode=mixed
LimitNOFILE=65536
UMask=0077
{user}
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
# For the sandbox of commands; systemd before 254 counts them to no group.
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
{only_system}
[Install]
WantedBy={wanted_by}
"""

_SYSTEM = """\
# Ports below 1024.
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
ProtectSystem=strict
ReadWritePaths={home}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
RemoveIPC=yes
"""
