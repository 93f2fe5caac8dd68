"""The items of `octaskly map`: where they come from, and what is made of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Final

import click

from octaskly.cli.asking import TAKEN
from octaskly.cli.render import note, size
from octaskly.core import placeholders
from octaskly.core.arrays import (
    INDEX_VARIABLE,
    ITEM_BYTES_MAX,
    ITEM_VARIABLE,
    ITEMS_BYTES_MAX,
)
from octaskly.core.options import ITEM_BYTES

SEPARATOR: Final = ":::"


def taken(words: Sequence[str], *, is_nul: bool) -> tuple[str, Sequence[str]]:
    """Return the shell text that words mean, and the items.

    Raises:
        UsageError: there is no command, or an item that no array can have.
    """
    command, items = _split(words, is_nul=is_nul)
    if not command:
        raise click.UsageError(f"there is no command before {SEPARATOR}")
    _check(items)
    text = command_text(command)
    # Who reads the variables needs no placeholder.
    is_named = len(placeholders.split(text)) > 1 or any(
        variable in text for variable in (ITEM_VARIABLE, INDEX_VARIABLE)
    )
    return text if is_named else f"{text} {{}}", items


def command_text(words: Sequence[str]) -> str:
    """Return the shell text of words, in which placeholders stay as they are."""
    return words[0] if len(words) == 1 else " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    pieces = list(placeholders.split(word))
    if len(pieces) == 1:
        return shlex.quote(word)
    pieces[::2] = (shlex.quote(piece) if piece else "" for piece in pieces[::2])
    return "".join(pieces)


def _split(
    words: Sequence[str], *, is_nul: bool
) -> tuple[Sequence[str], Sequence[str]]:
    if SEPARATOR in words:
        at = list(words).index(SEPARATOR)
        return words[:at], words[at + 1 :]
    if click.get_current_context().meta.get(TAKEN):
        raise click.UsageError("stdin holds the items, or what they read: not both")
    return words, _read(is_nul=is_nul)


def _read(*, is_nul: bool) -> list[str]:
    """Return the lines of stdin that are not empty, or what NULs end there."""
    if sys.stdin.isatty():
        note("reading items from the terminal, one a line; Ctrl-D ends them")
    # No more than may be: what writes there may have no end.
    data = sys.stdin.buffer.read(ITEMS_BYTES_MAX + 1)
    if len(data) > ITEMS_BYTES_MAX:
        raise _too_many()
    text = data.decode("utf-8", "surrogateescape")
    if is_nul:
        return text.removesuffix("\0").split("\0") if text else []
    return [line for line in text.split("\n") if line]


def _check(items: Sequence[str]) -> None:
    total = 0
    for number, item in enumerate(items, 1):
        try:
            size_bytes = len(item.encode())
        except UnicodeEncodeError:
            raise click.UsageError(
                f"item {number} is not UTF-8 text: {item[:40]!a}"
            ) from None
        if size_bytes > ITEM_BYTES_MAX:
            what = f"item {number} has {size_bytes} bytes"
            raise click.UsageError(f"{what}; at most {ITEM_BYTES_MAX} are allowed")
        if "\0" in item:
            raise click.UsageError(f"item {number} contains a NUL character; see -0")
        total += size_bytes + ITEM_BYTES
    if total > ITEMS_BYTES_MAX:
        raise _too_many()


def _too_many() -> click.UsageError:
    return click.UsageError(
        f"the items have more than {size(ITEMS_BYTES_MAX)} in all, where each counts"
        f" {ITEM_BYTES} bytes more; hand them in in parts, as with split -l 10000"
    )
