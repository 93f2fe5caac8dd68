"""Webhook delivery: notifies receivers that tasks have ended, with retries.

Deliveries are recorded in the log. The next dispatcher continues from there, and
repeats only deliveries that were not recorded yet.

A receiver that never answers occupies a place for ten seconds. So a free place goes to
the submitter with the fewest notifications in transit, whoever has more to send.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from urllib.parse import urlsplit

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.api.webhook_sender import WebhookSender
from octaskly.core.change_feed import TaskEvent, end_event
from octaskly.core.events import Event, TasksNotified
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NO_EPOCH
from octaskly.core.model.timer_heap import backoff
from octaskly.errors import MeshError, StoreError
from octaskly.ports.store import Clock
from octaskly.store import Store
from octaskly.system.log import Logger

PENDING_MAX = 10_000  #: ended tasks in memory; others wait in the store
CONCURRENT_MAX = 8
CONCURRENT_PER_HOST_MAX = 2  #: a host that never answers does not delay other hosts
TRIES_MAX = 10
GIVE_UP_S = 3600.0
RETRY_BASE_S = 5.0
RETRY_CAP_S = 900.0
POLL_S = 15.0  #: between two reads of the store if no end is announced
COALESCE_S = 0.2  #: ends within this time share one read of the store
BATCH_MAX = 100  #: tasks per read of the store


@dataclass(slots=True)
class _Notification:
    """The pending notification of one ended task."""

    key: int
    event: TaskEvent
    url: str
    host: str
    submitter: str
    since_s: float
    tries: int = 0


class WebhookScheduler:
    """Sends notifications while this node is dispatcher, `CONCURRENT_MAX` at a time.

    An end is sent only after it was replicated, so no failover can revoke it.
    """

    def __init__(
        self,
        store: Store,
        view: MeshView,
        poster: WebhookSender,
        clock: Clock,
        log: Logger,
        post: Callable[[Event], None],
        wait_until_replicated: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._view = view
        self._poster = poster
        self._clock = clock
        self._log = log
        self._post = post
        self._wait_until_replicated = wait_until_replicated
        self._epoch = NO_EPOCH
        self._pending_keys: set[int] = set()
        self._waiting: dict[str, list[tuple[float, int, _Notification]]] = {}
        """By submitter: a heap ordered by due time."""
        self._held: dict[str, deque[_Notification]] = {}
        """By host: due notifications that wait until another one to it has ended."""
        self._sending: Counter[str] = Counter()  #: by host
        self._sending_of: Counter[str] = Counter()  #: by submitter
        self._have_tasks_ended = asyncio.Event()
        self._has_changed = asyncio.Event()
        self._polled_s = 0.0
        #: The store's `notification_count` when all were last in memory.
        self._seen_count: int | None = None

    def on_tasks_ended(self) -> None:
        """Wake up: tasks have ended, or this node may have become dispatcher."""
        # If the event is set already, a read of the store is scheduled.
        if not self._have_tasks_ended.is_set():
            self._have_tasks_ended.set()
            self._has_changed.set()

    async def run(self) -> None:
        """Send notifications until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._read_pending()
                    for notice in self._pop_due():
                        tasks.create_task(self._send_notification(notice))
                    await self._wait_for_work()
        finally:
            await self._poster.close()

    async def _read_pending(self) -> None:
        """Read pending notifications from the store if a read is due."""
        now_s = self._clock.now().mono_s
        if not self._view.is_serving:
            self._reset()
            self._have_tasks_ended.clear()
            self._polled_s = now_s
            return
        if self._view.epoch != self._epoch:
            self._reset()
            self._epoch = self._view.epoch
        since_s = now_s - self._polled_s
        if since_s < (COALESCE_S if self._have_tasks_ended.is_set() else POLL_S):
            return
        self._have_tasks_ended.clear()
        self._polled_s = now_s
        count = self._store.notification_count
        if count == self._seen_count:
            return  # No notification was added since the last read.
        limit = min(BATCH_MAX, PENDING_MAX - len(self._pending_keys))
        try:
            found = await self._store.read_pending_notifications(
                frozenset(self._pending_keys), limit
            )
            if found.new_tasks:
                await self._wait_until_replicated()
        except (StoreError, MeshError):
            # The next read tries again. The store logs its own failures. If this node
            # is not dispatcher any more, the next dispatcher sends them.
            return
        if self._view.epoch != self._epoch:
            return
        self._pending_keys &= found.keys
        for key, record in found.new_tasks:
            self._add_notification(key, record, now_s)
        self._seen_count = count if len(found.new_tasks) < limit else None
        if found.new_tasks and self._seen_count is None:
            self._have_tasks_ended.set()  # There may be more.

    def _add_notification(self, key: int, record: TaskRecord, now_s: float) -> None:
        assert record.spec is not None
        assert record.spec.options is not None
        url = record.spec.options.notify_url
        parts = urlsplit(url)  # The spelling of a host makes no other one of it.
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = f"{(parts.hostname or '').rstrip('.')}:{port}"
        self._pending_keys.add(key)
        news = end_event(record, self._clock.now().wall_ms)
        whose = record.spec.submitter
        self._schedule(_Notification(key, news, url, host, whose, now_s), now_s)

    def _schedule(self, notification: _Notification, due_s: float) -> None:
        heappush(
            self._waiting.setdefault(notification.submitter, []),
            (due_s, notification.key, notification),
        )

    def _pop_due(self) -> list[_Notification]:
        """Remove and return the notifications that can be sent now."""
        now_s = self._clock.now().mono_s
        due: list[_Notification] = []
        while self._sending.total() < CONCURRENT_MAX:
            notification = self._pop_next(now_s)
            if notification is None:
                break
            due.append(notification)
            self._sending[notification.host] += 1
            self._sending_of[notification.submitter] += 1
        return due

    def _pop_next(self, now_s: float) -> _Notification | None:
        """Remove and return the next notification; None if none can be sent now."""
        for submitter in sorted(self._waiting, key=self._sending_of.__getitem__):
            waiting = self._waiting[submitter]
            while waiting and waiting[0][0] <= now_s:
                notification = heappop(waiting)[2]
                if not waiting:
                    del self._waiting[submitter]
                if self._sending[notification.host] < CONCURRENT_PER_HOST_MAX:
                    return notification
                held = self._held.setdefault(notification.host, deque())
                held.append(notification)
        return None

    def _release_place(self, notification: _Notification) -> None:
        """Free the place of a notification; the next one to its host is due."""
        host = notification.host
        self._sending -= Counter((host,))  # Drops zero counts.
        self._sending_of -= Counter((notification.submitter,))
        if held := self._held.get(host):
            self._schedule(held.popleft(), self._clock.now().mono_s)
            if not held:
                del self._held[host]

    async def _wait_for_work(self) -> None:
        """Wait for a change, or until the next notification or read is due."""
        now_s = self._clock.now().mono_s
        due_s = [
            self._polled_s + (COALESCE_S if self._have_tasks_ended.is_set() else POLL_S)
        ]
        if self._sending.total() < CONCURRENT_MAX:
            due_s += [waiting[0][0] for waiting in self._waiting.values()]
        try:
            async with asyncio.timeout(max(0.0, min(due_s) - now_s)):
                await self._has_changed.wait()
        except TimeoutError:
            pass
        self._has_changed.clear()

    async def _send_notification(self, notification: _Notification) -> None:
        epoch = self._epoch
        try:
            why = await self._poster.send(
                notification.url,
                notification.event,
                self._view.names,
                self._clock.now().wall_ms,
            )
        finally:
            self._release_place(notification)
            self._has_changed.set()
        if epoch != self._epoch:
            return  # The next dispatcher sends it again.
        notification.tries += 1
        if why is not None and not self._is_expired(notification):
            wait_s = backoff(notification.tries, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
            now_s = self._clock.now().mono_s
            self._schedule(notification, now_s + self._clock.draw() * wait_s)
            return
        if why is not None:
            self._log.warning(
                "webhook delivery failed",
                task=notification.event.record.name,
                receiver=notification.host,
                tries=notification.tries,
                error=why,
            )
        self._post(TasksNotified((notification.event.record.id,)))

    def _is_expired(self, notification: _Notification) -> bool:
        late_s = self._clock.now().mono_s - notification.since_s
        return notification.tries >= TRIES_MAX or late_s >= GIVE_UP_S

    def _reset(self) -> None:
        """Clear the state: the epoch, and with it the dispatcher, has changed."""
        self._epoch = NO_EPOCH
        self._pending_keys.clear()
        self._waiting.clear()
        self._held.clear()
        self._polled_s = 0.0
        self._seen_count = None
