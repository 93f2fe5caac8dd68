"""Requests of one owner start a few at a time; those of others are not behind them."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Self

import pytest

from octaskly.api.security.request_turns import (
    HEAVY_WAIT_S,
    LIGHT_MAX,
    STARTS_PER_TURN,
    RequestTurns,
    RequestWork,
)

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


def test_only_a_request_beside_none_of_its_owner_starts_without_a_turn() -> None:
    """It counts from its header until its answer, or until its client leaves."""
    turns = RequestTurns()
    turns.add_unanswered("ana", 1)
    turns.add_unanswered("eve", 2)
    assert turns.is_only_request("ana")
    assert not turns.is_only_request("eve")

    turns.remove_unanswered("eve", 1)
    turns.add_unanswered("ana", 1)
    assert turns.is_only_request("eve")
    assert not turns.is_only_request("ana")


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


class Requests:
    """Requests that are answered until they are told to end."""

    def __init__(self) -> None:
        self.turns = RequestTurns()
        self.working: Counter[str] = Counter()  #: by owner
        self._ends: dict[str, list[asyncio.Event]] = {}
        self._tasks = asyncio.TaskGroup()
        self._is_over = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._is_over = True
        for ends in self._ends.values():
            for end in ends:
                end.set()
        await self._tasks.__aexit__(None, None, None)

    def begin(self, owner: str, count: int = 1) -> list[asyncio.Task[None]]:
        """Let more requests of an owner arrive."""
        return [self._tasks.create_task(self._answer(owner)) for _ in range(count)]

    async def end(self, owner: str) -> None:
        """End the oldest request of an owner."""
        self._ends[owner].pop(0).set()
        await settle()

    async def _answer(self, owner: str) -> None:
        end = asyncio.Event()
        async with RequestWork(self.turns, owner):
            self.working[owner] += 1
            self._ends.setdefault(owner, []).append(end)
            if not self._is_over:
                await end.wait()
        self.working[owner] -= 1


async def settle() -> None:
    """Let all go on that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def long_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests count until they end, however slow the machine is."""
    monkeypatch.setattr("octaskly.api.security.request_turns.WORK_S_MAX", 60.0)


async def test_an_owner_has_a_bounded_number_in_progress() -> None:
    """More wait; they do not all go on at once after one commit."""
    async with Requests() as requests:
        requests.begin("eve", LIGHT_MAX + 2)
        await settle()
        assert requests.working["eve"] == LIGHT_MAX
        await requests.end("eve")
        assert requests.working["eve"] == LIGHT_MAX


async def test_an_owner_has_no_more_in_progress_than_another() -> None:
    """Who asks for one thing after another waits for little."""
    async with Requests() as requests:
        requests.begin("eve", 4)
        await settle()
        requests.begin("ana")
        requests.begin("eve")
        await settle()
        assert requests.working == {"eve": 4, "ana": 1}
        await requests.end("eve")
        assert requests.working == {"eve": 3, "ana": 1}
        await requests.end("ana")
        assert requests.working == {"eve": 4, "ana": 0}


async def test_requests_that_may_begin_together_begin_one_in_each_turn() -> None:
    """The end of another owner's request lets several begin."""
    async with Requests() as requests:
        requests.begin("ana")
        await settle()
        requests.begin("eve", 1 + LIGHT_MAX)
        await settle()
        assert requests.working["eve"] < LIGHT_MAX
        requests._ends["ana"].pop(0).set()
        counts = []
        while requests.working["eve"] < LIGHT_MAX:
            before = requests.working["eve"]
            await asyncio.sleep(0)
            counts.append(requests.working["eve"] - before)
        assert max(counts) <= STARTS_PER_TURN


async def test_a_client_that_leaves_while_it_waits_takes_no_place() -> None:
    """Neither before its turn, nor in the moment of its turn."""
    async with Requests() as requests:
        requests.begin("eve", LIGHT_MAX)
        await settle()
        waiting = requests.begin("eve", 3)
        await settle()
        waiting[0].cancel()
        requests._ends["eve"].pop(0).set()
        await asyncio.sleep(0)  # Its place is given away in this turn.
        waiting[1].cancel()
        await settle()
        assert requests.working["eve"] == LIGHT_MAX


async def test_a_request_that_waits_counts_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream, or a client that reads slowly, takes no place from its owner."""
    monkeypatch.setattr("octaskly.api.security.request_turns.WORK_S_MAX", 0.01)
    turns, all_wait = RequestTurns(), asyncio.Barrier(4 * LIGHT_MAX)

    async def follow() -> None:
        async with RequestWork(turns, "eve"):
            await all_wait.wait()

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for _ in range(4 * LIGHT_MAX):
            tasks.create_task(follow())


async def test_an_owner_has_one_heavy_step_at_a_time() -> None:
    """Steps of milliseconds do not follow each other without a pause."""
    turns, running, seen = RequestTurns(), 0, []

    async def step() -> None:
        nonlocal running
        async with turns.heavy("eve"):
            running += 1
            seen.append(running)
            await settle()
            running -= 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(step())
    assert seen == [1] * 5


async def test_a_heavy_step_lets_the_requests_of_others_pass() -> None:
    """But not for ever."""
    turns = RequestTurns()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as others:
        await others.enter_async_context(RequestWork(turns, "ana"))
        began_s = loop.time()
        async with turns.heavy("eve"):
            assert loop.time() - began_s >= HEAVY_WAIT_S
    async with RequestWork(turns, "eve"), asyncio.timeout(60), turns.heavy("eve"):
        pass  # Its own requests do not count.


async def test_a_heavy_step_that_is_cancelled_lets_the_next_begin() -> None:
    """Whether it had its turn or waited for it."""
    turns = RequestTurns()

    async def step() -> None:
        async with turns.heavy("eve"):
            await asyncio.Event().wait()

    some = [asyncio.create_task(step()) for _ in range(2)]
    await settle()
    for task in reversed(some):
        task.cancel()
    async with asyncio.timeout(60), turns.heavy("eve"):
        pass
