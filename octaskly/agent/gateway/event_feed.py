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
from dataclasses import replace

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
from octaskly.ports import Log
from octaskly.ports.events import Lately

KEPT_MAX = 4096  #: news for listeners that are behind; one that is more so is cut
PART_MAX = 500  #: entries that are read at once
_REST_S = 0.01  #: between two reads, for all that else there is to do

_Origin = tuple[StreamId, int] | None
"""The entry that news come from; None for those of nodes."""


class Feed:
    """Reads the log once for all listeners.

    Args:
        store: Where the log is.
        view: Who is in the mesh.
        stream: Returns what this node writes as dispatcher.
        when_safe: Waits until what is on this disk is as safe as an accepted task.
    """

    def __init__(
        self,
        store: Log,
        view: MeshView,
        stream: Callable[[], StreamId | None],
        when_safe: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._view = view
        self._stream = stream
        self._when_safe = when_safe
        self._listeners = 0
        self._bookmark: FeedCursor | None = None
        self._kept: deque[tuple[_Origin, FeedItem]] = deque()
        self._members: dict[NodeId, RosterEntry] = {}
        self._turn = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._woken = asyncio.Event()
        self.begin = 0  #: number of the first news that are kept
        self.end = 0  #: and of the next to come

    def committed(self) -> None:
        """More is durable than before."""
        if self._listeners:
            self._woken.set()

    def published(self, news: PublishMeshState) -> None:
        """Take in who is in the mesh."""
        if not self._listeners or news.roster is None:
            return
        before, self._members = self._members, _by_id(news.roster.members)
        for node, member in self._members.items():
            if node not in before or _shown(member) != _shown(before[node]):
                self._keep(None, FeedItem(NodeEvent(member)))
        for node, member in before.items():
            if node not in self._members:
                self._keep(None, FeedItem(NodeEvent(member, is_gone=True)))
        self._woken.set()

    @asynccontextmanager
    async def listen(self, after: FeedPosition | None) -> AsyncIterator[Listener]:
        """Hear what happens, from a place in the log or from now on."""
        stream = self._stream()
        if stream is None or not self._view.is_serving:
            raise NotDispatcher("this node is not dispatcher")
        self._listeners += 1
        try:
            if self._bookmark is None:
                hlc, reaches = await self._store.reaches(HLC_MAX)
                if self._bookmark is None:
                    ends = {reach.stream: reach.seq for reach in reaches}
                    self._bookmark = FeedCursor(hlc, ends, stream)
            if self._view.roster is not None and not self._members:
                self._members = _by_id(self._view.roster.members)
            nodes = [FeedItem(NodeEvent(member)) for member in self._members.values()]
            if after is None:
                start = FeedItem(None, self._bookmark.position)
                yield Listener(self, [start, *nodes])
            else:
                _, reaches = await self._store.reaches(after.hlc)
                bookmark, is_whole = resume_cursor(after, reaches, stream)
                lost = [] if is_whole else [FeedItem(FeedGap(), bookmark.position)]
                yield Listener(self, [*lost, *nodes], bookmark)
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._bookmark = None
                self._kept.clear()
                self._members = {}
                self.begin = self.end

    async def lately(self, since_ms: int, limit: int) -> Lately:
        """Read attempts that run, and those that ended since."""
        if not self._view.is_serving:
            raise NotDispatcher("this node is not dispatcher")
        return await self._store.lately(since_ms, limit)

    async def kept_after(self, number: int) -> Sequence[tuple[_Origin, FeedItem]]:
        """Wait for news from this number on."""
        while True:
            if number < self.begin:
                raise NotDispatcher("the client reads more slowly than things happen")
            if number < self.end:
                skipped = number - self.begin
                return [each for n, each in enumerate(self._kept) if n >= skipped]
            async with self._turn:
                while number >= self.end:
                    await self._read_on()

    async def read(
        self, bookmark: FeedCursor
    ) -> tuple[list[tuple[_Origin, FeedItem]], bool]:
        """Read on in the log, and move the bookmark; return whether there is more."""
        async with self._reading:
            part = await self._store.history(bookmark.vector, PART_MAX)
            if part.items:
                await self._when_safe()
                await asyncio.sleep(_REST_S)
        return _told(part, bookmark), part.has_more

    async def _read_on(self) -> None:
        """Read what is new for all, or wait until something is."""
        assert self._bookmark is not None
        self._woken.clear()
        number = self.end
        found, has_more = await self.read(self._bookmark)
        for origin, news in found:
            self._keep(origin, news)
        if number == self.end and not has_more:
            await self._woken.wait()

    def _keep(self, origin: _Origin, news: FeedItem) -> None:
        self._kept.append((origin, news))
        self.end += 1
        if len(self._kept) > KEPT_MAX:
            self._kept.popleft()
            self.begin += 1


class Listener:
    """One reader: of the past by itself, then of what is read for all."""

    def __init__(
        self, feed: Feed, first: Sequence[FeedItem], bookmark: FeedCursor | None = None
    ) -> None:
        self._feed = feed
        self._first = first
        self._bookmark = bookmark  #: None once it has caught up
        self._seen: dict[StreamId, int] = {}
        self._next = feed.end

    async def more(self) -> Sequence[FeedItem]:
        """Wait for news."""
        if self._first:
            first, self._first = self._first, ()
            return first
        if self._bookmark is not None:
            return await self._catch_up(self._bookmark)
        kept = await self._feed.kept_after(self._next)
        self._next += len(kept)
        return [news for origin, news in kept if not self._knows(origin)]

    async def _catch_up(self, bookmark: FeedCursor) -> Sequence[FeedItem]:
        before = self._feed.end
        found, has_more = await self._feed.read(bookmark)
        if not has_more:
            self._bookmark, self._seen, self._next = None, bookmark.vector, before
        return [news for _, news in found]

    def _knows(self, origin: _Origin) -> bool:
        return origin is not None and origin[1] <= self._seen.get(origin[0], 0)


def _told(part: FeedPage, bookmark: FeedCursor) -> list[tuple[_Origin, FeedItem]]:
    """Return the news in a part of the log, and move the bookmark behind it."""
    found: list[tuple[_Origin, FeedItem]] = []
    if not part.is_whole:
        found.append((None, FeedItem(FeedGap())))
    last = {array_id_of(entry.fact.task): entry for entry, _ in part.items}
    for entry, record in part.items:
        can_resume = bookmark.advance_past(entry)
        about = [task_event_of(entry, record)]
        array = part.arrays.get(array_id_of(record.id))
        if array is not None and entry is last[array.id]:
            about.append(array_event_of(entry, array))
        told = [each for each in about if each is not None]
        for each in told:
            if each.state.is_final or not record.state.is_final:
                bookmark.corrected_ends.pop(each.record.id, None)
            else:
                bookmark.corrected_ends[record.id] = end_event(record, each.at_ms)
            # Only behind all that one entry says a client may go on.
            place = bookmark.position if can_resume and each is told[-1] else None
            found.append(((entry.stream, entry.seq), FeedItem(each, place)))
    for stream, seq in part.reached:
        bookmark.skip_entries(stream, seq)
    if bookmark.corrected_ends and not part.has_more:
        _tell_owed(found, bookmark)
    return found


def _tell_owed(found: list[tuple[_Origin, FeedItem]], bookmark: FeedCursor) -> None:
    """Add how tasks ended of which something else was told last.

    Who has the place of the latest news must have heard these, too.
    """
    origin, place = None, None
    if found:
        origin, latest = found.pop()
        place = latest.position
        found.append((origin, replace(latest, position=None)))
    *others, last = bookmark.corrected_ends.values()
    found += [(origin, FeedItem(end)) for end in others]
    found.append((origin, FeedItem(last, place)))
    bookmark.corrected_ends.clear()


def _by_id(members: Iterable[RosterEntry]) -> dict[NodeId, RosterEntry]:
    return {member.id: member for member in members}


def _shown(member: RosterEntry) -> tuple[object, ...]:
    """Return what makes news of a node: not its load."""
    return member.name, member.role, member.state, member.slots, member.version
