"""Waits until ended tasks are forgotten, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from octaskly.agent.tickets import Tickets
from octaskly.core.events import ForgetAsked
from octaskly.core.replies import Forgot
from octaskly.ports import Log

HOLD_S: Final = 10.0  #: a request waits so long; the dispatcher goes on behind it


async def forget(
    tickets: Tickets, store: Log, older_than_s: int, still_here: Callable[[], None]
) -> int | None:
    """Return how many tasks were forgotten, None while there are more to forget.

    Then nobody is shown them any more, nor given one for an `Idempotency-Key`.

    Args:
        tickets: Takes the question to the core.
        store: Deletes what was forgotten.
        older_than_s: How long ago they must have ended.
        still_here: Raises if this node is dispatcher no more, so nobody is at it.
    """
    try:
        async with asyncio.timeout(HOLD_S):
            reply = await tickets.ask(lambda ticket: ForgetAsked(ticket, older_than_s))
            await store.purged()
    except TimeoutError:
        still_here()
        return None
    assert isinstance(reply, Forgot)
    return reply.tasks
