"""A system service starts no program that users other than root can change."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octaskly.cli.service.program_trust import find_untrusted_paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root")

NOBODY = 65534
ANA = 1234


@pytest.fixture
def safe() -> Iterator[Path]:
    """A folder that only root can write, including its parents; not below /tmp."""
    folder = Path(tempfile.mkdtemp(dir="/var/lib"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def program(safe: Path) -> Path:
    """A program behind a link, as `pipx` makes it."""
    (safe / "venv" / "bin").mkdir(parents=True)
    (safe / "bin").mkdir()
    real = safe / "venv" / "bin" / "octaskly"
    real.write_text("#!/bin/sh\n")
    link = safe / "bin" / "octaskly"
    link.symlink_to("../venv/bin/octaskly")
    return link


def test_a_program_of_root_alone_is_accepted(program: Path) -> None:
    """Also through a link, and with its interpreter in /usr."""
    assert list(find_untrusted_paths([program, Path("/usr/bin/env")])) == []


def shared_folder(safe: Path) -> Path:
    """Let everybody write into the folder of the real file."""
    place = safe / "venv" / "bin"
    place.chmod(0o777)
    return place


def shared_parent(safe: Path) -> Path:
    """Let everybody write into a parent folder."""
    safe.chmod(0o1777)
    return safe


def shared_file(safe: Path) -> Path:
    """Let a group write the file itself."""
    place = safe / "venv" / "bin" / "octaskly"
    os.chown(place, 0, ANA)
    place.chmod(0o775)
    return place


def shared_link_folder(safe: Path) -> Path:
    """Give the folder of the link to another user."""
    place = safe / "bin"
    os.chown(place, ANA, 0)
    return place


def foreign_file(safe: Path) -> Path:
    """Give the file to another user."""
    place = safe / "venv" / "bin" / "octaskly"
    os.chown(place, NOBODY, 0)
    return place


@pytest.mark.parametrize(
    ("weaken", "why"),
    [
        (shared_folder, "may be written by everybody"),
        (shared_parent, "may be written by everybody"),
        (shared_file, "may be written by the group 1234"),
        (shared_link_folder, "belongs to user 1234"),
        (foreign_file, "belongs to user nobody"),
    ],
)
def test_each_step_to_the_program_is_checked(
    safe: Path, program: Path, weaken: Callable[[Path], Path], why: str
) -> None:
    """The folder of a link counts as much as its target."""
    place = weaken(safe)

    found = list(find_untrusted_paths([program]))

    assert [str(each) for each in found] == [f"{place} {why}"]


def test_modules_are_checked_file_by_file(safe: Path) -> None:
    """Imported modules run, too: one file among thousands is enough."""
    modules = safe / "site-packages"
    (modules / "package").mkdir(parents=True)
    (modules / "package" / "fine.py").touch()
    weak = modules / "package" / "weak.py"
    weak.touch()
    weak.chmod(0o666)

    found = list(find_untrusted_paths([modules]))

    assert [each.path for each in found] == [weak]


def test_a_link_among_modules_is_followed(safe: Path) -> None:
    """A module may be elsewhere."""
    modules = safe / "site-packages"
    modules.mkdir()
    (modules / "module.py").symlink_to("/tmp/module.py")

    found = list(find_untrusted_paths([modules]))

    assert [str(each) for each in found] == ["/tmp may be written by everybody"]


def test_a_program_in_home_is_refused(safe: Path) -> None:
    """The unit cannot even see /home; root's own home is one, too."""
    found = list(find_untrusted_paths([Path("/root/.local/bin/octaskly")]))

    assert [str(each) for each in found] == ["/root is in a home folder"]
