"""Long polls end in time, after a change of dispatcher, and when the API closes."""

from __future__ import annotations

import asyncio
from math import inf

import pytest

from octaskly.api.http import open_long_polls
from octaskly.api.http.open_long_polls import LongPolls
from octaskly.core.model.ids import Epoch, NodeId
from octaskly.ports.gateway import DispatcherView

FOREVER_S = 3600.0


def view(term: int) -> DispatcherView:
    node = NodeId("a")
    return DispatcherView(node=node, epoch=Epoch(term, node), is_self=False)


async def wait(polls: LongPolls, timeout_s: float) -> str:
    try:
        async with polls.limit(timeout_s):
            await asyncio.sleep(FOREVER_S)
    except TimeoutError:
        return "over"
    raise AssertionError("the sleep ended")


async def test_each_long_poll_ends_after_its_own_time() -> None:
    """Also if the timer is set for a later one, or for one that has ended."""
    polls, order = LongPolls(lambda: None), []

    async def note(timeout_s: float) -> None:
        await wait(polls, timeout_s)
        order.append(timeout_s)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        gone = group.create_task(note(0.001))
        await asyncio.sleep(0)
        gone.cancel()
        for timeout_s in (0.3, 0.1, 0.2):  # Apart, as a busy machine pauses.
            group.create_task(note(timeout_s))

    assert order == [0.1, 0.2, 0.3]
    assert not polls._limits


async def test_a_block_that_ends_before_its_time_is_left_alone() -> None:
    """The timer then fires for nothing, once."""
    polls = LongPolls(lambda: None)

    async with polls.limit(0.001):
        pass
    async with asyncio.timeout(60):
        while polls._timer is not None:  # noqa: ASYNC110  until it has fired
            await asyncio.sleep(0.001)

    assert not polls._limits


async def test_the_close_of_the_api_ends_long_polls_now_and_later() -> None:
    """A client that asks again must not keep the agent from its end."""
    polls = LongPolls(lambda: None)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        waiting = group.create_task(wait(polls, FOREVER_S))
        await asyncio.sleep(0)

        polls.close()

    assert waiting.result() == "over"
    assert await wait(polls, FOREVER_S) == "over"


@pytest.mark.parametrize("is_repeatable", [True, False])
async def test_a_long_poll_ends_soon_after_its_dispatcher(
    monkeypatch: pytest.MonkeyPatch, *, is_repeatable: bool
) -> None:
    """If its machine has failed, no answer will come."""
    monkeypatch.setattr(open_long_polls, "_DEPOSED_GRACE_S", 0.001)
    polls = LongPolls(lambda: view(2))

    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            async with polls.cancel_when_dispatcher_ends(
                view(1), is_repeatable=is_repeatable
            ):
                await asyncio.sleep(FOREVER_S)

    assert not polls._views


async def test_a_dispatcher_that_returns_may_still_answer() -> None:
    """A request that must not be repeated waits a moment for the old dispatcher."""
    seen = view(1)
    polls = LongPolls(lambda: seen)

    async with polls.cancel_when_dispatcher_ends(view(1), is_repeatable=False):
        (limit,) = polls._limits
        seen = view(2)
        polls._compare_dispatchers(100.0)
        assert polls._limits[limit] == 100.0 + open_long_polls._DEPOSED_GRACE_S
        seen = view(1)
        polls._compare_dispatchers(101.0)
        assert polls._limits[limit] == inf
