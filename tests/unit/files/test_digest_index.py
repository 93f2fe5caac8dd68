"""The index of digests: a cache that may be wrong in no way."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from octaskly.files import digest_index
from octaskly.files.digest_index import RACY_NS, DigestIndex, FileState

NOW_NS = 1_800_000_000 * 10**9
STATE = FileState(2049, (1 << 64) - 1, 5, -3, NOW_NS - 2 * RACY_NS)
DIGEST = bytes(range(32))


def opened(path: Path | None, *, is_distrusted: bool = False) -> DigestIndex:
    return DigestIndex(path, lambda: NOW_NS, is_distrusted=is_distrusted)


def keep(path: Path, state: FileState = STATE, sha256: bytes = DIGEST) -> None:
    with opened(path) as index:
        index.add(state, sha256, hashed_at_ns=NOW_NS)


def find(path: Path | None, state: FileState = STATE) -> bytes | None:
    with opened(path) as index:
        return index.look_up(state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "octaskly" / "digests.db"


def test_a_digest_is_kept_for_the_next_run(path: Path) -> None:
    """In a folder that only its user may enter."""
    keep(path)

    assert find(path) == DIGEST
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("changed", FileState._fields)
def test_any_change_of_the_state_needs_a_new_digest(path: Path, changed: str) -> None:
    """A file with another size or time, and another file."""
    keep(path)

    assert find(path, STATE._replace(**{changed: getattr(STATE, changed) - 1})) is None


def test_a_changed_file_replaces_its_digest(path: Path) -> None:
    """A file has one row, however often it changes."""
    keep(path)
    newer = STATE._replace(mtime_ns=7)
    keep(path, newer, bytes(32))

    assert (find(path, newer), find(path)) == (bytes(32), None)


@pytest.mark.parametrize(
    ("age_ns", "is_kept"),
    [(RACY_NS + 1, True), (RACY_NS, False), (0, False), (-RACY_NS * 5, False)],
)
def test_a_file_that_may_change_within_its_timestamp_is_not_kept(
    path: Path, age_ns: int, *, is_kept: bool
) -> None:
    """Git's rule: another write may leave size and times as they are."""
    keep(path, STATE._replace(ctime_ns=NOW_NS - age_ns))

    assert (find(path, STATE._replace(ctime_ns=NOW_NS - age_ns)) is not None) is is_kept


def test_a_distrusted_index_finds_nothing_and_is_repaired(path: Path) -> None:
    """A content that is not what the index says makes the client hash all again."""
    keep(path, sha256=bytes(32))

    with opened(path, is_distrusted=True) as index:
        assert index.look_up(STATE) is None
        index.add(STATE, DIGEST, hashed_at_ns=NOW_NS)

    assert find(path) == DIGEST


def test_the_index_keeps_a_limited_number_of_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest leave first."""
    monkeypatch.setattr(digest_index, "DIGESTS_MAX", 3)
    for inode in range(5):
        keep(path, STATE._replace(inode=inode))
    keep(path, STATE._replace(inode=2))
    keep(path, STATE._replace(inode=9))

    kept = [n for n in range(10) if find(path, STATE._replace(inode=n)) is not None]
    assert kept == [2, 4, 9]


@pytest.mark.parametrize(
    "damage", [b"text" * 99, b"", b"SQLite format 3\0" + bytes(99)]
)
def test_a_damaged_file_is_replaced(path: Path, damage: bytes) -> None:
    """It is a cache, so nobody has to hear of it."""
    keep(path)
    path.write_bytes(damage)

    assert find(path) is None
    keep(path)
    assert find(path) == DIGEST


def test_every_flipped_byte_leaves_the_right_digest_or_none(path: Path) -> None:
    """SQLite does not notice a damaged value, so each row has a checksum."""
    keep(path)
    sound = path.read_bytes()
    at = sound.index(DIGEST)

    for place in range(at - 60, at + 60):
        path.write_bytes(sound[:place] + b"\xaa" + sound[place + 1 :])
        assert find(path) in (DIGEST, None)
    path.write_bytes(sound.replace(DIGEST, bytes(32)))
    assert find(path) is None


def test_values_of_other_types_are_no_digest(path: Path) -> None:
    """A column of SQLite holds whatever was written."""
    keep(path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE digests SET sha256 = 7")
    database.close()

    assert find(path) is None


def test_an_index_that_another_command_has_locked_is_not_used(path: Path) -> None:
    """A command must not wait for a cache, and must not delete it."""
    keep(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")

    assert find(path) is None
    keep(path, STATE._replace(inode=1))
    other.execute("ROLLBACK")
    other.close()

    assert find(path) == DIGEST


def _keep_many(path: Path, first: int) -> None:
    for inode in range(first, first + 50):
        keep(path, STATE._replace(inode=inode))


def test_commands_at_the_same_time_leave_a_sound_index(path: Path) -> None:
    """Several of them may add files at any moment."""
    processes = [
        multiprocessing.get_context("fork").Process(target=_keep_many, args=(path, at))
        for at in (0, 1000)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    assert find(path, STATE._replace(inode=0)) == DIGEST


@pytest.mark.parametrize("kind", ["none", "file above", "folder"])
def test_without_a_place_for_it_there_is_no_index(tmp_path: Path, kind: str) -> None:
    """A read-only or full home folder is no reason to refuse a command."""
    (tmp_path / "file").write_text("")
    path = {"none": None, "file above": tmp_path / "file" / "index", "folder": tmp_path}
    with opened(path[kind]) as index:
        index.add(STATE, DIGEST, hashed_at_ns=NOW_NS)
        assert index.look_up(STATE) is None

    assert find(path[kind]) is None
