from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.discovery import discovery_operations
from alknet.call.operations import (
    ErrorSpec,
    OpType,
    operation,
    public,
    resource,
)
from alknet.call.peers.imports import (
    MAX_DESCRIPTION,
    MAX_LIST_BYTES,
    MAX_OPERATIONS,
    MAX_TITLE,
    OverLimit,
    from_call,
    read_operations_untrusted,
)
from alknet.call.registry import Provenance, Registry
from alknet.core.globs import Glob
from alknet.errors import LocalError, Malformed
from alknet.testing.operations import call_operation
from tests.call.sessions import Operations, session_pair


class Box(msgspec.Struct):
    id: str


class Left(msgspec.Struct):
    left: int


@operation("m/open", access=public())
async def everybody() -> int:
    """Say one."""
    return 1


@operation(
    "box/take",
    access=resource("box", action="take"),
    resource_id_path="/id",
    mutation=True,
    errors=[ErrorSpec("EMPTY", "nothing in it", Left, 409), ErrorSpec("SHUT")],
    max_duration_s=5,
    large_output=True,
)
async def take(box: Box) -> Box:
    """Take from a box.

    Gently.
    """
    return box


def listed(*entries: object, version: object = "v1") -> bytes:
    return msgspec.json.encode({"operations": entries, "version": version})


def named(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "op_type": "query", **more}


async def _our_own_list() -> bytes:
    registry = Registry([everybody, take])
    found = discovery_operations(registry)
    registry.extend(found, builtin=True)
    return msgspec.json.encode(await call_operation(found[0], {"with_schemas": True}))


async def test_what_we_list_is_what_we_import() -> None:
    imports = read_operations_untrusted(await _our_own_list())
    assert set(imports.operations) == {"m/open", "box/take"}
    assert imports.left_out == 3  # services/…
    assert imports.unusable == {}
    assert imports.version is not None
    taken = imports.operations["box/take"]
    assert taken.provenance is Provenance.FROM_CALL
    assert taken.op_type is OpType.MUTATION
    assert (taken.title, taken.description) == ("Take from a box", "Take from a box.\n\nGently.")
    assert msgspec.json.decode(taken.input_schema) == take.input.schema
    assert msgspec.json.decode(taken.output_schema) == take.output.schema
    assert taken.item_schema is None
    assert taken.resource_id_path == "/id"
    assert taken.max_duration_s == 5
    assert taken.large_output
    empty, shut = taken.errors
    assert (empty.code, empty.http_status) == ("EMPTY", 409)
    assert empty.details_schema is not None
    assert shut.details_schema is None
    assert msgspec.json.decode(taken.access)["resource_type"] == "box"


@pytest.mark.parametrize(
    "name",
    [
        "services/list",
        "node/ping",
        "vault/unlock",
        "peers/offer",
    ],
)
def test_names_that_each_node_has_for_itself_are_never_imported(name: str) -> None:
    imports = read_operations_untrusted(listed(named(name), named("m/a")))
    assert set(imports.operations) == {"m/a"}
    assert imports.left_out == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"operations":[{}]}',
        b'{"operations":[{"name":"m/a"}]}',
        listed(named("m/a"), named("m/b"), named("m/a")),
        listed(named("services/list"), named("services/list")),
        listed(named("m")),
        listed(named("/m/a")),
        listed(named("m/a\n")),
        listed(named("m/\x1b[31mred")),
        listed(named("m/\u202ea")),
        listed(named("m/ä")),
        listed(named("m/" + "a" * 65)),
        listed(named("m" + "/a" * 200)),
        listed(named("m/a", max_duration_s=-1)),
        listed(named("m/a"), version=""),
        listed(named("m/a"), version="v" * 129),
        listed(named("m/a"), version="\x1b"),
        b'{"operations":' + b"[" * 100_000,
    ],
)
def test_what_no_honest_peer_says_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        read_operations_untrusted(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_more_than_the_limits_is_refused() -> None:
    with pytest.raises(OverLimit, match="operations are over"):
        read_operations_untrusted(listed(*(named(f"m/n{n}") for n in range(MAX_OPERATIONS + 1))))
    with pytest.raises(OverLimit, match="bytes is over"):
        read_operations_untrusted(b" " * (MAX_LIST_BYTES + 1))
    with pytest.raises(OverLimit, match="too many values"):
        read_operations_untrusted(b'{"operations":[' + b"0," * 2_000_000 + b"0]}")


@pytest.mark.parametrize(
    "fault",
    [
        {"op_type": "teleport"},
        {"input_schema": {"$ref": "#"}},
        {"output_schema": {"$ref": "http://example.org/"}},
        {"input_schema": 7},
        {"output_schema": {"title": "x" * 300_000}},
        {"op_type": "upload", "item_schema": []},
        {"error_schemas": [{"code": "A", "details_schema": {"$ref": "#/x"}}]},
        {"error_schemas": [{"code": f"A{n}"} for n in range(65)]},
    ],
)
def test_an_operation_that_is_of_no_use_is_left_out_alone(fault: dict[str, object]) -> None:
    imports = read_operations_untrusted(listed(named("m/a"), {**named("m/bad"), **fault}))
    assert set(imports.operations) == {"m/a"}
    assert set(imports.unusable) == {"m/bad"}


def test_words_for_people_are_cut_and_cleaned() -> None:
    wire = named("m/a", title="a\x1b[31m\u202eb\nc", description="d\x07\n" + "e" * 10_000)
    found = read_operations_untrusted(listed(wire)).operations["m/a"]
    assert found.title == "a[31mb c"
    assert found.description.startswith("d\neee")
    assert len(found.description) < MAX_DESCRIPTION
    long = read_operations_untrusted(listed(named("m/a", title="t" * 999))).operations["m/a"]
    assert len(long.title) == MAX_TITLE


def test_a_prefix_and_patterns() -> None:
    data = listed(named("m/a"), named("m/b"), named("n/c"))
    imports = read_operations_untrusted(data, lambda name: f"w1/{name}", [Glob("m/*")])
    assert {name: found.remote_name for name, found in imports.operations.items()} == {
        "w1/m/a": "m/a",
        "w1/m/b": "m/b",
    }
    assert imports.left_out == 1
    long = "/".join(["a" * 64] * 3)
    imports = read_operations_untrusted(data, lambda name: f"{long}/{'b' * 64}/{name}")
    assert set(imports.unusable) == {"m/a", "m/b", "n/c"}


@given(st.binary(max_size=200))
def test_any_bytes_are_imports_or_malformed(data: bytes) -> None:
    for text in (data, b'{"operations":[' + data + b"]}"):
        with contextlib.suppress(Malformed):
            read_operations_untrusted(text)


# --- over a session


def serving(output: bytes) -> Operations:
    operations = Operations()

    async def list_operations(given: msgspec.Raw) -> object:
        assert msgspec.json.decode(given) == {"with_schemas": True}
        return msgspec.Raw(output)

    operations.queries["services/list"] = list_operations
    return operations


async def test_one_round_trip_imports_everything() -> None:
    output = await _our_own_list()
    operations = serving(output)
    async with session_pair("memory", operations) as (client, _):
        imports = await from_call(client)
        assert set(imports.operations) == {"m/open", "box/take"}
        assert len(operations.requests) == 1
        prefixed = await from_call(client, "w1", only=["m/*"])
        assert set(prefixed.operations) == {"w1/m/open"}


async def test_peers_that_say_the_same_share_it() -> None:
    output = listed(named("m/shared", title="x" * 100))
    async with (
        session_pair("memory", serving(output)) as (one, _),
        session_pair("memory", serving(output)) as (other, _),
    ):
        assert await from_call(one) is await from_call(other)


async def test_a_long_list_is_read_all_the_same() -> None:
    output = listed(*(named(f"m/n{n}", title="x" * 100) for n in range(2_000)))
    async with session_pair("memory", serving(output)) as (client, _):
        assert len((await from_call(client)).operations) == 2_000


async def test_a_peer_that_refuses_or_lies_says_so_to_the_importer() -> None:
    async with session_pair("memory", Operations()) as (client, _):
        with pytest.raises(CallError, match="NOT_FOUND"):
            await from_call(client)
    async with session_pair("memory", serving(listed(named("m")))) as (client, _):
        with pytest.raises(Malformed):
            await from_call(client)
        for prefix in ("services", "a b", ""):
            with pytest.raises(LocalError):
                await from_call(client, prefix)
