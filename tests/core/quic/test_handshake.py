"""Who proves which key to whom, and what the other side is told when it does not fit."""

from __future__ import annotations

import datetime as dt
import random  # noqa: TID251  seeded, for mutations
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from alknet.core.identity import NodeId
from alknet.core.limits import Limits
from alknet.core.quic.engine import Engine, server_engine
from alknet.core.quic.handshake import AskFor, ClientHello, ClientPolicy, ServerPolicy, Shown
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.tls.credentials import NodeCredentials, WebCertificate
from alknet.core.tls.trust import PinnedKey, WebPki
from alknet.core.tls.x509 import node_certificate
from tests.core.quic.sansio import ALPN, EnginePair, Forger, Link, new_credentials

CRYPTO = 0x100
BAD_CERTIFICATE, UNSUPPORTED_CERTIFICATE = CRYPTO + 42, CRYPTO + 43
DECODE_ERROR, DECRYPT_ERROR = CRYPTO + 50, CRYPTO + 51
NO_APPLICATION_PROTOCOL = CRYPTO + 120


def codes(pair: Link) -> tuple[int | None, int | None]:
    """The codes with which client and server ended, None for an end that lives."""
    return tuple(  # type: ignore[return-value]
        side.engine._close_event.error_code if side.engine._close_event else None
        for side in (pair.client, pair.server)
    )


def reason(pair: Link) -> str:
    event = pair.server.engine._close_event
    assert event is not None
    return event.reason_phrase


# raw keys


def test_both_sides_prove_their_raw_keys() -> None:
    pair = EnginePair()
    pair.connect()
    assert codes(pair) == (None, None)
    assert pair.dialer.peer_key == pair.server_key.node_id
    assert pair.acceptor.peer_key == pair.client_key.node_id
    assert pair.dialer.is_confirmed
    assert pair.server.of(events.HandshakeCompleted)[0].alpn_protocol == ALPN


def test_wrong_pinned_key_ends_both_sides_and_names_both_keys() -> None:
    wanted = new_credentials().node_id
    pair = EnginePair(client=ClientPolicy(PinnedKey(wanted), None))
    pair.connect()
    assert codes(pair) == (BAD_CERTIFICATE, BAD_CERTIFICATE)
    assert wanted.short in reason(pair)
    assert pair.server_key.node_id.short in reason(pair)
    assert pair.dialer.peer_key is None
    assert not pair.dialer.is_confirmed


def test_client_without_a_key_is_a_stranger() -> None:
    pair = EnginePair()
    stranger = EnginePair(
        client=client_policy(PinnedKey(pair.server_key.node_id), None),
        server=server_policy(pair.server_key),
    )
    stranger.connect()
    assert codes(stranger) == (None, None)
    assert stranger.acceptor.peer_key is None
    assert stranger.dialer.is_confirmed


def test_client_that_offers_a_key_and_then_shows_none_is_a_stranger() -> None:
    pair = EnginePair()
    pair.client.engine.connect(("192.0.2.2", 2222), pair.now)
    choose = pair.dialer.tls._client_choose

    def keep_it(policy: ClientPolicy) -> None:
        choose(policy)
        pair.dialer.tls.certificate = None

    pair.dialer.tls._client_choose = keep_it  # type: ignore[method-assign]
    pair.run()
    assert codes(pair) == (None, None)
    assert pair.acceptor.peer_key is None


# forged CertificateVerify: the certificate or key of A, signed by X


def test_server_cannot_claim_a_key_that_it_lacks(forged: Forger) -> None:
    claimed = NodeId.from_public_key(forged.public_key())
    pair = EnginePair(
        client=ClientPolicy(PinnedKey(claimed), None),
        server=ServerPolicy(lambda _: (Shown(forged), AskFor.NOTHING)),
    )
    pair.connect()
    assert codes(pair) == (DECRYPT_ERROR, DECRYPT_ERROR)
    assert pair.dialer.peer_key is None


def test_client_cannot_claim_a_raw_key_that_it_lacks(forged: Forger) -> None:
    server = new_credentials()
    pair = EnginePair(
        client=ClientPolicy(PinnedKey(server.node_id), forged),  # type: ignore[arg-type]
        server=server_policy(server),
    )
    pair.connect()
    assert codes(pair) == (DECRYPT_ERROR, DECRYPT_ERROR)
    assert pair.acceptor.peer_key is None
    assert not pair.server.of(events.HandshakeCompleted)
    assert pair.client.of(events.HandshakeCompleted)  # which is why a dialler waits for more
    assert not pair.dialer.is_confirmed


def test_client_cannot_claim_a_certificate_that_it_lacks() -> None:
    server = new_credentials()
    certificate = node_certificate(Ed25519PrivateKey.generate())
    link = _stock_client(server, [ALPN], certificate, Ed25519PrivateKey.generate())
    link.connect()
    assert codes(link) == (DECRYPT_ERROR, DECRYPT_ERROR)
    assert _acceptor(link).peer_key is None


# X.509 beside raw keys


def _stock_client(
    server: NodeCredentials,
    alpns: list[str],
    certificate: x509.Certificate | None = None,
    key: object = None,
    server_name: str | None = None,
) -> Link:
    """An unchanged aioquic dials; it can only do X.509."""
    configuration = QuicConfiguration(
        alpn_protocols=alpns, server_name=server_name, verify_mode=ssl.CERT_NONE
    )
    configuration.certificate = certificate
    configuration.private_key = key
    return Link(
        QuicConnection(configuration=configuration),
        lambda cid: server_engine(
            server_policy(server),
            alpns=[ALPN, "h3"],
            limits=Limits(),
            original_destination_cid=cid,
        ),
    )


def _acceptor(link: Link) -> Engine:
    assert isinstance(link.server.engine, Engine)
    return link.server.engine


def _shown_to(link: Link) -> x509.Certificate:
    certificate = link.client.engine.tls._peer_certificate
    assert isinstance(certificate, x509.Certificate)
    return certificate


def test_stock_client_proves_its_key_with_a_certificate() -> None:
    server, key = new_credentials(), Ed25519PrivateKey.generate()
    link = _stock_client(server, [ALPN], node_certificate(key), key)
    link.connect()
    assert codes(link) == (None, None)
    assert _acceptor(link).peer_key == NodeId.from_public_key(key.public_key())
    assert _shown_to(link) == server.certificate


def test_stock_client_with_another_kind_of_key_is_a_stranger() -> None:
    server, key = new_credentials(), ec.generate_private_key(ec.SECP256R1())
    link = _stock_client(server, [ALPN], _certificate("x.test", key), key)
    link.connect()
    assert codes(link) == (None, None)
    assert _acceptor(link).peer_key is None


def test_web_client_gets_the_certificate_of_the_name_and_is_asked_for_nothing() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    web = {
        name: WebCertificate((_certificate(name, key),), key) for name in ("one.test", "two.test")
    }
    server = NodeCredentials(Ed25519PrivateKey.generate(), web)
    for name in web:
        link = _stock_client(server, ["h3"], server_name=name)
        link.connect()
        assert codes(link) == (None, None)
        assert _shown_to(link) == web[name].chain[0]
        assert link.client.engine.tls._certificate_request is None
        assert _acceptor(link).server_name == name
        assert _acceptor(link).peer_key is None


def test_stock_client_that_pins_nothing_we_have_is_told_so() -> None:
    """A client of ours that wants a raw key from a server with certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    web = Shown(key, (_certificate("one.test", key),))
    pair = EnginePair(server=ServerPolicy(lambda _: (web, AskFor.NOTHING)))
    pair.connect()
    # Without Ed25519 there is no common signature algorithm either way; raw keys are named first.
    assert codes(pair)[0] == UNSUPPORTED_CERTIFICATE
    assert "raw public key" in reason(pair)


# the Web PKI


class _Authority:
    def __init__(self, directory: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _certificate("authority", self._key, is_authority=True)
        self.file = directory / "ca.pem"
        self.file.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, days: int = 10) -> Shown:
        key = ec.generate_private_key(ec.SECP256R1())
        return Shown(key, (_certificate(name, key, issuer=(self._key, "authority"), days=days),))


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: tuple[ec.EllipticCurvePrivateKey, str] | None = None,
    is_authority: bool = False,
    days: int = 10,
) -> x509.Certificate:
    signer, issuer_name = issuer or (key, name)
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)

    def common_name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(common_name(issuer_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - dt.timedelta(days=30))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture
def authority(tmp_path: Path) -> _Authority:
    return _Authority(tmp_path)


def _web_pair(shown: Shown, trust: WebPki, own: Ed25519PrivateKey | None = None) -> EnginePair:
    def choose(hello: ClientHello) -> tuple[Shown, AskFor]:
        return shown, AskFor.RAW if hello.shows_raw_key else AskFor.NOTHING

    pair = EnginePair(
        client=ClientPolicy(trust, own),
        server=ServerPolicy(choose),
        server_name=trust.server_name,
    )
    pair.connect()
    return pair


def test_web_pki_accepts_the_right_name(authority: _Authority) -> None:
    pair = _web_pair(authority.issue("node.test"), WebPki("node.test", authority.file))
    assert codes(pair) == (None, None)
    assert pair.dialer.is_confirmed
    assert pair.dialer.peer_key is None


def test_web_pki_client_may_show_its_own_raw_key(authority: _Authority) -> None:
    own = Ed25519PrivateKey.generate()
    pair = _web_pair(authority.issue("node.test"), WebPki("node.test", authority.file), own)
    assert codes(pair) == (None, None)
    assert pair.acceptor.peer_key == NodeId.from_public_key(own.public_key())


@pytest.mark.parametrize("case", ["name", "expired", "authority", "roots"])
def test_web_pki_fails_closed(authority: _Authority, tmp_path: Path, case: str) -> None:
    shown = authority.issue("node.test", days=-1 if case == "expired" else 10)
    other = tmp_path / "other"
    other.mkdir()
    ca_file = {"authority": _Authority(other).file, "roots": None}.get(case, authority.file)
    name = "other.test" if case == "name" else "node.test"
    pair = _web_pair(shown, WebPki(name, ca_file))
    assert codes(pair) == (BAD_CERTIFICATE, BAD_CERTIFICATE)
    assert name in reason(pair)
    assert not pair.dialer.is_confirmed


def test_web_pki_without_its_authorities_fails_closed(
    authority: _Authority, tmp_path: Path
) -> None:
    pair = _web_pair(authority.issue("node.test"), WebPki("node.test", tmp_path / "gone.pem"))
    assert codes(pair)[0] == BAD_CERTIFICATE
    assert "CA file" in reason(pair)


def test_unpinned_client_never_takes_a_raw_key(authority: _Authority) -> None:
    key = Ed25519PrivateKey.generate()
    pair = EnginePair(
        client=ClientPolicy(WebPki("node.test", authority.file), None),
        server=ServerPolicy(lambda _: (Shown(key), AskFor.NOTHING)),
        server_name="node.test",
    )
    pair.connect()
    assert codes(pair)[0] is not None
    assert not pair.dialer.is_confirmed


# ALPN


@pytest.mark.parametrize("alpns", [("alknet/other",), ()])
def test_no_common_protocol_is_alert_120(alpns: tuple[str, ...]) -> None:
    pair = EnginePair(alpns=alpns)
    pair.connect()
    assert codes(pair) == (NO_APPLICATION_PROTOCOL, NO_APPLICATION_PROTOCOL)


def test_client_without_alpn_is_alert_120() -> None:
    link = _stock_client(new_credentials(), [])
    link.client.engine.configuration.alpn_protocols = None
    link.connect()
    assert codes(link) == (NO_APPLICATION_PROTOCOL, NO_APPLICATION_PROTOCOL)


# tickets


def test_client_that_offers_an_old_ticket_gets_a_full_handshake() -> None:
    server, key = new_credentials(), Ed25519PrivateKey.generate()
    now = dt.datetime.now(dt.UTC)
    link = _stock_client(server, [ALPN], node_certificate(key), key)
    link.client.engine.configuration.session_ticket = tls.SessionTicket(
        age_add=0,
        cipher_suite=tls.CipherSuite.AES_256_GCM_SHA384,
        not_valid_after=now + dt.timedelta(days=1),
        not_valid_before=now - dt.timedelta(days=1),
        resumption_secret=bytes(48),
        server_name=None,  # type: ignore[arg-type]
        ticket=b"ticket of another day",
        max_early_data_size=0xFFFFFFFF,
    )
    link.connect()
    assert link.client.engine.tls.session_ticket is not None
    assert codes(link) == (None, None)
    (completed,) = link.server.of(events.HandshakeCompleted)
    assert not completed.session_resumed
    assert not completed.early_data_accepted
    assert _acceptor(link).peer_key == NodeId.from_public_key(key.public_key())


def test_no_ticket_is_ever_issued() -> None:
    link = _stock_client(new_credentials(), [ALPN])
    tickets: list[tls.SessionTicket] = []
    link.client.engine._session_ticket_handler = tickets.append
    link.connect()
    link.run()
    assert codes(link) == (None, None)
    assert not tickets


# versions


def test_keys_survive_a_change_to_version_2() -> None:
    pair = EnginePair()
    pair.dialer.configuration.supported_versions = [0x6B3343CF, 0x00000001]
    pair.dialer.configuration.original_version = 0x00000001
    pair.connect()
    assert codes(pair) == (None, None)
    assert pair.acceptor._version == 0x6B3343CF
    assert pair.acceptor.peer_key == pair.client_key.node_id
    assert pair.dialer.peer_key == pair.server_key.node_id


# hostile ClientHellos: whatever comes, an alert is the worst answer


def _answer(mutate: Callable[[bytearray], bytes]) -> int | None:
    """Feed a mutated ClientHello to a server context; return the alert, None if it went on."""
    pair = EnginePair()
    pair.client.engine.connect(("192.0.2.2", 2222), pair.now)
    hello = bytearray(pair.dialer._crypto_streams[tls.Epoch.INITIAL].sender._buffer)
    acceptor = server_engine(
        server_policy(pair.server_key),
        alpns=[ALPN],
        limits=Limits(),
        original_destination_cid=bytes(8),
    )
    acceptor._version = 1
    acceptor._crypto_frame_type = 6
    acceptor._crypto_packet_version = 1
    acceptor._remote_initial_source_connection_id = pair.dialer.host_cid
    acceptor._initialize(bytes(8))
    buffers = {epoch: Buffer(capacity=16384) for epoch in tls.Epoch}
    try:
        acceptor.tls.handle_message(mutate(hello), buffers)
    except tls.Alert as alert:
        return int(alert.description)
    except QuicConnectionError as error:
        return error.error_code
    return None


def test_unchanged_hello_is_accepted() -> None:
    assert _answer(bytes) is None


@pytest.mark.parametrize(
    ("offer", "alert"),
    [
        (b"", 50),
        (b"\x00", 50),
        (b"\x01", 50),
        (b"\x02\x02", 50),
        (b"\x01\x00", None),
        (b"\x02\x00\x02", None),
        (b"\x03\x00\x01\x02", None),
        (b"\xff" + bytes(255), None),
    ],
)
@pytest.mark.parametrize("extension", [19, 20])
def test_offers_of_certificate_types(extension: int, offer: bytes, alert: int | None) -> None:
    def mutate(hello: bytearray) -> bytes:
        old = extension.to_bytes(2, "big") + b"\x00\x02\x01\x02"
        assert hello.count(old) == 1
        new = extension.to_bytes(2, "big") + len(offer).to_bytes(2, "big") + offer
        grown = bytes(hello).replace(old, new)
        shift = len(new) - len(old)
        length = int.from_bytes(grown[1:4], "big") + shift
        at = _extensions_offset(hello)
        extensions = int.from_bytes(grown[at : at + 2], "big") + shift
        return (
            grown[:1]
            + length.to_bytes(3, "big")
            + grown[4:at]
            + extensions.to_bytes(2, "big")
            + grown[at + 2 :]
        )

    assert _answer(mutate) == alert


@pytest.mark.parametrize("seed", range(40))
def test_mutated_hellos_only_meet_alerts(seed: int) -> None:
    rng = random.Random(seed)

    def mutate(hello: bytearray) -> bytes:
        for _ in range(rng.choice((1, 1, 2, 8))):
            kind = rng.randrange(4)
            at = rng.randrange(4, len(hello))
            if kind == 0:
                hello[at] = rng.randrange(256)
            elif kind == 1:
                del hello[at : at + rng.randrange(1, 8)]
            elif kind == 2:
                hello[at:at] = rng.randbytes(rng.randrange(1, 8))
            else:
                hello[at] ^= 1 << rng.randrange(8)
        hello[1:4] = (len(hello) - 4).to_bytes(3, "big")
        return bytes(hello)

    for _ in range(5):
        _answer(mutate)


def _extensions_offset(hello: bytearray) -> int:
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    return at + 1 + hello[at]


# malformed keys


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([b"short"], UNSUPPORTED_CERTIFICATE),
        ([bytes(44)], UNSUPPORTED_CERTIFICATE),
        ([bytes.fromhex("302a300506032b656e032100") + bytes(32)], UNSUPPORTED_CERTIFICATE),
        ([bytes.fromhex("302a300506032b6570032100") + bytes(32)] * 2, BAD_CERTIFICATE),
    ],
)
def test_malformed_raw_keys_are_refused(entries: list[bytes], code: int) -> None:
    class Shows:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def public_bytes(self, encoding: Encoding) -> bytes:
            return self.data

    pair = EnginePair()
    pair.client.engine.connect(("192.0.2.2", 2222), pair.now)
    choose = pair.dialer.tls._client_choose

    def forge(policy: ClientPolicy) -> None:
        choose(policy)
        first, *rest = [Shows(data) for data in entries]
        pair.dialer.tls.certificate = first  # type: ignore[assignment]
        pair.dialer.tls.certificate_chain = rest  # type: ignore[assignment]

    pair.dialer.tls._client_choose = forge  # type: ignore[method-assign]
    pair.run()
    assert codes(pair) == (code, code)
    assert pair.acceptor.peer_key is None
