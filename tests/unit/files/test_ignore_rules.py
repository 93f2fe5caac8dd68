"""Which files below a folder are sent: as git says, or by the .gitignore files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from octaskly.client.here_file import PREFIX
from octaskly.files import ignore_rules
from octaskly.files.home_folder import PARTIAL_PREFIX, STATE_PREFIX
from octaskly.files.ignore_rules import FolderListing, list_folder
from octaskly.files.manifest import ManifestError

NOBODY = 65534


def git(folder: Path, *words: str) -> str:
    """Run git without the settings of the user who runs the tests."""
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    identity |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    return subprocess.run(
        ["git", "-C", folder, "-c", "protocol.file.allow=always", *words],
        env=os.environ | identity | {"GIT_CONFIG_GLOBAL": "/dev/null"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def write(top: Path, *paths: str, text: str = "") -> None:
    for path in paths:
        place = top / path
        if path.endswith("/"):
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)


def listed(folder: Path, *, includes_ignored: bool = False) -> list[str]:
    return sorted(listing(folder, includes_ignored=includes_ignored).entries)


def listing(folder: Path, *, includes_ignored: bool = False) -> FolderListing:
    return list_folder(str(folder), includes_ignored=includes_ignored)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A work tree whose rules ignore objects, `build/` and everything in `cache/`."""
    top = tmp_path / "repository"
    top.mkdir()
    git(top, "init", "-q")
    write(top, ".gitignore", text="*.o\nbuild/\n!keep.o\n")
    write(top, "a.c", "a.o", "keep.o", "build/out/a", "build/b", "src/b.c", "src/b.o")
    write(top, "cache/.gitignore", text="*\n")
    write(top, "cache/c", "forced.o", "empty/")
    git(top, "add", "a.c", ".gitignore")
    git(top, "add", "-f", "forced.o")
    return top


def test_git_makes_the_list_in_a_work_tree(repository: Path) -> None:
    """Tracked files in any case, new ones unless they are ignored; no empty folder."""
    found = listing(repository)

    assert sorted(found.entries) == [
        *(".gitignore", "a.c", "forced.o", "keep.o", "src/b.c")
    ]
    assert found.empty_folders == []
    assert (found.skipped_files, found.skipped_folders) == (2, 2)
    assert found.is_git_skipped


def test_a_folder_below_the_top_obeys_the_rules_above_it(repository: Path) -> None:
    """Paths are relative to that folder."""
    found = listing(repository / "src")

    assert list(found.entries) == ["b.c"]
    assert (found.skipped_files, found.is_git_skipped) == (1, False)


def test_an_ignored_folder_that_is_named_is_sent(repository: Path) -> None:
    """The user named it, and every rule that ignores it as a whole lies above."""
    write(repository, "build/.git/config", "build/x.o")

    assert listed(repository / "build") == ["b", "out/a", "x.o"]
    assert listed(repository / "build" / "out") == ["a"]


def test_all_files_of_a_work_tree_can_be_sent(repository: Path) -> None:
    """Ignored files, empty folders and the repository itself."""
    found = listing(repository, includes_ignored=True)

    assert {"a.o", "build/out/a", "cache/c", ".git/HEAD"} <= set(found.entries)
    assert "empty" in found.empty_folders
    assert (found.skipped_files, found.is_git_skipped) == (0, False)


def test_removed_files_that_git_tracks_are_left_out(repository: Path) -> None:
    """Also those below a folder that a link or a file replaced."""
    write(repository, "old/x", "older/x", "real/x")
    git(repository, "add", "-A")
    for name in ("a.c", "old/x", "older/x"):
        (repository / name).unlink()
    (repository / "old").rmdir()
    (repository / "old").symlink_to("real")
    (repository / "older").rmdir()
    (repository / "older").write_text("")

    found = listed(repository)

    assert "a.c" not in found
    assert [name for name in found if "x" in name or "old" in name] == [
        *("old", "older", "real/x")
    ]


def test_an_unmerged_file_is_listed_once(repository: Path) -> None:
    """Git lists it once for each side of the merge."""
    git(repository, "commit", "-qm", "base")
    for branch, text in (("one", "1"), ("two", "2")):
        git(repository, "checkout", "-qb", branch, "HEAD")
        (repository / "a.c").write_text(text)
        git(repository, "commit", "-qam", branch)
        git(repository, "checkout", "-q", "HEAD~")
    git(repository, "checkout", "-q", "one")
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "merge", "-q", "two")

    assert listed(repository).count("a.c") == 1
    assert "a.c" in git(repository, "ls-files", "-u")


def test_submodules_and_nested_repositories_are_listed(
    repository: Path, tmp_path: Path
) -> None:
    """Each by its own rules, also where only the folder of a submodule is there."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    write(other, ".gitignore", text="*.tmp\n")
    write(other, "lib.c")
    git(other, "add", "-A")
    git(other, "commit", "-qm", "first")
    git(repository, "submodule", "-q", "add", str(other), "module")
    git(repository, "submodule", "-q", "add", str(other), "absent")
    git(repository, "commit", "-qm", "modules")
    git(repository, "submodule", "-q", "deinit", "-f", "absent")
    git(repository, "clone", "-q", str(other), "nested")
    write(repository, "module/a.tmp", "module/a.o", "nested/a.tmp", "nested/new")

    found = listing(repository)

    assert sorted(name for name in found.entries if "/" in name) == [
        *("module/.gitignore", "module/a.o", "module/lib.c"),
        *("nested/.gitignore", "nested/lib.c", "nested/new", "src/b.c"),
    ]
    assert found.empty_folders == ["absent"]


def test_a_repository_below_a_plain_folder_is_listed_by_git(
    repository: Path, tmp_path: Path
) -> None:
    """So tracked files are always sent, from wherever the folder is named."""
    write(tmp_path, "plain.o")

    found = listing(tmp_path)

    assert "repository/forced.o" in found.entries
    assert "repository/a.o" not in found.entries
    assert "plain.o" in found.entries
    assert found.is_git_skipped


def test_variables_of_a_hook_choose_no_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of another repository may run Octaskly."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))

    assert "forced.o" in listed(repository)


def test_a_repository_starts_no_program(repository: Path, tmp_path: Path) -> None:
    """Its settings come from whoever made it, as in an unpacked archive."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(program))

    listed(repository)

    assert not (tmp_path / "started").exists()


def test_a_repository_that_git_refuses_is_an_error(repository: Path) -> None:
    """Other rules than git's would leave out files that it tracks."""
    (repository / ".git" / "config").write_text("[core\n")

    with pytest.raises(ManifestError, match=r"git cannot list the files of .*config"):
        listed(repository)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_repository_of_another_user_is_an_error_with_gits_advice(
    repository: Path,
) -> None:
    """Git refuses it, because its settings could name programs."""
    for place in (repository, repository / ".git"):
        os.chown(place, NOBODY, NOBODY)

    with pytest.raises(ManifestError, match="detected dubious ownership") as caught:
        listed(repository)

    assert caught.value.hint == (
        f"git config --global --add safe.directory {repository}"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root becomes another user")
def test_a_folder_that_git_cannot_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Git itself only warns, and lists the rest."""
    with tempfile.TemporaryDirectory(prefix="octaskly-test-") as name:
        top = Path(name)
        os.chown(top, NOBODY, NOBODY)
        monkeypatch.setenv("HOME", name)
        os.seteuid(NOBODY)
        try:
            git(top, "init", "-q")
            write(top, "a", "d/b")
            (top / "d").chmod(0)
            with pytest.raises(ManifestError) as caught:
                listed(top)
        finally:
            os.seteuid(0)

    assert caught.value.message == (
        f"git cannot list the files of '{top}':"
        " could not open directory 'd/': Permission denied"
    )


def test_a_folder_named_like_a_repository_is_none(tmp_path: Path) -> None:
    """`.git` is skipped, and the rest is sent."""
    write(tmp_path, ".git/", ".gitignore", "a", text="b\n")
    write(tmp_path, "b", "sub/.git/", "sub/c")

    found = listing(tmp_path)

    assert sorted(found.entries) == [".gitignore", "a", "sub/c"]
    assert found.is_git_skipped


def test_inside_a_git_folder_no_rule_applies(repository: Path) -> None:
    """The user named it."""
    assert "HEAD" in listed(repository / ".git")


def test_without_git_its_rules_apply_nevertheless(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for any folder; only tracked files that a rule ignores are missing."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    found = listing(repository)

    assert sorted(found.entries) == [".gitignore", "a.c", "keep.o", "src/b.c"]
    assert sorted(found.empty_folders) == ["cache", "empty"]
    assert (found.skipped_files, found.skipped_folders) == (5, 1)


def test_plain_folders_are_listed_with_their_empty_folders(tmp_path: Path) -> None:
    """A folder of which everything is ignored is an empty one."""
    write(tmp_path, ".gitignore", text="*.log\nout\n")
    write(tmp_path, "a", "logs/x.log", "none/none/", "out/x", "b/c")
    (tmp_path / "link").symlink_to("b")

    found = listing(tmp_path)

    assert sorted(found.entries) == [".gitignore", "a", "b/c", "link"]
    assert sorted(found.empty_folders) == ["logs", "none/none"]
    assert (found.skipped_files, found.skipped_folders) == (1, 1)
    assert not found.is_git_skipped


@pytest.mark.parametrize("is_repository", [True, False])
@pytest.mark.parametrize("includes_ignored", [True, False])
def test_temporary_files_of_other_commands_are_not_sent(
    tmp_path: Path, is_repository: bool, includes_ignored: bool
) -> None:
    """`octaskly fetch` writes them, and `--here` removes its own at the end."""
    if is_repository:
        git(tmp_path, "init", "-q")
    digits = "0123456789abcdef"
    write(tmp_path, f"{PREFIX}{digits * 2}", f"{STATE_PREFIX}task-001-0a1b2c3d")
    write(tmp_path, f"src/{PARTIAL_PREFIX}{digits}", "src/.octaskly-notes")

    found = listed(tmp_path, includes_ignored=includes_ignored)

    assert [path for path in found if not path.startswith(".git/")] == [
        "src/.octaskly-notes"
    ]


def test_the_deepest_rules_count(tmp_path: Path) -> None:
    """They may take back what a file above ignores, but not below an ignored folder."""
    write(tmp_path, ".gitignore", text="*.log\nout/\n")
    write(tmp_path, "a/.gitignore", text="!keep.log\n/b\n")
    write(tmp_path, "a/keep.log", "a/x.log", "a/b", "a/c/b")
    write(tmp_path, "out/.gitignore", text="!*\n")
    write(tmp_path, "out/x")

    assert listed(tmp_path) == [".gitignore", "a/.gitignore", "a/c/b", "a/keep.log"]


def test_a_rule_file_that_is_no_file_is_sent_as_it_is(tmp_path: Path) -> None:
    """Reading it could wait for ever, or lead out of the folder."""
    os.mkfifo(tmp_path / ".gitignore")
    write(tmp_path, "a/b")
    (tmp_path / "a" / ".gitignore").symlink_to("/etc/hosts")

    assert listed(tmp_path) == [".gitignore", "a/.gitignore", "a/b"]


def test_folders_are_listed_at_any_depth(tmp_path: Path) -> None:
    """Deeper than Python's limit for recursion."""
    folders = ["/".join("d" * depth) for depth in range(1, 1200)]
    for folder in folders:
        (tmp_path / folder).mkdir()
    write(tmp_path, f"{folders[-1]}/file")

    assert listed(tmp_path) == [f"{folders[-1]}/file"]
    git(tmp_path, "init", "-q")
    assert listed(tmp_path) == [f"{folders[-1]}/file"]
    (tmp_path / folders[-1] / "file").unlink()
    for folder in reversed(folders):  # The removal by pytest may be recursive.
        (tmp_path / folder).rmdir()


def test_too_many_files_end_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder named by mistake is not read to its end."""
    monkeypatch.setattr(ignore_rules, "ENTRIES_MAX", 3)
    write(tmp_path, "a", "b", "c")
    assert len(listed(tmp_path)) == 3

    write(tmp_path, "d")

    with pytest.raises(ManifestError, match="more than 3 files and folders below '/"):
        listed(tmp_path)


def test_too_many_empty_folders_end_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are entries of a tree like files."""
    monkeypatch.setattr(ignore_rules, "ENTRIES_MAX", 3)
    write(tmp_path, "a")
    for name in "bcd":
        (tmp_path / name).mkdir()

    with pytest.raises(ManifestError, match="more than 3 files and folders below '/"):
        listed(tmp_path)
