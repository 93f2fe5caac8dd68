"""Requests that wait: for an answer of the core, or for a task to end."""

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
FEW_ENTRIES: Final = 4  #: of one append; of busy nodes nothing is remembered
FACTS_MAX: Final = 8  #: of one task
OUTPUT_BYTES_MAX: Final = 16 << 10  #: of one attempt


@dataclass(slots=True)
class Story:
    """Everything that was ever written of one task, in order."""

    facts: list[TaskFact]  #: begins with its submission
    is_told: bool = False  #: all of it is durable, and its end was announced

    @property
    def record(self) -> TaskRecord:
        """The task as it may be shown: an end only once it is durable."""
        shown = self.facts if self.is_told else self.facts[:1]
        return reduce(merge.apply_fact, shown[1:], merge.record_of(shown[0]))


class Recent:
    """Stories of tasks that were accepted in this reign, newest last."""

    def __init__(self) -> None:
        self._stories: dict[TaskId, Story] = {}
        self._stream: StreamId | None = None
        self._epoch: Epoch | None = None

    def get(self, task: TaskId) -> Story | None:
        """Return what is known of a task, None if it has to be read."""
        return self._stories.get(task)

    def reigns(self, epoch: Epoch) -> None:
        """Forget what another reign than this one may have gone on with."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._stories.clear()

    def appended(self, entries: Sequence[Entry]) -> None:
        """Remember few entries of the own stream; by others, nothing is whole."""
        stories = self._stories
        if len(entries) > FEW_ENTRIES:
            stories.clear()
            self._stream = entries[-1].stream
            return
        for entry in entries:
            if entry.stream != self._stream:
                stories.clear()
                self._stream = entry.stream
            self._add(entry)
        while len(stories) > TASKS_MAX:
            del stories[next(iter(stories))]

    def announced(self, tasks: Sequence[TaskId]) -> None:
        """What was appended of these tasks is durable."""
        for task in tasks if self._stories else ():
            if (story := self._stories.get(task)) is not None:
                story.is_told = True

    def _add(self, entry: Entry) -> None:
        fact = entry.fact
        if isinstance(fact, Submitted):
            if fact.spec.options is None:
                self._stories[fact.task] = Story([fact])
            return
        if isinstance(fact, MESH_FACTS):
            if isinstance(fact, Floor):
                self._stories.clear()  # It may be the end of any of them.
        elif (story := self._stories.get(fact.task)) is not None:
            story.facts.append(fact)
            if len(story.facts) > FACTS_MAX or story.is_told or _is_large(fact):
                del self._stories[fact.task]


def _is_large(fact: TaskFact) -> bool:
    if not isinstance(fact, Finished):
        return False
    outcome = fact.outcome
    return len(outcome.stdout) + len(outcome.stderr) > OUTPUT_BYTES_MAX


REPLY_CHECK_S = 2.0  #: between two looks at what keeps an answer
PENDING_MAX = 10_000  #: requests that wait for the core at once


class PendingRequests:
    """Pairs each question to the core with its answer."""

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
        """Give the core an event with a fresh ticket and wait for its answer.

        Args:
            event: Makes it of its ticket.
            check: Called now and then while there is none; may raise, to wait no more.

        Raises:
            NoDispatcher: too many requests wait already, or this node stops.
            AnswerLost: this node stopped before the answer.
            NotDispatcher: another node is dispatcher.
            NotDurable: one copy is too few, and no standby acknowledges.
        """
        if self._is_closed:
            raise DispatcherUnknown("this node stops")
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
                hint="repeat the request when one is back, a POST with an "
                "Idempotency-Key",
            )
        if isinstance(reply, NotDispatching):
            raise NotDispatcher("this node stopped being dispatcher")
        return reply

    def set_reply(self, ticket: int, reply: Reply) -> None:
        """Release the request that waits for this ticket."""
        future = self._futures.get(ticket)
        if future is not None and not future.done():
            future.set_result(reply)

    def close(self) -> None:
        """Tell everybody that this node answers no more.

        What was asked may be in the log already: it must not be asked again elsewhere,
        or it would be done twice.
        """
        self._is_closed = True
        for future in self._futures.values():
            if not future.done():
                future.set_exception(
                    OutcomeUnknown(
                        "the node stopped before it could answer",
                        hint="the request may have been carried out; look before you "
                        "repeat it, or send an Idempotency-Key",
                    )
                )


_ANY_MEMBER = ".*"  #: behind the name of an array: whoever waits for a member of it
ARRAY_POLL_S = 0.1  #: between two looks at an array that somebody waits for


@dataclass(slots=True, eq=False)
class _TaskWait:
    """One long poll: what was written about its task since it began."""

    accepts_local_commit: (
        bool  #: what is on this disk counts, though it may have no other copy
    )
    has_changed: asyncio.Event = field(default_factory=asyncio.Event)
    facts: list[TaskFact] = field(default_factory=list)


class TaskWaiters:
    """Long polls, answered when their task has a new durable state."""

    def __init__(self) -> None:
        self._waits: dict[str, set[_TaskWait]] = {}  #: by name, twins together
        self._unpersisted: deque[tuple[int, _TaskWait, TaskFact]] = deque()
        """On the way to the disk, for eager waits, with the number of its write."""
        self.recent = Recent()

    def on_appended(self, entries: Sequence[Entry], number: int) -> None:
        """Keep facts that somebody waits for: they spare reading them again."""
        self.recent.appended(entries)
        waits = self._waits
        for entry in entries if waits else ():
            fact = entry.fact
            task = fact.task  # None has the name of what is about no task.
            for wait in waits.get(task_name(task) if "~" in task else task, ()):
                assert not isinstance(fact, MESH_FACTS)
                if wait.accepts_local_commit:
                    self._unpersisted.append((number, wait, fact))
                else:
                    wait.facts.append(fact)

    def on_persisted(self, number: int) -> None:
        """What was appended so far is on this disk: wake who wants to know so soon.

        Not before: who then reads the task would find it as it was, and take that for
        news.
        """
        while self._unpersisted and self._unpersisted[0][0] <= number:
            _, wait, fact = self._unpersisted.popleft()
            wait.facts.append(fact)
            wait.has_changed.set()

    def on_replicated(self, tasks: Sequence[TaskId]) -> None:
        """What was appended about these tasks is durable: wake who waits for them."""
        self.recent.announced(tasks)
        waits = self._waits
        for task in tasks if waits else ():
            name = task_name(task) if "~" in task else task
            place = split_member_id(task) if "." in task else None
            other = name + _ANY_MEMBER if place is None else task_name(place[0])
            for wait in (*waits.get(name, ()), *waits.get(other, ())):
                wait.has_changed.set()

    def at_hand(self, name: str) -> TaskRecord | None:
        """Return a task that has ended, None where it has to be read or waited for."""
        story = self.recent.get(TaskId(name))
        record = story.record if story and story.is_told else None
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
        """Return a task once it is as wanted, or when the time is over.

        Args:
            name: What the client calls it; not its number alone.
            read: Returns the task as the store has it, with outputs.
            is_wanted: Whether to return it as it is.
            timeout_s: How long to wait.
            accepts_local_commit: Return it once that is on this disk; it may come otherwise.
        """
        wait = _TaskWait(accepts_local_commit)
        # Registered before the first read, so that no change falls between the two;
        # a fact that both bring is joined twice, which changes nothing.
        keys = _wait_keys(name)
        for key in keys:
            self._waits.setdefault(key, set()).add(wait)
        record: TaskRecord | None = None
        story = None if accepts_local_commit else self.recent.get(TaskId(name))
        try:
            async with asyncio.timeout(timeout_s):
                # Its record has the submission, with which a story begins.
                wait.facts += story.facts[1:] if story else ()
                record = story.record if story else await read()
                while not is_wanted(record):
                    await wait.has_changed.wait()
                    if record.progress is not None:
                        # Members end by the thousand; it is not read for each.
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
    """Return under what to wait for a task: a member may end with its array, too."""
    key = task_name(TaskId(name))
    array, dot, number = key.rpartition(".")
    return [key, array + _ANY_MEMBER] if dot and number.isdecimal() else [key]


def _newest_record(known: TaskRecord | None, read: TaskRecord) -> TaskRecord:
    """Return what is known when the store may be behind, or hold another one."""
    if known is None or known.id != read.id or read.progress is not None:
        return read
    return merge.join_records(known, read)
