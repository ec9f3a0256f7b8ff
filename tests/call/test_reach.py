"""What ``calls`` may say, and when a node learns that it says nonsense."""

from __future__ import annotations

import pytest

from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import operation, public
from alknet.call.reach import ANY_PEER, Reach
from alknet.call.registry import Registry
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing.operations import FixedIdentities, FixedOwnership


@operation("t/one", access=public())
async def one() -> int:
    return 1


def test_an_entry_says_which_node_it_is_about() -> None:
    reach = Reach.parse(["math/add", "@any/math/sub", "@w1/math/mul/fast", "@*/math/div"])
    assert reach.allows_local("math/add")
    assert reach.local == {"math/add"}
    assert reach.allows_peer(ANY_PEER, "math/sub")
    assert not reach.allows_peer("w1", "math/sub")
    assert reach.allows_peer("w1", "math/mul/fast")
    assert not reach.allows_peer("w2", "math/mul/fast")
    assert not reach.allows_peer(ANY_PEER, "math/mul/fast")
    assert all(reach.allows_peer(peer, "math/div") for peer in (ANY_PEER, "w1", "w2"))
    for name in ("math/sub", "math/mul/fast", "math/div", "w1/math/mul/fast"):
        assert not reach.allows_local(name)
    assert not reach.allows_peer(ANY_PEER, "math/add")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("math", "two or more segments"),
        ("/math/add", "no leading slash"),
        ("@w1", "two or more segments"),
        ("@w1/math", "two or more segments"),
        ("@w1//math/add", "no leading slash"),
        ("@/math/add", "peer name ''"),
        ("@W1/math/add", "peer name 'W1'"),
        ("@local/math/add", "reserved"),
        ("@owner/math/add", "reserved"),
        ("@*w/math/add", "peer name"),
        ("@any/*", "two or more segments"),
        ("", "two or more segments"),
    ],
)
def test_a_bad_entry_is_an_error_when_the_operation_is_made(entry: str, why: str) -> None:
    with pytest.raises(LocalError, match="operation 't/x'") as caught:
        operation("t/x", access=public(), calls=[entry])(one.__wrapped__)
    assert why in str(caught.value)


def test_one_string_is_no_sequence_of_names() -> None:
    with pytest.raises(LocalError, match="sequence"):
        operation("t/x", access=public(), calls="t/one")(one.__wrapped__)


def test_a_node_does_not_start_with_a_call_to_nothing() -> None:
    @operation("t/typo", access=public(), calls=["t/one", "t/oen"])
    async def typo() -> None: ...

    with pytest.raises(LocalError, match=r"'t/typo' calls 't/oen', which is not registered"):
        OperationDispatcher(
            Registry([one, typo]),
            identities=FixedIdentities(),
            ownership=FixedOwnership(),
            limits=Limits(),
        )


def test_what_peers_offer_need_not_be_there_at_the_start() -> None:
    @operation("t/hub", access=public(), calls=["t/one", "@any/far/away", "@w1/far/away"])
    async def hub() -> None: ...

    registry = Registry([hub, one])
    registry.freeze()
    assert registry.is_frozen
