"""Requests of one owner start a few at a time; those of others are not behind them."""

from __future__ import annotations

import asyncio

import pytest

from octaskly.api.server.request_turns import STARTS_PER_TURN, RequestTurns

MANY = 10 * STARTS_PER_TURN


class Turns:
    """Records who started, in order, and in which turn of the event loop."""

    def __init__(self) -> None:
        self._turns = RequestTurns()
        self.started: list[str] = []

    async def ask(self, owner: str) -> None:
        await self._turns.wait(owner)
        self.started.append(owner)


async def test_a_request_alone_starts_at_once() -> None:
    """The usual request waits for nothing."""
    turns = Turns()
    with pytest.raises(StopIteration):
        turns.ask("ana").send(None)


async def test_many_requests_of_one_owner_leave_turns_to_others() -> None:
    """At most two dozens started when another's request does, however many wait."""
    turns = Turns()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(MANY):
            tasks.create_task(turns.ask("eve"))
        tasks.create_task(turns.ask("ana"))
    assert turns.started.index("ana") <= 2 * STARTS_PER_TURN
    assert turns.started.count("eve") == MANY


async def test_each_turn_starts_a_bounded_number() -> None:
    """So a turn of the event loop is short."""
    turns = Turns()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(MANY):
            tasks.create_task(turns.ask("eve"))
        counts = []
        while len(turns.started) < MANY:
            before = len(turns.started)
            await asyncio.sleep(0)
            counts.append(len(turns.started) - before)
    assert max(counts) <= STARTS_PER_TURN


async def test_requests_of_clients_that_left_take_no_turn() -> None:
    """Those that are still there do not wait for them."""
    turns = Turns()
    leaving = [asyncio.create_task(turns.ask("eve")) for _ in range(MANY)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    async with asyncio.timeout(5):
        await turns.ask("eve")
    assert turns.started.count("eve") <= STARTS_PER_TURN + 1
