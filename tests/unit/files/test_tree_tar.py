"""Trees as archives: what other programs read, any part of one, and hostile ones."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octaskly.files.manifest import Manifest, TreeFile, TreeLink, make_manifest
from octaskly.files.tree_tar import (
    BLOCK_BYTES,
    ContentPart,
    TarEntry,
    TarError,
    TarLayout,
    TarReader,
    entry_header,
)

CONTENTS = {
    hashlib.sha256(data).digest(): data
    for data in (b"", b"x", b"y" * 512, b"z" * 1300, bytes(range(256)) * 8)
}
NS = 1_000_000_000


def file(path: str, data: bytes, mtime_ns: int = NS, *, runs: bool = False) -> TreeFile:
    return TreeFile(path, hashlib.sha256(data).digest(), len(data), mtime_ns, runs)


TREE = make_manifest(
    [
        file("a", b"x", 1_700_000_000_123_456_789),
        file("bin/app", b"z" * 1300, 1_700_000_000 * NS, runs=True),
        file("bin/ü", b"y" * 512, -1),
        file(f"long/{'n' * 120}", b"", 0),
    ],
    [TreeLink("bin/link", "../a"), TreeLink("long/link", "x" * 130)],
    ["empty"],
)


def archive(tree: Manifest, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes of a tree's archive."""
    layout = TarLayout(tree)
    parts = layout.parts(start, layout.size_bytes if end is None else end)
    return b"".join(
        CONTENTS[part.file.sha256][part.start : part.end]
        if isinstance(part, ContentPart)
        else part
        for part in parts
    )


def read(data: bytes, cuts: list[int] | None = None) -> list[tuple[TarEntry, bytes]]:
    """Return the entries of an archive that arrives in pieces."""
    reader, found = TarReader(), []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts or []), len(data)]
    for start, end in pairwise(places):
        for part in reader.add_data(data[start:end]):
            if isinstance(part, TarEntry):
                found.append((part, bytearray()))
            elif part is not None:
                found[-1][1].extend(part)
    assert reader.is_over
    return [(entry, bytes(content)) for entry, content in found]


def test_python_reads_an_archive() -> None:
    """Names, contents, times, executable bits and links."""
    data = archive(TREE)
    assert len(data) == TarLayout(TREE).size_bytes

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {
            member.name: (
                member.type,
                member.mode,
                member.mtime,
                member.linkname,
                (tar.extractfile(member) or io.BytesIO()).read()
                if member.isreg()
                else b"",
            )
            for member in tar.getmembers()
        }

    assert found == {
        "a": (b"0", 0o644, 1_700_000_000.123456789, "", b"x"),
        "bin/app": (b"0", 0o755, 1_700_000_000, "", b"z" * 1300),
        "bin/link": (b"2", 0o755, 0, "../a", b""),
        "bin/ü": (b"0", 0o644, -0.000000001, "", b"y" * 512),
        "empty": (b"5", 0o755, 0, "", b""),
        f"long/{'n' * 120}": (b"0", 0o644, 0, "", b""),
        "long/link": (b"2", 0o755, 0, "x" * 130, b""),
    }


def test_a_file_above_8_gib_has_its_size_in_a_pax_header() -> None:
    """An octal size has no room for it."""
    header = entry_header(TreeFile("big", bytes(32), 1 << 40, NS))

    [entry] = [part for part in TarReader().add_data(header) if part is not None]
    assert isinstance(entry, TarEntry)
    assert entry.size_bytes == 1 << 40
    shown = tarfile.TarInfo.frombuf(header[-BLOCK_BYTES:], "utf-8", "strict")
    assert shown.name == "big"


paths = st.lists(
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1),
    min_size=1,
    max_size=3,
).map("/".join)


@given(
    st.dictionaries(
        paths.filter(lambda p: not {".", ".."} & set(p.split("/")) and len(p) < 80),
        st.tuples(
            st.sampled_from(sorted(CONTENTS)),
            st.integers(-(1 << 63), (1 << 63) - 1),
            st.booleans(),
        ),
        max_size=4,
    ),
    st.lists(st.integers(0, 1 << 16), max_size=5),
)
def test_what_was_written_is_read(
    files: dict[str, tuple[bytes, int, bool]], cuts: list[int]
) -> None:
    """In pieces of any size, and resumed at any byte."""
    names = set(files)
    entries = [
        TreeFile(path, digest, len(CONTENTS[digest]), mtime_ns, runs)
        for path, (digest, mtime_ns, runs) in files.items()
        if not any(path.startswith(f"{other}/") for other in names)
    ]
    tree = make_manifest(entries)
    data = archive(tree)

    found = read(data, cuts)

    assert [
        (entry.path, content, entry.mtime_ns, entry.is_executable)
        for entry, content in found
    ] == [(f.path, CONTENTS[f.sha256], f.mtime_ns, f.is_executable) for f in tree.files]
    for cut in cuts:
        at = cut % (len(data) + 1)
        assert archive(tree, at) == data[at:]
        assert archive(tree, 0, at) == data[:at]


RIGHT = {"comment": f"sha256={hashlib.sha256(b'').hexdigest()}"}


def hostile(**fields: object) -> bytes:
    """Return an archive with one member that Python wrote."""
    member = tarfile.TarInfo("x")
    member.pax_headers = RIGHT
    for name, value in fields.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def test_a_file_has_its_digest_where_other_programs_read_none() -> None:
    """A comment of a pax header, as POSIX has it."""
    assert [entry.sha256 for entry, _ in read(hostile())] == [RIGHT["comment"][7:]]
    assert [
        (entry.path, entry.sha256) for entry, _ in read(archive(TREE)) if entry.is_file
    ] == [(entry.path, entry.sha256.hex()) for entry in TREE.files]


@pytest.mark.parametrize(
    "data",
    [
        hostile(type=tarfile.CHRTYPE),
        hostile(type=tarfile.BLKTYPE),
        hostile(type=tarfile.FIFOTYPE),
        hostile(type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        hostile(type=tarfile.GNUTYPE_SPARSE),
        hostile(type=tarfile.GNUTYPE_LONGNAME, size=10),
        hostile(type=tarfile.XGLTYPE, size=10),
        hostile(type=tarfile.SYMTYPE, size=10),
        hostile(pax_headers={}),
        hostile(pax_headers={"comment": f"sha256={'A' * 64}"}),
        hostile(pax_headers=RIGHT | {"GNU.sparse.size": "1"}),
        hostile(pax_headers=RIGHT | {"path": "a" * 20_000}),
        hostile(pax_headers=RIGHT | {"size": "-1"}),
        hostile(pax_headers=RIGHT | {"mtime": "nan"}),
        b"\x01" * 512,
        bytes(512) + b"x" * 512,
        b"\xff" * 2048,
    ],
)
def test_other_archives_are_refused(data: bytes) -> None:
    """Devices, hard links, sparse files, and what else has another meaning."""
    with pytest.raises(TarError):
        read(data)


@given(st.binary(max_size=3000), st.integers(0, 4000), st.integers(0, 255))
def test_no_damage_breaks_the_reader(more: bytes, at: int, byte: int) -> None:
    """It is an error of its own kind, or an archive."""
    data = bytearray(archive(TREE)) + more
    data[at % len(data)] = byte
    reader = TarReader()
    with contextlib.suppress(TarError):
        for _ in reader.add_data(bytes(data)):
            pass
