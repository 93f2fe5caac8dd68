"""What happens to tasks and nodes, for those who listen.

Read from the log on disk, and told once a standby has it, too, as answers are: so that
no failover takes back what was told. The first listener that has nothing to tell its
client reads for all. While nobody listens nothing is done here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
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
    array_event_of,
    array_id_of,
    end_event,
    resume_cursor,
    task_event_of,
)
from octaskly.core.effects import PublishMeshState
from octaskly.core.model.hlc import HLC_MAX
from octaskly.core.model.ids import NodeId, StreamId
from octaskly.core.protocol.messages import RosterEntry
from octaskly.errors import NotDispatcher
from octaskly.ports import DurableStore
from octaskly.ports.events import RecentAttempts

BUFFERED_ITEMS_MAX = (
    4096  #: news for listeners that are behind; one that is more so is cut
)
READ_ENTRIES_MAX = 500  #: entries that are read at once
_READ_PAUSE_S = 0.01  #: between two reads, for all that else there is to do

_Origin = tuple[StreamId, int] | None
"""The entry that news come from; None for those of nodes."""


class EventFeed:
    """Reads the log once for all listeners.

    Args:
        store: Where the log is.
        view: Who is in the mesh.
        stream: Returns what this node writes as dispatcher.
        when_safe: Waits until what is on this disk is as safe as an accepted task.
    """

    def __init__(
        self,
        store: DurableStore,
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
        self._members: dict[NodeId, RosterEntry] = {}
        self._waiter_lock = asyncio.Lock()
        self._read_lock = asyncio.Lock()
        self._has_changed = asyncio.Event()
        self.first_number = 0  #: number of the first news that are kept
        self.next_number = 0  #: and of the next to come

    def on_committed(self) -> None:
        """More is durable than before."""
        if self._subscriptions:
            self._has_changed.set()

    def on_roster_published(self, news: PublishMeshState) -> None:
        """Take in who is in the mesh."""
        if not self._subscriptions or news.roster is None:
            return
        before, self._members = self._members, _by_id(news.roster.members)
        for node, member in self._members.items():
            if node not in before or _visible_fields(member) != _visible_fields(
                before[node]
            ):
                self._buffer_item(None, FeedItem(NodeEvent(member)))
        for node, member in before.items():
            if node not in self._members:
                self._buffer_item(None, FeedItem(NodeEvent(member, is_gone=True)))
        self._has_changed.set()

    @asynccontextmanager
    async def subscribe(
        self, after: FeedPosition | None
    ) -> AsyncIterator[FeedSubscription]:
        """Hear what happens, from a place in the log or from now on."""
        stream = self._stream()
        if stream is None or not self._view.is_serving:
            raise NotDispatcher("this node is not dispatcher")
        self._subscriptions += 1
        try:
            if self._cursor is None:
                hlc, reaches = await self._store.stream_extents_at(HLC_MAX)
                if self._cursor is None:
                    ends = {reach.stream: reach.seq for reach in reaches}
                    self._cursor = FeedCursor(hlc, ends, stream)
            if self._view.roster is not None and not self._members:
                self._members = _by_id(self._view.roster.members)
            nodes = [FeedItem(NodeEvent(member)) for member in self._members.values()]
            if after is None:
                start = FeedItem(None, self._cursor.position)
                yield FeedSubscription(self, [start, *nodes])
            else:
                _, reaches = await self._store.stream_extents_at(after.hlc)
                bookmark, is_whole = resume_cursor(after, reaches, stream)
                lost = [] if is_whole else [FeedItem(FeedGap(), bookmark.position)]
                yield FeedSubscription(self, [*lost, *nodes], bookmark)
        finally:
            self._subscriptions -= 1
            if not self._subscriptions:
                self._cursor = None
                self._buffer.clear()
                self._members = {}
                self.first_number = self.next_number

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read attempts that run, and those that ended since."""
        if not self._view.is_serving:
            raise NotDispatcher("this node is not dispatcher")
        return await self._store.read_recent_attempts(since_ms, limit)

    async def wait_for_items(self, number: int) -> Sequence[tuple[_Origin, FeedItem]]:
        """Wait for news from this number on."""
        while True:
            if number < self.first_number:
                raise NotDispatcher("the client reads more slowly than things happen")
            if number < self.next_number:
                skipped = number - self.first_number
                return [each for n, each in enumerate(self._buffer) if n >= skipped]
            async with self._waiter_lock:
                while number >= self.next_number:
                    await self._read_or_wait()

    async def read_items(
        self, cursor: FeedCursor
    ) -> tuple[list[tuple[_Origin, FeedItem]], bool]:
        """Read on in the log, and move the bookmark; return whether there is more."""
        async with self._read_lock:
            part = await self._store.read_feed_page(cursor.vector, READ_ENTRIES_MAX)
            if part.items:
                await self._wait_until_replicated()
                await asyncio.sleep(_READ_PAUSE_S)
        return _items_of(part, cursor), part.has_more

    async def _read_or_wait(self) -> None:
        """Read what is new for all, or wait until something is."""
        assert self._cursor is not None
        self._has_changed.clear()
        number = self.next_number
        found, has_more = await self.read_items(self._cursor)
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
    """One reader: of the past by itself, then of what is read for all."""

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

    async def next_items(self) -> Sequence[FeedItem]:
        """Wait for news."""
        if self._initial_items:
            first, self._initial_items = self._initial_items, ()
            return first
        if self._cursor is not None:
            return await self._read_past_items(self._cursor)
        kept = await self._feed.wait_for_items(self._next)
        self._next += len(kept)
        return [news for origin, news in kept if not self._was_delivered(origin)]

    async def _read_past_items(self, cursor: FeedCursor) -> Sequence[FeedItem]:
        before = self._feed.next_number
        found, has_more = await self._feed.read_items(cursor)
        if not has_more:
            self._cursor, self._seen, self._next = None, cursor.vector, before
        return [news for _, news in found]

    def _was_delivered(self, origin: _Origin) -> bool:
        return origin is not None and origin[1] <= self._seen.get(origin[0], 0)


def _items_of(part: FeedPage, cursor: FeedCursor) -> list[tuple[_Origin, FeedItem]]:
    """Return the news in a part of the log, and move the bookmark behind it."""
    found: list[tuple[_Origin, FeedItem]] = []
    if not part.is_whole:
        found.append((None, FeedItem(FeedGap())))
    last = {array_id_of(entry.fact.task): entry for entry, _ in part.items}
    for entry, record in part.items:
        can_resume = cursor.advance_past(entry)
        about = [task_event_of(entry, record)]
        array = part.arrays.get(array_id_of(record.id))
        if array is not None and entry is last[array.id]:
            about.append(array_event_of(entry, array))
        told = [each for each in about if each is not None]
        for each in told:
            if each.state.is_final or not record.state.is_final:
                cursor.corrected_ends.pop(each.record.id, None)
            else:
                cursor.corrected_ends[record.id] = end_event(record, each.at_ms)
            # Only behind all that one entry says a client may go on.
            place = cursor.position if can_resume and each is told[-1] else None
            found.append(((entry.stream, entry.seq), FeedItem(each, place)))
    for stream, seq in part.reached:
        cursor.skip_entries(stream, seq)
    if cursor.corrected_ends and not part.has_more:
        _append_owed_ends(found, cursor)
    return found


def _append_owed_ends(
    found: list[tuple[_Origin, FeedItem]], cursor: FeedCursor
) -> None:
    """Add how tasks ended of which something else was told last.

    Who has the place of the latest news must have heard these, too.
    """
    origin, place = None, None
    if found:
        origin, latest = found.pop()
        place = latest.position
        found.append((origin, replace(latest, position=None)))
    *others, last = cursor.corrected_ends.values()
    found += [(origin, FeedItem(end)) for end in others]
    found.append((origin, FeedItem(last, place)))
    cursor.corrected_ends.clear()


def _by_id(members: Iterable[RosterEntry]) -> dict[NodeId, RosterEntry]:
    return {member.id: member for member in members}


def _visible_fields(member: RosterEntry) -> tuple[object, ...]:
    """Return what makes news of a node: not its load."""
    return member.name, member.role, member.state, member.slots, member.version
