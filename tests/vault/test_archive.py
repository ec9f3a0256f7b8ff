"""Archives are what tar(1) reads, and nothing else is read as one."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import Malformed
from alknet.vault.archive import decode_archive_untrusted, encode_archive

NAMES = {"a", "b.txt", "node.toml"}
FILES = st.dictionaries(st.sampled_from(sorted(NAMES)), st.binary(max_size=1_500))


@given(FILES)
def test_files_come_back(files: dict[str, bytes]) -> None:
    assert decode_archive_untrusted(encode_archive(files), NAMES) == files


@given(FILES)
def test_tar_reads_the_same(files: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=io.BytesIO(encode_archive(files))) as tar:
        read = {member.name: tar.extractfile(member) for member in tar}
        assert {name: file and file.read() for name, file in read.items()} == files
        assert {(member.mode, member.uid, member.mtime) for member in tar} <= {(0o600, 0, 0)}


def test_the_same_files_give_the_same_bytes() -> None:
    assert encode_archive({"a": b"1", "b.txt": b"2"}) == encode_archive({"b.txt": b"2", "a": b"1"})


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "c"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Malformed, match="unexpected"):
        decode_archive_untrusted(encode_archive({name: b""}), NAMES)


def test_a_name_twice_is_refused() -> None:
    one = encode_archive({"a": b""})[:512]
    with pytest.raises(Malformed, match="unexpected"):
        decode_archive_untrusted(one + encode_archive({"a": b""}), NAMES)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_is_refused(kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(Malformed, match="something else than files"):
        decode_archive_untrusted(out.getvalue(), NAMES)


@given(st.data())
def test_an_archive_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    whole = encode_archive({"a": bytes(700), "b.txt": b"x"})
    end = data.draw(st.integers(0, 512 + 1024 + 512 + 512))
    with pytest.raises(Malformed):
        decode_archive_untrusted(whole[:end], NAMES)


@given(st.binary(max_size=1_200), st.integers(0, 600), st.integers(1, 255))
def test_any_bytes_are_files_or_malformed(data: bytes, at: int, change: int) -> None:
    altered = bytearray(encode_archive({"a": b"x"}))
    altered[at] ^= change
    for candidate in (data, bytes(altered)):
        with contextlib.suppress(Malformed):
            decode_archive_untrusted(candidate, NAMES)
