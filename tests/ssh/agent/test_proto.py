"""Bytes of agent messages, as OpenSSH writes them, to requests and back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import Malformed
from alknet.ssh.agent.proto import (
    FAILURE,
    MAX_MESSAGE_BYTES,
    AgentKey,
    ListKeys,
    MessageDecoder,
    Sign,
    Unsupported,
    decode_request_untrusted,
    encode_keys,
    encode_signature,
)

KEY = bytes(range(32))


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


BLOB = string(b"ssh-ed25519") + string(KEY)


def sign(blob: bytes = BLOB, data: bytes = b"data", flags: int = 0) -> bytes:
    return b"\x0d" + string(blob) + string(data) + struct.pack(">I", flags)


def test_a_request_for_keys() -> None:
    assert decode_request_untrusted(b"\x0b") == ListKeys()


@pytest.mark.parametrize("flags", [0, 2, 4, 6])
def test_a_request_to_sign(flags: int) -> None:
    assert decode_request_untrusted(sign(flags=flags)) == Sign(KEY, b"data")


def test_a_key_of_another_kind_is_none_of_ours() -> None:
    blob = string(b"ssh-rsa") + string(b"\3") + string(b"n")
    assert decode_request_untrusted(sign(blob)) == Sign(None, b"data")


@pytest.mark.parametrize("message", [sign(flags=1), sign(flags=8), b"\x11...", b"\x16", b"\x1b"])
def test_what_the_agent_does_not_do_is_unsupported(message: bytes) -> None:
    """An unknown flag, adding a key, locking, an extension."""
    assert decode_request_untrusted(message) == Unsupported(message[0])


@pytest.mark.parametrize(
    "message",
    [
        b"\x0b!",
        b"\x0d",
        sign()[:-1],
        sign() + b"!",
        sign(string(b"ssh-ed25519") + string(KEY[:31])),
        sign(BLOB + b"!"),
        sign(b""),
        b"\x0d" + b"\xff" * 8,
    ],
)
def test_a_message_that_is_not_whole_is_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        decode_request_untrusted(message)


def test_the_list_of_keys() -> None:
    contents = b"\x0c\0\0\0\1" + string(BLOB) + string(b"alknet:0")
    assert encode_keys([AgentKey(KEY, "alknet:0")]) == string(contents)
    assert encode_keys([]) == string(b"\x0c\0\0\0\0")


def test_a_signature() -> None:
    encoded = string(b"ssh-ed25519") + string(b"s" * 64)
    assert encode_signature(b"s" * 64) == string(b"\x0e" + string(encoded))
    assert string(b"\x05") == FAILURE


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(1, 20))
def test_messages_do_not_depend_on_how_they_arrive(messages: list[bytes], size: int) -> None:
    stream = b"".join(map(string, messages))
    decoder, seen = MessageDecoder(), []
    for at in range(0, len(stream), size):
        decoder.receive_data_untrusted(stream[at : at + size])
        while (message := decoder.next_message()) is not None:
            seen.append(message)
    assert seen == messages


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(Malformed):
        MessageDecoder().receive_data_untrusted(struct.pack(">I", length))


def test_the_longest_message_is_taken() -> None:
    decoder = MessageDecoder()
    decoder.receive_data_untrusted(string(bytes(MAX_MESSAGE_BYTES)))
    assert decoder.next_message() == bytes(MAX_MESSAGE_BYTES)
    assert decoder.next_message() is None
