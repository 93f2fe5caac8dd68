"""How many columns of a terminal a text takes: wide characters take two, marks none.

Source: Unicode Standard Annex 11; what terminals do with joined emoji differs.
"""

from __future__ import annotations

import unicodedata

_MARKS = ("Mn", "Me", "Cf")


def width(text: str) -> int:
    """Return the number of columns of a text on one line."""
    return len(text) if text.isascii() else sum(map(_width, text))


def pad(text: str, columns: int) -> str:
    """Return the text followed by as many blanks as fill the columns."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """Return what of a text fits into the columns, with a mark where some does not."""
    if width(text) <= columns:
        return text
    left = columns - 1  # The mark takes one.
    for index, char in enumerate(text):
        left -= _width(char)
        if left < 0:
            return text[:index] + "…"
    return text


def _width(char: str) -> int:
    if unicodedata.category(char) in _MARKS:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
