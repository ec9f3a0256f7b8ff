from __future__ import annotations

import pytest

from alknet.core.globs import Glob
from alknet.errors import LocalError


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("math/add", ["math/add"], ["math/addx", "xmath/add", "math/add/x", "math"]),
        ("math/*", ["math/add", "math/a.b-c"], ["math/a/b", "maths/add", "math"]),
        ("*/add", ["math/add"], ["math/x/add", "add"]),
        ("w*", ["w", "w1", "worker-2"], ["x1", "w1/w2", "hub/w1"]),
        ("hub/w*", ["hub/w1"], ["hub", "hub/x", "w1", "hub/w1/w2"]),
        ("docker/**", ["docker/ps", "docker/container/exec"], ["docker", "dockers/ps"]),
        ("a*c.d/*", ["abc.d/x", "ac.d/x"], ["abcxd/x"]),
        ("**", ["w1", "math/add", "a/b/c"], []),
    ],
)
def test_patterns(pattern: str, names: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [name for name in names + others if glob.matches(name)] == names


@pytest.mark.parametrize(
    "pattern", ["", "/", "math/", "/math", "a//b", "a/**/b", "a**", "***", "é/x", "a b", "a" * 513]
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(LocalError, match="is not segments between slashes"):
        Glob(pattern)


def test_patterns_are_values() -> None:
    assert Glob("a/*") == Glob("a/*") != Glob("a/b")
    assert len({Glob("a/*"), Glob("a/*")}) == 1
