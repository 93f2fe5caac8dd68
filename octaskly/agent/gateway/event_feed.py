"""The event feed: changes of tasks and nodes, for subscribers.

Events are read from the log on disk and sent only after they were replicated, so no
failover can revoke them. The first subscriber that runs out of events reads the log
for all subscribers. Without subscribers, the log is not read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager

from msgspec.structs import replace

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.change_feed import (
    FeedCursor,
    FeedGap,
    FeedItem,
    FeedPage,
    FeedPosition,
    NodeEvent,
    TaskEvent,
    end_event,
    may_end_array,
    resume_cursor,
    task_event_of,
)
from octaskly.core.effects import PublishMeshState
from octaskly.core.log.facts import Entry
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import array_of
from octaskly.core.model.hlc import HLC_MAX, wall_ms_of
from octaskly.core.model.ids import NodeId, StreamId
from octaskly.core.model.nodes import RosterEntry
from octaskly.errors import NotDispatcher
from octaskly.ports.events import RecentAttempts
from octaskly.store import Store

BUFFERED_ITEMS_MAX = 4096  #: a subscriber further behind is disconnected
READ_ENTRIES_MAX = 500  #: log entries per read
_READ_PAUSE_S = 0.01  #: between two reads, for other work of the event loop

_Origin = tuple[StreamId, int] | None
"""Stream and sequence number of an item's log entry; None for node events."""


class EventFeed:
    """Reads the log once for all subscribers.

    Args:
        store: The log.
        view: The members of the mesh.
        stream: Returns the stream that this node writes as dispatcher.
        wait_until_replicated: Returns once all that is on this disk is replicated.
    """

    def __init__(
        self,
        store: Store,
        view: MeshView,
        stream: Callable[[], StreamId | None],
        wait_until_replicated: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._view = view
        self._stream = stream
        self._wait_until_replicated = wait_until_replicated
        self._subscriptions = 0
        self._cursor: FeedCursor | None = None
        self._buffer: deque[tuple[_Origin, FeedItem]] = deque()
        self.members: dict[NodeId, RosterEntry] = {}
        self._waiter_lock = asyncio.Lock()
        self._past_lock = asyncio.Lock()
        self._has_changed = asyncio.Event()
        self.first_number = 0  #: number of the first buffered item
        self.next_number = 0  #: number of the next item

    def on_committed(self) -> None:
        """Wake the subscribers: more entries are on disk."""
        if self._subscriptions:
            self._has_changed.set()

    def on_roster_published(self, news: PublishMeshState) -> None:
        """Emit events for members that were added, changed or removed."""
        if not self._subscriptions or news.roster is None:
            return
        before, self.members = self.members, _by_id(news.roster.nodes)
        for event in _changes_between(before, self.members):
            self._buffer_item(None, event)
        self._has_changed.set()

    @asynccontextmanager
    async def subscribe(
        self, after: FeedPosition | None
    ) -> AsyncIterator[FeedSubscription]:
        """Subscribe from a position in the log, or from now on."""
        stream = self._stream()
        if stream is None or not self._view.is_serving:
            raise NotDispatcher("this node is not the dispatcher")
        self._subscriptions += 1
        try:
            if self._cursor is None:
                hlc, reaches, retired = await self._store.stream_extents_at(HLC_MAX)
                if self._cursor is None:
                    ends = {reach.stream: reach.seq for reach in reaches}
                    self._cursor = FeedCursor(hlc, ends, stream, retired)
            if self._view.roster is not None and not self.members:
                self.members = _by_id(self._view.roster.nodes)
            if after is None:
                start = [FeedItem(None, self._cursor.position)]
                resumed = None
            else:
                _, reaches, retired = await self._store.stream_extents_at(after.hlc)
                resumed, is_whole = resume_cursor(after, reaches, stream, retired)
                start = [] if is_whole else [FeedItem(FeedGap(), resumed.position)]
            nodes = [FeedItem(NodeEvent(member)) for member in self.members.values()]
            yield FeedSubscription(self, [*start, *nodes], resumed)
        finally:
            self._subscriptions -= 1
            if not self._subscriptions:
                self._cursor = None
                self._buffer.clear()
                self.members = {}
                self.first_number = self.next_number

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read running attempts, and those that ended since `since_ms`."""
        if not self._view.is_serving:
            raise NotDispatcher("this node is not the dispatcher")
        return await self._store.read_recent_attempts(since_ms, limit)

    async def wait_for_items(self, number: int) -> Sequence[tuple[_Origin, FeedItem]]:
        """Wait for items from this number on."""
        while True:
            if number < self.first_number:
                raise NotDispatcher(
                    "the client reads events more slowly than they happen"
                )
            if number < self.next_number:
                skipped = number - self.first_number
                return [each for n, each in enumerate(self._buffer) if n >= skipped]
            async with self._waiter_lock:
                while number >= self.next_number:
                    await self._read_or_wait()

    async def read_past_items(
        self, cursor: FeedCursor
    ) -> tuple[list[tuple[_Origin, FeedItem]], bool]:
        """Return the next items of one subscriber, as `_read_items` does.

        Subscribers take turns, so that those with much to catch up on do not delay the
        new items that all others wait for.
        """
        async with self._past_lock:
            return await self._read_items(cursor)

    async def _read_items(
        self, cursor: FeedCursor
    ) -> tuple[list[tuple[_Origin, FeedItem]], bool]:
        """Return the next items, and True if more remain; advance the cursor."""
        part = await self._store.read_feed_page(cursor.vector, READ_ENTRIES_MAX)
        if part.items:
            await self._wait_until_replicated()
            await asyncio.sleep(_READ_PAUSE_S)
        return _items_of(part, cursor), part.has_more

    async def _read_or_wait(self) -> None:
        """Read new items for all subscribers, or wait for a change."""
        assert self._cursor is not None
        self._has_changed.clear()
        number = self.next_number
        found, has_more = await self._read_items(self._cursor)
        for origin, news in found:
            self._buffer_item(origin, news)
        if number == self.next_number and not has_more:
            await self._has_changed.wait()

    def _buffer_item(self, origin: _Origin, news: FeedItem) -> None:
        self._buffer.append((origin, news))
        self.next_number += 1
        if len(self._buffer) > BUFFERED_ITEMS_MAX:
            self._buffer.popleft()
            self.first_number += 1


class FeedSubscription:
    """One subscriber: reads past items itself, then the shared buffer."""

    def __init__(
        self,
        feed: EventFeed,
        initial_items: Sequence[FeedItem],
        cursor: FeedCursor | None = None,
    ) -> None:
        self._feed = feed
        self._initial_items = initial_items
        self._cursor = cursor  #: None once it has caught up
        self._seen: dict[StreamId, int] = {}
        self._next = feed.next_number
        self._members = feed.members  #: as the client knows them, while it catches up

    async def next_items(self) -> Sequence[FeedItem]:
        """Wait for items and return them."""
        if self._initial_items:
            first, self._initial_items = self._initial_items, ()
            return first
        if self._cursor is not None:
            return await self._read_past_items(self._cursor)
        kept = await self._feed.wait_for_items(self._next)
        self._next += len(kept)
        return [news for origin, news in kept if not self._was_delivered(origin)]

    async def _read_past_items(self, cursor: FeedCursor) -> Sequence[FeedItem]:
        before, members = self._feed.next_number, self._feed.members
        found, has_more = await self._feed.read_past_items(cursor)
        past = [news for _, news in found]
        if not has_more:
            self._cursor, self._seen, self._next = None, cursor.vector, before
            past += _changes_between(self._members, members)
        return past

    def _was_delivered(self, origin: _Origin) -> bool:
        return origin is not None and origin[1] <= self._seen.get(origin[0], 0)


def _items_of(part: FeedPage, cursor: FeedCursor) -> list[tuple[_Origin, FeedItem]]:
    """Return the items of a page of the log, and advance the cursor past it."""
    found: list[tuple[_Origin, FeedItem]] = []
    if not part.is_whole:
        found.append((None, FeedItem(FeedGap())))
    last = {
        array_of(entry.fact.task) or entry.fact.task: entry for entry, _ in part.items
    }
    for entry, record in part.items:
        can_resume = cursor.advance_past(entry)
        is_last = entry is last[array_of(record.id) or record.id]
        events = _events_of(part, entry, record, cursor, is_last=is_last)
        for each in events:
            # A client may resume only after the last event of an entry.
            place = cursor.position if can_resume and each is events[-1] else None
            found.append(((entry.stream, entry.seq), FeedItem(each, place)))
    for stream, seq in part.reached:
        cursor.skip_entries(stream, seq)
    if cursor.corrected_ends and not part.has_more:
        _append_owed_ends(found, cursor)
    return found


def _events_of(
    part: FeedPage,
    entry: Entry,
    record: TaskRecord,
    cursor: FeedCursor,
    *,
    is_last: bool,
) -> list[TaskEvent]:
    """Return the events of one entry, and note which ends the reader has yet to get.

    The end of an array follows the last entry about it in the page, `is_last`, and the
    ends of its members.
    """
    events = []
    if (event := task_event_of(entry, record)) is not None:
        events.append(event)
        if event.state.is_final or not record.state.is_final:
            cursor.take_end(record.id)
        else:
            cursor.owe_end(end_event(record, event.at_ms))
    array = part.ended_arrays.get(array_of(record.id) or record.id)
    if array is None:
        return events
    end = end_event(array.record, wall_ms_of(entry.hlc))
    if may_end_array(entry.fact) or record.id in cursor.corrected_ends:
        cursor.owe_end(end)
    is_read = entry.hlc >= array.last_change_hlc or not part.has_more
    if is_last and is_read and cursor.owes_only_array(end.record.id):
        cursor.take_end(end.record.id)
        events.append(end)
    return events


def _append_owed_ends(
    found: list[tuple[_Origin, FeedItem]], cursor: FeedCursor
) -> None:
    """Append the end event of each task whose latest event is not its end.

    They precede the resume position, so a client that resumes has received them. Those
    of arrays follow those of their members.
    """
    origin, place = None, None
    if found:
        origin, latest = found.pop()
        place = latest.position
        found.append((origin, replace(latest, position=None)))
    ends = [cursor.take_end(task) for task in list(cursor.corrected_ends)]
    owed = [end for end in ends if end is not None]
    *others, last = sorted(owed, key=lambda end: array_of(end.record.id) is None)
    found += [(origin, FeedItem(end)) for end in others]
    found.append((origin, FeedItem(last, place)))


def _changes_between(
    before: Mapping[NodeId, RosterEntry], after: Mapping[NodeId, RosterEntry]
) -> Iterator[FeedItem]:
    """Yield an event for each member that was added, changed or removed."""
    for node, member in after.items():
        if node not in before or _visible_fields(member) != _visible_fields(
            before[node]
        ):
            yield FeedItem(NodeEvent(member))
    for node, member in before.items():
        if node not in after:
            yield FeedItem(NodeEvent(member, is_gone=True))


def _by_id(members: Iterable[RosterEntry]) -> dict[NodeId, RosterEntry]:
    return {member.id: member for member in members}


def _visible_fields(member: RosterEntry) -> tuple[object, ...]:
    """Return the fields whose change is an event; load is not one of them."""
    return member.name, member.role, member.state, member.slots, member.version
