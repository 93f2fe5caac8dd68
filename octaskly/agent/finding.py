"""Finds a task by what somebody calls it: its id, its name, or its number alone."""

from __future__ import annotations

import re

from octaskly.agent.tickets import Tickets
from octaskly.core.events import BarrierAsked
from octaskly.core.merge import TaskRecord
from octaskly.core.replies import Passed
from octaskly.errors import CatchingUp, TaskAmbiguous, TaskNotFound
from octaskly.ports import Log

_SEQUENCE = re.compile(r"task-(\d{1,15})")


class Finder:
    """The tasks of the log, as far as this node holds it.

    Args:
        store: Where they are.
        tickets: Where the core is asked whether another node may know more.
    """

    def __init__(self, store: Log, tickets: Tickets) -> None:
        self._store = store
        self._tickets = tickets

    async def task(self, ref: str) -> TaskRecord:
        """Return one task with outputs.

        Raises:
            TaskNotFound: no such task.
            CatchingUp: it is unknown here, but another node may know it.
            TaskAmbiguous: the sequence fits several.
            NotDispatcher, NoDispatcher, AnswerLost: it is unknown, and this node does
                not reign, is too busy, or stops.
        """
        record = await self._find(ref)
        if record is None:
            reply = await self._tickets.ask(BarrierAsked)
            assert isinstance(reply, Passed)
            if not reply.is_complete:
                raise CatchingUp(
                    f"{ref} is unknown here, and a node that may know it is missing",
                    hint="ask again; a node that stays away is given up after "
                    "10 minutes",
                )
            # What has come in since the store was read is found now.
            record = await self._find(ref)
        if record is None:
            raise TaskNotFound("Task not found", hint=f"no task is called {ref}")
        return record

    async def name(self, ref: str) -> str:
        """Return the name of a task that may be given by its number."""
        is_short = _SEQUENCE.fullmatch(ref) is not None
        return (await self.task(ref)).name if is_short else ref

    async def _find(self, ref: str) -> TaskRecord | None:
        record = await self._store.task(ref)
        if record is None and (match := _SEQUENCE.fullmatch(ref)):
            names = await self._store.resolve(int(match[1]))
            if len(names) > 1:
                raise TaskAmbiguous(
                    f"{ref} fits several tasks", hint=f"use {names[0]} or {names[1]}"
                )
            record = await self._store.task(names[0]) if names else None
        return record
