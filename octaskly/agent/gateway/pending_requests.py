"""Requests to the core that wait for their reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octaskly import errors
from octaskly.core.events import Event
from octaskly.core.replies import NotDispatching, NotReplicated, Reply
from octaskly.errors import DispatcherUnknown, NotDispatcher, OutcomeUnknown

REPLY_CHECK_S = 2.0  #: between two calls of `check`
PENDING_MAX = 10_000  #: requests that wait for the core at once


class PendingRequests:
    """Sends requests to the core and matches replies to them by ticket."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._futures: dict[int, asyncio.Future[Reply]] = {}
        self._last_ticket = 0
        self._is_closed = False

    async def send_request(
        self,
        event: Callable[[int], Event],
        *,
        check: Callable[[], None] | None = None,
    ) -> Reply:
        """Send the core an event with a new ticket, and wait for its reply.

        Args:
            event: Builds the event from its ticket.
            check: Called every `REPLY_CHECK_S` until the reply; may raise, to give up.

        Raises:
            DispatcherUnknown: too many requests are waiting, or this node stops.
            OutcomeUnknown: this node stopped before the reply.
            NotDispatcher: this node is not dispatcher.
            NotDurable: durability is strict, and no standby acknowledges.
        """
        if self._is_closed:
            raise DispatcherUnknown("this node is stopping")
        if len(self._futures) >= PENDING_MAX:
            raise DispatcherUnknown(
                "too many requests are waiting", hint="try again in a second"
            )
        self._last_ticket += 1
        ticket = self._last_ticket
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._futures[ticket] = future
        self._post(event(ticket))
        try:
            while check is not None and not future.done():
                await asyncio.wait([future], timeout=REPLY_CHECK_S)
                if not future.done():
                    check()
            reply = await future
        finally:
            self._futures.pop(ticket, None)
        if isinstance(reply, NotReplicated):
            raise errors.NotDurable(
                "durability is strict, and no standby acknowledges",
                hint="retry when a standby is back; send a POST with an "
                "Idempotency-Key",
            )
        if isinstance(reply, NotDispatching):
            raise NotDispatcher("this node stopped being dispatcher")
        return reply

    def set_reply(self, ticket: int, reply: Reply) -> None:
        """Complete the request that has this ticket."""
        future = self._futures.get(ticket)
        if future is not None and not future.done():
            future.set_result(reply)

    def close(self) -> None:
        """Fail all pending requests with OutcomeUnknown.

        A request may be in the log already. If another node repeated it, it would be
        carried out twice.
        """
        self._is_closed = True
        for future in self._futures.values():
            if not future.done():
                future.set_exception(
                    OutcomeUnknown(
                        "the node stopped before it could answer",
                        hint="the request may have been carried out; check before you "
                        "retry it, or send an Idempotency-Key",
                    )
                )
