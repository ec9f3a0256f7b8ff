"""Every fuzz target under hypothesis: a second each, in every test run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alknet
from alknet.core.datagram import NetworkPath
from alknet.core.quic.engine import Engine
from tests.core.quic.hotpath.duels import FRAMES
from tests.fuzz.targets import TARGETS

JSON_LIKE = st.text(alphabet='{}[]",:0123456789eE+-.truefalsn\\u \x00é', max_size=400)
ANY_BYTES = st.one_of(st.binary(max_size=1_500), JSON_LIKE.map(str.encode))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_any_bytes_are_understood_or_refused(name: str) -> None:
    target = TARGETS[name]
    expensive = name in {"connection", "handshake", "datagrams"}

    @settings(max_examples=40 if expensive else 300, deadline=None)
    @given(ANY_BYTES)
    def run(data: bytes) -> None:
        target(data)

    run()


def test_every_function_that_parses_a_peers_bytes_is_fuzzed() -> None:
    """Those that others of their module call, with an underscore, are reached through these."""
    sources = Path(alknet.__file__).parent.rglob("*.py")
    defined = re.compile(r"def ([a-z]\w*_untrusted)\(")
    found = {name for path in sources for name in defined.findall(path.read_text())}
    known = Path(__file__).with_name("targets.py").read_text()
    assert len(found) > 25
    assert {name for name in found if name not in known} == set()


def test_the_frames_of_a_connection_are_opened_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its target would find nothing, whatever is wrong."""
    engines: list[Engine] = []
    receive = Engine.receive_datagram

    def noting(engine: Engine, data: bytes, addr: NetworkPath, now: float) -> None:
        engines.append(engine)
        receive(engine, data, addr, now)

    monkeypatch.setattr(Engine, "receive_datagram", noting)
    names = list(FRAMES)
    TARGETS["connection"](bytes([names.index("max data"), 0, 0, 0]))
    assert engines[-1]._remote_max_data == 2**30
    assert engines[-1].close_event is None
    TARGETS["connection"](bytes([names.index("unknown"), 0, 0, 0]))
    assert engines[-1].close_event is not None
