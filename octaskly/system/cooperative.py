"""Long computations of one request, split over several turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from octaskly.system.clock import loop_time

ITEMS = 500  #: per batch, which takes a few milliseconds with items of usual size
TURN_S = 0.01  #: after so long, a batch of larger items ends early
JOIN_S = 0.001  #: of joining pieces, until others have their turn

_From = TypeVar("_From")
_To = TypeVar("_To")


async def map_in_batches(
    items: Sequence[_From], convert: Callable[[_From], _To], batch: int = ITEMS
) -> list[_To]:
    """Convert each item; yield to the event loop after every batch."""
    made: list[_To] = []
    begin, begin_s = 0, loop_time()
    for at, item in enumerate(items):
        if at - begin == batch or loop_time() - begin_s > TURN_S:
            await asyncio.sleep(0)
            begin, begin_s = at, loop_time()
        made.append(convert(item))
    return made


async def join_in_turns(
    pieces: Iterable[bytes], wait_turn: Callable[[], Awaitable[None]]
) -> bytes:
    """Return all pieces as one; call `wait_turn` whenever a millisecond has passed."""
    joined = bytearray()
    began_s = loop_time()
    for piece in pieces:
        joined += piece
        if loop_time() - began_s > JOIN_S:
            await wait_turn()
            began_s = loop_time()
    return bytes(joined)
