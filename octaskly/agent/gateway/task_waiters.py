"""Long polls that wait for a change of a task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from msgspec.structs import replace

from octaskly.agent.gateway.recent_tasks import RecentTasks
from octaskly.core.log import merge
from octaskly.core.log.facts import MESH_FACTS, RANGE_FACTS, Entry, TaskFact
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.arrays import array_of, split_member_name
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.task_options import TaskOptions
from octaskly.errors import NotDispatcher

_ANY_MEMBER = ".*"  #: array name + this: the key of waits for any of its members
LONG_BYTES = 64 << 10  #: a longer envelope is kept in part only
ARRAY_POLL_S = 0.1  #: between two reads of an array for one wait


@dataclass(slots=True, eq=False)
class _TaskWait:
    """One long poll, with the facts about its task since it started."""

    accepts_local_commit: bool  #: facts on this disk count before they are replicated
    has_changed: asyncio.Event = field(default_factory=asyncio.Event)
    facts: list[TaskFact] = field(default_factory=list)
    is_over: bool = False  #: another node is dispatcher, and knows of later changes


class TaskWaiters:
    """Long polls, woken when their task has a new durable state."""

    def __init__(self) -> None:
        #: By name; tasks that share a name share a key.
        self._waits: dict[str, set[_TaskWait]] = {}
        self._unpersisted: deque[tuple[int, _TaskWait, TaskFact | None]] = deque()
        """Facts not yet on disk, for `accepts_local_commit`, with the write number.

        None stands for what was appended before the wait began, of any kind.
        """
        self._appended_number = self._persisted_number = 0  #: of the last write
        self.recent = RecentTasks()

    def on_appended(self, entries: Sequence[Entry], number: int) -> None:
        """Keep the facts that waits need, so that they need not read the store."""
        self.recent.appended(entries)
        self._appended_number = number
        waits = self._waits
        if not waits:
            return
        for entry in entries:
            fact, task = entry.fact, entry.fact.task
            if isinstance(fact, RANGE_FACTS):
                if task_name(task) + _ANY_MEMBER in waits:
                    for _, of_member in task_entries((entry,)):
                        self._note_fact(of_member, number)
            elif (task_name(task) if "~" in task else task) in waits:
                assert not isinstance(fact, MESH_FACTS)  # They have no task.
                self._note_fact(fact, number)

    def _note_fact(self, fact: TaskFact, number: int) -> None:
        """Keep a fact of write `number` for the waits for its task."""
        for wait in self._waits.get(task_name(fact.task), ()):
            if wait.accepts_local_commit:
                self._unpersisted.append((number, wait, fact))
            else:
                wait.facts.append(fact)

    def on_persisted(self, number: int) -> None:
        """Wake waits that accept local commits, or that have not read their task yet.

        Writes up to `number` are on disk. Woken earlier, they would read the old state
        of the task.
        """
        self._persisted_number = number
        while self._unpersisted and self._unpersisted[0][0] <= number:
            _, wait, fact = self._unpersisted.popleft()
            wait.facts += () if fact is None else (fact,)
            wait.has_changed.set()

    def on_replicated(self, tasks: Sequence[TaskId]) -> None:
        """Wake the waits for these tasks: their appended facts are durable."""
        self.recent.announced(tasks)
        waits = self._waits
        for task in tasks if waits else ():
            name = task_name(task) if "~" in task else task
            # The end of an array concerns the waits for its members, too, and that of a
            # member the waits for its array.
            array = array_of(task)
            other = name + _ANY_MEMBER if array is None else task_name(array)
            for key in (name, other):
                for wait in waits.get(key, ()):
                    wait.has_changed.set()

    def end_waits(self) -> None:
        """End the waits of a node that is no longer dispatcher; clients ask the next.

        Those that accept a local commit are short, and their callers confirm ends.
        """
        for waits in self._waits.values():
            for wait in waits:
                if not wait.accepts_local_commit:
                    wait.is_over = True
                    wait.has_changed.set()

    def at_hand(self, name: str) -> TaskRecord | None:
        """Return an ended task that is cached; None if it must be read or awaited."""
        cached = self.recent.get(TaskId(name))
        record = cached.record if cached and cached.is_end_announced else None
        return record if record and record.state.is_final else None

    async def wait_until(
        self,
        name: str,
        read: Callable[[], Awaitable[TaskRecord]],
        is_wanted: Callable[[TaskRecord], bool],
        *,
        accepts_local_commit: bool = False,
    ) -> TaskRecord:
        """Return a task once `is_wanted` accepts it; the caller limits the wait.

        Args:
            name: The client's name of the task, not its number alone.
            read: Reads the task with its outputs from the store.
            is_wanted: Returns True if the task should be returned now.
            accepts_local_commit: Return a state that is on this disk only. A failover
                may still revoke it, so the caller confirms an end.

        Raises:
            NotDispatcher: This node stopped being dispatcher.
        """
        wait, keys = _TaskWait(accepts_local_commit), _wait_keys(name)
        # Register before the first read, so that no change is missed. Applying a fact
        # twice changes nothing.
        for key in keys:
            self._waits.setdefault(key, set()).add(wait)
        try:
            cached = None if accepts_local_commit else self.recent.get(TaskId(name))
            if cached is None:
                await self._earlier_facts_on_disk(wait)
                record = await read()
            else:
                # The record has the submission, which is the first fact.
                wait.facts += cached.facts[1:]
                record = cached.record
            is_brief = _is_long(record)
            while not is_wanted(record):
                if is_brief:
                    record = _brief_record(record)
                record = await self._next_record(wait, record)
                if not is_wanted(record):
                    record = _newest_record(record, await read())
                elif is_brief:
                    return _newest_record(record, await read())
            return record
        finally:
            for key in keys:
                self._waits[key].discard(wait)
                if not self._waits[key]:
                    del self._waits[key]

    async def _earlier_facts_on_disk(self, wait: _TaskWait) -> None:
        """Return once the facts that were appended before this wait can be read.

        A verdict may follow seconds after the end that it is about. A wait that began
        while that end was being written would know the verdict alone.
        """
        number = self._appended_number
        if self._persisted_number < number:
            self._unpersisted.append((number, wait, None))
        while self._persisted_number < number:
            await _next_change(wait)

    @staticmethod
    async def _next_record(wait: _TaskWait, record: TaskRecord) -> TaskRecord:
        """Return `record` with the facts of its next change."""
        # Thousands of members may end: do not read the array for each.
        await _next_change(wait, ARRAY_POLL_S if record.progress is not None else 0.0)
        own = (fact for fact in wait.facts if fact.task == record.id)
        return reduce(merge.apply_fact, own, record)


async def _next_change(wait: _TaskWait, more_s: float = 0.0) -> None:
    """Return after a change, and those that follow it within `more_s`."""
    await wait.has_changed.wait()
    if more_s:
        await asyncio.sleep(more_s)
    wait.has_changed.clear()
    if wait.is_over:
        raise NotDispatcher("this node stopped being dispatcher")


def _wait_keys(name: str) -> list[str]:
    """Return the keys of a wait; a member also waits for the end of its array."""
    key = task_name(TaskId(name))
    place = split_member_name(key)
    return [key] if place is None else [key, place[0] + _ANY_MEMBER]


def _newest_record(known: TaskRecord | None, read: TaskRecord) -> TaskRecord:
    """Return both records merged; for an array or another task, return `read`."""
    if known is None or known.id != read.id or read.progress is not None:
        return read
    return merge.join_records(replace(known, spec=read.spec), read)


def _is_long(record: TaskRecord) -> bool:
    return record.spec is not None and record.spec.size_bytes > LONG_BYTES


def _brief_record(record: TaskRecord) -> TaskRecord:
    """Return a record whose envelope takes little memory.

    A client may have many requests that wait for a task with the longest fields.
    """
    spec = record.spec
    if spec is None:
        return record
    options = None if spec.array is None else TaskOptions(array=spec.array)
    brief = replace(spec, command="", inputs=(), outputs=(), options=options)
    return replace(record, spec=brief)
