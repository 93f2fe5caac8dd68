"""Requests to the core that wait for their reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octaskly import errors
from octaskly.core.events import Event
from octaskly.core.replies import NotDispatching, NotReplicated, Reply
from octaskly.errors import (
    DispatcherUnknown,
    NotDispatcher,
    OctasklyError,
    OutcomeUnknown,
)

REPLY_CHECK_S = 2.0  #: between two rounds of checks
PENDING_MAX = 10_000  #: requests that wait for the core at once


class PendingRequests:
    """Sends requests to the core and matches replies to them by ticket."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._futures: dict[int, asyncio.Future[Reply]] = {}
        self._checks: dict[int, Callable[[], None]] = {}
        self._check_handle: asyncio.TimerHandle | None = None
        self._last_ticket = 0
        self._checked_ticket = 0  #: the last one at the latest round of checks
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
            check: Called every `REPLY_CHECK_S` until the reply, from the second round
                on; may raise an `OctasklyError`, to give up.

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
        if check is not None:
            self._checks[ticket] = check
            if self._check_handle is None:
                self._schedule_checks()
        self._post(event(ticket))
        try:
            reply = await future
        finally:
            del self._futures[ticket]
            if check is not None:
                del self._checks[ticket]
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

    def _schedule_checks(self) -> None:
        loop = asyncio.get_running_loop()
        self._check_handle = loop.call_later(REPLY_CHECK_S, self._run_checks)

    def _run_checks(self) -> None:
        """Give up the requests whose checks fail, except those of the last seconds."""
        self._check_handle = None
        for ticket, check in self._checks.items():
            future = self._futures[ticket]
            if ticket > self._checked_ticket or future.done():
                continue
            try:
                check()
            except OctasklyError as error:
                future.set_exception(error)
        self._checked_ticket = self._last_ticket
        if self._checks:
            self._schedule_checks()

    def close(self) -> None:
        """Fail all pending requests with OutcomeUnknown.

        A request may be in the log already. If another node repeated it, it would be
        carried out twice.
        """
        self._is_closed = True
        if self._check_handle is not None:
            self._check_handle.cancel()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(
                    OutcomeUnknown(
                        "the node stopped before it could answer",
                        hint="the request may have been carried out; check before you "
                        "retry it, or send an Idempotency-Key",
                    )
                )
