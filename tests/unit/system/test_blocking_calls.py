"""Blocking calls in threads, whose caller may be cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from octaskly.system.blocking_calls import opened_in_thread, run_to_end


@pytest.mark.parametrize("is_open", [True, False])
async def test_what_a_thread_opens_is_closed_when_its_caller_leaves(
    *, is_open: bool
) -> None:
    """Even if it is opened only afterwards."""
    opens, may_open, closed = threading.Event(), threading.Event(), threading.Event()
    used = asyncio.Event()

    def open_() -> threading.Event:
        opens.set()
        assert may_open.wait(10.0)
        return closed

    async def use() -> None:
        async with opened_in_thread(open_, threading.Event.set):
            used.set()
            await asyncio.Event().wait()

    using = asyncio.create_task(use())
    if is_open:
        may_open.set()
        await used.wait()
    await asyncio.to_thread(opens.wait, 10.0)

    using.cancel()
    await asyncio.sleep(0)  # It is cancelled now.
    may_open.set()

    assert await asyncio.to_thread(closed.wait, 10.0)
    with pytest.raises(asyncio.CancelledError):
        await using
    assert used.is_set() == is_open


async def test_what_cannot_be_opened_is_not_closed() -> None:
    """The caller gets the error."""
    closed: list[object] = []

    def open_() -> None:
        raise OSError("the disk is failing")

    with pytest.raises(OSError, match="failing"):
        async with opened_in_thread(open_, closed.append):
            pass

    assert closed == []


async def test_what_a_thread_uses_is_closed_only_afterwards() -> None:
    """Even if the caller leaves while it is used."""
    begins, goes_on, calls = threading.Event(), threading.Event(), list[str]()

    def finish() -> None:
        begins.set()
        assert goes_on.wait(10.0)
        calls.append("finished")

    async def use() -> None:
        async with opened_in_thread(str, lambda _: calls.append("closed")):
            await run_to_end(finish)

    using = asyncio.create_task(use())
    await asyncio.to_thread(begins.wait, 10.0)
    using.cancel()
    await asyncio.wait((using,), timeout=0.05)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await using

    assert calls == ["finished", "closed"]
