"""Declared outputs: paths of files and folders, and globs, and the paths they cover.

A declared output covers the file or folder with exactly its name. If it has wildcards,
it also covers what they match: `*`, `?` and `[...]` within a name, `**` for any number
of folders. A folder is covered with all that it contains.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

GIT_FOLDER: Final = ".git"
"""Never captured and never fetched: its hooks and settings are commands."""

_WILDCARDS: Final = re.compile(r"[*?\[]")
_ANY_FOLDERS: Final = "**"

Progress = frozenset[int]
"""The positions in a glob that the names of a path so far can have reached."""


def has_wildcards(path: str) -> bool:
    """Return True if a declared output may match several paths."""
    return _WILDCARDS.search(path) is not None


def is_git_name(name: str) -> bool:
    """Return True if a file system may take this name for `.git`."""
    return name.casefold() == GIT_FOLDER


def is_in_git(path: str) -> bool:
    """Return True if a part of a path is `.git`."""
    return any(map(is_git_name, path.split("/")))


class Glob:
    """A declared output with wildcards, matched name by name.

    Args:
        path: The declared path, relative and normalised.
    """

    def __init__(self, path: str) -> None:
        parts: list[str] = []
        for part in path.split("/"):
            if part != _ANY_FOLDERS or parts[-1:] != [_ANY_FOLDERS]:
                parts.append(part)
        if parts[-1] == _ANY_FOLDERS:
            parts.append("*")  # All that a folder contains, but not the folder itself.
        self._matches = [
            None if part == _ANY_FOLDERS else _name_matcher(part) for part in parts
        ]
        self.start: Progress = self._skip_folders({0})

    def advance(self, progress: Progress, name: str) -> Progress:
        """Return the progress after one more name of a path; empty: it cannot match."""
        reached = set()
        for at in progress:
            if at == len(self._matches):
                continue
            matches = self._matches[at]
            if matches is None:
                reached.add(at)
            elif matches(name):
                reached.add(at + 1)
        return self._skip_folders(reached)

    def is_match(self, progress: Progress) -> bool:
        """Return True if the names so far match the whole glob."""
        return len(self._matches) in progress

    def _skip_folders(self, reached: set[int]) -> Progress:
        """Return the positions with those behind `**`, which may match no folder."""
        skipped = {
            at + 1
            for at in reached
            if at < len(self._matches) and self._matches[at] is None
        }
        return frozenset(reached | skipped)


@lru_cache(maxsize=256)
def _name_matcher(part: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(part)).match


class DeclaredOutputs:
    """The paths that some declared outputs cover."""

    def __init__(self, declared: Iterable[str]) -> None:
        self.literal_paths = frozenset(declared)
        self._globs = [Glob(path) for path in self.literal_paths if has_wildcards(path)]
        #: paths that lead to a declared output, or are one
        self._leading_paths = {
            prefix for path in self.literal_paths for prefix in prefixes(path)
        }

    def covers(self, path: str) -> bool:
        """Return True if a path is a declared output, or below one."""
        if any(prefix in self.literal_paths for prefix in prefixes(path)):
            return True
        names = path.split("/")
        return any(_is_covered(glob, names) for glob in self._globs)

    def names(self, path: str) -> bool:
        """Return True if a declared output names this path: itself or a file below."""
        return path in self._leading_paths


def prefixes(path: str) -> Iterable[str]:
    """Yield the folders above a path, the outermost first, and the path itself."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)
    yield path


def _is_covered(glob: Glob, names: list[str]) -> bool:
    progress = glob.start
    for name in names:
        progress = glob.advance(progress, name)
        if glob.is_match(progress):
            return True
        if not progress:
            return False
    return False
