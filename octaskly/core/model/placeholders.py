"""What stands for an item in the command and the paths of an array, as in GNU parallel.

They are filled in by whoever needs the envelope of a member, so all nodes must agree on
them: what one means never changes.

Source: docs/reference/rest-api.md, "Arrays"; GNU parallel's `--rpl`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

NUMBER_PLACEHOLDER: Final = "{#}"
FOLDER_PLACEHOLDER: Final = "{//}"


def _without_extension(item: str) -> str:
    return _EXTENSION.sub("", item)


def _basename(item: str) -> str:
    return item.rpartition("/")[2]


def _dirname(item: str) -> str:
    path = item.rstrip("/")
    if not path:
        return "/" if item else "."
    head, slash, _ = path.rpartition("/")
    return head.rstrip("/") or slash or "."


_EXTENSION: Final = re.compile(r"\.[^/.]*\Z")
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
    """Return the text in pieces, of which each second one is a placeholder."""
    return tuple(PLACEHOLDER_PATTERN.split(text))


def placeholder_value(placeholder: str, item: str, position: int) -> str:
    """Return what a placeholder stands for; the first item has the position 0."""
    return (
        str(position + 1)
        if placeholder == NUMBER_PLACEHOLDER
        else _SUBSTITUTIONS[placeholder](item)
    )


def fill_placeholders(
    text: str, item: str, position: int, *, is_quoted: bool = False
) -> str:
    """Return the text with what its placeholders stand for.

    With `is_quoted` each becomes one word of the shell, whatever is in it.
    """
    pieces = list(split_placeholders(text))
    for at in range(1, len(pieces), 2):
        found = placeholder_value(pieces[at], item, position)
        pieces[at] = shlex.quote(found) if is_quoted else found
    return "".join(pieces)
