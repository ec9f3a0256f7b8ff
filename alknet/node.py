"""A node: the composition root, where stores, handlers and listeners are named and wired.

``async with Node(...) as node:`` runs one inside a program; the CLI's ``up`` does the same with
`Node.from_home` and `Node.run_until_stopped`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.audited import audited
from alknet.call.builtin import builtin_operations
from alknet.call.discovery import DescribedOperation, describe_fully, discovery_operations
from alknet.call.dispatch import OperationDispatcher
from alknet.call.enrolment import EnrolmentHandler
from alknet.call.handler import CallHandler
from alknet.call.operations import Operation
from alknet.call.outbound_session import OutboundSessions
from alknet.call.peers import PeerEnvironment
from alknet.call.peers.federation import Federation
from alknet.call.registry import Registry
from alknet.call.resource_operations import resource_operations
from alknet.call.resources import Resources
from alknet.call.succeed import succeed_operation
from alknet.call.succession import succession_operation
from alknet.call.telling import SuccessionTeller
from alknet.call.vault_operations import vault_operations
from alknet.call.views import OperationViews
from alknet.commands.operations import command_operations, warn_of_unconfined
from alknet.commands.runner import CommandRunner
from alknet.core.address import Address
from alknet.core.clock import wall_clock
from alknet.core.config import NodeConfig, what_changed, what_needs_restart
from alknet.core.config_file import ConfigFile
from alknet.core.contracts import Connection, ProtocolHandler
from alknet.core.endpoint.control import serve_control
from alknet.core.endpoint.endpoint import Endpoint
from alknet.core.endpoint.interfaces import reachable_addresses
from alknet.core.endpoint.listen import Listening, Port, alpns_on, bind_ports, listen
from alknet.core.endpoint.tasks import task_tree
from alknet.core.identity import Identity, NodeId, Peer
from alknet.core.quic.endpoint import QuicEndpoint
from alknet.core.quic.qlog import QlogDirectory
from alknet.core.quic.reset import ResetKey
from alknet.core.router import Router
from alknet.core.scopes import open_background
from alknet.core.tcp.handshake import accept_tls
from alknet.core.tcp.turns import Turn
from alknet.core.tcp.webfiles import load_web_certificates
from alknet.core.ticket import Ticket
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.vault_pipe import receive_entropy, remove_stale_pipes
from alknet.core.vault_service import VaultService
from alknet.errors import AlknetError, LocalError
from alknet.http import NotFoundHandler, NotFoundOverQuic
from alknet.stores.audit_repeats import AuditRepeats
from alknet.stores.credentials import Credentials
from alknet.stores.deferred import DeferredStore
from alknet.stores.enrolment import EnrolmentTokens
from alknet.stores.home import HomeStore, describe_store
from alknet.stores.homelock import hold_home
from alknet.stores.identities import StoredIdentities
from alknet.stores.lease import hold_lease
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.outbound import StoredOutbound
from alknet.stores.ownership import StoredOwnership
from alknet.stores.succession import read_succession
from alknet.stores.successors import StoredSuccessors, StoredTold
from alknet.vault.homevault import home_vault
from alknet.vault.resetkey import load_reset_key
from alknet.vault.vault import Vault

__all__ = ["Node"]

log = logging.getLogger(__name__)


class Node:
    """One identity, one port number, many protocols.

    Attributes:
        id: The node's public key.
        config: What is in force.
        identities: Peers and API keys; written by commands, or by you. With a home, they are there
            while the node runs; so are the next five, which are on the same store.
        ownership: Who owns which runtime resource of this node.
        resources: What handlers have spawned.
        sealed: Credentials of services, which only the vault opens.
        enrolments: Invitations to become a peer.
        outbound: The peers to which a connection is kept.
        successors: New keys of peers, which wait for the owner.
        peers: Those that are attached, whose operations this node can call.
        endpoint: Connections and their supervision.
        registry: The operations that `alknet/call` serves.
        listening: What it listens on, once it runs.
        vault: Its secrets; None for a node without a home.
    """

    def __init__(  # noqa: PLR0913  each is a part of the node, and named
        self,
        key: Ed25519PrivateKey | None = None,
        *,
        config: NodeConfig | None = None,
        identities: StoredIdentities | None = None,
        operations: Iterable[Operation[..., Any]] = (),
        handlers: Iterable[ProtocolHandler] = (),
        home: Path | None = None,
        qlog: Path | None = None,
        vault: Vault | None = None,
    ) -> None:
        """Wire a node; it runs inside ``async with``.

        Args:
            key: Who it is; a fresh key if None, good for a test or a client.
            config: As from ``node.toml``; without one it listens on a free port of loopback.
            identities: Whom it knows; by default the peers of *config* alone.
            operations: Your own, beside the built-in ones.
            handlers: Your own protocols, beside ``alknet/call``.
            home: Where the control socket and the lock are; None for neither.
            qlog: The directory for a qlog file of each QUIC connection, which costs much of the
                transport's speed; None for none.
            vault: That of *home*, which the node locks when it ends.

        Raises:
            LocalError: Two handlers claim an ALPN, two operations a name, nobody serves the
                default ALPN of *config*, or one of its certificates cannot be loaded or shown.
        """
        key = key or Ed25519PrivateKey.generate()
        self.config = config or NodeConfig(listen=(Address("127.0.0.1", 0),))
        self._started_with = self.config
        self.identities = identities or MemoryIdentityStore(self.config.peers)
        self.credentials = NodeCredentials(key, load_web_certificates(self.config.web_certificates))
        self.id: NodeId = self.credentials.node_id
        self.ownership = StoredOwnership(self.identities, self.id)
        self.resources = Resources(self.ownership, self.config.limits)
        self.peers = PeerEnvironment(self.id)
        self.sealed = Credentials(self.identities)
        self.enrolments = EnrolmentTokens(self.identities)
        self._signed_over = () if home is None else read_succession(home, bytes(self.id))
        self._former = [NodeId(one.old) for one in self._signed_over]
        self.outbound = StoredOutbound(
            self.identities,
            self.id,
            self.config.outbound,
            former=self._former,
        )
        self.successors = StoredSuccessors(self.identities)
        self._home_store: HomeStore | None = None
        self.listening: tuple[Listening, ...] = ()
        self._listen_override: tuple[Address, ...] | None = None
        self._home = home
        self._qlog_path = qlog
        self._config_file = None if home is None else ConfigFile(home)
        self._addresses: tuple[Address, ...] = ()
        self._bound: tuple[Address, ...] = ()
        self._quic: list[QuicEndpoint] = []
        self._started_at = wall_clock()
        self._running: AsyncExitStack | None = None
        self.vault = None
        if vault is not None:
            idle_s = self.config.vault.lock_after_s
            self.vault = VaultService(vault, lock_after_s=idle_s)
        self._wire(operations, handlers)
        self._check_default_alpn(self.config)

    @classmethod
    def from_home(
        cls,
        home: Path,
        *,
        listen: Sequence[Address] | None = None,
        operations: Iterable[Operation[..., Any]] = (),
        handlers: Iterable[ProtocolHandler] = (),
        qlog: Path | None = None,
        vault: Vault | None = None,
    ) -> Self:
        """Wire the node whose key, ``node.toml`` and state are in *home*.

        Blocks on small files, and for some 0.1 s on the vault, if it is not given unlocked.
        A home from before there were vaults gets one (`alknet.vault.homevault.home_vault`).

        Args:
            listen: Instead of the configured addresses.
            qlog: As for a `Node`.
            vault: That of *home*, unlocked; by default what lies in the home unlocks it.

        Raises:
            NotFound: There is no node in *home*.
            Unavailable: The vault needs a passphrase, or another key than lies in the home.
            LocalError: The configuration is wrong (`ConfigError` says where), or others can read
                the vault.
            StoreError: A file cannot be read or is damaged.
        """
        file = ConfigFile(home)
        config = file.load()
        if listen is not None:
            config = msgspec.structs.replace(config, listen=tuple(listen))
        place = HomeStore(home, config)
        identities = StoredIdentities(
            DeferredStore(), config.peers, max_staleness_s=place.max_staleness_s
        )
        vault = vault or home_vault(home, now=wall_clock())
        node = cls(
            vault.identity(),
            config=config,
            identities=identities,
            operations=operations,
            handlers=handlers,
            home=home,
            qlog=qlog,
            vault=vault,
        )
        node._home_store = place
        node._listen_override = None if listen is None else tuple(listen)
        node._config_file = file
        return node

    def __repr__(self) -> str:
        return f"<Node {self.id.short} {' '.join(entry.address for entry in self.listening)}>"

    # Life.

    async def __aenter__(self) -> Self:
        """Bind, start and listen.

        Raises:
            LocalError: An address cannot be bound, the home's ``reset.key`` is damaged, or no qlog
                files can be made.
            Conflict: A node runs on the same home.
            StoreError: A file of the home can be neither read nor written.
        """
        if self._running is not None:
            raise LocalError("this node runs already")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._run())
            self._running = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Drain, unless an exception or a cancel is on its way; then stop at once."""
        assert self._running is not None
        stack, self._running = self._running, None
        return await stack.__aexit__(kind, exc, traceback)

    @asynccontextmanager
    async def _run(self) -> AsyncGenerator[None]:
        with ExitStack() as held:
            if self._home is not None:
                held.enter_context(hold_home(self._home))
            qlog = None
            if self._qlog_path is not None:
                qlog = QlogDirectory(self._qlog_path)
                held.callback(qlog.close)  # when all connections have ended
            ports = await bind_ports(self.config.listen)
            for port in ports:
                held.callback(port.close)
            async with self._opened_store(), open_background() as nursery:
                if qlog is not None:
                    nursery.start_soon(qlog.run, name="qlog writer")
                await self._start(nursery, ports, qlog)
                yield
                await self._drain()
                await self.resources.aclose()

    @asynccontextmanager
    async def _opened_store(self) -> AsyncGenerator[None]:
        """Open the store of the home, if there is one, up to date and with its lease held."""
        place, deferred = self._home_store, self.identities.store
        if place is None or not isinstance(deferred, DeferredStore):
            yield
            return
        async with place.open() as store:
            with deferred.attached(store):
                if place.needs_migration:
                    await place.migrate(self.identities)
                self.identities.warn_of_conflicts()
                if not place.is_shared:  # the home's lock lets one process in
                    yield
                    return
                async with hold_lease(store, self.id) as lease, open_background() as nursery:
                    nursery.start_soon(lease.keep, name="lease")
                    yield

    async def _start(
        self, nursery: trio.Nursery, ports: Sequence[Port], qlog: QlogDirectory | None
    ) -> None:
        warn_of_unconfined(self.config.commands)
        await nursery.start(self.identities.watch_staleness)
        await nursery.start(self.peers.run)
        if self._former:
            await self.ownership.take_over(self._former)
        await nursery.start(self.resources.serve)
        await nursery.start(self._dispatcher.survivors.serve)
        nursery.start_soon(self._views.follow_rights, name="rights of watchers")
        nursery.start_soon(self._federation.follow_offerers, name="who may offer")
        nursery.start_soon(self._end_watches, name="end of watches")
        await nursery.start(self.endpoint.serve)
        reset_key = ResetKey(None if self._home is None else load_reset_key(self._home))
        self._quic = await nursery.start(
            listen, self.endpoint, ports, self.credentials, reset_key, qlog
        )
        if self.vault is not None:
            note = self.identities.audit.note
            locked = partial(note, "owner", "vault.lock", "", {"why": "idle"})
            await nursery.start(self.vault.lock_when_idle, locked)
            await nursery.start(self._repeats.run)
        if self._home is not None:
            remove_stale_pipes(self._home)
            await nursery.start(serve_control, self._home, self.endpoint)
        nursery.start_soon(self._teller.run, name="telling peers of the new key")
        await nursery.start(self._outbound.run)
        self._bound = tuple(port.address for port in ports)
        self._addresses = self._ticket_addresses()
        self.listening = tuple(self._describe(ports))

    async def _end_watches(self) -> None:
        await self.endpoint.draining.wait()
        self._views.end()

    async def _drain(self) -> None:
        until = trio.current_time() + self.config.limits.drain_timeout_s
        await self.endpoint.drain()
        await self._dispatcher.survivors.drain(until)

    async def run_until_stopped(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal hurries the drain.

        SIGHUP, and an edit of ``node.toml``, reload what can change without a restart.
        Only from the main thread. Started, it has the signals. Cancelled, it returns without a
        drain.
        """
        async with open_background() as nursery:
            nursery.start_soon(self._follow_config)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as arrived:
                task_status.started()
                async for number in arrived:
                    if number == signal.SIGHUP:
                        await self._try_reload()
                    else:
                        break
                log.info("node.draining", extra={"signal": signal.Signals(number).name})
                nursery.start_soon(self._hurry_on, arrived)
                await self._drain()

    async def _hurry_on(self, arrived: Any) -> None:
        async for number in arrived:
            if number != signal.SIGHUP:
                self.endpoint.hurry()
                self._dispatcher.survivors.hurry()

    # What it says of itself.

    def _ticket_addresses(self) -> tuple[Address, ...]:
        return self.config.advertise or reachable_addresses(self._bound)

    @property
    def ticket(self) -> Ticket:
        """What others need to dial this node; without addresses until it runs."""
        return Ticket(self.id, self._addresses)

    def status(self) -> dict[str, Any]:
        """Return what ``node/status`` shows, as JSON values."""
        away_for_s = self.endpoint.away_for_s()
        return {
            "id": str(self.id),
            "ticket": str(self.ticket),
            "version": version("alknet"),
            "uptime_s": round(wall_clock() - self._started_at, 3),
            "is_draining": self.endpoint.draining.is_set(),
            "listen": msgspec.to_builtins(self.listening),
            "handshakes": self.endpoint.handshakes,
            "calls": self._calls.calls_served(),
            "connections": msgspec.to_builtins(
                self.endpoint.connections(self._calls.calls_by_connection())
            ),
            "peers": [
                self._peer_status(peer, away_for_s.get(f"peer:{peer.name}"))
                for peer in self.identities.peers()
            ],
            "not_told_of_new_key": self._teller.untold_names(),
            "outbound": msgspec.to_builtins(self._outbound.status()),
            "resources": self.resources.counts(),
            "surviving_calls": len(self._dispatcher.survivors),
            "store": describe_store(self._home_store, self.identities),
            "datagrams_without_connection": [dict(quic.counters) for quic in self._quic],
        }

    def _peer_status(self, peer: Peer, away_for_s: float | None) -> dict[str, Any]:
        return {
            "name": peer.name,
            "enabled": peer.enabled,
            "fingerprints": list(peer.fingerprints),
            "scopes": list(peer.scopes),
            "away_for_s": None if away_for_s is None else round(away_for_s, 3),
            "waiting_keys": [str(one.key) for one in self.successors.waiting(peer)],
        }

    # Reloading.

    def reload(self) -> list[str]:
        """Read ``node.toml`` again and apply what can change while running.

        Returns:
            The keys that differ from what the node was made with, and need a restart.

        Raises:
            LocalError: It is wrong, or the node has no home; nothing was changed.
        """
        if self._config_file is None:
            raise LocalError("a node without a home has no configuration file")
        config = self._config_file.load()
        if self._listen_override is not None:
            config = msgspec.structs.replace(config, listen=self._listen_override)
        return self.apply(config)

    def apply(self, config: NodeConfig) -> list[str]:
        """Take over the peers, commands, limits, certificates and log level of *config*.

        Returns and raises like `reload`.
        """
        web = load_web_certificates(config.web_certificates)
        self._check_default_alpn(config)
        has_new_commands = config.commands != self.config.commands
        if has_new_commands:
            self.registry.set_commands(command_operations(config.commands, self._commands))
            warn_of_unconfined(config.commands)
        self.identities.set_config_peers(config.peers)
        self.identities.warn_of_conflicts()
        self.outbound.set_config(config.outbound)
        needs_restart = what_needs_restart(self._started_with, config)
        self.credentials.set_web(web)
        self.endpoint.limits = self._calls.limits = self._dispatcher.limits = config.limits
        self.resources.limits = config.limits
        self._federation.apply(config)
        if has_new_commands or config.re_exports != self.config.re_exports:
            self._calls.judge_again()
        self._register.limits = config.limits
        for quic in self._quic:
            quic.limits = config.limits
        if self.vault is not None and config.vault != self.config.vault:
            self.vault.lock_after(config.vault.lock_after_s)
        if config.log.level != self.config.log.level:
            logging.getLogger("alknet").setLevel(config.log.level.upper())
        self.config = config
        self._addresses = self._ticket_addresses()
        return needs_restart

    async def _try_reload(self) -> None:
        before = self.config
        try:
            needs_restart = self.reload()
        except AlknetError as exc:
            log.error("config.reload_failed", extra={"error": str(exc)})  # noqa: TRY400  the text says it all
        else:
            log.info("config.reloaded", extra={"needs_restart": needs_restart})
            changed = what_changed(before, self.config)
            if changed:
                await self.identities.audit.note("owner", "config.change", " ".join(changed))

    async def _follow_config(self) -> None:
        while self._config_file is not None:
            await self._config_file.wait_edited()
            await self._try_reload()

    # Wiring.

    def _wire(
        self, operations: Iterable[Operation[..., Any]], handlers: Iterable[ProtocolHandler]
    ) -> None:
        limits = self.config.limits
        self.registry = Registry()
        self.registry.extend(self._builtins(), builtin=True)
        note = self.identities.audit.note
        self._repeats = AuditRepeats(self.identities.audit)
        self.registry.extend(audited(resource_operations(self.resources), note), builtin=True)
        self._views = OperationViews(self.registry, describe_fully, self.identities)
        discovery = discovery_operations(self.registry, self._views, self._describe_at_peer)
        self.registry.extend(discovery, builtin=True)
        served = [succession_operation(self._signed_over), succeed_operation(self.successors)]
        self.registry.extend(served, builtin=True)
        self._teller = SuccessionTeller(
            self._signed_over,
            peers=self.identities,
            told=StoredTold(self.identities, self.id, self._signed_over),
            credentials=self.credentials,
            limits=limits,
        )
        if self.vault is not None and self._home is not None:
            receive = partial(receive_entropy, self._home)
            secrets = vault_operations(
                self.vault, receive_entropy=receive, rewrap_stored=self.sealed.rewrap
            )
            noted = audited(secrets, note, often=self._repeats.note)
            self.registry.extend(noted, builtin=True)
        self.registry.extend(operations)
        self._federation = Federation(
            self.peers, self.registry, self.identities, self.config, dialled=self.outbound
        )
        self._commands = CommandRunner(lambda: self.config.limits.commands)
        self.registry.set_commands(command_operations(self.config.commands, self._commands))
        self._dispatcher = OperationDispatcher(
            self.registry,
            identities=self.identities,
            ownership=self.ownership,
            limits=limits,
            secrets=self.vault,
            peers=self.peers,
            resources=self.resources,
        )
        self._dispatcher.forwarder = self._federation.forwarder
        self._calls = CallHandler(
            self._dispatcher,
            limits,
            identities=self.identities,
            on_failed_authentication=self._count_failed_authentication,
        )
        self.peers.wait_unneeded = self._calls.wait_served
        self._register = EnrolmentHandler(
            self.enrolments,
            limits,
            identities=self.identities,
            ownership=self.ownership,
            ticket=lambda: self.ticket,
            on_failed_authentication=self._count_failed_authentication,
        )
        own: list[ProtocolHandler] = [self._calls, self._register, *handlers]
        for placeholder in (NotFoundHandler(), NotFoundOverQuic()):
            if not any(placeholder.alpns[0] in handler.alpns for handler in own):
                own.append(placeholder)
        self.endpoint = Endpoint(Router(own), self.identities, limits, accept_tls=self._accept_tls)
        self._outbound = OutboundSessions(
            self.outbound,
            endpoint=self.endpoint,
            credentials=self.credentials,
            calls=self._calls,
            environment=self.peers,
            follow=self._federation.follow,
        )

    def _describe_at_peer(
        self, identity: Identity, route: Sequence[str], name: str
    ) -> DescribedOperation | None:
        return self._federation.describe(identity, route, name)

    def _count_failed_authentication(self, connection: Connection) -> bool:
        return self.endpoint.report_failed_authentication(connection)

    def _builtins(self) -> Sequence[Operation[..., Any]]:
        return builtin_operations(
            self.id,
            version=version("alknet"),
            alpns=lambda: self.endpoint.router.alpns,
            status=self.status,
            tasks=lambda: msgspec.to_builtins(task_tree()),
        )

    async def _accept_tls(
        self, stream: trio.abc.Stream, alpns: Sequence[str], turn: Turn
    ) -> Connection:
        served = alpns_on("tcp", alpns)
        default = self.config.default_alpn
        return await accept_tls(stream, self.credentials, served, default, turn=turn)

    def _check_default_alpn(self, config: NodeConfig) -> None:
        served = alpns_on("tcp", self.endpoint.router.alpns)
        if config.default_alpn not in {None, *served}:
            raise LocalError(
                f"node.default_alpn: {config.default_alpn!r} is served by no handler, "
                f"expected one of {', '.join(served)}"
            )

    def _describe(self, ports: Sequence[Port]) -> Iterable[Listening]:
        for port in ports:
            for transport in ("quic", "tcp"):
                alpns = alpns_on(transport, self.endpoint.router.alpns)
                yield Listening(transport, str(port.address), alpns)
