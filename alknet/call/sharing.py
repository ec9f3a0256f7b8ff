"""One run for all who ask for it under the same idempotency key.

The handler runs in a task of its own, so that it outlives the call that began it for as long as
another waits. That task belongs to the session of the call, whose end waits for it: it lasts no
longer than somebody's deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from alknet.call.codes import CallError
from alknet.call.contracts import AdmittedCall
from alknet.call.crash import error_of
from alknet.call.idempotency import Answer, CallKey, IdempotencyTable, conflict
from alknet.call.inputs import InputItems
from alknet.core.identity import Identity
from alknet.core.limits import Limits

__all__ = ["KeyedCall", "RepeatedCalls"]


class KeyedCall:
    """A call that came with an idempotency key, and was admitted.

    Attributes:
        key: Its key, and whose it is.
        fingerprint: Of the request.
        operation: For the log.
        admitted: Runs it.
        spawn: Starts a task that ends with the session of the call.
        inputs: What its caller sends, if it is an upload.
        runner: The call that it waits for, whose handler runs for both; itself, if that is it.
    """

    __slots__ = ("admitted", "fingerprint", "inputs", "key", "operation", "runner", "spawn")

    def __init__(
        self,
        key: CallKey,
        fingerprint: bytes,
        operation: str,
        admitted: AdmittedCall,
        spawn: Callable[..., None],
    ) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.operation = operation
        self.admitted = admitted
        self.spawn = spawn
        self.inputs: InputItems | None = None
        self.runner: KeyedCall | None = None

    def readmit(self, identity: Identity) -> None:
        """Let the handler go on as *identity*, its caller with other rights than before.

        Raises:
            CallError: As `AdmittedCall.readmit`, of this call; nothing was changed.
        """
        self.admitted.readmit(identity)
        # Who began the run may have left; the handler sees what that one might.
        if self.runner is not None and self.runner is not self:
            self.runner.admitted.readmit(identity)

    @property
    def needs_its_caller(self) -> bool:
        """Its handler has not taken all of the input yet."""
        return self.inputs is not None and not self.inputs.is_used_up


class RepeatedCalls:
    """The calls with an idempotency key of a whole node: those that run, and answers of others.

    Attributes:
        answers: Of calls that have ended.
        incarnation: Tells an identity from an earlier one of its id; None for none.
    """

    def __init__(
        self,
        limits: Callable[[], Limits],
        *,
        incarnation: Callable[[str], str | None] = lambda _identity_id: None,
    ) -> None:
        """Make an empty one; *limits* are asked for each time, and may change."""
        self.incarnation = incarnation
        self.answers = IdempotencyTable(limits)
        self._running: dict[CallKey, _SharedRun] = {}

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    async def run(self, call: KeyedCall) -> bytes:
        """Run *call* like `AdmittedCall.run`, or wait for the run of the same, or answer at once.

        Cancelled, the handler is cancelled and has ended, unless others wait for it.

        Raises:
            CallError: As the operation; CONFLICT, the key was used for another request.
        """
        answer = self.answers.find(call.key, call.fingerprint, trio.current_time())
        if answer is not None:
            await trio.lowlevel.checkpoint()
            return answer.give()
        run = self._running.get(call.key)
        if run is None:
            run = self._running[call.key] = _SharedRun(call.fingerprint)
        elif run.fingerprint != call.fingerprint:
            raise conflict()
        try:
            return (await run.join(call, self._ended)).give()
        finally:
            if run.is_left and self._running.get(call.key) is run:
                del self._running[call.key]

    def _ended(self, call: KeyedCall, answer: Answer) -> None:
        del self._running[call.key]
        if answer.is_lasting:
            self.answers.remember(call.key, call.fingerprint, answer, trio.current_time())


class _SharedRun:
    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self._waiting = 0
        self._answer: Answer | None = None
        self._runner: KeyedCall | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def is_left(self) -> bool:
        """Nobody waits, and nothing runs."""
        return not self._waiting and self._runner is None

    async def join(self, call: KeyedCall, on_end: Callable[[KeyedCall, Answer], None]) -> Answer:
        """Wait for the answer. Cancelled, the run ends, unless it is of use to others."""
        self._waiting += 1
        try:
            while self._answer is None:
                if self._runner is None:
                    self._begin(call, on_end)
                call.runner = self._runner
                # The last who waits is the one whose deadline counts.
                soonest = trio.current_effective_deadline()
                self._scope.deadline = max(self._scope.deadline, soonest)
                await self._ended.wait()
        finally:
            self._waiting -= 1
            if self._runner is not None and self._is_useless_without(call):
                self._scope.cancel()
                with trio.CancelScope(shield=True):
                    await self._ended.wait()
        return self._answer

    def _is_useless_without(self, call: KeyedCall) -> bool:
        # The input that is missing can only come from who began it; the next begins anew.
        return not self._waiting or (self._runner is call and call.needs_its_caller)

    def _begin(self, call: KeyedCall, on_end: Callable[[KeyedCall, Answer], None]) -> None:
        self._runner = call
        self._scope = trio.CancelScope(shield=True, deadline=-math.inf)
        self._ended = trio.Event()
        call.spawn(self._run, call, on_end, name=f"shared call {call.operation}")

    async def _run(self, call: KeyedCall, on_end: Callable[[KeyedCall, Answer], None]) -> None:
        answer = None
        try:
            with self._scope:
                answer = Answer(await call.admitted.run())
        except Exception as exc:  # noqa: BLE001  # boundary: a crash ends its call, no more
            answer = _failure(error_of(exc, call.operation), call.operation)
            if self._scope.cancel_called:  # it is how a cancelled run ended, and no answer
                answer = None
        finally:
            self._runner = None
            self._answer = answer
            if answer is not None:
                on_end(call, answer)
            self._ended.set()


def _failure(error: CallError, operation: str) -> Answer:
    try:
        return Answer(error=error)
    except Exception as exc:  # noqa: BLE001  # boundary: an error with details that are no JSON
        return Answer(error=error_of(exc, operation))
