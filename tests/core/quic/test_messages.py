"""Our reading and writing of handshake messages beside aioquic's own."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.tls import CipherSuite, HandshakeType
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.core.quic import context, messages, seams
from alknet.core.quic.context import SwiftContext
from alknet.core.quic.keys import KeySchedule
from alknet.core.tls.x509 import node_certificate
from tests.core.quic.sansio import SERVER_ADDRESS, EnginePair

SMALL, SHORT = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
SHORTS, VALUE = st.lists(SHORT, max_size=5), st.binary(max_size=40)
KNOWN = tuple(map(int, tls.ExtensionType))
# aioquic writes what it knows as fields; the rest rides along as bytes.
OTHER = st.lists(st.tuples(SHORT.filter(lambda kind: kind not in KNOWN), VALUE), max_size=4)
SHARES = st.tuples(SHORT, VALUE)
NAMES = st.text("abc-/.1", min_size=1, max_size=12)
RANDOM = st.binary(min_size=32, max_size=32)

CLIENT_HELLO = st.builds(
    tls.ClientHello,
    random=RANDOM,
    legacy_session_id=st.binary(max_size=32),
    cipher_suites=SHORTS,
    legacy_compression_methods=st.lists(SMALL, max_size=3),
    alpn_protocols=st.none() | st.lists(NAMES, max_size=3),
    early_data=st.booleans(),
    key_share=st.lists(SHARES, max_size=3),
    pre_shared_key=st.none()
    | st.builds(
        tls.OfferedPsks,
        identities=st.lists(st.tuples(VALUE, st.integers(0, 2**32 - 1)), max_size=2),
        binders=st.lists(VALUE, max_size=2),
    ),
    psk_key_exchange_modes=st.none() | st.lists(SMALL, max_size=2),
    server_name=st.none() | NAMES,
    signature_algorithms=SHORTS,
    supported_groups=SHORTS,
    supported_versions=SHORTS,
    other_extensions=OTHER,
)
SERVER_HELLO = st.builds(
    tls.ServerHello,
    random=RANDOM,
    legacy_session_id=st.binary(max_size=32),
    cipher_suite=SHORT,
    compression_method=SMALL,
    key_share=st.none() | SHARES,
    pre_shared_key=st.none() | SHORT,
    supported_version=st.none() | SHORT,
    other_extensions=OTHER,
)
EXTENSIONS = st.builds(
    tls.EncryptedExtensions,
    alpn_protocol=st.none() | NAMES,
    early_data=st.booleans(),
    other_extensions=OTHER,
)
REQUEST = st.builds(
    tls.CertificateRequest,
    request_context=VALUE,
    signature_algorithms=SHORTS,
    other_extensions=OTHER,
)
CERTIFICATE = st.builds(
    tls.Certificate,
    request_context=VALUE,
    certificates=st.lists(st.tuples(st.binary(max_size=300), VALUE), max_size=3),
)
VERIFY = st.builds(tls.CertificateVerify, algorithm=SHORT, signature=VALUE)
FINISHED = st.builds(tls.Finished, verify_data=VALUE)
MESSAGES = {
    "client_hello": (HandshakeType.CLIENT_HELLO, CLIENT_HELLO),
    "server_hello": (HandshakeType.SERVER_HELLO, SERVER_HELLO),
    "encrypted_extensions": (HandshakeType.ENCRYPTED_EXTENSIONS, EXTENSIONS),
    "certificate_request": (HandshakeType.CERTIFICATE_REQUEST, REQUEST),
    "certificate": (HandshakeType.CERTIFICATE, CERTIFICATE),
    "certificate_verify": (HandshakeType.CERTIFICATE_VERIFY, VERIFY),
    "finished": (HandshakeType.FINISHED, FINISHED),
}
every_message = pytest.mark.parametrize("name", MESSAGES)


def written(push: Callable[[Buffer, Any], None], message: object) -> bytes:
    buf = Buffer(capacity=4096)
    push(buf, message)
    return buf.data


def outcome(pull: Callable[[Buffer], Any], data: bytes) -> tuple[object, ...]:
    """What reading *data* comes to: the message and where it ends, or the error."""
    buf = Buffer(data=data)
    try:
        message = pull(buf)
    except Exception as exc:  # noqa: BLE001  compared with the original's, whatever it is
        return type(exc), str(exc)
    return asdict(message), buf.tell()


def both(kind: str, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return getattr(messages, f"{kind}_{name}"), getattr(tls, f"{kind}_{name}")


# writing and reading what is in order


@every_message
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_messages_are_written_as_aioquic_writes_them(name: str, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[name][1])
    ours, theirs = both("push", name)
    assert written(ours, message) == written(theirs, message)


@every_message
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_messages_are_read_as_aioquic_reads_them(name: str, data: st.DataObject) -> None:
    encoded = written(getattr(tls, f"push_{name}"), data.draw(MESSAGES[name][1]))
    ours, theirs = both("pull", name)
    assert outcome(ours, encoded) == outcome(theirs, encoded)


# what is not in order


@every_message
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_messages_meet_what_aioquic_has_for_them(name: str, data: st.DataObject) -> None:
    encoded = written(getattr(tls, f"push_{name}"), data.draw(MESSAGES[name][1]))
    body = bytearray(encoded[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    length = len(body) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    broken = encoded[:1] + max(0, length).to_bytes(3) + bytes(body)
    ours, theirs = both("pull", name)
    assert outcome(ours, broken) == outcome(theirs, broken)


@every_message
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_bytes_meet_what_aioquic_has_for_them(name: str, data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=80))
    broken = bytes((MESSAGES[name][0],)) + len(body).to_bytes(3) + body
    ours, theirs = both("pull", name)
    assert outcome(ours, broken) == outcome(theirs, broken)


@every_message
def test_each_message_cut_short_anywhere_meets_the_same(name: str) -> None:
    encoded = handshake_messages()[MESSAGES[name][0]]
    ours, theirs = both("pull", name)
    for end in range(4, len(encoded)):
        broken = encoded[:1] + (end - 4).to_bytes(3) + encoded[4:end]
        assert outcome(ours, broken) == outcome(theirs, broken)


# the short way is taken


def handshake_messages() -> dict[int, bytes]:
    """The messages of one of our handshakes, by type; of those of both sides, the client's."""
    found: dict[int, bytes] = {}
    pair = EnginePair()
    pair.dialer.connect(SERVER_ADDRESS, pair.now)
    keep = tls.Context._handle_reassembled_message

    def record(self: tls.Context, message_type: int, input_buf: Buffer, **rest: Any) -> None:
        found[message_type] = input_buf.data_slice(0, input_buf.capacity)
        keep(self, message_type=message_type, input_buf=input_buf, **rest)

    SwiftContext._handle_reassembled_message = record  # type: ignore[method-assign,assignment]
    try:
        pair.run()
    finally:
        del SwiftContext._handle_reassembled_message
    return found


def test_messages_of_our_handshakes_need_nobody_elses_judgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = handshake_messages()
    assert set(found) == {kind for kind, _ in MESSAGES.values()}

    def judge(_: object) -> None:
        raise AssertionError("left to aioquic")

    for name, (kind, _) in MESSAGES.items():
        theirs = getattr(tls, f"pull_{name}")(Buffer(data=found[kind]))
        monkeypatch.setattr(tls, f"pull_{name}", judge)
        assert getattr(messages, f"pull_{name}")(Buffer(data=found[kind])) == theirs
        with pytest.raises(AssertionError, match="left to aioquic"):
            getattr(messages, f"pull_{name}")(Buffer(data=found[kind][:-1]))


def test_a_hello_that_was_read_is_given_back() -> None:
    data = handshake_messages()[HandshakeType.CLIENT_HELLO]
    hello = messages.pull_client_hello(Buffer(data=data))
    assert messages.pull_client_hello(messages.ReadHello(hello, data)) is hello


def test_a_message_joins_the_transcript_unless_writing_it_failed() -> None:
    ours, theirs = KeySchedule(CipherSuite.AES_128_GCM_SHA256), Buffer(capacity=64)
    theirs.push_bytes(b"before")
    with messages.push_message(ours, theirs):
        theirs.push_bytes(b"message")
    with pytest.raises(ZeroDivisionError), messages.push_message(ours, theirs):
        theirs.push_bytes(b"lost" * (1 // 0))
    expected = tls.KeySchedule(CipherSuite.AES_128_GCM_SHA256)
    expected.update_hash(b"message")
    assert ours.certificate_verify_data(b"") == expected.certificate_verify_data(b"")


# the guard, and the original


def test_the_guard_names_what_aioquic_does_not_use_or_changed() -> None:
    assert context.unused() == []
    changed: dict[str, Callable[..., object]] = {
        "push_nothing": messages.push_finished,
        "push_finished": messages.pull_finished,
        "KeySchedule": KeySchedule,
    }
    assert context.unused(changed) == ["tls.push_nothing", "tls.push_finished"]
    assert seams.missing_names() == []


def test_aioquics_own_context_is_left_as_it_was() -> None:
    for name in ("_server_handle_hello", "_client_send_hello", "_server_handle_finished"):
        theirs, ours = getattr(tls.Context, name), getattr(SwiftContext, name)
        assert theirs.__globals__ is vars(tls)
        assert ours.__code__ is theirs.__code__
        assert ours.__globals__["KeySchedule"] is KeySchedule
    assert tls.KeySchedule is not KeySchedule


KINDS = (tls.Context, SwiftContext)


@pytest.mark.parametrize("suite", [suite for suite in CipherSuite if suite in tls.CIPHER_SUITES])
@pytest.mark.parametrize("client_kind", KINDS)
@pytest.mark.parametrize("server_kind", KINDS)
def test_both_contexts_agree_with_each_other(
    suite: CipherSuite, client_kind: type[tls.Context], server_kind: type[tls.Context]
) -> None:
    """All secrets are equal, both certificates proven, whichever side is aioquic's own."""
    client, server = Side(client_kind, suite, is_client=True), Side(server_kind, suite)
    client.context.handle_message(b"", client.buffers)
    for _ in range(3):
        client.tell(server)
        server.tell(client)
    assert client.context.state is tls.State.CLIENT_POST_HANDSHAKE
    assert server.context.state is tls.State.SERVER_POST_HANDSHAKE
    assert len(client.secrets) == 4
    assert client.secrets == server.secrets
    assert server.context._peer_certificate == client.context.certificate


class Side:
    """One end of a handshake without QUIC."""

    def __init__(
        self, kind: type[tls.Context], suite: CipherSuite, *, is_client: bool = False
    ) -> None:
        key = Ed25519PrivateKey.generate()
        self.secrets: dict[tuple[bool, tls.Epoch], bytes] = {}
        self.buffers = {epoch: Buffer(capacity=4096) for epoch in tls.Epoch}
        self.context = tls.Context(
            is_client=is_client, cipher_suites=[suite], verify_mode=ssl.CERT_NONE
        )
        self.context.__class__ = kind
        self.context.certificate = node_certificate(key)
        self.context.certificate_private_key = key
        self.context._request_client_certificate = True
        self.context.update_traffic_key_cb = self._keep

    def _keep(
        self, direction: tls.Direction, epoch: tls.Epoch, _: CipherSuite, secret: bytes
    ) -> None:
        of_client = self.context._is_client == (direction is tls.Direction.ENCRYPT)
        self.secrets[of_client, epoch] = secret

    def tell(self, other: Side) -> None:
        """Deliver what was written since."""
        for buf in self.buffers.values():
            other.context.handle_message(buf.data, other.buffers)
            buf.seek(0)
