from __future__ import annotations

import pytest

from alknet.call.operations import operation, public
from alknet.call.registry import Provenance, Registry
from alknet.errors import LocalError


@operation("b/two", access=public())
async def two() -> int:
    return 2


@operation("a/one", access=public())
async def one() -> int:
    return 1


@operation("a/inner", internal=True)
async def inner() -> int:
    return 0


def test_looks_up_and_iterates_by_name() -> None:
    registry = Registry([two, one, inner])
    assert [entry.operation.spec.name for entry in registry] == ["a/inner", "a/one", "b/two"]
    assert len(registry) == 3
    assert "a/one" in registry
    assert "/a/one" not in registry
    entry = registry.lookup("a/one")
    assert entry is not None
    assert entry.operation is one
    assert entry.provenance is Provenance.LOCAL
    assert registry.lookup("a/none") is None


def test_a_name_is_registered_once() -> None:
    @operation("a/one", access=public())
    async def other() -> int:
        return 1

    with pytest.raises(LocalError, match="'a/one' is registered twice"):
        Registry([one, other])


@pytest.mark.parametrize("namespace", ["services", "node", "vault", "peers"])
def test_reserved_namespaces_are_for_the_node(namespace: str) -> None:
    @operation(f"{namespace}/mine", access=public())
    async def mine() -> None: ...

    registry = Registry()
    with pytest.raises(LocalError, match="reserved"):
        registry.add(mine)
    registry.add(mine, builtin=True)
    entry = registry.lookup(f"{namespace}/mine")
    assert entry is not None
    assert entry.provenance is Provenance.BUILTIN


def test_frozen_takes_no_more() -> None:
    registry = Registry([one])
    registry.freeze()
    registry.freeze()
    assert registry.is_frozen
    with pytest.raises(LocalError, match="frozen"):
        registry.add(two)
    assert "b/two" not in registry


def test_methods_must_be_bound() -> None:
    class Service:
        @operation("s/run", access=public())
        async def run(self) -> int:
            return 1

    with pytest.raises(LocalError, match=r"register instance\.run"):
        Registry([Service.run])
    assert "s/run" in Registry([Service().run])


def test_plain_functions_are_refused() -> None:
    async def plain() -> int:
        return 1

    with pytest.raises(LocalError, match="not an operation"):
        Registry([plain])  # type: ignore[list-item]  # the fault under test


def test_commands_come_and_go_beside_what_is_frozen() -> None:
    registry = Registry([one])
    registry.freeze()
    version = registry.changes.version
    registry.set_commands([two])
    entry = registry.lookup("b/two")
    assert entry is not None
    assert entry.provenance is Provenance.COMMAND
    assert "b/two" in registry
    assert [entry.operation for entry in registry] == [one, two]
    assert len(registry) == 2
    assert registry.changes.version > version
    registry.set_commands([])
    assert registry.lookup("b/two") is None
    assert [entry.operation for entry in registry] == [one]


def test_a_command_takes_no_name_that_is_there_or_reserved() -> None:
    registry = Registry([one])
    registry.set_commands([two])

    @operation("node/mine", access=public())
    async def reserved() -> None: ...

    for wrong in ([one], [two, two], [reserved]):
        with pytest.raises(LocalError):
            registry.set_commands(wrong)
        assert registry.lookup("b/two") is not None
