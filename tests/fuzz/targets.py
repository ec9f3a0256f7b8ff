"""What is fuzzed: every function that parses a peer's bytes, whole handshakes and connections.

A target takes any bytes. It returns normally if they were understood or refused in the documented
way; any other exception is a finding. `test_targets.py` runs all of them under hypothesis;
``make fuzz`` runs them for longer under atheris, which follows coverage.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable

import msgspec
from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.enrolment import decode_claimed_untrusted
from alknet.call.peers.foreign_schema import check_schema_untrusted
from alknet.call.peers.imports import read_operations_untrusted, read_version_untrusted
from alknet.call.proto import FrameDecoder, decode_envelope_untrusted
from alknet.call.proto.scan import check_depth_untrusted, check_text_untrusted
from alknet.call.schema import Mismatch, Shape
from alknet.call.succeed import decode_heard_untrusted
from alknet.call.succession import decode_answer_untrusted
from alknet.core.invitation import SCHEME, Invitation
from alknet.core.limits import Limits
from alknet.core.quic.engine import Engine, client_engine, server_engine
from alknet.core.quic.handshake import _offers_raw_untrusted, _raw_public_key_untrusted
from alknet.core.quic.packets import (
    open_first_untrusted,
    read_header_untrusted,
    read_invariants_untrusted,
)
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.succession import STATEMENT_BYTES, decode_succession_untrusted
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from alknet.core.tls.x509 import certificate_untrusted, node_id_of_certificate
from alknet.core.tokens import token_prefix_untrusted
from alknet.core.varint import pull_varint_untrusted
from alknet.errors import LocalError, Malformed
from alknet.http.h3 import proto
from alknet.ssh.agent.proto import MessageDecoder, decode_request_untrusted
from alknet.vault.archive import decode_archive_untrusted
from alknet.vault.container import decode_container_untrusted, decode_index_untrusted
from alknet.vault.envelope import sealed_from_text_untrusted
from tests.core.quic.hotpath.duels import FRAMES

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]

FRAME_LIMIT = 4_096
SERVER = NodeCredentials(Ed25519PrivateKey.from_private_bytes(bytes(32)))
CLIENT = NodeCredentials(Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1"))
ALPN = "alknet/call"
SERVER_ADDRESS, CLIENT_ADDRESS = ("192.0.2.1", 1), ("192.0.2.2", 2)


class Sample(msgspec.Struct):
    """An operation's input with a bit of everything."""

    name: str
    count: int = 0
    parts: list[dict[str, float]] = []
    next: Sample | None = None


SAMPLE = Shape(Sample)


def refused_with(*errors: type[Exception]) -> contextlib.suppress:
    return contextlib.suppress(*errors)


def envelope(data: bytes) -> None:
    """`check_unique_keys_untrusted`, which wants sound JSON, included."""
    with refused_with(Malformed):
        decode_envelope_untrusted(data)


def frames(data: bytes) -> None:
    """The first byte says how the rest is cut: frames must not depend on it."""
    decoder = FrameDecoder(FRAME_LIMIT)
    size = max(1, data[0]) if data else 1
    with refused_with(Malformed):
        for at in range(1, len(data), size):
            decoder.receive_data_untrusted(data[at : at + size])
            while (frame := decoder.next_frame()) is not None:
                envelope(frame)
    assert decoder.buffered_bytes <= FRAME_LIMIT + 4 + 255


def scans(data: bytes) -> None:
    for check in (check_text_untrusted, check_depth_untrusted):
        with refused_with(Malformed):
            check(data)


def operation_input(data: bytes) -> None:
    with refused_with(Mismatch):
        SAMPLE.decode_untrusted(data)


def imports(data: bytes) -> None:
    """A peer's list of operations, a schema in it, and that schema by itself."""
    entry = b'{"name":"a/b","op_type":"bidi","output_schema":%b}' % data
    for listed in (data, b'{"operations":[%b]}' % data, b'{"operations":[%b]}' % entry):
        with refused_with(Malformed):
            read_operations_untrusted(listed)
    checks: list[Callable[[bytes], object]] = [check_schema_untrusted, read_version_untrusted]
    for check in checks:
        with refused_with(Malformed):
            check(data)


def token(data: bytes) -> None:
    with refused_with(Malformed):
        token_prefix_untrusted(data.decode(errors="replace"))


def invitation(data: bytes) -> None:
    """What somebody was sent, and may have cut or changed."""
    text = data.decode(errors="replace")
    for given in (text, SCHEME + text, f"{SCHEME}{SERVER.node_id}@h:1{text}/{'y' * 52}"):
        with refused_with(LocalError):
            found = Invitation.parse(given)
            assert Invitation.parse(str(found)) == found


def claim(data: bytes) -> None:
    """What a hub answers to whoever shows an invitation."""
    answer = b'{"name":"%s","scopes":["a:b"],"ticket":"alknet://%s@h:1"}'
    for output in (data, answer % (data, str(SERVER.node_id).encode())):
        with refused_with(Malformed):
            decode_claimed_untrusted(output, SERVER.node_id)


def certificate(data: bytes) -> None:
    with refused_with(Malformed):
        node_id_of_certificate(certificate_untrusted(data))


def raw_public_key(data: bytes) -> None:
    with refused_with(tls.Alert):
        _raw_public_key_untrusted(data)
    with refused_with(tls.Alert):
        _offers_raw_untrusted(data)


def packet_header(data: bytes) -> None:
    for read in (read_invariants_untrusted, read_header_untrusted):
        parse: Callable[[bytes], object] = read
        with refused_with(Malformed):
            parse(data)
    with refused_with(Malformed):
        open_first_untrusted(read_header_untrusted(data), data)


def http3(data: bytes) -> None:
    """What a client may send: frames of either kind of stream, and what is in them."""
    for allowed in (proto.REQUEST, proto.CONTROL):
        with refused_with(Malformed):
            proto.FrameReader(allowed).receive_untrusted(data)
    checks: list[Callable[[bytes], object]] = [
        proto.check_settings_untrusted,
        proto.check_qpack_encoder_untrusted,
        proto.check_qpack_decoder_untrusted,
        proto.method_untrusted,
    ]
    for check in checks:
        with refused_with(Malformed):
            check(data)
    pull_varint_untrusted(data, 0)


def vault(data: bytes) -> None:
    """Files that somebody else may have written, an index, and a value sealed for outside."""
    with refused_with(Malformed):
        decode_archive_untrusted(data, {"vault.alk"})
    for file in (data, b"alknet vault 1\n" + data, _vault_file(data)):
        with refused_with(Malformed):
            decode_container_untrusted(file)
    with refused_with(Malformed):
        decode_index_untrusted(data)
    for text in (data.decode(errors="replace"), "alkv1:v2:" + data.decode("latin-1")):
        with refused_with(Malformed):
            sealed_from_text_untrusted(text)


def succession(data: bytes) -> None:
    """An answer of node/succession, and a statement, which nobody believes yet."""
    for answer in (data, b'{"statements":["%s"]}' % base64.b64encode(data)):
        with refused_with(Malformed):
            decode_answer_untrusted(answer)
    with refused_with(Malformed):
        decode_heard_untrusted(data)
    with refused_with(Malformed):
        statement = decode_succession_untrusted(data.ljust(STATEMENT_BYTES)[:STATEMENT_BYTES])
        assert not statement.is_signed()


def ssh_agent(data: bytes) -> None:
    """What a client of the agent's socket may send: a stream, and a message."""
    decoder = MessageDecoder()
    with refused_with(Malformed):
        decoder.receive_data_untrusted(data)
        while (message := decoder.next_message()) is not None:
            decode_request_untrusted(message)
    with refused_with(Malformed):
        decode_request_untrusted(b"\x0d" + data)


def handshake(data: bytes) -> None:
    """A client whose TLS messages are changed before they are sealed, so that they are parsed.

    Each three bytes change one byte of what the client sends: where (2), and by what (1).
    """
    client, server = _engines()
    push = client._push_crypto_data

    def mutate_and_push() -> None:
        for buffer in client._crypto_buffers.values():
            _mutate(buffer, data)
        push()

    client._push_crypto_data = mutate_and_push  # type: ignore[method-assign]  # sealed after this
    now = 0.0
    client.connect(("192.0.2.1", 1), now)
    for _ in range(4):
        for datagram, _address in client.datagrams_to_send(now):
            server.receive_datagram(datagram, ("192.0.2.2", 2), now)
        if server.has_keys:
            for datagram, _address in server.datagrams_to_send(now):
                client.receive_datagram(datagram, ("192.0.2.1", 1), now)
        now += 0.05
    if any(data[at + 2] for at in range(0, len(data) - 2, 3)):
        return
    assert server.peer_key == CLIENT.node_id


def datagrams(data: bytes) -> None:
    """Bytes as they come from a network, to a fresh server."""
    _, server = _engines()
    size = 1_200
    for at in range(0, len(data), size):
        server.receive_datagram(data[at : at + size].ljust(size, b"\0"), ("192.0.2.2", 2), 0.0)
    if server.has_keys:
        server.datagrams_to_send(0.0)


def connection(data: bytes) -> None:
    """Sealed packets of frames on a connection that was accepted, some of their bytes changed.

    The first byte of four takes a frame of `FRAMES`, the next two say where which of its bytes is
    changed, and the last one by what; it ends the packet if it is even. `read_ack_untrusted` and
    the rest of the short way read them, and aioquic's handlers.
    """
    client, server = _connected()
    crypto, number = client._cryptos[tls.Epoch.ONE_RTT], client._packet_number
    plain, now, valid = b"", 1.0, list(FRAMES.values())
    for at in range(0, len(data) - 3, 4):
        frame = bytearray(valid[data[at] % len(valid)])
        frame[int.from_bytes(data[at + 1 : at + 3]) % len(frame)] ^= data[at + 3]
        plain += frame
        if data[at + 3] % 2 and len(plain) < 1_000:
            continue
        head = b"\x41" + server.host_cid + (number & 0xFFFF).to_bytes(2)
        sealed = crypto.encrypt_packet(head, plain.ljust(20, b"\0"), number)
        server.receive_datagram(sealed, CLIENT_ADDRESS, now)
        plain, number, now = b"", number + 1, now + 0.001
        while server.next_event() is not None:
            pass
        server.datagrams_to_send(now)
    if (timer := server.get_timer()) is not None:
        server.handle_timer(timer)
        server.datagrams_to_send(timer)


def _connected() -> tuple[Engine, Engine]:
    client, server = _engines()
    client.connect(SERVER_ADDRESS, 0.0)
    for step in range(6):
        now = 0.05 * step
        if step == 5:
            server.send_stream_data(0, b"good day")
        elif step == 4:
            stream_id = client.open_stream(unidirectional=False)
            client.send_stream_data(stream_id, b"hello")
        for datagram, _address in client.datagrams_to_send(now):
            server.receive_datagram(datagram, CLIENT_ADDRESS, now)
        for datagram, _address in server.datagrams_to_send(now):
            client.receive_datagram(datagram, SERVER_ADDRESS, now)
    assert client.is_confirmed
    return client, server


def _vault_file(header: bytes) -> bytes:
    return b"alknet vault 1\n" + len(header).to_bytes(4, "big") + header + b"index"


def _mutate(buffer: Buffer, data: bytes) -> None:
    length = buffer.tell()
    if not length:
        return
    content = bytearray(buffer.data_slice(0, length))
    for at in range(0, len(data) - 2, 3):
        content[int.from_bytes(data[at : at + 2], "big") % length] ^= data[at + 2]
    buffer.seek(0)
    buffer.push_bytes(bytes(content))


def _engines() -> tuple[Engine, Engine]:
    limits = Limits()
    client = client_engine(
        client_policy(PinnedKey(SERVER.node_id), CLIENT),
        alpn=ALPN,
        server_name=None,
        limits=limits,
    )
    server = server_engine(
        server_policy(SERVER),
        alpns=[ALPN],
        limits=limits,
        original_destination_cid=client.original_destination_connection_id,
    )
    return client, server


TARGETS: dict[str, Target] = {
    "envelope": envelope,
    "frames": frames,
    "scans": scans,
    "operation_input": operation_input,
    "imports": imports,
    "token": token,
    "invitation": invitation,
    "certificate": certificate,
    "raw_public_key": raw_public_key,
    "packet_header": packet_header,
    "http3": http3,
    "vault": vault,
    "succession": succession,
    "ssh_agent": ssh_agent,
    "claim": claim,
    "connection": connection,
    "handshake": handshake,
    "datagrams": datagrams,
}
