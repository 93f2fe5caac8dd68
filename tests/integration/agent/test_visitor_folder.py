"""Folders of visitors: what a killed one leaves is erased, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from octaskly.agent.visiting.folder import (
    LOCK_NAME,
    PREFIX,
    VisitorFolder,
    erase_abandoned,
)
from octaskly.errors import ConfigError

WORK = """
import os
from octaskly.agent.visiting.folder import VisitorFolder
folder = VisitorFolder(None)
(folder.path / "work/deep").mkdir(parents=True)
(folder.path / "work/deep/data").write_text("data")
os.kill(os.getpid(), 9)
"""

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a visitor that was killed at work."""
    parent = tmp_path_factory.mktemp("killed")
    environ = {**os.environ, "TMPDIR": str(parent)}
    subprocess.run([sys.executable, "-c", WORK], env=environ, check=False)
    (folder,) = parent.iterdir()
    return folder


@pytest.fixture
def leave(killed: Path) -> Callable[[Path], None]:
    """Return a function that copies the folder of a killed visitor to a place."""

    def leave(place: Path) -> None:
        shutil.copytree(killed, place, symlinks=True)
        (place / "work/link").symlink_to(Path.home())

    return leave


@pytest.fixture
def left(temporary: Path, leave: Callable[[Path], None]) -> Path:
    """The folder of a killed visitor, as it is found."""
    place = temporary / f"{PREFIX}x"
    leave(place)
    return place


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test, and a home that must not be touched."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/kept").write_text("kept")
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_next_visitor_erases_what_a_killed_one_left(
    temporary: Path, left: Path
) -> None:
    """Links in it are deleted, and lead nowhere."""
    assert (left / "work/deep/data").exists()

    folder = VisitorFolder(None)

    assert list(temporary.iterdir()) == [folder.path]
    assert (Path.home() / "kept").exists()
    folder.erase()
    assert list(temporary.iterdir()) == []


def test_living_visitor_keeps_its_folder(temporary: Path) -> None:
    """Many may run on one machine."""
    first, second = VisitorFolder(None), VisitorFolder(None)

    erase_abandoned()

    assert set(temporary.iterdir()) == {first.path, second.path}
    first.erase()
    assert list(temporary.iterdir()) == [second.path]
    second.erase()


def _replace_by_link(left: Path) -> None:
    left.rename(Path.home() / "moved")
    left.symlink_to(Path.home() / "moved")


def _link_lock(left: Path) -> None:
    (left / LOCK_NAME).rename(left / "lock")
    (left / LOCK_NAME).symlink_to(left / "lock")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda left: left.chmod(0o770), id="others may write there"),
        pytest.param(_replace_by_link, id="a link"),
        pytest.param(_link_lock, id="its lock is a link"),
        pytest.param(lambda left: (left / LOCK_NAME).unlink(), id="no lock"),
        pytest.param(
            lambda left: (left / LOCK_NAME).write_text("other"), id="another machine"
        ),
        pytest.param(
            lambda left: os.chown(left, 1234, 1234),
            id="another user",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
        ),
    ],
)
def test_what_may_be_of_others_stays(left: Path, change: Change) -> None:
    """Anybody can make a folder of this name in a temporary folder."""
    change(left)

    erase_abandoned()

    assert (left / "work/deep/data").exists()


def test_files_beside_folders_of_visitors_stay(temporary: Path) -> None:
    """Only their names are looked at."""
    (temporary / f"{PREFIX}notes").write_text("kept")
    (temporary / "other").mkdir()

    erase_abandoned()

    assert len(list(temporary.iterdir())) == 2


def test_folder_that_was_asked_for_serves_the_next_visitor(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    """A service that names one starts again after its visitor was killed."""
    asked = tmp_path / "state"
    leave(asked)

    folder = VisitorFolder(asked)

    assert list(asked.iterdir()) == [asked / LOCK_NAME]
    with pytest.raises(ConfigError, match="is not empty"):
        VisitorFolder(asked)
    folder.erase()
    assert list(asked.iterdir()) == []


def test_folder_with_files_of_a_user_is_refused(tmp_path: Path) -> None:
    """A visitor erases its folder."""
    (tmp_path / "thesis.tex").write_text("long")

    with pytest.raises(ConfigError, match="is not empty"):
        VisitorFolder(tmp_path)

    assert (tmp_path / "thesis.tex").exists()
