"""TLS 1.3 handshake messages (RFC 8446 sec. 4) as bytes, where aioquic nests buffers and blocks.

aioquic reads and writes a message field by field through a buffer, with a context manager around
each length: a hundred of them per handshake on each side, and the ClientHello is read twice here.
These functions stand for its functions of the same name. Reading: a message that is not plainly in
order goes to aioquic's function, which says what is wrong with it, so what is taken, and the alert
for what is not, are aioquic's. Writing: the same bytes, joined once.

tests/core/quic/test_messages.py gives both the same messages, whole and damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.tls import ExtensionType, HandshakeType

__all__ = ["REPLACED", "ReadHello", "pull_client_hello"]

VERSION_1_2 = b"\x03\x03"
CERTIFICATE_VERIFY = bytes((HandshakeType.CERTIFICATE_VERIFY,))
CERTIFICATE_REQUEST = bytes((HandshakeType.CERTIFICATE_REQUEST,))
CERTIFICATE = bytes((HandshakeType.CERTIFICATE,))
CLIENT_HELLO = bytes((HandshakeType.CLIENT_HELLO,))
ENCRYPTED_EXTENSIONS = bytes((HandshakeType.ENCRYPTED_EXTENSIONS,))
FINISHED = bytes((HandshakeType.FINISHED,))
SERVER_HELLO = bytes((HandshakeType.SERVER_HELLO,))
# The types as numbers: an `IntEnum` is slow to compare and to write.
ALPN, KEY_SHARE = int(ExtensionType.ALPN), int(ExtensionType.KEY_SHARE)
PSK_MODES = int(ExtensionType.PSK_KEY_EXCHANGE_MODES)
SERVER_NAME, GROUPS = int(ExtensionType.SERVER_NAME), int(ExtensionType.SUPPORTED_GROUPS)
SIGNATURES = int(ExtensionType.SIGNATURE_ALGORITHMS)
VERSIONS = int(ExtensionType.SUPPORTED_VERSIONS)
# Extensions that no alknet node uses: aioquic reads messages that have them.
RARE = frozenset({int(ExtensionType.EARLY_DATA), int(ExtensionType.PRE_SHARED_KEY)})
T = TypeVar("T")


class ReadHello(NamedTuple):
    """A ClientHello that was read, in the place of its buffer."""

    hello: tls.ClientHello
    data: bytes


class _Odd(Exception):
    """The message is not plainly in order: let aioquic judge it."""


# reading


def pull_client_hello(buf: Buffer | ReadHello) -> tls.ClientHello:
    """Read a ClientHello; one that was read already is given back."""
    if type(buf) is ReadHello:
        return buf.hello
    return _pull(cast(Buffer, buf), CLIENT_HELLO, _read_client_hello, tls.pull_client_hello)


def pull_server_hello(buf: Buffer) -> tls.ServerHello:
    return _pull(buf, SERVER_HELLO, _read_server_hello, tls.pull_server_hello)


def pull_encrypted_extensions(buf: Buffer) -> tls.EncryptedExtensions:
    return _pull(buf, ENCRYPTED_EXTENSIONS, _read_extensions, tls.pull_encrypted_extensions)


def pull_certificate_request(buf: Buffer) -> tls.CertificateRequest:
    return _pull(buf, CERTIFICATE_REQUEST, _read_request, tls.pull_certificate_request)


def pull_certificate(buf: Buffer) -> tls.Certificate:
    return _pull(buf, CERTIFICATE, _read_certificate, tls.pull_certificate)


def pull_certificate_verify(buf: Buffer) -> tls.CertificateVerify:
    return _pull(buf, CERTIFICATE_VERIFY, _read_verify, tls.pull_certificate_verify)


def pull_finished(buf: Buffer) -> tls.Finished:
    return _pull(buf, FINISHED, tls.Finished, tls.pull_finished)


def _pull(buf: Buffer, kind: bytes, read: Callable[[bytes], T], judge: Callable[[Buffer], T]) -> T:
    """Read the one message in *buf*, from its beginning, and leave *buf* at its end."""
    size = buf.capacity
    data = buf.data_slice(0, size)
    if size < 4 or buf.tell() or data[:4] != kind + (size - 4).to_bytes(3):
        return judge(buf)
    try:
        message = read(data[4:])
    except (_Odd, IndexError, UnicodeDecodeError):
        return judge(buf)
    buf.seek(size)
    return message


def _read_client_hello(body: bytes) -> tls.ClientHello:
    session_id, at = _opaque(body, 34, 1)
    suites, at = _opaque(body, at, 2)
    compressions, at = _opaque(body, at, 1)
    if body[:2] != VERSION_1_2:
        raise _Odd
    hello = tls.ClientHello(
        random=body[2:34],
        legacy_session_id=session_id,
        cipher_suites=_numbers(suites),
        legacy_compression_methods=list(compressions),
    )
    for kind, value in _extensions(body, at):
        if kind == KEY_SHARE:
            hello.key_share = [
                (int.from_bytes(share[:2]), share[4:]) for share in _shares(_whole(value, 2))
            ]
        elif kind == VERSIONS:
            hello.supported_versions = _numbers(_whole(value, 1))
        elif kind == SIGNATURES:
            hello.signature_algorithms = _numbers(_whole(value, 2))
        elif kind == GROUPS:
            hello.supported_groups = _numbers(_whole(value, 2))
        elif kind == ALPN:
            hello.alpn_protocols = _protocols(value)
        elif kind == PSK_MODES:
            hello.psk_key_exchange_modes = list(_whole(value, 1))
        elif kind == SERVER_NAME:
            hello.server_name = _server_name(_whole(value, 2))
        elif kind in RARE:
            raise _Odd
        else:
            hello.other_extensions.append((kind, value))
    return hello


def _read_server_hello(body: bytes) -> tls.ServerHello:
    session_id, at = _opaque(body, 34, 1)
    if body[:2] != VERSION_1_2:
        raise _Odd
    hello = tls.ServerHello(
        random=body[2:34],
        legacy_session_id=session_id,
        cipher_suite=int.from_bytes(body[at : at + 2]),
        compression_method=body[at + 2],
    )
    for kind, value in _extensions(body, at + 3):
        if kind == VERSIONS:
            hello.supported_version = _number(value)
        elif kind == KEY_SHARE:
            hello.key_share = _number(value[:2]), _whole(value[2:], 2)
        elif kind in RARE:
            raise _Odd
        else:
            hello.other_extensions.append((kind, value))
    return hello


def _read_extensions(body: bytes) -> tls.EncryptedExtensions:
    extensions = tls.EncryptedExtensions()
    for kind, value in _extensions(body, 0):
        if kind == ALPN:
            protocols = _protocols(value)
            if len(protocols) != 1:
                raise _Odd
            extensions.alpn_protocol = protocols[0]
        elif kind in RARE:
            raise _Odd
        else:
            extensions.other_extensions.append((kind, value))
    return extensions


def _read_request(body: bytes) -> tls.CertificateRequest:
    context, at = _opaque(body, 0, 1)
    request = tls.CertificateRequest(request_context=context)
    for kind, value in _extensions(body, at):
        if kind == SIGNATURES:
            request.signature_algorithms = _numbers(_whole(value, 2))
        else:
            request.other_extensions.append((kind, value))
    return request


def _read_certificate(body: bytes) -> tls.Certificate:
    context, at = _opaque(body, 0, 1)
    entries = _whole(body[at:], 3)
    found, at = [], 0
    while at < len(entries):
        data, at = _opaque(entries, at, 3)
        extensions, at = _opaque(entries, at, 2)
        found.append((data, extensions))
    return tls.Certificate(request_context=context, certificates=found)


def _read_verify(body: bytes) -> tls.CertificateVerify:
    return tls.CertificateVerify(int.from_bytes(body[:2]), _whole(body[2:], 2))


def _opaque(data: bytes, at: int, width: int) -> tuple[bytes, int]:
    """Return the value after a length of *width* bytes, and where it ends."""
    start = at + width
    end = start + int.from_bytes(data[at:start])
    if end > len(data) or start > len(data):
        raise _Odd
    return data[start:end], end


def _whole(data: bytes, width: int) -> bytes:
    """Return the value after a length of *width* bytes, if it is all that there is."""
    value, end = _opaque(data, 0, width)
    if end != len(data):
        raise _Odd
    return value


def _number(data: bytes) -> int:
    if len(data) != 2:
        raise _Odd
    return int.from_bytes(data)


def _numbers(data: bytes) -> list[int]:
    if len(data) % 2:
        raise _Odd
    return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]


def _extensions(body: bytes, at: int) -> list[tuple[int, bytes]]:
    block = _whole(body[at:], 2)
    found, at = [], 0
    while at < len(block):
        kind = int.from_bytes(block[at : at + 2])
        value, at = _opaque(block, at + 2, 2)
        found.append((kind, value))
    return found


def _shares(block: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(block):
        start = at
        _, at = _opaque(block, at + 2, 2)
        found.append(block[start:at])
    return found


def _protocols(value: bytes) -> list[str]:
    block = _whole(value, 2)
    found, at = [], 0
    while at < len(block):
        name, at = _opaque(block, at, 1)
        found.append(name.decode("ascii"))
    return found


def _server_name(block: bytes) -> str:
    if block[0] != tls.NameType.HOST_NAME:
        raise _Odd
    return _whole(block[1:], 2).decode("ascii")


# writing


def push_client_hello(buf: Buffer, hello: tls.ClientHello) -> None:
    if hello.early_data or hello.pre_shared_key is not None:
        tls.push_client_hello(buf, hello)
        return
    assert hello.key_share is not None
    extensions = [
        (KEY_SHARE, _sized(b"".join(map(_share, hello.key_share)), 2)),
        (VERSIONS, _sized(_pairs(hello.supported_versions or ()), 1)),
        (SIGNATURES, _sized(_pairs(hello.signature_algorithms or ()), 2)),
        (GROUPS, _sized(_pairs(hello.supported_groups or ()), 2)),
    ]
    if hello.psk_key_exchange_modes is not None:
        extensions.append((PSK_MODES, _sized(bytes(hello.psk_key_exchange_modes), 1)))
    if hello.server_name is not None:
        name = b"\0" + _sized(hello.server_name.encode("ascii"), 2)
        extensions.append((SERVER_NAME, _sized(name, 2)))
    if hello.alpn_protocols is not None:
        extensions.append((ALPN, _alpn(hello.alpn_protocols)))
    body = (
        VERSION_1_2
        + hello.random
        + _sized(hello.legacy_session_id, 1)
        + _sized(_pairs(hello.cipher_suites), 2)
        + _sized(bytes(hello.legacy_compression_methods), 1)
        + _block(extensions + hello.other_extensions)
    )
    buf.push_bytes(CLIENT_HELLO + _sized(body, 3))


def push_server_hello(buf: Buffer, hello: tls.ServerHello) -> None:
    extensions: list[tuple[int, bytes]] = []
    if hello.supported_version is not None:
        extensions.append((VERSIONS, hello.supported_version.to_bytes(2)))
    if hello.key_share is not None:
        extensions.append((KEY_SHARE, _share(hello.key_share)))
    if hello.pre_shared_key is not None:
        kind = int(ExtensionType.PRE_SHARED_KEY)
        extensions.append((kind, hello.pre_shared_key.to_bytes(2)))
    body = (
        VERSION_1_2
        + hello.random
        + _sized(hello.legacy_session_id, 1)
        + hello.cipher_suite.to_bytes(2)
        + hello.compression_method.to_bytes(1)
        + _block(extensions + hello.other_extensions)
    )
    buf.push_bytes(SERVER_HELLO + _sized(body, 3))


def push_encrypted_extensions(buf: Buffer, extensions: tls.EncryptedExtensions) -> None:
    if extensions.early_data:
        tls.push_encrypted_extensions(buf, extensions)
        return
    found: list[tuple[int, bytes]] = []
    if extensions.alpn_protocol is not None:
        found.append((ALPN, _alpn((extensions.alpn_protocol,))))
    block = _block(found + extensions.other_extensions)
    buf.push_bytes(ENCRYPTED_EXTENSIONS + _sized(block, 3))


def push_certificate_request(buf: Buffer, request: tls.CertificateRequest) -> None:
    offered = _sized(_pairs(request.signature_algorithms or ()), 2)
    body = _sized(request.request_context, 1)
    body += _block([(SIGNATURES, offered), *request.other_extensions])
    buf.push_bytes(CERTIFICATE_REQUEST + _sized(body, 3))


def push_certificate(buf: Buffer, certificate: tls.Certificate) -> None:
    entries = b"".join(
        _sized(data, 3) + _sized(extensions, 2) for data, extensions in certificate.certificates
    )
    body = _sized(certificate.request_context, 1) + _sized(entries, 3)
    buf.push_bytes(CERTIFICATE + _sized(body, 3))


def push_certificate_verify(buf: Buffer, verify: tls.CertificateVerify) -> None:
    body = verify.algorithm.to_bytes(2) + _sized(verify.signature, 2)
    buf.push_bytes(CERTIFICATE_VERIFY + _sized(body, 3))


def push_finished(buf: Buffer, finished: tls.Finished) -> None:
    buf.push_bytes(FINISHED + _sized(finished.verify_data, 3))


def _sized(value: bytes, width: int) -> bytes:
    return len(value).to_bytes(width) + value


def _pairs(numbers: Iterable[int]) -> bytes:
    return b"".join(number.to_bytes(2) for number in numbers)


def _share(share: tuple[int, bytes]) -> bytes:
    return share[0].to_bytes(2) + _sized(share[1], 2)


def _alpn(protocols: Sequence[str]) -> bytes:
    return _sized(b"".join(_sized(name.encode("ascii"), 1) for name in protocols), 2)


def _block(extensions: Sequence[tuple[int, bytes]]) -> bytes:
    return _sized(b"".join(kind.to_bytes(2) + _sized(value, 2) for kind, value in extensions), 2)


class push_message:  # noqa: N801  aioquic's name
    """Adds what is written within the block to the transcript."""

    __slots__ = ("_buf", "_schedule", "_start")

    def __init__(self, schedule: tls.KeySchedule | tls.KeyScheduleProxy, buf: Buffer) -> None:
        self._schedule = schedule
        self._buf = buf
        self._start = 0

    def __enter__(self) -> None:
        self._start = self._buf.tell()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            data = self._buf.data_slice(self._start, self._buf.tell())
            self._schedule.update_hash(data)


REPLACED: dict[str, Callable[..., object]] = {
    function.__name__: function
    for function in (
        pull_client_hello,
        pull_server_hello,
        pull_encrypted_extensions,
        pull_certificate_request,
        pull_certificate,
        pull_certificate_verify,
        pull_finished,
        push_client_hello,
        push_server_hello,
        push_encrypted_extensions,
        push_certificate_request,
        push_certificate,
        push_certificate_verify,
        push_finished,
        push_message,
    )
}
"""What stands for aioquic's function of the same name, see `context`."""
