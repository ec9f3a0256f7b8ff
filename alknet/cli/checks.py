"""The checks of ``alknet doctor``: each looks at one thing and says what it found."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.cli.command_checks import examine_commands
from alknet.cli.config_checks import find_doubts, find_obstacles
from alknet.client import open_control_session, open_session
from alknet.core.address import Address
from alknet.core.clock import wall_clock
from alknet.core.config import NodeConfig, check_config, load_config
from alknet.core.endpoint.dial import DialError
from alknet.core.home import CONFIG_FILE
from alknet.core.limits import Limits
from alknet.errors import AlknetError, Unavailable
from alknet.stores.checking import StoreProblem, examine_database, examine_records
from alknet.stores.home import HomeStore
from alknet.vault.homevault import (
    has_node,
    has_vault,
    home_identity,
    open_home_vault,
    unlock_home_vault,
)
from alknet.vault.vault import Vault

__all__ = ["Finding", "examine"]

# 2025-01-01: before this program was written, so a clock that says so is wrong.
EARLIEST_TIME = 1_735_689_600.0
# What the node asks for (alknet.core.datagram); the kernel cuts it to its maximum.
WANTED_BUFFER_BYTES = 4 * 1024 * 1024
# Below this, bursts at common uplink speeds are lost while the loop is busy.
LOW_BUFFER_BYTES = 1024 * 1024
ASK_WITHIN_S = 5.0

Status = dict[str, Any]


class Finding(msgspec.Struct, frozen=True):
    """What one check found.

    Attributes:
        check: Its name, one word.
        level: ``fail`` keeps the node from working, ``warn`` makes it worse.
        message: What is there.
        todo: What to do about it; empty if nothing.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    message: str
    todo: str = ""


async def examine(home: Path) -> list[Finding]:
    """Look at everything. Cancelled, nothing stays open."""
    found = _examine_offline(home)
    if any(one.check == "config" for one in found):  # there is a home
        found += await _store(home)
    status, finding = await _node(home)
    found.append(finding)
    if status is None:
        found += [*_ports(home), *await _undialled(home)]
    else:
        found += [await _reach(home, status, transport) for transport in ("quic", "tcp")]
        found += _outbound(status)
    return found


def _examine_offline(home: Path) -> list[Finding]:
    found = [_home(home)]
    if home.is_dir():
        found += [*_key(home), _config(home), _commands(home)]
    return [*found, _clock(), _buffers(), _ipv6()]


def _home(home: Path) -> Finding:
    if not home.is_dir():
        return Finding("home", "fail", f"{home} does not exist", "make a node: alknet init")
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "home", "fail", f"others may enter {home} (mode {mode:04o})", f"chmod 700 '{home}'"
        )
    return Finding("home", "ok", f"{home}, for its user alone")


def _key(home: Path) -> Iterator[Finding]:
    """The node's key, and the vault that it is in."""
    if not has_node(home):
        yield Finding("key", "fail", f"no node in {home}", "alknet init")
        return
    if not has_vault(home):
        yield _key_file(home)
        return
    for path in sorted(home.glob("vault.*")):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("vault", "fail", f"others may read {path}", f"chmod 600 '{path}'")
            return
    try:
        yield _unlocks(home, open_home_vault(home))
    except AlknetError as exc:
        yield Finding("vault", "fail", str(exc), "see the message")


def _key_file(home: Path) -> Finding:
    """The key of a home from before there were vaults."""
    try:
        home_identity(home)
    except AlknetError as exc:
        return Finding("key", "fail", str(exc), "see the message")
    todo = "the next 'alknet up' moves it into a vault"
    return Finding("key", "ok", "readable, for its user alone", todo)


def _unlocks(home: Path, vault: Vault) -> Finding:
    """Whether the node starts unasked, and every secret opens."""
    slots = ", ".join(sorted({slot.kind.value for slot in vault.header.slots}))
    try:
        unlock_home_vault(vault, home)
    except Unavailable:
        todo = "'alknet up' asks at every start, or takes --unlock-file or a systemd credential"
        return Finding("vault", "ok", f"nothing in the home unlocks it; it takes: {slots}", todo)
    except AlknetError as exc:
        return Finding("vault", "fail", str(exc), "see the message")
    try:
        vault.identity()
        damaged = vault.verify()
    except AlknetError as exc:
        return Finding("vault", "fail", str(exc), "restore it from a backup, or from the words")
    finally:
        vault.lock()
    if damaged:
        message = f"{len(damaged)} secrets do not open: {', '.join(damaged[:3])}"
        return Finding("vault", "fail", message, "put them anew, or restore a backup")
    return Finding("vault", "ok", f"a key file unlocks it, every secret opens ({slots})")


def _config(home: Path) -> Finding:
    path = home / CONFIG_FILE
    try:
        problems = check_config(path) or find_obstacles(path, load_config(path))
    except AlknetError as exc:
        return Finding("config", "fail", str(exc))
    if problems:
        todo = "alknet config check lists all problems"
        return Finding("config", "fail", f"{problems[0]}", todo)
    return Finding("config", "ok", str(path) if path.exists() else "none, the defaults apply")


def _outbound(status: Status) -> Iterator[Finding]:
    """The peers to which the running node keeps a connection, or tries to."""
    for one in status["outbound"]:
        if one["state"] == "connected":
            is_deaf = one.get("is_called") is False
            more = ", which takes no operations from this node" if is_deaf else ""
            yield Finding("outbound", "ok", f"connected to {one['peer']}{more}")
        else:
            why = one["last_error"] or one["state"]
            message = f"no connection to {one['peer']}: {why}"
            yield Finding("outbound", "warn", message, "alknet worker list shows the next try")


async def _undialled(home: Path) -> list[Finding]:
    """The peers that the node would try in vain to keep a connection to."""
    try:
        doubts = await find_doubts(home, _config_or_defaults(home))
    except AlknetError:
        return []  # what is wrong with the store is found by itself
    return [Finding("outbound", "warn", f"{one.key}: {one.message}", one.hint) for one in doubts]


def _commands(home: Path) -> Finding:
    return Finding("commands", *examine_commands(_config_or_defaults(home)))


async def _store(home: Path) -> list[Finding]:
    """The database, and the peers and tokens in it: readable, and none shadowed by node.toml."""
    config = _config_or_defaults(home)
    place = HomeStore(home, config)
    found: list[Finding] = []
    if place.path is None:
        found.append(Finding("store", "ok", f"PostgreSQL: {place.where}"))
    elif not place.path.exists() and not place.needs_migration:
        return [Finding("store", "ok", "none yet; the first change or start makes it")]
    elif place.path.exists():
        found += _database(place.path)
        if found[0].level == "fail":
            return found
    return [*found, await _records(home, config)]


def _database(path: Path) -> list[Finding]:
    try:
        problems = list(examine_database(path))
    except AlknetError as exc:
        return [Finding("store", "fail", str(exc))]
    if not problems:
        return [Finding("store", "ok", f"{path}, undamaged, for its user alone")]
    return [
        Finding("store", "fail" if one.is_fatal else "warn", str(one), one.todo) for one in problems
    ]


async def _records(home: Path, config: NodeConfig) -> Finding:
    try:
        peers, tokens = await examine_records(home, config)
    except StoreProblem as exc:
        return Finding("peers", "fail" if exc.is_fatal else "warn", str(exc), exc.todo)
    except AlknetError as exc:
        return Finding("peers", "fail", str(exc))
    return Finding("peers", "ok", f"{peers} peers, {tokens} tokens are readable")


def _clock() -> Finding:
    if wall_clock() < EARLIEST_TIME:
        todo = "set it, by NTP: tokens and certificates expire by it"
        return Finding("clock", "fail", "the clock is years behind", todo)
    return Finding("clock", "ok", "plausible")


def _buffers() -> Finding:
    """What the kernel really gives for a receive buffer (it doubles what it grants)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WANTED_BUFFER_BYTES)
        granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    message = f"UDP receive buffers of {granted // 1024} KiB"
    if granted < LOW_BUFFER_BYTES:
        todo = f"sysctl -w net.core.rmem_max={WANTED_BUFFER_BYTES} loses less under load"
        return Finding("buffers", "warn", message, todo)
    return Finding("buffers", "ok", message)


def _ipv6() -> Finding:
    """Whether sockets can be made and anything outside has a route; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.connect(("2001:db8::1", 9))
    except OSError as exc:
        if exc.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            todo = "listen on 0.0.0.0 instead of [::]"
            return Finding("ipv6", "warn", "this machine has no IPv6", todo)
        return Finding("ipv6", "warn", "no IPv6 route to the Internet: peers must use IPv4")
    return Finding("ipv6", "ok", "available")


async def _node(home: Path) -> tuple[Status | None, Finding]:
    """Ask the running node how it is."""
    try:
        with trio.fail_after(ASK_WITHIN_S):
            async with open_control_session(home) as session:
                output = await session.call("node/status", {})
    except Unavailable:
        return None, Finding("node", "ok", "does not run; start it with 'alknet up'")
    except trio.TooSlowError:
        todo = "stop it with SIGTERM, or SIGKILL, and start it again"
        return None, Finding("node", "fail", f"runs but did not answer in {ASK_WITHIN_S:g} s", todo)
    except (AlknetError, OSError) as exc:
        return None, Finding("node", "fail", f"its control socket does not work: {exc}")
    status = msgspec.json.decode(output, type=Status)
    return status, Finding("node", "ok", f"runs, with {len(status['connections'])} connections")


def _ports(home: Path) -> Iterator[Finding]:
    """Whether the configured ports could be bound now, both kinds."""
    for address in _config_or_defaults(home).listen:
        taken = [name for name, kind in _KINDS.items() if not _is_free(address, kind)]
        if taken:
            kinds = " and ".join(taken)
            todo = "end the program that holds it ('ss -lntup' names it), or change node.listen"
            yield Finding("port", "fail", f"{address} cannot be bound on {kinds}", todo)
        else:
            yield Finding("port", "ok", f"{address} is free on UDP and TCP")


def _is_free(address: Address, kind: socket.SocketKind) -> bool:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, kind) as sock:
            if kind is socket.SOCK_STREAM:  # as the node does: TIME_WAIT is no obstacle
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port))
    except OSError:
        return False
    return True


async def _reach(home: Path, status: Status, transport: str) -> Finding:
    """Dial the node from here, as a peer would, and let it answer a ping."""
    try:
        key = _key_if_unlocked(home)
        rtt_ms = await _ping(status, transport, key)
    except DialError as exc:
        outcomes = "; ".join(f"{one.address}: {one.outcome}" for one in exc.attempts)
        todo = f"does a firewall drop {'UDP' if transport == 'quic' else 'TCP'} on that port?"
        return Finding(transport, "fail", f"the node is not reached: {outcomes}", todo)
    except (AlknetError, trio.TooSlowError, OSError) as exc:
        return Finding(transport, "fail", f"the node does not answer: {exc}")
    return Finding(transport, "ok", f"the node answers in {rtt_ms:.1f} ms")


def _key_if_unlocked(home: Path) -> Ed25519PrivateKey:
    """Return the node's key, or any: a stranger may ping as well."""
    try:
        return home_identity(home)
    except Unavailable:
        return Ed25519PrivateKey.generate()


async def _ping(status: Status, transport: str, key: Ed25519PrivateKey) -> float:
    addresses = [_dialable(one["address"]) for one in status["listen"]]
    with trio.fail_after(ASK_WITHIN_S):
        async with open_session(
            status["id"],
            addresses=list(dict.fromkeys(addresses)),
            key=key,
            transports=[transport],
            limits=Limits(dial_timeout_s=ASK_WITHIN_S - 1),
        ) as session:
            began = trio.current_time()
            await session.call("node/ping", {})
            return (trio.current_time() - began) * 1000


def _dialable(text: str) -> Address:
    """Return where a listener is reached from this machine: wildcards are not."""
    address = Address.parse(text)
    if not address.is_unspecified:
        return address
    # "::" takes IPv4 too, which a machine without an IPv6 loopback still has.
    return Address("127.0.0.1", address.port)


def _config_or_defaults(home: Path) -> NodeConfig:
    try:
        return load_config(home / CONFIG_FILE)
    except AlknetError:
        return NodeConfig()


_KINDS = {"UDP": socket.SOCK_DGRAM, "TCP": socket.SOCK_STREAM}
