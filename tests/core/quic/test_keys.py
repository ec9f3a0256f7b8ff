"""Our key derivation beside the RFCs' vectors and aioquic's own."""

from __future__ import annotations

import hmac

import pytest
from aioquic import tls
from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.core.quic import keys
from alknet.core.quic.keys import KeySchedule, PacketKeys, initial_secrets, packet_keys
from alknet.core.quic.memory import InitialPair

SUITES = tuple(keys._SUITES)
VERSIONS = (QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2)
CID = bytes.fromhex("8394c8f03e515708")
HEADER = bytes((0xC3, 0, 0, 0, 1, 8)) + CID + bytes((0, 0, 0x40, 0x74, 0, 0, 0, 2))


def unhex(*values: str) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, values))


# RFC 9001 Appendix A.1 and A.5, RFC 9369 Appendix A.1


def test_initial_keys_are_those_of_rfc_9001() -> None:
    client, server = initial_secrets(CID, VERSIONS[0])
    assert (client, server) == unhex(
        "c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea",
        "3c199828fd139efd216c155ad844cc81fb82fa8d7446fa7d78be803acdda951b",
    )
    assert packet_keys(CipherSuite.AES_128_GCM_SHA256, client, VERSIONS[0]) == unhex(
        "1f369613dd76d5467730efcbe3b1a22d",
        "fa044b2f42a3fd3b46fb255c",
        "9f50449e04a0e810283a1e9933adedd2",
    )
    assert packet_keys(CipherSuite.AES_128_GCM_SHA256, server, VERSIONS[0]) == unhex(
        "cf3a5331653c364c88f0f379b6067e37",
        "0ac1493ca1905853b0bba03e",
        "c206b8d9b9f0f37644430b490eeaa314",
    )


def test_chacha20_keys_are_those_of_rfc_9001() -> None:
    (secret,) = unhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    assert packet_keys(CipherSuite.CHACHA20_POLY1305_SHA256, secret, VERSIONS[0]) == unhex(
        "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8",
        "e0459b3474bdd0e44a41c144",
        "25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4",
    )


def test_initial_keys_of_version_2_are_those_of_rfc_9369() -> None:
    client, server = initial_secrets(CID, VERSIONS[1])
    assert packet_keys(CipherSuite.AES_128_GCM_SHA256, client, VERSIONS[1]) == unhex(
        "8b1a0bc121284290a29e0971b5cd045d",
        "91f73e2351d8fa91660e909f",
        "45b95e15235d6f45a6b19cbcb0294ba9",
    )
    assert packet_keys(CipherSuite.AES_128_GCM_SHA256, server, VERSIONS[1]) == unhex(
        "82db637861d55e1d011f19ea71d5d2a7",
        "dd13c276499c0249d3310652",
        "edf6d05c83121201b436e16877593c3a",
    )


# RFC 8448 sec. 3


def test_the_key_schedule_is_that_of_rfc_8448() -> None:
    schedule = KeySchedule(CipherSuite.AES_128_GCM_SHA256)
    shared, hellos, finished = unhex(
        "8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d",
        "860c06edc07858ee8e78f0e7428c58edd6b43f2ca3e6e95f02ed063cf0e1cad8",
        "9608102a0f1ccc6db6250b7b7e417b1a000eaada3daae4777a7686c9ff83df13",
    )
    seen = []
    schedule.extract(None)
    seen.append(schedule.secret)
    schedule.extract(shared)
    seen.append(schedule.secret)
    schedule._digest = hellos
    seen += [schedule.derive_secret(label) for label in (b"c hs traffic", b"s hs traffic")]
    schedule.extract(None)
    seen.append(schedule.secret)
    schedule._digest = finished
    seen += [schedule.derive_secret(label) for label in (b"c ap traffic", b"s ap traffic")]
    assert tuple(seen) == unhex(
        "33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a",
        "1dc826e93606aa6fdc0aadc12f741b01046aa6b99f691ed221a9f0ca043fbeac",
        "b3eddb126e067f35a780b3abf45e2d8f3b1a950738f52e9600746a0e27a55a21",
        "b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38",
        "18df06843d13a08bf2a449844c5f8a478001bc4d4c627984d5a41da8d0402919",
        "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
        "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
    )


# aioquic's own


STEPS = st.one_of(
    st.tuples(st.just("update_hash"), st.binary(max_size=300)),
    st.tuples(st.just("extract"), st.none() | st.binary(max_size=66)),
    st.tuples(st.just("derive_secret"), st.sampled_from([b"c hs traffic", b"res binder", b"x"])),
    st.tuples(st.just("certificate_verify_data"), st.sampled_from([b"server", b"client"])),
    st.tuples(st.just("finished_verify_data"), st.binary(min_size=32, max_size=48)),
)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SUITES), st.lists(STEPS, max_size=20))
def test_the_key_schedule_is_aioquics(
    suite: CipherSuite, steps: list[tuple[str, bytes | None]]
) -> None:
    ours, theirs = KeySchedule(suite), tls.KeySchedule(suite)
    for name, argument in steps:
        assert getattr(ours, name)(argument) == getattr(theirs, name)(argument)
        assert ours.secret == theirs.secret
        assert ours.generation == theirs.generation
    for name in ("cipher_suite", "hash_empty_value"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert type(ours.algorithm) is type(theirs.algorithm)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=48), st.lists(st.binary(max_size=200), max_size=4))
def test_an_hmac_is_the_librarys(key: bytes, messages: list[bytes]) -> None:
    for kind in (keys._SHA256, keys._SHA384):
        theirs = [hmac.digest(key, message, kind.algorithm.name) for message in messages]
        assert keys._macs(kind, key, messages) == theirs
        assert [keys._mac(kind, key, message) for message in messages] == theirs


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SUITES), st.sampled_from(VERSIONS), st.binary(min_size=48, max_size=48))
def test_packet_keys_seal_as_aioquics(suite: CipherSuite, version: int, secret: bytes) -> None:
    secret = secret[: tls.cipher_suite_hash(suite).digest_size]
    called: list[str] = []
    ours, theirs = PacketKeys(setup_cb=called.append), CryptoContext()
    for context in (ours, theirs):
        context.setup(cipher_suite=suite, secret=secret, version=version)
    sealed = [context.encrypt_packet(HEADER, b"payload" * 9, 2) for context in (ours, theirs)]
    assert sealed[0] == sealed[1]
    opened = [context.decrypt_packet(sealed[0], len(HEADER) - 4, 0) for context in (ours, theirs)]
    assert opened[0] == opened[1]
    assert called == ["tls"]
    for name in ("cipher_suite", "secret", "version"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("is_client", [True, False])
def test_initial_pairs_are_aioquics(version: int, is_client: bool) -> None:
    ours, theirs = InitialPair(), CryptoPair()
    for pair in (ours, theirs):
        pair.setup_initial(cid=CID, is_client=is_client, version=version)
    assert ours.recv.secret == theirs.recv.secret
    assert ours.encrypt_packet(HEADER, b"x" * 40, 2) == theirs.encrypt_packet(HEADER, b"x" * 40, 2)
    assert ours.aead_tag_size == theirs.aead_tag_size


# a first packet is opened once


def first_pair() -> tuple[InitialPair, bytes]:
    client, server = InitialPair(), InitialPair()
    for pair in (client, server):
        pair.setup_initial(cid=CID, is_client=pair is client, version=VERSIONS[0])
    return server, client.encrypt_packet(HEADER, b"first" * 20, 2)


def test_a_first_packet_is_opened_once() -> None:
    server, packet = first_pair()
    assert server.open_first(packet, len(HEADER) - 4) == b"first" * 20
    server.recv.teardown()  # whoever decrypts from here on fails
    assert server.decrypt_packet(packet, len(HEADER) - 4, 0) == (HEADER, b"first" * 20, 2)
    with pytest.raises(CryptoError):
        server.decrypt_packet(packet, len(HEADER) - 4, 0)


def test_what_was_opened_stands_for_no_other_packet() -> None:
    server, packet = first_pair()
    server.open_first(packet, len(HEADER) - 4)
    changed = packet[:-1] + bytes((packet[-1] ^ 1,))
    with pytest.raises(CryptoError):
        server.decrypt_packet(changed, len(HEADER) - 4, 0)


def test_a_first_packet_that_does_not_open_is_not_remembered() -> None:
    server, packet = first_pair()
    changed = packet[:-1] + bytes((packet[-1] ^ 1,))
    for _ in range(2):
        with pytest.raises(CryptoError):
            server.open_first(changed, len(HEADER) - 4)
    assert server.decrypt_packet(packet, len(HEADER) - 4, 0)[1] == b"first" * 20
