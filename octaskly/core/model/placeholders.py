"""Placeholders in the command and paths of an array, as in GNU parallel.

Every node that needs a member's spec fills them in by itself. So all nodes must agree,
and the meaning of a placeholder never changes.

Source: docs/reference/rest-api.md, "Arrays"; GNU parallel's `--rpl`.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Final

NUMBER_PLACEHOLDER: Final = "{#}"
FOLDER_PLACEHOLDER: Final = "{//}"
NAME_BYTES_MAX: Final = 255  #: of a file or folder


def _without_extension(item: str) -> str:
    stem, dot, extension = item.rpartition(".")
    return stem if dot and "/" not in extension else item


def _basename(item: str) -> str:
    return item.rpartition("/")[2]


def _dirname(item: str) -> str:
    path = item.rstrip("/")
    if not path:
        return "/" if item else "."
    head, slash, _ = path.rpartition("/")
    return head.rstrip("/") or slash or "."


_SUBSTITUTIONS: Final[Mapping[str, Callable[[str], str]]] = {
    "{}": lambda item: item,
    "{.}": _without_extension,
    "{/}": _basename,
    FOLDER_PLACEHOLDER: _dirname,
    "{/.}": lambda item: _without_extension(_basename(item)),
}
PLACEHOLDERS: Final = (*_SUBSTITUTIONS, NUMBER_PLACEHOLDER)
PLACEHOLDER_PATTERN: Final = re.compile(f"({'|'.join(map(re.escape, PLACEHOLDERS))})")


@lru_cache(maxsize=256)
def split_placeholders(text: str) -> tuple[str, ...]:
    """Return the pieces of `text`; those at odd indexes are placeholders."""
    return tuple(PLACEHOLDER_PATTERN.split(text))


def placeholder_value(placeholder: str, item: str, position: int) -> str:
    """Return the value of a placeholder; `position` counts from 0."""
    return (
        str(position + 1)
        if placeholder == NUMBER_PLACEHOLDER
        else _SUBSTITUTIONS[placeholder](item)
    )


def placeholder_values(placeholder: str, items: Collection[str]) -> set[str]:
    """Return the values of a placeholder for all items; of `{#}`, the longest one."""
    if placeholder == NUMBER_PLACEHOLDER:
        return {str(len(items))}
    return set(map(_SUBSTITUTIONS[placeholder], items))


def fill_path(path: str, item: str, position: int) -> str:
    """Return a path with the values of its placeholders, normalised."""
    filled = fill_placeholders(path, item, position)
    return filled if filled == path else posixpath.normpath(filled)


def path_fault(path: str) -> str:
    """Return why a task cannot have this filled path; nothing if it can."""
    names = path.split("/")
    if path.startswith("/"):
        return "is absolute"
    if ".." in names:
        return "is outside the folder of the task"
    if any(len(name.encode()) > NAME_BYTES_MAX for name in names):
        return f"has a name of more than {NAME_BYTES_MAX} bytes"
    return "" if any(name not in ("", ".") for name in names) else "names no file"


def fill_placeholders(
    text: str, item: str, position: int, *, is_quoted: bool = False
) -> str:
    """Return `text` with the values of its placeholders.

    With `is_quoted`, each value is quoted as a single word for the shell.
    """
    pieces = list(split_placeholders(text))
    for at in range(1, len(pieces), 2):
        found = placeholder_value(pieces[at], item, position)
        pieces[at] = shlex.quote(found) if is_quoted else found
    return "".join(pieces)
