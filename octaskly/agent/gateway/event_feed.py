"""The event feed: changes of tasks and nodes, for subscribers.

Events are read from the log on disk and sent only after they were replicated, so no
failover can revoke them. Each subscriber has a place in the log. Those that are equally
far share it, and the first of them reads the next page for all. Without subscribers,
the log is not read.
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
from typing import NamedTuple

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.change_feed import (
    FeedCursor,
    FeedGap,
    FeedItem,
    FeedPosition,
    NodeEvent,
    read_page,
    resume_cursor,
)
from octaskly.core.effects import PublishMeshState
from octaskly.core.model.hlc import HLC_MAX
from octaskly.core.model.ids import NodeId, StreamId
from octaskly.core.model.nodes import RosterEntry
from octaskly.errors import NotDispatcher
from octaskly.ports.events import RecentAttempts
from octaskly.store import Store

READ_ENTRIES_MAX = 500  #: log entries per page
KEPT_PAGES_MAX = 8  #: for subscribers that are a little behind
_READ_PAUSE_S = 0.01  #: between two reads, for other work of the event loop


class _Place:
    """A place in the log, shared by the subscribers that have come to it."""

    def __init__(self, cursor: FeedCursor) -> None:
        self.cursor = cursor
        self.subscribers = 0  #: that are here now
        self.next_page: _Page | None = None  #: None: not read, or no longer kept
        self.empty_until: asyncio.Event | None = None
        """Nothing follows before this is set."""


class _Page(NamedTuple):
    items: Sequence[FeedItem]
    end: _Place


class EventFeed:
    """Reads the log once for all subscribers that are equally far.

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
        self._latest: _Place | None = None  #: where most subscribers are
        self._latest_lock = asyncio.Lock()
        self._past_lock = asyncio.Lock()
        self._kept: deque[_Place] = deque()  #: those before it that have a page
        self.members: dict[NodeId, RosterEntry] = {}
        self.has_changed = asyncio.Event()  #: replaced once it was set

    def on_committed(self) -> None:
        """Wake the subscribers: more entries are on disk."""
        if self._subscriptions:
            self.has_changed.set()
            self.has_changed = asyncio.Event()

    def on_roster_published(self, news: PublishMeshState) -> None:
        """Wake the subscribers: members may have been added, changed or removed."""
        if self._subscriptions and news.roster is not None:
            self.members = _by_id(news.roster.nodes)
            self.on_committed()

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
            place, start = await self._place_at(after, stream)
            if self._view.roster is not None and not self.members:
                self.members = _by_id(self._view.roster.nodes)
            nodes = [FeedItem(NodeEvent(member)) for member in self.members.values()]
            subscription = FeedSubscription(self, place, [*start, *nodes])
            try:
                yield subscription
            finally:
                subscription.leave()
        finally:
            self._subscriptions -= 1
            if not self._subscriptions:
                self._latest = None
                self._kept.clear()
                self.members = {}

    async def _place_at(
        self, after: FeedPosition | None, stream: StreamId
    ) -> tuple[_Place, list[FeedItem]]:
        """Return where a subscriber starts, and the item that says so."""
        if after is not None:
            _, reaches, retired = await self._store.stream_extents_at(after.hlc)
            resumed, is_whole = resume_cursor(after, reaches, stream, retired)
            gap = [] if is_whole else [FeedItem(FeedGap(), resumed.position)]
            return _Place(resumed), gap
        latest = self._occupied_latest
        if latest is None:
            hlc, reaches, retired = await self._store.stream_extents_at(HLC_MAX)
            ends = {reach.stream: reach.seq for reach in reaches}
            latest = self._occupied_latest or _Place(
                FeedCursor(hlc, ends, stream, retired)
            )
            self._latest = latest
        return latest, [FeedItem(None, latest.cursor.position)]

    @property
    def _occupied_latest(self) -> _Place | None:
        """The latest place, unless all subscribers have left it."""
        latest = self._latest
        return latest if latest is not None and latest.subscribers else None

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read running attempts, and those that ended since `since_ms`."""
        if not self._view.is_serving:
            raise NotDispatcher("this node is not the dispatcher")
        return await self._store.read_recent_attempts(since_ms, limit)

    async def read_behind(self, place: _Place) -> tuple[Sequence[FeedItem], _Place]:
        """Return the items of the next page, if there are any, and the place behind it.

        Subscribers that catch up take turns, so that they do not delay the new items
        that all others wait for.
        """
        lock = self._latest_lock if place is self._latest else self._past_lock
        async with lock:
            has_changed = self.has_changed
            if place.next_page is None and place.empty_until is not has_changed:
                await self._read_page(place)
                if place.next_page is None:
                    place.empty_until = has_changed
        return place.next_page or ((), place)

    async def _read_page(self, place: _Place) -> None:
        page = await self._store.read_feed_page(place.cursor.vector, READ_ENTRIES_MAX)
        if not page.reached:
            return
        if page.items:
            await self._wait_until_replicated()
            await asyncio.sleep(_READ_PAUSE_S)
        end = _Place(place.cursor.copy())
        items = read_page(page, end.cursor)
        if place is self._latest:
            self._latest = end
            self._kept.append(place)
            if len(self._kept) > KEPT_PAGES_MAX:
                self._kept.popleft().next_page = None
        elif (latest := self._occupied_latest) is None:
            self._latest = self._latest if page.has_more else end
        elif end.cursor.is_level_with(latest.cursor):
            end = latest
        place.next_page = _Page(items, end)


class FeedSubscription:
    """One subscriber."""

    def __init__(
        self, feed: EventFeed, place: _Place, initial_items: Sequence[FeedItem]
    ) -> None:
        self._feed = feed
        self._place = place
        place.subscribers += 1
        self._initial_items = initial_items
        self._members = feed.members  #: as the client knows them

    async def next_items(self) -> Sequence[FeedItem]:
        """Wait for items and return them."""
        if self._initial_items:
            first, self._initial_items = self._initial_items, ()
            return first
        while True:
            has_changed, before = self._feed.has_changed, self._place
            items, place = await self._feed.read_behind(before)
            self._place.subscribers -= 1
            self._place = place
            self._place.subscribers += 1
            members, self._members = self._members, self._feed.members
            found = [*items, *_changes_between(members, self._members)]
            if found:
                return found
            if self._place is before:
                await has_changed.wait()

    def leave(self) -> None:
        """Leave the place in the log; called once, at the end."""
        self._place.subscribers -= 1


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
