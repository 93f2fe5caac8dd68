"""Nodes that fetch files: few at a time, in the order in which they asked."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

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
        async with slots.use_slot(f"node {number}"):
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

        async def fetch(number: int) -> None:
            async with slots.use_slot(f"node {number}"):
                await release.wait()

        for number in range(FETCHERS_MAX + WAITING_MAX):
            group.create_task(fetch(number))
        await asyncio.sleep(0)

        with pytest.raises(Problem) as refused:
            async with slots.use_slot("node"):
                pass
        release.set()

    assert refused.value.status == 503
    async with slots.use_slot("node"):
        pass  # All have left.


async def test_a_node_gets_a_second_slot_only_while_one_is_free() -> None:
    """Otherwise it would delay others, which may pass the file on."""
    slots = TransferSlots()
    async with slots.use_slot("a"):
        async with AsyncExitStack() as stack:
            for _ in range(FETCHERS_MAX - 1):
                await stack.enter_async_context(slots.use_slot("b"))
            with pytest.raises(Problem):
                await stack.enter_async_context(slots.use_slot("b"))
        async with slots.use_slot("a"):
            pass
