"""Operations that are noted: what they did, what they tried in vain, and nothing that is secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.audited import audited
from alknet.call.codes import CallError
from alknet.call.operations import Operation, operation, public
from alknet.call.spec import ErrorSpec, OperationError
from alknet.errors import LocalError, NotFound, Unavailable
from alknet.testing.operations import call_operation, peer

SECRET = "hunter2"


class Given(msgspec.Struct):
    name: str = "mail"
    value: str = SECRET
    key: int | None = None


class Log:
    """What was noted each time, and what often."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str, Mapping[str, str]]] = []
        self.often: list[tuple[str, str, str, Mapping[str, str]]] = []

    async def note(self, who: str, action: str, target: str, details: Mapping[str, str]) -> None:
        self.notes.append((who, action, target, details))

    async def note_often(
        self, who: str, action: str, target: str, details: Mapping[str, str]
    ) -> None:
        self.often.append((who, action, target, details))


def noted(
    log: Log, name: str, *, raises: Exception | None = None, mutation: bool = False
) -> Operation[..., Any]:
    @operation(name, access=public(), mutation=mutation, errors=[ErrorSpec("DAMAGED", "No good.")])
    async def run(given: Given) -> str:
        """Do as the test wants."""
        await trio.lowlevel.checkpoint()
        if raises is not None:
            raise raises
        return given.value

    (one,) = audited([run], log.note, log.note_often)
    return one


async def test_a_use_of_a_key_is_noted_often_and_a_handed_out_secret_each_time() -> None:
    log = Log()
    await call_operation(noted(log, "vault/sign"), Given(key=3))
    await call_operation(noted(log, "vault/get"), Given(), identity=peer("w1"))
    await call_operation(noted(log, "any/change", mutation=True), Given())
    await call_operation(noted(log, "vault/list"), Given())
    assert log.often == [("owner", "vault.sign", "mail", {"key": "3"})]
    assert log.notes == [
        ("peer:w1", "vault.get", "mail", {}),
        ("owner", "any.change", "mail", {}),
    ]


@pytest.mark.parametrize("name", ["vault/decrypt", "vault/get", "vault/unlock"])
@pytest.mark.parametrize(
    ("raises", "code"),
    [
        (OperationError("DAMAGED", SECRET), "DAMAGED"),
        (Unavailable(SECRET), "UNAVAILABLE"),
        (NotFound(SECRET), "NOT_FOUND"),
    ],
)
async def test_what_was_tried_in_vain_is_noted_with_its_code(
    name: str, raises: Exception, code: str
) -> None:
    log = Log()
    with pytest.raises(CallError) as caught:
        await call_operation(
            noted(log, name, raises=raises, mutation=name == "vault/unlock"), Given()
        )
    assert caught.value.code == code
    action = name.replace("/", ".") + ".failed"
    assert (log.notes, log.often) == ([], [("owner", action, "mail", {"code": code})])


async def test_what_has_not_the_form_of_a_path_may_be_a_secret_and_is_not_noted() -> None:
    log = Log()
    one = noted(log, "vault/get", raises=NotFound("no such secret"))
    with pytest.raises(CallError):
        await call_operation(one, Given(name="Correct horse!"))
    assert log.often == [("owner", "vault.get.failed", "", {"code": "NOT_FOUND"})]


async def test_a_change_that_was_refused_is_not_noted() -> None:
    log = Log()
    with pytest.raises(CallError):
        await call_operation(
            noted(log, "vault/put", raises=LocalError("no"), mutation=True), Given()
        )
    assert (log.notes, log.often) == ([], [])


async def test_without_a_log_for_what_comes_often_uses_run_as_they_are() -> None:
    log = Log()

    @operation("vault/sign", access=public())
    async def sign() -> str:
        """Sign."""
        return SECRET

    assert list(audited([sign], log.note)) == [sign]
