"""Nodes that fetch files: few at a time, in the order in which they asked."""

from __future__ import annotations

import asyncio

import pytest

from octaskly.api.http.file_sender import (
    FETCHERS_MAX,
    FETCHES_PER_VISITOR_MAX,
    VISITOR_FETCHES_MAX,
    WAITING_MAX,
    Transfers,
    TransferSlots,
)
from octaskly.api.problems import Problem
from octaskly.core.model.ids import NodeId


async def test_fetchers_take_turns_in_the_order_in_which_they_asked() -> None:
    """At most so many are served at a time, and nobody starves."""
    slots, inside, most, order = TransferSlots(FETCHERS_MAX), 0, 0, []

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
    slots = TransferSlots(FETCHERS_MAX)
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


async def test_visitors_take_no_slots_of_members_and_few_of_each_other() -> None:
    """However slowly they read, on however many connections."""
    transfers, release, inside = Transfers(), asyncio.Event(), list[NodeId]()

    async def read_slowly(visitor: NodeId) -> None:
        async with transfers.use_slot(visitor):
            inside.append(visitor)
            await release.wait()

    greedy = NodeId("visitor-greedy")
    others = [NodeId(f"visitor-{n}") for n in range(VISITOR_FETCHES_MAX)]
    async with asyncio.TaskGroup() as group:
        for visitor in (*[greedy] * WAITING_MAX, *others):
            group.create_task(read_slowly(visitor))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        served = list(inside)
        async with transfers.use_slot():
            pass  # A member does not wait.
        release.set()

    assert served.count(greedy) == FETCHES_PER_VISITOR_MAX
    assert len(served) == VISITOR_FETCHES_MAX
    assert len(inside) == WAITING_MAX + len(others)
