"""The blob store: uploaded files by content hash, within bounds."""

from __future__ import annotations

import hashlib
import os
import threading
from _collections_abc import dict_items, dict_values
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from octaskly.core.model.tree_sizes import outputs_name
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import ManifestError, TreeFile, make_manifest
from octaskly.files.pack import PackReader
from octaskly.ports.files import (
    COPY_RETENTION_S,
    RETENTION_S,
    ContentMismatch,
    DiskFull,
    FileExceedsQuota,
    FileQuotaExceeded,
    UploadInProgress,
    WrongOffset,
)
from octaskly.runner.blobs import uploads
from octaskly.runner.blobs.blob_index import BOOT_NAME, Kept
from octaskly.runner.blobs.blob_room import PARTIAL_RETENTION_S
from octaskly.runner.blobs.blob_store import (
    FLUSHED_ALONE_MAX,
    TAKEOVER_S,
    UNUSED_S_MAX,
    BlobStore,
)
from octaskly.runner.blobs.uploads import HASHED_APART_BYTES, PieceUpload
from octaskly.runner.files.scratch_folder import (
    create_file,
    finish_files,
    make_folders,
    make_links,
)
from octaskly.runner.output.captured_contents import (
    DAMAGED_NAME,
    MANIFEST_NAME,
    CapturedContents,
    write_manifest,
)
from tests.support.set_clock import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def blob_store(tmp_path: Path, clock: SetClock) -> BlobStore:
    return BlobStore(tmp_path / "files", clock=clock, quota_bytes=1000, reserve_bytes=0)


def name_of(data: bytes) -> str:
    return sha256(data).hexdigest()


def names_in(folder: Path) -> list[str]:
    """Return what a store has in its folder."""
    return [place.name for place in folder.iterdir() if place.name != BOOT_NAME]


def put(blob_store: BlobStore, data: bytes, *, keep_s: float = RETENTION_S) -> str:
    upload = blob_store.start_upload(name_of(data), len(data), keep_s=keep_s)
    upload.write(data[:3])
    upload.write(data[3:])
    upload.finish()
    upload.abort()
    return name_of(data)


def test_a_stored_file_is_read_only(blob_store: BlobStore) -> None:
    """No process changes it for others, not even by mistake."""
    name = put(blob_store, b"some bytes")

    assert blob_store.touch_file(name) == 10
    assert blob_store.file_path(name).read_bytes() == b"some bytes"
    assert blob_store.file_path(name).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("sent", [b"other bytes", b"some byteZ", b"some", b""])
def test_a_file_with_the_wrong_content_is_deleted(
    blob_store: BlobStore, tmp_path: Path, sent: bytes
) -> None:
    """Other bytes, too few, too many."""

    def send() -> None:
        upload = blob_store.start_upload(name_of(b"some bytes"), 10)
        try:
            upload.write(sent)
            upload.finish()
        finally:
            upload.abort()

    with pytest.raises(ContentMismatch):
        send()

    assert names_in(tmp_path / "files") == []
    with pytest.raises(OutputNotFound):
        blob_store.file_path(name_of(b"some bytes"))


@pytest.mark.parametrize("name", ["", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65])
def test_a_name_that_is_no_digest_is_refused(blob_store: BlobStore, name: str) -> None:
    """It may come from a client, or from the log of a peer."""
    with pytest.raises(ContentMismatch):
        blob_store.start_upload(name, 1)
    assert blob_store.touch_file(name) is None


def test_the_longest_unused_file_makes_room(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Copies go before files that a client holds; an upload counts as it arrives."""
    left = put(blob_store, b"l" * 400)
    copy = put(blob_store, b"c" * 400, keep_s=COPY_RETENTION_S)
    clock.now_s += COPY_RETENTION_S + 1
    arriving = blob_store.start_upload(name_of(b"n" * 400), 400)
    assert blob_store.touch_file(copy, keep_s=0.0) == 400
    clock.now_s += 1
    arriving.write(b"n" * 400)

    assert blob_store.touch_file(copy) is None
    assert blob_store.touch_file(left) == 400
    with pytest.raises(FileQuotaExceeded):
        blob_store.start_upload(name_of(b"m" * 201), 201)
    arriving.abort()
    put(blob_store, b"m" * 201)


def test_an_announced_file_takes_no_room_until_it_arrives(
    blob_store: BlobStore,
) -> None:
    """Others fit meanwhile; then the rest of it is refused, and its bytes are freed."""
    announced = blob_store.start_upload(name_of(b"a" * 1000), 1000)
    other = put(blob_store, b"b" * 700)
    announced.write(b"a" * 300)

    with pytest.raises(FileQuotaExceeded):
        announced.write(b"a")
    announced.abort()

    assert blob_store.touch_file(other) == 700
    put(blob_store, b"c" * 300)


class CountedListing(dict[str, Kept]):
    """The files of a store; counts how often all of them are listed."""

    count = 0

    def items(self) -> dict_items[str, Kept]:
        self.count += 1
        return super().items()

    def values(self) -> dict_values[str, Kept]:
        self.count += 1
        return super().values()


def test_a_file_is_stored_without_looking_at_all_others(
    tmp_path: Path, clock: SetClock
) -> None:
    """A full store deletes several unused files at a time."""
    store = BlobStore(tmp_path / "files", clock=clock, quota_bytes=600, reserve_bytes=0)
    listed = store._index._files = CountedListing(store._index.files())
    for number in range(200):
        put(store, b"%03d" % number)
    assert listed.count == 0
    clock.now_s += RETENTION_S + 1

    for number in range(200, 260):
        put(store, b"%03d" % number)

    assert listed.count < 20
    assert len(listed) > 180
    assert listed.keys() >= {name_of(b"%03d" % number) for number in range(80, 260)}


def test_unused_files_make_room_and_stay_until_then(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """The least recently used goes first; what was used just now stays protected."""
    first, second = put(blob_store, b"1" * 300), put(blob_store, b"2" * 300)
    clock.now_s += COPY_RETENTION_S + 1
    used = put(blob_store, b"3" * 300)

    blob_store.release_unused()
    put(blob_store, b"4" * 300)

    assert blob_store.files_here([first, second, used]) == [second, used]
    with pytest.raises(FileQuotaExceeded):
        put(blob_store, b"5" * 600)


def test_a_file_that_a_client_holds_stays_until_it_is_released(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Or until an hour after its last request."""
    first, second = put(blob_store, b"f" * 500), put(blob_store, b"s" * 500)
    clock.now_s += RETENTION_S - 1
    assert blob_store.touch_file(first) == 500
    with pytest.raises(FileQuotaExceeded):
        put(blob_store, b"t" * 500)
    clock.now_s += 2

    put(blob_store, b"t" * 500)
    assert blob_store.touch_file(second) is None
    blob_store.release_file(first)
    put(blob_store, b"u" * 500)
    assert blob_store.touch_file(first, keep_s=0) is None


def test_a_file_that_arrives_again_is_kept_as_long_as_before(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """A lender that sends it, too, may end later, but asks for less."""
    lent = blob_store.start_upload(name_of(b"f" * 500), 500, keep_s=COPY_RETENTION_S)
    lent.write(b"f" * 500)
    name = put(blob_store, b"f" * 500)

    lent.finish()

    clock.now_s += COPY_RETENTION_S + 1
    with pytest.raises(FileQuotaExceeded):
        put(blob_store, b"o" * 501)
    assert blob_store.files_here([name]) == [name]


def test_a_file_that_is_unused_for_a_day_is_deleted(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Even if there is room for it."""
    name = put(blob_store, b"old")
    clock.now_s += RETENTION_S + UNUSED_S_MAX - 1
    blob_store.delete_expired()
    assert (blob_store._folder / name).exists()
    clock.now_s += 2
    blob_store.delete_expired()

    assert blob_store.touch_file(name) is None
    assert not (blob_store._folder / name).exists()


def test_the_next_agent_finds_the_stored_files(
    blob_store: BlobStore, tmp_path: Path, clock: SetClock
) -> None:
    """Incomplete uploads are deleted; the hold times are kept."""
    name = put(blob_store, b"f" * 600)
    blob_store.start_upload(name_of(b"half"), 4).write(b"ha")
    later = BlobStore(
        tmp_path / "files", clock=clock, quota_bytes=1000, reserve_bytes=0
    )

    assert later.touch_file(name, keep_s=0) == 600
    assert names_in(tmp_path / "files") == [name]
    with pytest.raises(FileQuotaExceeded):
        put(later, b"t" * 500)
    clock.now_s += RETENTION_S + 1
    put(later, b"t" * 500)


def test_a_folder_in_that_of_the_store_is_left_alone(
    blob_store: BlobStore, tmp_path: Path, clock: SetClock
) -> None:
    """A disk that is mounted there has one."""
    name = put(blob_store, b"kept")
    (tmp_path / "files/lost+found").mkdir()

    again = BlobStore(tmp_path / "files", clock=clock)

    assert again.touch_file(name) == 4
    assert (tmp_path / "files/lost+found").is_dir()


def test_files_and_links_are_created_only_below_a_folder(tmp_path: Path) -> None:
    """With the mode and the time of the original, whoever reads them later."""
    folder = tmp_path / "fresh"
    folder.mkdir()

    fd = create_file(folder, "bin/tool")
    os.write(fd, b"bytes")
    os.close(fd)
    finish_files(folder, [("bin/tool", 1_700_000_000_123_456_789, True)])
    make_links(folder, [("bin/other", "tool")])
    make_folders(folder, ["empty/inner"])

    made = (folder / "bin/tool").stat()
    assert (folder / "bin/other").read_bytes() == b"bytes"
    assert made.st_mode & 0o777 == 0o755
    assert made.st_mtime_ns == 1_700_000_000_123_456_789
    assert (folder / "empty/inner").is_dir()
    for path in ("../out", "/out", "", "args/../../out"):
        with pytest.raises(OSError, match="relative"):
            create_file(folder, path)
        with pytest.raises(OSError, match="relative"):
            make_links(folder, [(path, "tool")])
    with pytest.raises(FileExistsError):
        create_file(folder, "bin/other")
    assert not (tmp_path / "out").exists()


def test_a_pack_holds_the_small_files_that_are_here(blob_store: BlobStore) -> None:
    """The reader gets each content with its digest; unknown ones are left out."""
    contents = [b"one", b"", b"three" * 50]
    names = [put(blob_store, data) for data in contents]
    reader = PackReader()

    found = {
        sha256: content
        for part in blob_store.pack_files([*names, "0" * 64])
        for sha256, content in reader.add_data(part)
    }
    reader.check_end()

    assert found == {sha256(data).digest(): data for data in contents}
    assert blob_store.missing_files([*names, "0" * 64]) == ["0" * 64]


def test_a_content_with_another_digest_is_not_stored(blob_store: BlobStore) -> None:
    """Whoever sent it in a pack."""
    with pytest.raises(ContentMismatch):
        blob_store.store_blob("0" * 64, b"bytes")

    assert blob_store.missing_files(["0" * 64]) == ["0" * 64]


def test_the_file_that_was_used_least_recently_goes_first(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Of those that are not protected, whenever their protection ended."""
    early = put(blob_store, b"e" * 400, keep_s=100.0)
    clock.now_s += 10
    late = put(blob_store, b"l" * 400, keep_s=5.0)
    clock.now_s += 200

    put(blob_store, b"n" * 400)

    assert blob_store.touch_file(early, keep_s=0) is None
    assert blob_store.touch_file(late, keep_s=0) == 400


def test_a_file_from_before_the_machine_started_is_read_first(
    tmp_path: Path, clock: SetClock
) -> None:
    """It may have lost power: then a file has the right name and other bytes."""
    before = BlobStore(tmp_path / "files", clock=clock, reserve_bytes=0)
    right, wrong = put(before, b"right"), put(before, b"whole")
    place = before.file_path(wrong)
    place.chmod(0o600)
    place.write_bytes(bytes(5))
    restart_machine(tmp_path / "files")
    first = BlobStore(tmp_path / "files", clock=clock, reserve_bytes=0)
    first.release_unused()
    first.release_file(right)
    first.release_copies([right, wrong])
    later = BlobStore(tmp_path / "files", clock=clock, reserve_bytes=0)

    assert later.missing_files([right, wrong]) == [wrong]
    assert not place.exists()


def restart_machine(folder: Path) -> None:
    """Make the files in the folder of a store those of before a restart."""
    (folder / BOOT_NAME).write_text("another boot")


def test_others_use_the_store_while_a_file_is_read_first(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one takes minutes. It is read once, and one that arrives anew stays."""
    folder = tmp_path / "files"
    before = BlobStore(folder, clock=clock, reserve_bytes=0)
    name = put(before, b"whole")
    place = before.file_path(name)
    place.chmod(0o600)
    place.write_bytes(bytes(5))
    restart_machine(folder)
    store = BlobStore(folder, clock=clock, reserve_bytes=0)
    begins, goes_on, digests = threading.Event(), threading.Event(), list[str]()
    digest_of = hashlib.file_digest

    def read_slowly(file: Any, algorithm: str) -> object:
        digests.append(algorithm)
        begins.set()
        assert goes_on.wait(10.0)
        return digest_of(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", read_slowly)
    with ThreadPoolExecutor(3) as threads:
        touched = threads.submit(store.touch_file, name)
        assert begins.wait(10.0)
        opened = threads.submit(store.open_piece, name, [0])
        put(store, b"other")
        upload = store.start_upload(name, 5)
        upload.write(b"whole")
        upload.finish()
        goes_on.set()
        assert touched.result(10.0) == 5
        piece = opened.result(10.0)

    assert piece is not None
    assert os.pread(piece.fd, 9, 0) == b"whole"
    os.close(piece.fd)
    assert digests == ["sha256"]


def test_files_are_flushed_once(
    blob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their folder; many at once by way of their file system."""
    flushed: list[str] = []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: flushed.append(Path(f"/proc/self/fd/{fd}").readlink().name),
    )
    monkeypatch.setattr(
        "octaskly.runner.blobs.blob_store.sync_file_system",
        lambda _fd: flushed.append("all"),
    )
    one = put(blob_store, b"one")
    many = [put(blob_store, bytes([number])) for number in range(FLUSHED_ALONE_MAX + 1)]

    blob_store.flush_files([one])
    blob_store.flush_files([one])
    assert flushed == [one, "files"]
    blob_store.flush_files([one, *many])
    assert flushed == [one, "files", "all"]


# --- Uploads in pieces -------------------------------------------------------------


WHOLE = bytes(range(250)) * 2


def send_piece(
    blob_store: BlobStore, start: int, end: int, data: bytes = WHOLE
) -> bool:
    """Send a piece of a file, and lose the connection unless it is the last."""
    upload = blob_store.continue_upload(name_of(WHOLE), len(data), start)
    try:
        upload.write(data[start:end])
        if upload.is_complete:
            upload.finish()
    finally:
        upload.abort()
    return blob_store.touch_file(name_of(WHOLE)) is not None


def test_an_upload_in_pieces_goes_on_where_it_stopped(blob_store: BlobStore) -> None:
    """A piece may repeat what has arrived, but none may be left out."""
    name = name_of(WHOLE)
    assert not send_piece(blob_store, 0, 200)
    with pytest.raises(WrongOffset, match="200 bytes of the file are here, not 300"):
        send_piece(blob_store, 300, 500)
    assert not send_piece(blob_store, 100, 300)
    assert blob_store.arrived_bytes(name) == 300
    assert send_piece(blob_store, 300, 500)

    assert blob_store.file_path(name).read_bytes() == WHOLE
    assert blob_store.arrived_bytes(name) == 0


def test_long_parts_are_hashed_beside_their_write(
    tmp_path: Path, clock: SetClock
) -> None:
    """The digest is that of the file, also after a pause; no thread stays."""
    store = BlobStore(tmp_path / "files", clock=clock, reserve_bytes=0)
    parts = [os.urandom(HASHED_APART_BYTES + number) for number in range(5)]
    data = b"".join(parts)
    name = name_of(data)
    threads = threading.active_count()

    upload = store.continue_upload(name, len(data), 0)
    for part in parts[:3]:
        upload.write(part)
    upload.abort()
    start = sum(map(len, parts[:3]))
    upload = store.continue_upload(name, len(data), start)
    upload.write(memoryview(parts[3]))
    upload.write(parts[4])

    assert upload.finish() == name
    assert store.file_path(name).read_bytes() == data
    assert threading.active_count() == threads


def test_the_next_agent_resumes_an_upload(tmp_path: Path, clock: SetClock) -> None:
    """What arrived counts in the quota."""
    folder = tmp_path / "files"
    first = BlobStore(folder, clock=clock, quota_bytes=1000, reserve_bytes=0)
    send_piece(first, 0, 400)
    os.utime(folder / f"{name_of(WHOLE)}.part", (clock.now_s, clock.now_s))
    second = BlobStore(folder, clock=clock, quota_bytes=1000, reserve_bytes=0)

    with pytest.raises(FileQuotaExceeded):
        put(second, b"o" * 601)
    put(second, b"o" * 600)
    second.release_file(name_of(b"o" * 600))
    assert second.arrived_bytes(name_of(WHOLE)) == 400
    assert send_piece(second, 400, 500)
    put(second, b"p" * 500)


def test_a_partial_file_without_a_client_makes_room(
    blob_store: BlobStore, clock: SetClock, tmp_path: Path
) -> None:
    """After some minutes."""
    send_piece(blob_store, 0, 400)
    clock.now_s += PARTIAL_RETENTION_S + 1

    put(blob_store, b"o" * 1000)

    assert blob_store.arrived_bytes(name_of(WHOLE)) == 0
    assert not list((tmp_path / "files").glob("*.part"))


def test_a_wrong_piece_is_noticed_at_the_end(
    blob_store: BlobStore, tmp_path: Path
) -> None:
    """Nothing of the file is kept then, so that it is sent anew."""
    send_piece(blob_store, 0, 200, bytes(500))
    with pytest.raises(ContentMismatch):
        send_piece(blob_store, 200, 500)

    assert names_in(tmp_path / "files") == []
    assert send_piece(blob_store, 0, 500)
    put(blob_store, b"o" * 500)


def test_one_request_at_a_time_adds_to_a_file(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Another one may go on once the first has been silent for a while."""
    silent = blob_store.continue_upload(name_of(WHOLE), 500, 0)
    silent.write(WHOLE[:100])
    with pytest.raises(UploadInProgress):
        send_piece(blob_store, 100, 200)
    clock.now_s += TAKEOVER_S + 1
    assert not send_piece(blob_store, 100, 200)

    with pytest.raises(UploadInProgress):
        silent.write(WHOLE[100:200])
    silent.abort()
    assert blob_store.arrived_bytes(name_of(WHOLE)) == 200
    assert send_piece(blob_store, 200, 500)
    put(blob_store, b"o" * 500)


@pytest.mark.parametrize("data", [WHOLE, WHOLE[1:] + b"?"])
def test_a_request_that_was_replaced_stores_nothing(
    blob_store: BlobStore, clock: SetClock, data: bytes
) -> None:
    """Even if its last bytes had arrived by then; the other one has the file."""
    slow = blob_store.continue_upload(name_of(WHOLE), 500, 0)
    slow.write(data)
    clock.now_s += TAKEOVER_S + 1
    other = blob_store.continue_upload(name_of(WHOLE), 500, 0)
    other.write(WHOLE[:100])

    with pytest.raises((UploadInProgress, ContentMismatch)):
        slow.finish()
    slow.abort()

    assert blob_store.touch_file(name_of(WHOLE)) is None
    other.write(WHOLE[100:])
    other.finish()
    assert blob_store.file_path(name_of(WHOLE)).read_bytes() == WHOLE
    assert blob_store.used_bytes == 500


def test_a_client_that_was_away_for_long_goes_on(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Its laptop slept; nothing else needed the room meanwhile."""
    send_piece(blob_store, 0, 400)
    clock.now_s += PARTIAL_RETENTION_S + 1

    assert send_piece(blob_store, 400, 500)


def test_a_request_that_is_replaced_does_not_change_where_the_next_one_goes_on(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """Both go on from the same offset, whose digest is known."""
    send_piece(blob_store, 0, 200)
    silent = blob_store.continue_upload(name_of(WHOLE), 500, 200)
    silent.write(WHOLE[200:300])
    clock.now_s += TAKEOVER_S + 1

    assert send_piece(blob_store, 200, 500)
    silent.abort()


def test_a_request_for_which_there_is_no_room_replaces_none(
    blob_store: BlobStore, clock: SetClock
) -> None:
    """The silent one goes on, and what it leaves expires."""
    put(blob_store, b"o" * 500)
    silent = blob_store.continue_upload(name_of(WHOLE), 500, 0)
    silent.write(WHOLE[:100])
    clock.now_s += TAKEOVER_S + 1
    with pytest.raises(FileQuotaExceeded):
        blob_store.continue_upload(name_of(WHOLE), 900, 0)

    silent.write(WHOLE[100:200])
    silent.abort()

    assert blob_store.used_bytes == 700
    clock.now_s += UNUSED_S_MAX + 1
    blob_store.delete_expired()
    assert blob_store.used_bytes == 500


def take_pieces(
    blob_store: BlobStore, size_bytes: int, numbers: Sequence[int]
) -> PieceUpload:
    """Return an arrival of WHOLE in pieces, after some of them."""
    upload = blob_store.start_pieces(name_of(WHOLE), size_bytes)
    for number in numbers:
        start, end = upload.piece_range(number)
        upload.begin_piece(number)
        upload.write_at(start, memoryview(WHOLE[start:end]))
        upload.end_piece(number)
    while upload.hash_next():
        pass
    return upload


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five make WHOLE."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", 100)


@pytest.mark.usefixtures("small_pieces")
def test_pieces_that_have_arrived_stay_for_the_next_agent(
    tmp_path: Path, clock: SetClock
) -> None:
    """They count in the quota; the rest makes them whole."""
    folder = tmp_path / "files"
    first = BlobStore(folder, clock=clock, quota_bytes=1000, reserve_bytes=0)
    take_pieces(first, 500, [0, 3]).close(is_wrong=False)
    assert first.used_bytes == 200
    second = BlobStore(folder, clock=clock, quota_bytes=1000, reserve_bytes=0)

    upload = take_pieces(second, 500, ())
    assert [upload.has_piece(number) for number in range(5)] == [1, 0, 0, 1, 0]
    assert second.used_bytes == 200
    upload.close(is_wrong=False)
    take_pieces(second, 500, [1, 2, 4]).finish()

    assert second.file_path(name_of(WHOLE)).read_bytes() == WHOLE
    assert second.used_bytes == 500
    assert not second.has_pieces(name_of(WHOLE))


@pytest.mark.usefixtures("small_pieces")
def test_pieces_of_a_file_with_another_size_are_dropped(blob_store: BlobStore) -> None:
    """A node that sends a wrong file cannot prevent that the right one arrives."""
    take_pieces(blob_store, 450, [0, 1]).close(is_wrong=False)

    upload = take_pieces(blob_store, 500, ())
    assert upload.arrived_count == 0
    upload.close(is_wrong=False)
    take_pieces(blob_store, 500, range(5)).finish()

    assert blob_store.file_path(name_of(WHOLE)).read_bytes() == WHOLE
    assert blob_store.used_bytes == 500


@pytest.mark.parametrize(
    ("blob_bytes", "count"),
    [
        (0, 1),
        (4 << 20, 1),
        ((4 << 20) + 1, 2),
        (256 << 20, 64),
        ((256 << 20) + 1, 64),
        ((1 << 30) + 5, 64),
        (2 << 30, 64),
        ((2 << 30) + 1, 65),
        (100 << 30, 3200),
    ],
)
def test_a_large_file_has_large_pieces(
    tmp_path: Path, clock: SetClock, blob_bytes: int, count: int
) -> None:
    """They cover it without gaps, and the next agent knows which have arrived."""
    folder = tmp_path / "files"
    first = BlobStore(folder, clock=clock, quota_bytes=1 << 40, reserve_bytes=0)
    upload = first.start_pieces(name_of(WHOLE), blob_bytes)
    assert upload.piece_count == count
    ranges = [upload.piece_range(number) for number in range(count)]
    ends = [end for _, end in ranges]
    assert [start for start, _ in ranges] == [0, *ends[:-1]]
    assert ends[-1] == blob_bytes
    upload.begin_piece(count - 1)
    upload.end_piece(count - 1)
    upload.close(is_wrong=False)
    second = BlobStore(folder, clock=clock, quota_bytes=1 << 40, reserve_bytes=0)

    assert second.usage().used_bytes == blob_bytes - ranges[-1][0]


def test_a_full_disk_is_no_full_quota(tmp_path: Path, clock: SetClock) -> None:
    """Nobody waits for room that no expiry gives."""
    full = BlobStore(tmp_path / "files", clock=clock, reserve_bytes=1 << 60)

    said = r"the disk of this node is full: \d+ MB are free, and 1152921504606 MB stay"
    with pytest.raises(DiskFull, match=said):
        full.store_blob(name_of(b"data"), b"data")

    assert names_in(tmp_path / "files") == []


def test_a_file_above_the_quota_is_refused_at_once(blob_store: BlobStore) -> None:
    """It would never fit."""
    with pytest.raises(FileExceedsQuota, match="1001 bytes of files"):
        blob_store.start_upload(name_of(bytes(1001)), 1001)
    with pytest.raises(FileExceedsQuota):
        blob_store.continue_upload(name_of(bytes(1001)), 1001, 0)


LARGE = bytes(range(256)) * 4097  # Just over 1 MiB.


def test_large_files_and_whole_trees_are_reported(
    tmp_path: Path, clock: SetClock
) -> None:
    """Each change once: what came, and what went; small files are not worth it."""
    store = BlobStore(tmp_path / "files", clock=clock, quota_bytes=2 << 20)
    large, small, tree = put(store, LARGE), put(store, b"small"), put(store, b"tree")
    store.mark_tree(tree)
    store.mark_tree("0" * 64)

    assert store.take_changes() == ([large, tree], [])
    store.touch_file(large)
    store.release_file(small)
    assert not store.has_changes
    clock.now_s += RETENTION_S + 1
    other = put(store, LARGE[:-1])  # It takes the room of the first.

    assert store.take_changes() == ([other], [large])
    again = BlobStore(tmp_path / "files", clock=clock)
    again.touch_file(other)
    assert again.take_changes() == ([other], [])


def capture(folder: Path, *contents: bytes) -> tuple[str, dict[str, bytes]]:
    """Leave outputs in a folder; return the name of their manifest, and the files."""
    folder.mkdir(parents=True)
    files = {name_of(data): data for data in contents}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tree = make_manifest(
        TreeFile(f"out/{name[:4]}", bytes.fromhex(name), len(data), 0)
        for name, data in files.items()
    )
    return write_manifest(folder, tree), files


def store_with(captured: CapturedContents, tmp_path: Path) -> BlobStore:
    folder = tmp_path / "files"
    return BlobStore(
        folder, clock=SetClock(), quota_bytes=1000, reserve_bytes=0, captured=captured
    )


def test_captured_outputs_are_files_of_the_store(tmp_path: Path) -> None:
    """Without a copy, whatever its quota, as long as they are kept."""
    captured, folder = CapturedContents(), tmp_path / "task" / "1-1-1-1"
    store = store_with(captured, tmp_path)
    tree, contents = capture(folder, LARGE, b"small")

    assert captured.add_folder(folder) == tree

    assert store.missing_files([tree, *contents], keep_s=COPY_RETENTION_S) == []
    assert [store.touch_file(name, keep_s=60) for name in contents] == [len(LARGE), 5]
    for name, data in contents.items():
        with os.fdopen(store.open_file(name), "rb") as file:
            assert file.read() == data
    reader = PackReader()
    parts = store.pack_files(contents)
    assert [one for part in parts for one in reader.add_data(part)] == [
        (bytes.fromhex(name_of(b"small")), b"small")
    ]
    assert store.has_changes
    outputs = outputs_name("task", "1-1-1-1")
    assert store.take_changes() == ([name_of(LARGE), outputs], [])
    assert store.used_bytes == 0
    captured.drop_folder(folder)
    assert store.missing_files(contents, keep_s=COPY_RETENTION_S) == list(contents)
    assert sorted(store.take_changes()[1]) == sorted([tree, *contents, outputs])


def test_a_captured_output_that_became_wrong_is_deleted(tmp_path: Path) -> None:
    """Nobody gets it, and its folder is marked as damaged."""
    wrong: list[Path] = []
    captured, folder = CapturedContents(), tmp_path / "task" / "1-1-1-1"
    captured.on_wrong = wrong.append
    store = store_with(captured, tmp_path)
    tree, contents = capture(folder, LARGE, b"small", b"other")
    captured.add_folder(folder)
    assert store.missing_files(contents, keep_s=COPY_RETENTION_S) == []
    store.take_changes()
    for data in (LARGE, b"small"):
        (folder / name_of(data)).write_bytes(b"x" * len(data))

    missing = store.missing_files(contents, keep_s=COPY_RETENTION_S)

    assert missing == [name_of(LARGE), name_of(b"small")]
    assert {place.name for place in folder.iterdir()} == {
        *(name_of(b"other"), tree, MANIFEST_NAME, DAMAGED_NAME)
    }
    assert wrong == [folder / name_of(LARGE)]  # Each folder once.
    assert outputs_name("task", "1-1-1-1") in store.take_changes()[1]
    with pytest.raises(OutputNotFound):
        store.verify_file(name_of(LARGE))


def test_a_captured_output_is_read_anew_when_another_node_got_it_wrong(
    tmp_path: Path,
) -> None:
    """Nothing about its file has changed, as if the disk had lost bits."""
    captured, folder = CapturedContents(), tmp_path / "task" / "1-1-1-1"
    store = store_with(captured, tmp_path)
    _, [name] = capture(folder, b"right")
    captured.add_folder(folder)
    (folder / name).write_bytes(b"wrong")
    captured.note_right(folder / name, (folder / name).stat())
    assert store.missing_files([name], keep_s=COPY_RETENTION_S) == []

    assert not store.verify_file(name)

    assert store.missing_files([name], keep_s=COPY_RETENTION_S) == [name]


def test_outputs_with_a_damaged_manifest_are_none(tmp_path: Path) -> None:
    """Their names could be those of other files."""
    folder = tmp_path / "task" / "1-1-1-1"
    tree, _ = capture(folder, b"data")
    data = (folder / tree).read_bytes()
    (folder / tree).write_bytes(data.replace(b"out/", b"our/"))

    with pytest.raises(ManifestError):
        CapturedContents().add_folder(folder)
    (folder / MANIFEST_NAME).write_text("../../x")
    with pytest.raises(ManifestError):
        CapturedContents().add_folder(folder)
