"""Long work of one request, in several turns of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

ITEMS = 500  #: a few milliseconds of work

_From = TypeVar("_From")
_To = TypeVar("_To")


async def map_in_batches(
    items: Sequence[_From], convert: Callable[[_From], _To]
) -> list[_To]:
    """Return what is made of each item, while others have their turns in between."""
    made: list[_To] = []
    for start in range(0, len(items), ITEMS):
        if start:
            await asyncio.sleep(0)
        made += map(convert, items[start : start + ITEMS])
    return made
