"""Nodes that fetch files: few at a time, in the order in which they asked."""

from __future__ import annotations

import asyncio

import pytest

from octaskly.api.http.file_sender import (
    FETCHERS_MAX,
    WAITING_MAX,
    TransferSlots,
)
from octaskly.api.problems import Problem


async def test_fetchers_take_turns_in_the_order_in_which_they_asked() -> None:
    """At most so many are served at a time, and nobody starves."""
    slots, inside, most, order = TransferSlots(), 0, 0, []

    async def fetch(number: int) -> None:
        nonlocal inside, most
        async with slots.use_slot():
            inside += 1
            most = max(most, inside)
            order.append(number)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(fetch(number))

    assert most == FETCHERS_MAX
    assert order == list(range(40))


async def test_who_would_wait_too_long_is_told_to_ask_elsewhere() -> None:
    """The number of those who wait is bounded."""
    slots = TransferSlots()
    async with asyncio.TaskGroup() as group:
        release = asyncio.Event()

        async def fetch() -> None:
            async with slots.use_slot():
                await release.wait()

        for _ in range(FETCHERS_MAX + WAITING_MAX):
            group.create_task(fetch())
        await asyncio.sleep(0)

        with pytest.raises(Problem) as refused:
            async with slots.use_slot():
                pass
        release.set()

    assert refused.value.status == 503
    async with slots.use_slot():
        pass  # All have left.
