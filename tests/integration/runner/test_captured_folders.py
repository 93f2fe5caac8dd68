"""Captured outputs within a quota: what was fetched makes room."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from octaskly.runner.output.captured_contents import MANIFEST_NAME
from octaskly.runner.output.captured_folders import (
    FETCHED_NAME,
    ROOM_BYTES_MIN,
    CapturedFolders,
    mark_fetched,
)
from tests.support.pooling import no_descriptors
from tests.support.set_clock import SetClock


def open_folders(path: Path, clock: SetClock | None = None) -> CapturedFolders:
    return CapturedFolders(
        path, quota_bytes=1000, reserve_bytes=0, clock=clock or SetClock()
    )


@pytest.fixture
def folders(tmp_path: Path) -> CapturedFolders:
    return open_folders(tmp_path)


def capture(folders: CapturedFolders, folder: Path, size_bytes: int) -> bool:
    """Capture outputs if there is room."""
    if folders.make_room(folder, size_bytes) >= size_bytes:
        folder.mkdir(parents=True)
        (folder / "content").write_bytes(bytes(size_bytes))
        (folder / MANIFEST_NAME).touch()
    folders.add_folder(folder)
    return folder.exists()


def test_what_was_fetched_first_makes_room_first(
    folders: CapturedFolders, tmp_path: Path
) -> None:
    """And only as much of it as is needed; what nobody has fetched stays."""
    places = [tmp_path / f"task-{number}" / "1-1-1-1" for number in range(4)]
    for place in places[:3]:
        assert capture(folders, place, 300)
    for order, number in enumerate((2, 0)):
        mark_fetched(places[number])
        os.utime(places[number] / FETCHED_NAME, (order, order))

    assert capture(folders, places[3], 350)

    assert [place.exists() for place in places] == [True, True, False, True]
    assert not capture(folders, tmp_path / "task-4" / "1-1-1-1", 700)
    assert not places[0].exists()  # It was fetched, but even so there was no room.
    assert places[1].exists()
    assert folders.usage() == (2, 650, 1000)


def test_what_another_task_needs_makes_no_room(tmp_path: Path) -> None:
    """Though it was fetched; once the task no longer needs it, it may go."""
    clock = SetClock()
    folders = open_folders(tmp_path, clock)
    first, needed, new = (tmp_path / name / "1-1-1-1" for name in ("a", "b", "c"))
    for place in (first, needed):
        assert capture(folders, place, 400)
        mark_fetched(place)
    os.utime(needed / FETCHED_NAME, (0, 0))
    folders.mark_needed(needed, 60)

    folders = open_folders(tmp_path, clock)  # The agent is restarted.
    assert not capture(folders, new, 700)
    assert (first.exists(), needed.exists()) == (False, True)

    clock.now_s += 61
    assert capture(folders, new, 700)
    assert not needed.exists()


def test_outputs_that_are_being_captured_count(
    folders: CapturedFolders, tmp_path: Path
) -> None:
    """Two attempts that end at once do not get the same room."""
    one, other = tmp_path / "one" / "1-1-1-1", tmp_path / "other" / "1-1-1-1"
    assert folders.make_room(one, 600) == 1000

    assert folders.make_room(other, 600) == 400
    folders.add_folder(other)
    assert capture(folders, one, 600)


def test_a_lack_of_room_names_its_cause(tmp_path: Path) -> None:
    """The quota or the disk; what was fetched could make room, so there is none."""
    quota_bytes, place = 2 * ROOM_BYTES_MIN, tmp_path / "a" / "1-1-1-1"
    folders = CapturedFolders(
        tmp_path, quota_bytes=quota_bytes, reserve_bytes=0, clock=SetClock()
    )
    assert capture(folders, place, ROOM_BYTES_MIN)
    assert folders.lack_of_room() == ""
    assert capture(folders, tmp_path / "b" / "1-1-1-1", 1)
    assert folders.lack_of_room() == (
        "its --output-quota is full of outputs that were not fetched"
    )

    mark_fetched(place)
    assert folders.lack_of_room() == ""
    assert place.exists()

    reserve_bytes = shutil.disk_usage(tmp_path).total
    full = CapturedFolders(
        tmp_path, quota_bytes=1 << 40, reserve_bytes=reserve_bytes, clock=SetClock()
    )
    needed_mb = reserve_bytes // 1_000_000
    assert full.lack_of_room().endswith(
        f" MB of its disk are free, and {needed_mb} MB are needed"
    )


def test_the_next_agent_counts_what_is_there(tmp_path: Path) -> None:
    """The retention still counts from the end of the attempt, fetched or not."""
    folder = tmp_path / "task" / "1-1-1-1"
    before = open_folders(tmp_path)
    assert capture(before, folder, 600)
    os.utime(folder, (50, 50))
    mark_fetched(folder)
    later = open_folders(tmp_path)

    later.delete_older(49)
    assert later.usage() == (1, 600, 1000)
    assert folder.exists()
    later.delete_older(51)
    assert later.usage() == (0, 0, 1000)
    assert not folder.parent.exists()


def test_what_a_killed_agent_left_takes_no_room(tmp_path: Path) -> None:
    """Nobody can fetch outputs without a manifest, nor a part of a copy.

    They would fill the quota until the retention.
    """
    folder, other = tmp_path / "task" / "1-1-1-1", tmp_path / "other" / "1-1-1-1"
    assert capture(open_folders(tmp_path), folder, 300)
    copy = folder.with_name("2-1-1-1.partial")
    for place in (copy, other):
        place.mkdir(parents=True)
        (place / "partial").write_bytes(bytes(600))
    later = open_folders(tmp_path)

    assert capture(later, tmp_path / "new" / "1-1-1-1", 700)

    assert later.usage() == (2, 1000, 1000)
    assert (folder.exists(), copy.exists(), other.parent.exists()) == (True, 0, 0)


def test_outputs_whose_manifest_cannot_be_read_now_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be damaged in one place, or recover."""
    folder = tmp_path / "task" / "1-1-1-1"
    assert capture(open_folders(tmp_path), folder, 300)
    stat = os.stat

    def fail(path: str | Path, *args: Any, **options: Any) -> os.stat_result:
        if str(path).endswith(MANIFEST_NAME):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", fail)
    later = open_folders(tmp_path)
    later.delete_older(0)

    assert (folder / "content").exists()
    assert later.usage() == (1, 300, 1000)


def test_outputs_are_counted_once_a_descriptor_is_free(tmp_path: Path) -> None:
    """Outputs that are just being copied were not left by a killed agent."""
    folder = tmp_path / "task" / "1-1-1-1"
    assert capture(open_folders(tmp_path), folder, 300)
    later = open_folders(tmp_path)
    copy = tmp_path / "other" / "1-1-1-1"
    with no_descriptors():
        later.delete_older(0)
        later.make_room(copy, 100)
    partial = copy.with_name("1-1-1-1.partial")
    partial.mkdir(parents=True)

    later.delete_older(0)

    assert later.usage() == (1, 400, 1000)
    assert partial.exists()
