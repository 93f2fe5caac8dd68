"""Pending requests: requests to the core, and long polls for a task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

from octaskly import errors
from octaskly.core.events import Event
from octaskly.core.log import merge
from octaskly.core.log.facts import (
    MESH_FACTS,
    Entry,
    Finished,
    Floor,
    Submitted,
    TaskFact,
)
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import Epoch, StreamId, TaskId, task_name
from octaskly.core.replies import NotDispatching, NotReplicated, Reply
from octaskly.errors import DispatcherUnknown, NotDispatcher, OutcomeUnknown

TASKS_MAX: Final = 64
FEW_ENTRIES: Final = 4  #: per append; a larger append empties the cache
FACTS_MAX: Final = 8  #: of one task
OUTPUT_BYTES_MAX: Final = 16 << 10  #: of one attempt


@dataclass(slots=True)
class CachedTask:
    """All facts of one task, in the order of the log."""

    facts: list[TaskFact]  #: the first one is the submission
    is_end_announced: bool = False  #: all facts are durable, and the end was announced

    @property
    def record(self) -> TaskRecord:
        """The task as clients may see it: its end only once that is durable."""
        shown = self.facts if self.is_end_announced else self.facts[:1]
        return reduce(merge.apply_fact, shown[1:], merge.record_of(shown[0]))


class RecentTasks:
    """A cache of the tasks accepted in this epoch, newest last.

    Without it, submission to result took 1.05 times as long, and the agent 1.11 times
    the CPU (`python -m benchmarks.compare latency`, 24 alternating rounds).
    """

    def __init__(self) -> None:
        self._tasks: dict[TaskId, CachedTask] = {}
        self._stream: StreamId | None = None
        self._epoch: Epoch | None = None

    def get(self, task: TaskId) -> CachedTask | None:
        """Return the facts of a task; None if it must be read from the store."""
        return self._tasks.get(task)

    def start_epoch(self, epoch: Epoch) -> None:
        """Empty the cache if the epoch is new: other nodes may have changed tasks."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._tasks.clear()

    def appended(self, entries: Sequence[Entry]) -> None:
        """Cache a small append. Another stream or a large append empties the cache."""
        tasks = self._tasks
        if len(entries) > FEW_ENTRIES:
            tasks.clear()
            self._stream = entries[-1].stream
            return
        for entry in entries:
            if entry.stream != self._stream:
                tasks.clear()
                self._stream = entry.stream
            self._add(entry)
        while len(tasks) > TASKS_MAX:
            del tasks[next(iter(tasks))]

    def announced(self, tasks: Sequence[TaskId]) -> None:
        """Mark these tasks: all their appended facts are durable."""
        for task in tasks if self._tasks else ():
            if (cached := self._tasks.get(task)) is not None:
                cached.is_end_announced = True

    def _add(self, entry: Entry) -> None:
        fact = entry.fact
        if isinstance(fact, Submitted):
            if fact.spec.options is None:
                self._tasks[fact.task] = CachedTask([fact])
            return
        if isinstance(fact, MESH_FACTS):
            if isinstance(fact, Floor):
                self._tasks.clear()  # A floor may purge any of these tasks.
        elif (cached := self._tasks.get(fact.task)) is not None:
            cached.facts.append(fact)
            if (
                len(cached.facts) > FACTS_MAX
                or cached.is_end_announced
                or _is_large(fact)
            ):
                del self._tasks[fact.task]


def _is_large(fact: TaskFact) -> bool:
    if not isinstance(fact, Finished):
        return False
    outcome = fact.outcome
    return len(outcome.stdout) + len(outcome.stderr) > OUTPUT_BYTES_MAX


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
            DispatcherUnknown: too many requests wait, or this node stops.
            OutcomeUnknown: this node stopped before the reply.
            NotDispatcher: this node is not dispatcher.
            NotDurable: durability is strict, and no standby acknowledges.
        """
        if self._is_closed:
            raise DispatcherUnknown("this node is stopping")
        if len(self._futures) >= PENDING_MAX:
            raise DispatcherUnknown("too many requests wait", hint="retry in a second")
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
                hint="repeat the request when a standby is back; send a POST with an "
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
                        "repeat it, or send an Idempotency-Key",
                    )
                )


_ANY_MEMBER = ".*"  #: array name + this: the key of waits for any of its members
ARRAY_POLL_S = 0.1  #: between two reads of an array for one wait


@dataclass(slots=True, eq=False)
class _TaskWait:
    """One long poll, with the facts about its task since it started."""

    accepts_local_commit: bool  #: facts on this disk count before they are replicated
    has_changed: asyncio.Event = field(default_factory=asyncio.Event)
    facts: list[TaskFact] = field(default_factory=list)


class TaskWaiters:
    """Long polls, woken when their task has a new durable state."""

    def __init__(self) -> None:
        #: By name; tasks that share a name share a key.
        self._waits: dict[str, set[_TaskWait]] = {}
        self._unpersisted: deque[tuple[int, _TaskWait, TaskFact]] = deque()
        """Facts not yet on disk, for `accepts_local_commit`, with the write number."""
        self.recent = RecentTasks()

    def on_appended(self, entries: Sequence[Entry], number: int) -> None:
        """Keep the facts that waits need, so that they need not read the store."""
        self.recent.appended(entries)
        waits = self._waits
        for entry in entries if waits else ():
            fact = entry.fact
            task = fact.task  # No wait has the name used by mesh facts.
            for wait in waits.get(task_name(task) if "~" in task else task, ()):
                assert not isinstance(fact, MESH_FACTS)
                if wait.accepts_local_commit:
                    self._unpersisted.append((number, wait, fact))
                else:
                    wait.facts.append(fact)

    def on_persisted(self, number: int) -> None:
        """Wake waits that accept local commits: writes up to `number` are on disk.

        Woken earlier, they would read the old state of the task.
        """
        while self._unpersisted and self._unpersisted[0][0] <= number:
            _, wait, fact = self._unpersisted.popleft()
            wait.facts.append(fact)
            wait.has_changed.set()

    def on_replicated(self, tasks: Sequence[TaskId]) -> None:
        """Wake the waits for these tasks: their appended facts are durable."""
        self.recent.announced(tasks)
        waits = self._waits
        for task in tasks if waits else ():
            name = task_name(task) if "~" in task else task
            place = split_member_id(task) if "." in task else None
            other = name + _ANY_MEMBER if place is None else task_name(place[0])
            for wait in (*waits.get(name, ()), *waits.get(other, ())):
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
        timeout_s: float,
        *,
        accepts_local_commit: bool = False,
    ) -> TaskRecord:
        """Return a task once `is_wanted` accepts it, or at the timeout.

        Args:
            name: The client's name of the task, not its number alone.
            read: Reads the task with its outputs from the store.
            is_wanted: Returns True if the task should be returned now.
            timeout_s: Longest wait.
            accepts_local_commit: Return a state that is on this disk only, which a
                failover may still revoke.
        """
        wait = _TaskWait(accepts_local_commit)
        # Register before the first read, so that no change is missed. Applying a fact
        # twice changes nothing.
        keys = _wait_keys(name)
        for key in keys:
            self._waits.setdefault(key, set()).add(wait)
        record: TaskRecord | None = None
        cached = None if accepts_local_commit else self.recent.get(TaskId(name))
        try:
            async with asyncio.timeout(timeout_s):
                # The record has the submission, which is the first fact.
                wait.facts += cached.facts[1:] if cached else ()
                record = cached.record if cached else await read()
                while not is_wanted(record):
                    await wait.has_changed.wait()
                    if record.progress is not None:
                        # Thousands of members may end: do not read the array for each.
                        await asyncio.sleep(ARRAY_POLL_S)
                    wait.has_changed.clear()
                    own = (fact for fact in wait.facts if fact.task == record.id)
                    record = reduce(merge.apply_fact, own, record)
                    if not is_wanted(record):
                        record = _newest_record(record, await read())
                return record
        except TimeoutError:
            return _newest_record(record, await read())
        finally:
            for key in keys:
                self._waits[key].discard(wait)
                if not self._waits[key]:
                    del self._waits[key]


def _wait_keys(name: str) -> list[str]:
    """Return the keys of a wait; a member also waits for the end of its array."""
    key = task_name(TaskId(name))
    array, dot, number = key.rpartition(".")
    return [key, array + _ANY_MEMBER] if dot and number.isdecimal() else [key]


def _newest_record(known: TaskRecord | None, read: TaskRecord) -> TaskRecord:
    """Return both records merged; for an array or another task, return `read`."""
    if known is None or known.id != read.id or read.progress is not None:
        return read
    return merge.join_records(known, read)
