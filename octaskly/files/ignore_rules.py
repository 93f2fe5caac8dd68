"""Choice of the files below a folder that are sent, by git's ignore rules.

In a git work tree, git itself makes the list, so tracked files are always in it, and
empty folders never, as in a clone. Elsewhere, the `.gitignore` files in the folder and
below apply.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from octaskly.files.manifest import ENTRIES_MAX, ManifestError

if TYPE_CHECKING:
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

GIT_FOLDER: Final = ".git"
IGNORE_FILE: Final = ".gitignore"

#: A hook of git sets these variables, which would choose another repository.
_REPOSITORY_VARIABLES: Final = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"),
        *("GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
        *("GIT_NAMESPACE", "GIT_CONFIG", "GIT_INTERNAL_SUPER_PREFIX"),
    }
)
_TEMPORARY_NAME: Final = re.compile(
    r"\.octaskly-(here-[0-9a-f]{32}|fetch-.*|[0-9a-f]{16})"
)
"""Files of other commands that run in the folder.

Source: `files.home_folder` and `client.here_file`.
"""
_WILD_END: Final = re.compile(r"(?P<start>^!?|/)(?P<stars>\*{1,2})(?P<slash>/?)$")


@dataclass(slots=True)
class FolderListing:
    """The entries below a folder, by paths relative to it."""

    entries: dict[str, os.stat_result] = field(default_factory=dict)
    """Files, links and special files, with their own status, also of links."""
    empty_folders: list[str] = field(default_factory=list)
    skipped_files: int = 0
    skipped_folders: int = 0  #: ignored as a whole
    is_git_skipped: bool = False


def list_folder(folder: str, *, includes_ignored: bool) -> FolderListing:
    """Return what is to be sent of a folder. Blocks.

    Args:
        folder: A path. If a rule above it ignores the folder as a whole, no rule
            applies, because the user named it.
        includes_ignored: Skip nothing, not even `.git`; but in any case temporary
            files of commands such as `octaskly fetch`, which may change at any time.

    Raises:
        ManifestError: a folder cannot be read, or has too many files.
    """
    return _FolderLister(folder, includes_ignored=includes_ignored).list_all()


class _RuleFile(NamedTuple):
    """The patterns of one `.gitignore` file."""

    base: str  #: folder of the file, with a slash at its end; "" for the top
    patterns: tuple[GitIgnoreSpecPattern, ...]  #: the last one, which counts, first


_Rules = tuple[_RuleFile, ...]
"""From the top to the folder; None where nothing but `.git` is skipped."""


class _FolderLister:
    """Lists one folder with everything below it, without recursion.

    Folders are paths relative to `top` that end with a slash; "" is `top` itself.
    """

    def __init__(self, top: str, *, includes_ignored: bool) -> None:
        self._top = top
        self._skips_git = not includes_ignored
        self._listing = FolderListing()
        self._waiting: list[tuple[str, _Rules | None]] = []

    def list_all(self) -> FolderListing:
        if self._skips_git and (prefix := _prefix_in_work_tree(self._top)) is not None:
            if prefix and _is_ignored_by_git(self._top):
                self._waiting.append(("", None))
            else:
                self._list_by_git("")
        else:
            self._waiting.append(("", () if self._skips_git else None))
        while self._waiting:
            self._list_by_rules(*self._waiting.pop())
        return self._listing

    def _list_by_rules(self, folder: str, rules: _Rules | None) -> None:
        """List a folder; its folders are listed later."""
        found = _read_folder(self._path(folder))
        if self._skips_git and GIT_FOLDER in found:
            self._listing.is_git_skipped = True
            # Below the top only: for the top, the caller has asked git.
            is_work_tree = rules is not None and folder
            if is_work_tree and _prefix_in_work_tree(self._path(folder)) == "":
                self._list_by_git(folder)
                return
            del found[GIT_FOLDER]
        if rules is not None and _is_file(found.get(IGNORE_FILE)):
            patterns = _read_patterns(self._path(folder) + IGNORE_FILE)
            rules = (*rules, _RuleFile(folder, patterns))
        is_empty = True
        for name, entry in found.items():
            path = folder + name
            is_folder = entry.is_dir(follow_symlinks=False)
            if _is_temporary(name) and not is_folder:
                continue
            if rules and _is_ignored(f"{path}/" if is_folder else path, rules):
                self._count_skipped(is_folder=is_folder)
                continue
            is_empty = False
            if is_folder:
                self._waiting.append((f"{path}/", rules))
            elif (status := _status_of(self._path(path))) is not None:
                self._add_entry(path, status)
        if is_empty and folder:
            self._listing.empty_folders.append(folder[:-1])
            self._check_count()

    def _list_by_git(self, folder: str) -> None:
        """List a folder in a work tree as git does; its repositories come later."""
        top = self._path(folder)
        if os.path.lexists(top + GIT_FOLDER):
            self._listing.is_git_skipped = True
        last_folder = "/"
        for ignored in sorted(_git_paths(top, "-o", "-i", "--directory")):
            if ignored.startswith(last_folder):
                continue  # Git lists some folders with what is in them.
            if ignored.endswith("/"):
                last_folder = ignored
            self._count_skipped(is_folder=ignored.endswith("/"))

        real_top = os.path.realpath(top)

        @cache
        def is_real(folder: str) -> bool:
            return os.path.realpath(top + folder) == f"{real_top}/{folder}"

        for path in sorted(set(_git_paths(top, "-c", "-o"))):
            path = path.rstrip("/")
            above = path.rpartition("/")[0]
            # What git tracks may be gone, or below a link that replaced a folder.
            if not path or (above and not is_real(above)):
                continue
            status = _status_of(top + path)
            if status is not None and stat.S_ISDIR(status.st_mode):
                self._waiting.append((f"{folder}{path}/", ()))  # A repository.
            elif status is not None and not _is_temporary(path.rpartition("/")[2]):
                self._add_entry(folder + path, status)

    def _path(self, folder: str) -> str:
        return f"{self._top.rstrip('/')}/{folder}"

    def _add_entry(self, path: str, status: os.stat_result) -> None:
        self._listing.entries[path] = status
        self._check_count()

    def _check_count(self) -> None:
        """Raise ManifestError at once for a folder with too much in it."""
        listing = self._listing
        if len(listing.entries) + len(listing.empty_folders) > ENTRIES_MAX:
            raise ManifestError(
                f"there are more than {ENTRIES_MAX} files and folders below"
                f" {self._top!r}",
                hint="send a smaller folder, or one archive of it; .gitignore can "
                "exclude files",
            )

    def _count_skipped(self, *, is_folder: bool) -> None:
        if is_folder:
            self._listing.skipped_folders += 1
        else:
            self._listing.skipped_files += 1


# --- Rules in .gitignore -----------------------------------------------------------


def _read_patterns(path: str) -> tuple[GitIgnoreSpecPattern, ...]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no Path for each folder
            text = file.read().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ManifestError(f"cannot read {path!r}: {error.strerror}") from None
    return tuple(_compile_patterns(reversed(text.split("\n"))))


def _compile_patterns(lines: Iterable[str]) -> Iterator[GitIgnoreSpecPattern]:
    # Not needed in work trees, and 10 ms to import.
    from pathspec.patterns.gitignore import GitIgnorePatternError  # noqa: PLC0415
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern  # noqa: PLC0415

    for line in lines:
        try:
            with warnings.catch_warnings(action="ignore"):  # Of odd ranges in [].
                pattern = GitIgnoreSpecPattern(_pattern_for_one_entry(line))
        except GitIgnorePatternError:
            continue  # It matches nothing, as for git.
        if pattern.include is not None:
            yield pattern


def _pattern_for_one_entry(line: str) -> str:
    r"""Return a pattern whose whole regular expression matches an entry itself.

    The library compiles patterns for whole paths, whose folders may match as well. In a
    walk from the top, each folder is checked by itself. The two differ only where the
    last part of a pattern is `*` or `**`.
    """
    return _WILD_END.sub(
        lambda end: end["start"] + ("**/?*", "?*")[end["stars"] == "*"] + end["slash"],
        _without_trailing_spaces(line.rstrip("\r\n")),
    )


def _without_trailing_spaces(line: str) -> str:
    """Return a pattern without the spaces at its end, except escaped ones, as for git.

    The library keeps or strips all of them.
    """
    stripped = line.rstrip(" ")
    escapes = len(stripped) - len(stripped.rstrip("\\"))
    is_escaped = escapes % 2 == 1 and len(stripped) < len(line)
    return f"{stripped} " if is_escaped else stripped


def _is_ignored(path: str, rules: Sequence[_RuleFile]) -> bool:
    """Return True if the last matching pattern, the deepest file first, says so.

    Args:
        path: The entry; a folder ends with a slash.
        rules: Those of the folders above it.
    """
    for base, patterns in reversed(rules):
        below = path[len(base) :]
        for pattern in patterns:
            if pattern.regex is not None and pattern.regex.fullmatch(below):
                return bool(pattern.include)
    return False


# --- Git ---------------------------------------------------------------------------


def _prefix_in_work_tree(folder: str) -> str | None:
    """Return the path of a folder below the top of its work tree, None outside one.

    Raises:
        ManifestError: git does not use this repository.
    """
    path = os.path.realpath(folder)
    while not os.path.lexists(f"{path.rstrip('/')}/{GIT_FOLDER}"):
        if path == "/":
            return None
        path = path.rpartition("/")[0] or "/"
    if shutil.which("git") is None:
        return None
    done = _run_git(folder, "rev-parse", "--is-inside-work-tree", "--show-prefix")
    if done.returncode and b"not a git repository" not in done.stderr:
        raise _git_error(folder, done.stderr)
    is_inside, _, prefix = os.fsdecode(done.stdout).partition("\n")
    return prefix.removesuffix("\n") if is_inside == "true" else None


def _is_ignored_by_git(folder: str) -> bool:
    """Return True if a rule above ignores a folder, and git tracks nothing in it."""
    return _run_git(folder, "check-ignore", "-q", ".").returncode == 0


def _git_paths(folder: str, *options: str) -> list[str]:
    """Return paths relative to the folder; those of folders end with a slash.

    Raises:
        ManifestError: git could not read everything.
    """
    done = _run_git(folder, "ls-files", "-z", "--exclude-standard", *options)
    if done.returncode or b"could not open directory" in done.stderr:
        raise _git_error(folder, done.stderr)
    return os.fsdecode(done.stdout).split("\0")[:-1]


def _run_git(folder: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in _REPOSITORY_VARIABLES
    }
    return subprocess.run(  # noqa: S603  the words are ours
        # The repository could name a program for this setting.
        ["git", "-C", folder, "-c", "core.fsmonitor=false", *words],  # noqa: S607
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environ | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
        check=False,
    )


def _git_error(folder: str, stderr: bytes) -> ManifestError:
    lines = os.fsdecode(stderr).strip().splitlines() or ["it ended with an error"]
    said = lines[0].removeprefix("fatal: ").removeprefix("warning: ")
    return ManifestError(
        f"git cannot list the files of {_shown(folder)}: {said}",
        hint="\n".join(line.strip() for line in lines[1:] if line.startswith("\t"))
        or "--in-all sends all files of a folder without asking git",
    )


# --- Files -------------------------------------------------------------------------


def _read_folder(path: str) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(path) as found:
            return {entry.name: entry for entry in found}
    except OSError as error:
        raise ManifestError(
            f"cannot read the folder {_shown(path)}: {error.strerror}"
        ) from None


def _shown(folder: str) -> str:
    return repr(folder.rstrip("/") or "/")


def _is_temporary(name: str) -> bool:
    return _TEMPORARY_NAME.fullmatch(name) is not None


def _is_file(entry: os.DirEntry[str] | None) -> bool:
    return entry is not None and entry.is_file(follow_symlinks=False)


def _status_of(path: str) -> os.stat_result | None:
    """Return the status of an entry itself; None if there is none."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ManifestError(f"cannot read {path!r}: {error.strerror}") from None
