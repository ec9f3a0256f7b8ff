"""Requests that are for a peer of this node: who may pass, and how they pass.

A request whose ``peer`` names a route is for the node at its end. Each node on the way decides by
itself, in this order; the first that fails is all that the caller learns:

1. the *direct* caller needs a ``[[re_export]]`` rule of this node for this route and operation. No
   rule about it is `NOT_FOUND`, exactly as if nothing were there; rules that are about it, and none
   that lets the caller pass, `FORBIDDEN`. The owner of the node needs no rule;
2. ``path``, the nodes that the request has passed, must not hold this one, and not be full;
3. the peer must be attached, and at the end of a route offer the operation.

The next node sees *this* node as its caller and checks that. Who asked first rides along in
``forwarded_for``, as data, and so do the trace context, the idempotency key and what is left of the
time; a token ends here. Aborts go on to the last node, and items wait where the next has no room.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.handles import Bidi, CallOptions, Subscription, Upload
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.imports import ImportedOperation
from alknet.call.peers.reference import PeerRef
from alknet.call.proto import Requested
from alknet.call.proto.events import NOT_STARTED
from alknet.call.spec import OpType
from alknet.call.visibility import NOBODY_OWNS, no_such_operation
from alknet.core.access import check_access
from alknet.core.config_re_export import ANY_PEER, ReExport
from alknet.core.contracts import Connection
from alknet.core.identity import Identity, NodeId
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.errors import Denied, LocalError

if TYPE_CHECKING:
    from alknet.call.contracts import AdmittedCall

__all__ = ["MOST_HOPS", "ForwardedCall", "Forwarder", "reference"]

log = logging.getLogger(__name__)

MOST_HOPS = 8
"""Nodes that a request may have passed; routes are as long at the most."""


class Forwarder:
    """Decides which requests pass this node.

    Attributes:
        environment: The peers of this node.
        rules: Of this node; may be replaced at any time, for the requests that come after.
    """

    def __init__(
        self,
        environment: PeerEnvironment,
        *,
        node_id: NodeId,
        limits: Callable[[], Limits],
        rules: Sequence[ReExport] = (),
        op_type_here: Callable[[str], OpType | None] = lambda _name: None,
        why_absent: Callable[[str], str | None] = lambda _name: None,
    ) -> None:
        """Make one.

        Args:
            environment: The peers of this node.
            node_id: Of this node.
            limits: `Limits.call_timeout_max_s` of the time counts.
            op_type_here: The kind of the node's own operation of a name that means the same on
                each node; None for all others.
            why_absent: Why a peer is not attached; None, there is no such peer.
        """
        self.rules = tuple(rules)
        self.environment = environment
        self._node_id = str(node_id)
        self._limits = limits
        self._op_type_here = op_type_here
        self._why_absent = why_absent
        self._strangers: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()

    def admit(
        self, request: Requested, *, identity: Identity, connection: Connection
    ) -> ForwardedCall:
        """Decide whether *request*, whose ``peer`` is not empty, may pass for *identity*.

        Args:
            connection: By which it came; it tells strangers apart.

        Raises:
            CallError: It may not.
        """
        route, name = request.peer, request.operation
        assert route
        self.check_rules(identity, route, name)
        self._check_path(request.path)
        ref = reference(route[0], name)
        known = self._offer(ref, request, identity)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("call.forwarded", extra=_about(request, identity))
        op_type = known.op_type if known is not None else self._op_type(request)
        longest_s = self._limits().call_timeout_max_s
        return ForwardedCall(
            self,
            ref,
            request,
            identity=identity,
            op_type=op_type,
            timeout_s=None if op_type.has_items else longest_s,
            options=CallOptions(
                forwarded_for=request.forwarded_for or identity,
                traceparent=request.traceparent,
                idempotency_key=_key(request, identity, self._speaker(identity, connection)),
                peer=route[1:] or None,
                path=(*request.path, self._node_id),
                large_output=known is not None and known.large_output,
            ),
        )

    def may_call(self, identity: Identity, route: Sequence[str], operation: str) -> bool:
        """Whether the rules let *identity* pass; whether anyone is there is not looked at."""
        if identity.is_owner:
            return True
        return any(
            rule.covers(route, operation) and _refusal(rule, identity) is None
            for rule in self.rules
        )

    def said_by(self, error: CallError, request: Requested, identity: Identity) -> tuple[str, ...]:
        """Return which part of the route of *request* leads to who has said *error*.

        It is what *identity* has asked for, and no more; `any` becomes a name where *identity*
        could call that peer by its name. Of `NOT_FOUND` nothing is told: it would show how far
        the rules of the nodes on the way reach.
        """
        by = error.by
        if not by or error.code == ErrorCode.NOT_FOUND:
            return ()
        known = tuple(request.peer or ())[: len(by)]
        if known[-1] == ANY_PEER:
            named = (*known[:-1], by[len(known) - 1])
            if self.may_call(identity, named, request.operation):
                return named
        return known

    def rules_for(self, identity: Identity) -> tuple[ReExport, ...]:
        """Return the rules by which *identity* may pass; the owner needs none and gets none."""
        return tuple(rule for rule in self.rules if _refusal(rule, identity) is None)

    def check_rules(self, identity: Identity, route: Sequence[str], operation: str) -> None:
        """Return if the rules of now let *identity* pass.

        Raises:
            CallError: `NOT_FOUND` or `FORBIDDEN`, they do not.
        """
        if identity.is_owner:
            return
        refusal: Denied | None = None
        for rule in self.rules:
            if rule.covers(route, operation):
                denied = _refusal(rule, identity)
                if denied is None:
                    return
                refusal = refusal or denied
        if refusal is None:
            raise no_such_operation(operation)
        raise CallError(ErrorCode.FORBIDDEN, refusal.reason)

    def _check_path(self, path: Sequence[str]) -> None:
        if self._node_id in path:
            why = "the route comes back to a node that the request has passed"
            raise CallError(ErrorCode.INVALID_INPUT, why)
        if len(path) >= MOST_HOPS:
            why = f"the request has passed {MOST_HOPS} nodes, and would have to go on"
            raise CallError(ErrorCode.INVALID_INPUT, why)

    def _speaker(self, identity: Identity, connection: Connection) -> str:
        """Return who asks here: the id, and of strangers, who all have one, what else there is."""
        if not identity.is_anonymous:
            return identity.id
        if connection.peer_key is not None:
            return f"{identity.id} {connection.peer_key}"
        return self._strangers.setdefault(connection, secrets.token_hex(16))

    def _offer(
        self, ref: PeerRef, request: Requested, identity: Identity
    ) -> ImportedOperation | None:
        """Return how the next node describes the operation; None where only later ones know it.

        Raises:
            CallError: The next node is not there, or does not offer it.
        """
        name, is_last = request.operation, len(request.peer or ()) == 1
        if ref.name is None:
            offered = self.environment.offer_of(name)
            return offered if is_last else None
        peer = self.environment.get(ref.name)
        if peer is None:
            why_absent = self._why_absent(ref.name)
            if why_absent is None:
                raise no_such_operation(name)
            raise CallError(ErrorCode.UNAVAILABLE, why_absent)
        found = peer.operations.get(name) if is_last else None
        if found is None and is_last and not identity.is_owner:
            if peer.operations_version is not None:
                raise no_such_operation(name)
            why = f"the peer {ref.name!r} has not said yet what it offers"
            raise CallError(ErrorCode.UNAVAILABLE, why)
        return found

    def _op_type(self, request: Requested) -> OpType:
        """Return how an operation runs that only nodes further on know: as its caller said.

        A caller from whom the operation is kept does not know its kind, and calls it as a query:
        that it may not is for the next node to say.
        """
        said = _OP_TYPES[request.window is not None, request.has_input_items]
        here = self._op_type_here(request.operation)
        if here is None or _ways(here) != _ways(said):
            return said
        return here


class ForwardedCall:
    """A request that may pass, once: what the operation is to others, it is to us.

    Attributes:
        op_type: ``query``, ``mutation``, ``subscription``, ``upload`` or ``bidi``.
        timeout_s: The longest that this node lets it take; the node that runs it has its own.
        identity: Whom it was admitted for.
        used_token: *identity* came from the request's token.
        large_output: The operation declares that its output may be large.
    """

    __slots__ = (
        "_environment",
        "_forwarder",
        "_items",
        "_options",
        "_ref",
        "_request",
        "identity",
        "large_output",
        "op_type",
        "timeout_s",
        "used_token",
    )

    def __init__(
        self,
        forwarder: Forwarder,
        ref: PeerRef,
        request: Requested,
        *,
        identity: Identity,
        op_type: OpType,
        timeout_s: float | None,
        options: CallOptions,
    ) -> None:
        """Make one; *options* are those of the call to the next node, without its time-out."""
        self.op_type = op_type.value
        self.timeout_s = timeout_s
        self.identity = identity
        self.used_token = request.auth_token is not None
        self.large_output = options["large_output"]
        self._forwarder = forwarder
        self._environment = forwarder.environment
        self._ref = ref
        self._request = request
        self._options = options
        self._items: AsyncIterator[msgspec.Raw] | None = None

    def __repr__(self) -> str:
        return f"<ForwardedCall {self._request.operation} to {self._ref}>"

    def readmit(self, identity: Identity) -> None:
        """Let it go on as *identity*, which is its caller with other rights than before.

        Raises:
            CallError: The rules of now do not let it pass.
        """
        route = self._request.peer
        assert route
        self._forwarder.check_rules(identity, route, self._request.operation)
        self.identity = identity

    def feed(self, items: AsyncIterator[msgspec.Raw]) -> None:
        """Give an upload or bidirectional call its input items."""
        self._items = items

    async def run(self) -> bytes:
        """Have a query, mutation or upload run, and return its output as JSON.

        Cancelled, it is aborted where it runs. Raises CallError as it came.
        """
        try:
            return bytes(await self._run())
        except CallError as exc:
            raise self._passed_on(exc) from None

    async def _run(self) -> msgspec.Raw:
        request = self._request
        if self._items is None:
            return await self._environment.call(
                self._ref, request.operation, request.input, **self._timed()
            )
        async with self._environment.upload(
            self._ref, request.operation, request.input, **self._timed()
        ) as upload:
            await _send_all(upload, self._items)
            return await upload.finish()

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Have a subscription or bidirectional call run for as long as the block.

        The next item is taken from the peer when it is asked for. Raises CallError as it came.
        """
        try:
            async with self._stream() as items:
                yield _Items(items)
        except CallError as exc:
            raise self._passed_on(exc) from None

    @asynccontextmanager
    async def _stream(self) -> AsyncGenerator[Subscription]:
        request = self._request
        if self._items is None:
            async with self._environment.subscribe(
                self._ref, request.operation, request.input, **self._timed()
            ) as items:
                yield items
            return
        try:
            async with (
                self._environment.bidi(
                    self._ref, request.operation, request.input, **self._timed()
                ) as both,
                open_background() as nursery,
            ):
                nursery.start_soon(_pump, both, self._items, name="forwarded input")
                yield both
        except BaseExceptionGroup as group:  # an item that could not be passed on
            errors, rest = group.split(CallError)
            if errors is None or rest is not None:
                raise
            raise _first(errors) from None

    def _passed_on(self, error: CallError) -> CallError:
        """Return *error* for the caller: that nothing has run at the peer is true of the call."""
        if error.has_not_started and error.retryable:
            error.details = {**(error.details or {}), NOT_STARTED: True}
        error.by = self._forwarder.said_by(error, self._request, self.identity)
        error.is_passed_on = True
        return error

    def _timed(self) -> CallOptions:
        left_s = trio.current_effective_deadline() - trio.current_time()
        if left_s <= 0:
            raise CallError(ErrorCode.TIMEOUT, "no time is left to pass the request on")
        return {**self._options, "timeout_s": None if left_s == math.inf else left_s}


class _Items:
    def __init__(self, items: Subscription) -> None:
        self._items = items

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> bytes:
        return bytes(await self._items.__anext__())


async def _pump(both: Bidi, items: AsyncIterator[msgspec.Raw]) -> None:
    try:
        await _send_all(both, items)
        await both.finish()
    except CallError:
        if both.error is None:
            raise
        # The iteration raises it too, after the items that came before.


async def _send_all(to: Upload | Bidi, items: AsyncIterator[msgspec.Raw]) -> None:
    try:
        async for item in items:
            await to.send(item)
    except trio.BrokenResourceError:
        return  # it has answered, and takes no more


def _first(errors: BaseExceptionGroup[CallError]) -> CallError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def reference(name: str, operation: str) -> PeerRef:
    """Return whom *name*, the first of a route to *operation*, means.

    Raises:
        CallError: NOT_FOUND, as for an operation that is not there: no peer can have such a name.
    """
    try:
        return PeerRef.named(name)
    except LocalError:
        raise no_such_operation(operation) from None


def _key(request: Requested, identity: Identity, speaker: str) -> str | None:
    """Return the idempotency key to pass on.

    The next node keeps answers by originator, who may be anybody that the caller says: callers that
    speak for others get keys of their own, so that none is given the answer of another. So do
    strangers, who are one originator there.
    """
    key = request.idempotency_key
    is_originator = request.forwarded_for is None or request.forwarded_for.id == identity.id
    if key is None or (is_originator and not identity.is_anonymous):
        return key
    return hashlib.sha256(f"{speaker}\0{key}".encode()).hexdigest()


def _about(request: Requested, identity: Identity) -> dict[str, object]:
    return {
        "operation": request.operation,
        "route": "/".join(request.peer or ()),
        "identity": identity.id,
        "originator": (request.forwarded_for or identity).id,
    }


def _refusal(rule: ReExport, identity: Identity) -> Denied | None:
    try:
        check_access(rule.access, identity, None, has_resource_path=False, ownership=NOBODY_OWNS)
    except Denied as exc:
        return exc
    return None


def _ways(op_type: OpType) -> tuple[bool, bool]:
    return op_type.has_items, op_type.takes_items


# By whether items come back, and whether the caller sends some.
_OP_TYPES = {
    (False, False): OpType.QUERY,
    (True, False): OpType.SUBSCRIPTION,
    (False, True): OpType.UPLOAD,
    (True, True): OpType.BIDI,
}

if TYPE_CHECKING:
    _: type[AdmittedCall] = ForwardedCall
