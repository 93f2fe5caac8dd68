"""Long computations of one request, split over several turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

ITEMS = 500  #: per batch; takes a few milliseconds

_From = TypeVar("_From")
_To = TypeVar("_To")


async def map_in_batches(
    items: Sequence[_From], convert: Callable[[_From], _To], batch: int = ITEMS
) -> list[_To]:
    """Convert each item; yield to the event loop after every batch."""
    made: list[_To] = []
    for start in range(0, len(items), batch):
        if start:
            await asyncio.sleep(0)
        made += map(convert, items[start : start + batch])
    return made
