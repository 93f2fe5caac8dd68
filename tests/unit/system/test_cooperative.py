"""Long computations that leave turns of the event loop to others."""

from __future__ import annotations

import asyncio

import pytest

from octaskly.system import cooperative
from octaskly.system.cooperative import map_in_batches


async def test_a_batch_of_large_items_ends_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However few items there are: one task may have thousands of paths."""
    monkeypatch.setattr(cooperative, "TURN_S", -1.0)  # Each item takes longer.
    turn = 0
    converting = asyncio.create_task(map_in_batches(range(5), lambda _: turn))
    while not converting.done():
        turn += 1
        await asyncio.sleep(0)

    assert len(set(await converting)) == 5
