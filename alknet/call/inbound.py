"""A request of the peer that runs: what it is, what ends it, and what its caller then gets."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.contracts import AdmittedCall
from alknet.call.credit import SendCredit
from alknet.call.inputs import InputItems
from alknet.call.proto import Aborted, Event, Failed, Requested
from alknet.call.sharing import KeyedCall
from alknet.core.identity import Identity

if TYPE_CHECKING:
    from alknet.call.streams import CallStream

__all__ = ["REVOKED", "SHUTDOWN", "InboundCall", "failed"]

log = logging.getLogger(__name__)

# Reasons of a callee's ``call.aborted``.
REVOKED = "revoked"
SHUTDOWN = "shutdown"


class InboundCall:
    """A request of the peer that runs.

    Attributes:
        id: Chosen by the peer.
        operation: Registry name.
        op_type: The kind of that operation.
        identity: Whom it runs for.
        auth_token: The token that it came with, if that is why it runs. Secret.
        stream: Where it came and where its answer goes.
        credit: Items that it may send; None where flow control alone decides.
        inputs: What the caller of an upload or bidirectional call has sent; None for other kinds.
        keyed: What makes it known again; None if it has no idempotency key, or does not need one.
        ends_at: When its deadline or its token ends it, in `trio.current_time`.
    """

    __slots__ = (
        "_deadline",
        "_is_cancelled",
        "_scope",
        "_verdict",
        "admitted",
        "auth_token",
        "credit",
        "ends_at",
        "id",
        "identity",
        "input_bytes",
        "inputs",
        "keyed",
        "op_type",
        "operation",
        "stream",
    )

    def __init__(
        self,
        request: Requested,
        admitted: AdmittedCall,
        stream: CallStream,
        *,
        deadline: float,
        expires_at: float = math.inf,
    ) -> None:
        self.id = request.id
        self.operation = request.operation
        self.input_bytes = len(request.input)
        self.identity: Identity = admitted.identity
        self.auth_token = request.auth_token if admitted.used_token else None
        self.admitted = admitted
        self.op_type = admitted.op_type
        self.stream = stream
        self.credit = None if request.window is None else SendCredit(request.window)
        self.inputs: InputItems | None = None
        self.keyed: KeyedCall | None = None
        is_sooner = expires_at <= deadline
        self.ends_at = expires_at if is_sooner else deadline
        self._deadline = deadline
        self._scope: trio.CancelScope | None = None
        self._is_cancelled = False
        self._verdict: Event | None = Aborted(self.id, REVOKED) if is_sooner else None

    def __repr__(self) -> str:
        return f"<InboundCall {self.id} {self.operation} as {self.identity.id}>"

    @property
    def is_cancelled(self) -> bool:
        """It was ended by `end` or by the time, though its handler may still run."""
        return self._is_cancelled or trio.current_time() >= self.ends_at

    def enter(self, scope: trio.CancelScope) -> None:
        """Let *scope*, in which it is about to run, end it. Others may have run there before."""
        self._scope = scope
        if self._is_cancelled:
            scope.cancel()
        elif scope.deadline != self.ends_at:
            scope.deadline = self.ends_at

    def leave(self) -> None:
        """Let its scope go: the next call may run there."""
        self._scope = None

    def expire_at(self, expires_at: float) -> None:
        """Let its token end it then, in `trio.current_time`, if its deadline does not before."""
        if not self.is_cancelled:
            is_sooner = expires_at <= self._deadline
            self._verdict = Aborted(self.id, REVOKED) if is_sooner else None
            self.ends_at = min(self._deadline, expires_at)
            if self._scope is not None:
                self._scope.deadline = self.ends_at

    def go_on_as(self, identity: Identity) -> None:
        """Go on with the rights that its caller has now, or end where they are not enough."""
        if self.is_cancelled:
            return
        try:
            (self.keyed or self.admitted).readmit(identity)
        except CallError as exc:
            log.info("call.revoked", extra=self._about(exc.message))
            why = f"the right to it was taken away: {exc.message}"
            self.end(failed(self.id, ErrorCode.FORBIDDEN, why))
        else:
            self.identity = identity

    def end(self, verdict: Event) -> None:
        """Cancel it; *verdict* is what the caller gets, unless it ends on its own before."""
        if not self.is_cancelled:
            self._verdict = verdict
            self._is_cancelled = True
            if self._scope is not None:
                self._scope.cancel()

    @property
    def verdict(self) -> Event:
        """What to send after it was cancelled: by `end`, or else by its deadline."""
        if self._verdict is not None:
            return self._verdict
        return failed(self.id, ErrorCode.TIMEOUT, "the operation took longer than it may")

    def _about(self, reason: str) -> dict[str, object]:
        return {
            "operation": self.operation,
            "request_id": self.id,
            "identity": self.identity.id,
            "reason": reason,
        }


def failed(call_id: str, code: ErrorCode, message: str) -> Failed:
    """Return the end of a call that failed."""
    return Failed.of(call_id, CallError(code, message))
