"""The blob store: uploaded files by content hash, within bounds."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from octaskly.core.model.ids import Moment
from octaskly.errors import OutputNotFound
from octaskly.ports import ContentMismatch, FileQuotaExceeded
from octaskly.runner.files.blob_store import (
    COPY_RETENTION_S,
    RETENTION_S,
    UNUSED_S_MAX,
    BlobStore,
)
from octaskly.runner.files.scratch_folder import create_file, link_or_copy


class SetClock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def now(self) -> Moment:
        return Moment(self.now_s, int(self.now_s * 1000))

    def draw(self) -> float:
        return 0.5


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def depot(tmp_path: Path, clock: SetClock) -> BlobStore:
    return BlobStore(tmp_path / "files", clock=clock, quota_bytes=1000, reserve_bytes=0)


def name_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def put(depot: BlobStore, data: bytes, *, keep_s: float = RETENTION_S) -> str:
    arrival = depot.start_upload(name_of(data), len(data), keep_s=keep_s)
    arrival.write(data[:3])
    arrival.write(data[3:])
    arrival.finish()
    arrival.abort()
    return name_of(data)


def test_a_stored_file_is_read_only(depot: BlobStore) -> None:
    """No process changes it for others, not even by mistake."""
    name = put(depot, b"some bytes")

    assert depot.touch_file(name) == 10
    assert depot.file_path(name).read_bytes() == b"some bytes"
    assert depot.file_path(name).stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("sent", [b"other bytes", b"some byteZ", b"some", b""])
def test_a_file_with_the_wrong_content_is_deleted(
    depot: BlobStore, tmp_path: Path, sent: bytes
) -> None:
    """Other bytes, too few, too many."""

    def take_in() -> None:
        arrival = depot.start_upload(name_of(b"some bytes"), 10)
        try:
            arrival.write(sent)
            arrival.finish()
        finally:
            arrival.abort()

    with pytest.raises(ContentMismatch):
        take_in()

    assert list((tmp_path / "files").iterdir()) == []
    with pytest.raises(OutputNotFound):
        depot.file_path(name_of(b"some bytes"))


@pytest.mark.parametrize("name", ["", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65])
def test_a_name_that_is_no_digest_is_refused(depot: BlobStore, name: str) -> None:
    """It may come from a client, or from the log of a peer."""
    with pytest.raises(ContentMismatch):
        depot.start_upload(name, 1)
    assert depot.touch_file(name) is None


def test_the_longest_unused_file_makes_room(depot: BlobStore, clock: SetClock) -> None:
    """Copies go before files that a client holds; an upload counts as it arrives."""
    left = put(depot, b"l" * 400)
    copy = put(depot, b"c" * 400, keep_s=COPY_RETENTION_S)
    clock.now_s += COPY_RETENTION_S + 1
    coming = depot.start_upload(name_of(b"n" * 400), 400)
    assert depot.touch_file(copy, keep_s=0.0) == 400
    clock.now_s += 1
    coming.write(b"n" * 400)

    assert depot.touch_file(copy) is None
    assert depot.touch_file(left) == 400
    with pytest.raises(FileQuotaExceeded):
        depot.start_upload(name_of(b"m" * 201), 201)
    coming.abort()
    put(depot, b"m" * 201)


def test_an_announced_file_takes_no_room_until_it_arrives(depot: BlobStore) -> None:
    """Others fit meanwhile; then the rest of it is refused, and its bytes are freed."""
    announced = depot.start_upload(name_of(b"a" * 1000), 1000)
    other = put(depot, b"b" * 700)
    announced.write(b"a" * 300)

    with pytest.raises(FileQuotaExceeded):
        announced.write(b"a")
    announced.abort()

    assert depot.touch_file(other) == 700
    put(depot, b"c" * 300)


def test_a_file_that_a_client_holds_stays_until_it_is_released(
    depot: BlobStore, clock: SetClock
) -> None:
    """Or until an hour after its last request."""
    first, second = put(depot, b"f" * 500), put(depot, b"s" * 500)
    clock.now_s += RETENTION_S - 1
    assert depot.touch_file(first) == 500
    with pytest.raises(FileQuotaExceeded):
        put(depot, b"t" * 500)
    clock.now_s += 2

    put(depot, b"t" * 500)
    assert depot.touch_file(second) is None
    depot.release_file(first)
    put(depot, b"u" * 500)
    assert depot.touch_file(first, keep_s=0) is None


def test_a_file_that_is_unused_for_a_day_is_deleted(
    depot: BlobStore, clock: SetClock
) -> None:
    """Even if there is room for it."""
    name = put(depot, b"old")
    clock.now_s += RETENTION_S + UNUSED_S_MAX - 1
    depot.delete_expired()
    assert (depot._folder / name).exists()
    clock.now_s += 2
    depot.delete_expired()

    assert depot.touch_file(name) is None
    assert not (depot._folder / name).exists()


def test_the_next_agent_finds_the_stored_files(
    depot: BlobStore, tmp_path: Path, clock: SetClock
) -> None:
    """Incomplete uploads are deleted; the hold times are kept."""
    name = put(depot, b"f" * 600)
    depot.start_upload(name_of(b"half"), 4).write(b"ha")
    later = BlobStore(
        tmp_path / "files", clock=clock, quota_bytes=1000, reserve_bytes=0
    )

    assert later.touch_file(name, keep_s=0) == 600
    assert [place.name for place in (tmp_path / "files").iterdir()] == [name]
    with pytest.raises(FileQuotaExceeded):
        put(later, b"t" * 500)
    clock.now_s += RETENTION_S + 1
    put(later, b"t" * 500)


def test_a_file_is_placed_only_below_a_folder(depot: BlobStore, tmp_path: Path) -> None:
    """As a link to the same file, or as a new copy."""
    source = depot.file_path(put(depot, b"bytes"))
    folder = tmp_path / "fresh"
    folder.mkdir()

    link_or_copy(source, folder, "args")
    assert (folder / "args").samefile(source)
    fd = create_file(folder, "copy")
    os.write(fd, b"bytes")
    os.close(fd)
    assert (folder / "copy").read_bytes() == b"bytes"
    for path in ("../out", "/out", "", "args/../../out"):
        with pytest.raises(OSError, match="relative"):
            link_or_copy(source, folder, path)
    with pytest.raises(FileExistsError):
        create_file(folder, "args")
    assert not (tmp_path / "out").exists()
