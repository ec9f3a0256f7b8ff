"""From a request to a running operation: who asks, may they, is the input right.

`OperationDispatcher.admit` decides at once, from memory, in this order; the first that fails is
all that the caller learns:

1. the name is well formed (`NOT_FOUND` otherwise);
2. the request's token, if it has one, is good: it replaces the identity for this request only;
3. the operation exists and is external; an internal one looks missing;
4. the caller has the scopes;
5. the input decodes (so nobody without the scopes can probe it);
6. the caller owns, or is granted, the resource that the decoded input names.

What then runs is an `alknet.call.admitted.Admitted`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from alknet.call.admitted import Admitted, CommandCall, LayeredCall
from alknet.call.codes import CallError, ErrorCode, call_error_from
from alknet.call.composer import Composer
from alknet.call.composition import child_info
from alknet.call.context import CallInfo, Context, Remote
from alknet.call.operations import Operation
from alknet.call.overlay import Layer, LayeredEntry, session_entry
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.forwarding import ForwardedCall, Forwarder
from alknet.call.registry import Provenance, Registry
from alknet.call.resources import Resources
from alknet.call.schema import Mismatch
from alknet.call.secret import CallSecrets
from alknet.call.sharing import RepeatedCalls
from alknet.call.survivors import Survivors
from alknet.call.visibility import (
    CheckedResource,
    ScopeVerdicts,
    check_scopes,
    no_such_operation,
    operation_name,
)
from alknet.core.access import MissingResourceId, check_access
from alknet.core.contracts import Connection, IdentityProvider, OwnershipProvider, SecretProvider
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.errors import Denied, Unavailable

if TYPE_CHECKING:
    from alknet.call.contracts import Dispatcher
    from alknet.call.proto import Requested

__all__ = ["OperationDispatcher"]


class OperationDispatcher:
    """Runs requests against a registry, on behalf of whom they come from.

    The registry is frozen from then on: nothing appears that was not there when the node started,
    and what operations declare to call on this node is there, or it does not start.

    Attributes:
        registry: What can be called.
        identities: Who a token is.
        ownership: Who owns what.
        secrets: Where handlers' secrets come from; None, and none can be had.
        peers: Whom handlers can call beside this node.
        resources: Where what handlers spawn lives; None, and they can spawn nothing.
        limits: `Limits.call_timeout_s` and `Limits.call_timeout_max_s` count; may be replaced
            at any time, for the calls that come after.
        repeated: The calls with an idempotency key.
        forwarder: Passes requests on to peers; None, and every peer is out of reach. May be set at
            any time.
        survivors: The calls that may outlive those that made them, once it is served.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        identities: IdentityProvider,
        ownership: OwnershipProvider,
        limits: Limits,
        secrets: SecretProvider | None = None,
        peers: PeerEnvironment | None = None,
        resources: Resources | None = None,
    ) -> None:
        registry.freeze()
        self.registry = registry
        self.identities = identities
        self.ownership = ownership
        self.limits = limits
        self.secrets = secrets
        self.peers = PeerEnvironment() if peers is None else peers
        self.resources = resources
        self.repeated = RepeatedCalls(lambda: self.limits)
        if resources is not None:
            self.repeated.incarnation = resources.ownership.incarnation
        self.forwarder: Forwarder | None = None
        self.survivors = Survivors(lambda: self.limits)
        self._scopes = ScopeVerdicts()
        self._compose = self._make_composer  # kept, for a method is bound anew each time

    def admit(
        self, request: Requested, *, connection: Connection, session: object
    ) -> Admitted | ForwardedCall:
        """Decide whether *request* may run, and return what runs it: here, or on a peer.

        Raises:
            CallError: It may not. `CallError.is_failed_authentication` says that its token was
                refused.
        """
        if request.peer:
            return self._admit_for_peer(request, connection)
        name = request.operation
        layered = None
        entry = self.registry.lookup(name)
        if entry is None:  # what is registered needs no look at its name
            name = operation_name(name)
            entry = self.registry.lookup(name)
            if entry is None:
                entry = layered = session_entry(session, name)
        identity = self._identity(request, connection)
        if entry is None or entry.operation.spec.internal:
            raise no_such_operation(name)
        operation = entry.operation
        self._scopes.check(operation, identity)
        value = _decode_input_untrusted(operation, request.input)
        resource = self._check_resource(operation, identity, value)
        info = CallInfo(
            request_id=request.id,
            operation=name,
            identity=identity,
            remote=Remote(connection.remote_address, connection.peer_key, connection.carrier.name),
            forwarded_for=request.forwarded_for,
            traceparent=request.traceparent,
            idempotency_key=request.idempotency_key,
            session=session,
        )
        context = self._context(operation, info, layered)
        timeout_s = self._timeout_s(operation)
        used_token = request.auth_token is not None
        if layered is not None:
            return LayeredCall(
                layered, context, value, timeout_s, used_token=used_token, resource=resource
            )
        if entry.provenance is Provenance.COMMAND:
            return CommandCall(
                operation,
                context,
                value,
                timeout_s=timeout_s,
                used_token=used_token,
                lookup=self.registry.lookup,
            )
        return Admitted(
            operation,
            context,
            value,
            timeout_s=timeout_s,
            used_token=used_token,
            resource=resource,
        )

    def admit_child(
        self,
        caller: Operation[..., Any],
        parent: Context,
        operation_id: str,
        data: msgspec.Raw,
        home: Layer | None = None,
    ) -> Admitted:
        """Decide whether the operation *caller*, in the call *parent*, may call another.

        Args:
            home: The layer that *caller* is of itself.

        Raises:
            CallError: It may not; see `alknet.call.composition`.
        """
        name = operation_name(operation_id)
        entry, layered = None, None
        if caller.reach.allows_local(name):
            entry = self.registry.lookup(name)
            if entry is None and home is not None:
                entry = layered = home.lookup(name)
        if entry is None and parent.layers:  # those that it opened itself need no declaration
            found = (layer.lookup(name) for layer in parent.layers)
            entry = layered = next(filter(None, found), None)
        if entry is None:
            raise no_such_operation(name)
        operation = entry.operation
        info = child_info(parent.info, caller.spec, name)
        check_scopes(operation, info.identity)
        value = _decode_input_untrusted(operation, data)
        self._check_resource(operation, info.identity, value)
        context = self._context(operation, info, layered)
        context.lineage = parent.lineage
        timeout_s = self._timeout_s(operation)
        if layered is not None:
            return LayeredCall(layered, context, value, timeout_s, used_token=False)
        return Admitted(operation, context, value, timeout_s=timeout_s, used_token=False)

    def _admit_for_peer(self, request: Requested, connection: Connection) -> ForwardedCall:
        name = operation_name(request.operation)
        identity = self._identity(request, connection)
        if self.forwarder is None:
            raise no_such_operation(name)
        return self.forwarder.admit(request, identity=identity, connection=connection)

    def _context(
        self, operation: Operation[..., Any], info: CallInfo, layered: LayeredEntry | None = None
    ) -> Context:
        compose = self._compose if layered is None else layered.compose
        declared = operation.spec.secrets
        secrets = CallSecrets(self.secrets, declared) if declared else None
        return Context(info, self.ownership, compose, secrets, self.resources)

    def _make_composer(self, parent: Context) -> Composer:
        entry = self.registry.lookup(parent.operation)
        assert entry is not None  # only commands come and go, and they call nothing
        return Composer(self, entry.operation)

    def _identity(self, request: Requested, connection: Connection) -> Identity:
        try:
            if request.auth_token is None:
                if not _is_local(connection.identity):
                    self.identities.check_fresh()
                return connection.identity
            return self.identities.identify_token(request.auth_token)
        except Denied as exc:
            raise CallError(
                ErrorCode.FORBIDDEN, exc.reason, is_failed_authentication=True
            ) from None
        except Unavailable as exc:  # a stale store says nothing about the token
            raise call_error_from(exc) or exc from None

    def _check_resource(
        self, operation: Operation[..., Any], identity: Identity, value: object
    ) -> CheckedResource | None:
        pointer = operation.resource_id
        if pointer is None:
            return None
        found = pointer.resolve(value)
        resource_id = found if isinstance(found, str) else ""
        try:
            check_access(
                operation.spec.access,
                identity,
                resource_id,
                has_resource_path=True,
                ownership=self.ownership,
            )
        except MissingResourceId:
            raise _invalid_input(pointer.text, "a resource id is needed, a string") from None
        except (Denied, Unavailable) as exc:
            raise call_error_from(exc) or exc from None
        return CheckedResource(resource_id, self.ownership)

    def _timeout_s(self, operation: Operation[..., Any]) -> float | None:
        declared = operation.spec.max_duration_s
        if declared is None and operation.spec.op_type.has_items:
            return None
        longest = self.limits.call_timeout_max_s
        return min(self.limits.call_timeout_s if declared is None else declared, longest)


def _is_local(identity: Identity) -> bool:
    """Whether no store stands behind it: the person at the control socket, and nobody."""
    return identity.is_owner or identity.is_anonymous


def _decode_input_untrusted(operation: Operation[..., Any], data: bytes | msgspec.Raw) -> object:
    try:
        return operation.input.decode_untrusted(data)
    except Mismatch as exc:
        raise _invalid_input(exc.path, exc.message) from None


def _invalid_input(path: str, message: str) -> CallError:
    where = f" at {path}" if path else ""
    return CallError(
        ErrorCode.INVALID_INPUT, f"invalid input{where}: {message}", details={"path": path}
    )


if TYPE_CHECKING:
    _dispatcher: type[Dispatcher] = OperationDispatcher
