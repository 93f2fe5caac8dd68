"""The event feed on a real log: complete, durable and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from octaskly.agent.gateway import event_feed as feeds
from octaskly.agent.gateway.event_feed import EventFeed
from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.api.http.handler_types import Request
from octaskly.api.http.sse import EventStream
from octaskly.api.routes.array_results import _ResultSender
from octaskly.core.change_feed import (
    FeedGap,
    FeedItem,
    FeedPage,
    FeedPosition,
    NodeEvent,
    TaskEvent,
)
from octaskly.core.effects import PublishMeshState
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    Notified,
    TaskCancelled,
)
from octaskly.core.model.ids import AttemptId, Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import NodeState, Role, RosterEntry
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import AttemptState, TaskState
from octaskly.core.protocol.messages import Roster
from octaskly.errors import NotDispatcher
from octaskly.ports.events import EventSubscription
from octaskly.ports.store import TaskParts
from octaskly.store import Store
from tests.contract import log_kit as kit
from tests.support.agents import WAIT_S_MAX

EPOCH = kit.EPOCHS[0][1]
EARLY = StreamId(5)  #: of an epoch that lost against the one of the tests
EPOCHS = (*kit.EPOCHS, (EARLY, Epoch(1, NodeId("0" * 16))))
STEP = 10


class CountedStore(Store):
    """A log that counts the reads for listeners."""

    reads = 0

    async def read_feed_page(
        self, vector: Mapping[StreamId, int], limit: int
    ) -> FeedPage:
        self.reads += 1
        return await super().read_feed_page(vector, limit)


class Bench:
    """A dispatcher's log and its feed."""

    def __init__(self, path: Path) -> None:
        self.store = CountedStore(
            path, kit.PicklePacker(), self._hear, kit.HandClock(), free_bytes_min=0
        )
        self.view = MeshView(EPOCH.node, {})
        self.stream: StreamId | None = kit.STREAM
        self.view.on_published(
            PublishMeshState(EPOCH, EPOCH.node, is_serving=True, roster=None)
        )
        self.is_asked = asyncio.Event()  #: whether a standby has it,
        self.is_safe = asyncio.Event()  #: as is the case here
        self.is_safe.set()
        self.feed = EventFeed(
            self.store, self.view, lambda: self.stream, self._when_safe
        )
        self.seqs: dict[StreamId, int] = {}
        self._number = self._committed = self._hlc = 0
        self._changed = asyncio.Event()

    async def add(self, *facts: Fact, stream: StreamId = kit.STREAM) -> None:
        """Append facts, and wait until they are durable."""
        entries = []
        for fact in facts:
            self._hlc += STEP
            self.seqs[stream] = self.seqs.get(stream, 0) + 1
            entries.append(Entry(stream, self.seqs[stream], self._hlc, fact))
        await self.put(entries)

    async def put(self, entries: Sequence[Entry]) -> None:
        self._number += 1
        self.store.append_entries(self._number, entries, EPOCHS)
        async with asyncio.timeout(WAIT_S_MAX):
            while self._committed < self._number:
                self._changed.clear()
                await self._changed.wait()

    def mesh(self, *members: RosterEntry) -> None:
        """Publish the members of the mesh."""
        roster = Roster(EPOCH, 1, members)
        news = PublishMeshState(EPOCH, EPOCH.node, is_serving=True, roster=roster)
        self.view.on_published(news)
        self.feed.on_roster_published(news)

    async def _when_safe(self) -> None:
        self.is_asked.set()
        await self.is_safe.wait()

    def _hear(self, number: int) -> None:
        self._committed = number
        self._changed.set()
        self.feed.on_committed()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "log.db")
    await asyncio.to_thread(made.store.open)
    await made.add(kit.submitted(1))
    yield made
    await made.store.close()


def member(name: str, state: NodeState = NodeState.READY) -> RosterEntry:
    return RosterEntry(
        id=NodeId(name * 16),
        name=name,
        role=Role.WORKER,
        state=state,
        addresses=(),
        lan_port=1,
        slots=2,
    )


async def until(listening: EventSubscription, count: int) -> list[FeedItem]:
    """Return the next events that are more than a position."""
    found: list[FeedItem] = []
    async with asyncio.timeout(WAIT_S_MAX):
        while len(found) < count:
            found += [n for n in await listening.next_items() if n.content is not None]
    assert len(found) == count
    return found


def shown(news: Sequence[FeedItem]) -> list[tuple[str, TaskState]]:
    return [
        (news.content.record.id, news.content.state)
        for news in news
        if isinstance(news.content, TaskEvent)
    ]


def place_of(news: FeedItem) -> FeedPosition:
    assert news.position is not None
    return news.position


Q, R, C = TaskState.QUEUED, TaskState.RUNNING, TaskState.COMPLETED
ONE, TWO, THREE = (kit.task_id(n) for n in (1, 2, 3))


async def test_a_listener_receives_new_events_only(bench: Bench) -> None:
    """In order, each once."""
    async with bench.feed.subscribe(None) as listening:
        await bench.add(kit.assigned(1))
        await bench.add(kit.finished(1), kit.submitted(2))

        assert shown(await until(listening, 3)) == [(ONE, R), (ONE, C), (TWO, Q)]


async def test_an_event_is_sent_once_a_standby_has_it(bench: Bench) -> None:
    """A failover could otherwise undo it."""
    async with bench.feed.subscribe(None) as listening, asyncio.TaskGroup() as group:
        bench.is_safe.clear()
        await bench.add(kit.assigned(1))
        received = group.create_task(until(listening, 1))
        await bench.is_asked.wait()
        assert not received.done()

        bench.is_safe.set()

    assert shown(received.result()) == [(ONE, R)]


async def test_an_unsent_event_reaches_the_next_listener(bench: Bench) -> None:
    """The listener that caused the read left while it waited for a standby."""
    async with (
        bench.feed.subscribe(None) as gone,
        bench.feed.subscribe(None) as listening,
    ):
        bench.is_safe.clear()
        await bench.add(kit.assigned(1))
        reading = asyncio.ensure_future(until(gone, 1))
        await bench.is_asked.wait()
        reading.cancel()
        bench.is_safe.set()

        assert shown(await until(listening, 1)) == [(ONE, R)]


async def test_a_position_is_sent_at_once(bench: Bench) -> None:
    """A client that disconnects before the first event misses none."""
    async with bench.feed.subscribe(None) as listening:
        (first,) = await listening.next_items()
    assert first.content is None
    await bench.add(kit.assigned(1))

    async with bench.feed.subscribe(place_of(first)) as listening:
        assert shown(await until(listening, 1)) == [(ONE, R)]


async def test_a_listener_resumes_at_its_position(bench: Bench) -> None:
    """Past events come from the log, new ones as they happen."""
    async with bench.feed.subscribe(None) as listening:
        await bench.add(kit.assigned(1))
        (running,) = await until(listening, 1)
    await bench.add(kit.finished(1), kit.submitted(2))

    async with bench.feed.subscribe(place_of(running)) as listening:
        assert shown(await until(listening, 2)) == [(ONE, C), (TWO, Q)]
        await bench.add(kit.submitted(3))
        assert shown(await until(listening, 1)) == [(THREE, Q)]


async def test_a_new_listener_gets_no_old_events_of_another_that_left(
    bench: Bench,
) -> None:
    """Only one that was behind is left, and has read on."""
    async with bench.feed.subscribe(None) as first:
        (start,) = await first.next_items()
        await bench.add(kit.assigned(1))
        late = bench.feed.subscribe(place_of(start))
        listening = await late.__aenter__()
    try:
        await bench.add(kit.finished(1))
        assert shown(await until(listening, 2)) == [(ONE, R), (ONE, C)]
        async with bench.feed.subscribe(None) as new:
            await bench.add(kit.submitted(2))
            assert shown(await until(new, 1)) == [(TWO, Q)]
        assert shown(await until(listening, 1)) == [(TWO, Q)]
    finally:
        await late.__aexit__(None, None, None)


async def test_a_listener_that_catches_up_delays_no_new_events(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may have many streams, each from the beginning of a long log."""
    is_catching_up, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait_once() -> None:
        if not is_catching_up.is_set():
            is_catching_up.set()
            await may_go_on.wait()

    async with bench.feed.subscribe(None) as live:
        (first,) = await live.next_items()
        await bench.add(kit.assigned(1))
        assert shown(await until(live, 1)) == [(ONE, R)]
        monkeypatch.setattr(bench.feed, "_wait_until_replicated", wait_once)
        async with bench.feed.subscribe(place_of(first)) as late:
            catching_up = asyncio.create_task(until(late, 1))
            await is_catching_up.wait()

            await bench.add(kit.finished(1))
            assert shown(await until(live, 1)) == [(ONE, C)]
            may_go_on.set()
            assert shown(await catching_up) == [(ONE, R)]


async def test_every_position_of_a_long_log_is_valid(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is read in parts, over two epochs; all later events follow each one."""
    monkeypatch.setattr(feeds, "READ_ENTRIES_MAX", 2)
    async with bench.feed.subscribe(None) as listening:
        (start,) = await listening.next_items()
    await bench.add(kit.assigned(1), kit.finished(1), kit.submitted(2))
    bench.stream = kit.OTHER
    await bench.add(kit.assigned(2), kit.submitted(3), stream=kit.OTHER)
    await bench.add(kit.finished(2), stream=kit.OTHER)
    async with bench.feed.subscribe(place_of(start)) as listening:
        every = await until(listening, 6)

    for number, news in enumerate(every[:-1], 1):
        async with bench.feed.subscribe(place_of(news)) as listening:
            rest = await until(listening, len(every) - number)
        assert shown(rest) == shown(every[number:])


async def test_late_entries_reach_all_listeners(bench: Bench) -> None:
    """A merged stream brings them; absent clients get a reset.

    They cannot know its content.
    """
    async with bench.feed.subscribe(None) as listening:
        (before,) = await listening.next_items()
        late = [Entry(EARLY, 1, 1, kit.submitted(2, ord=1))]
        await bench.put(late)
        assert shown(await until(listening, 1)) == [(TWO, Q)]
        await bench.add(kit.assigned(1))
        (after,) = await until(listening, 1)

    async with bench.feed.subscribe(place_of(before)) as listening:
        received = await until(listening, 2)
    assert isinstance(received[0].content, FeedGap)
    assert shown(received) == [(ONE, R)]
    async with bench.feed.subscribe(place_of(after)) as listening:
        await bench.add(kit.finished(1))
        assert shown(await until(listening, 1)) == [(ONE, C)]


async def test_the_end_of_a_task_is_the_last_event(bench: Bench) -> None:
    """The other half of a split lost a worker whose end this half knew."""
    await bench.add(kit.assigned(1, 2), kit.finished(1, 2))
    lost = kit.finished(1, 1, state=AttemptState.RELEASED)
    async with bench.feed.subscribe(None) as listening:
        (start,) = await listening.next_items()
        await bench.add(lost)
        queued, ended = await until(listening, 2)
    assert shown([queued, ended]) == [(ONE, Q), (ONE, C)]
    assert queued.position is None
    await bench.add(kit.submitted(2))

    async with bench.feed.subscribe(place_of(ended)) as listening:
        assert shown(await until(listening, 1)) == [(TWO, Q)]
    async with bench.feed.subscribe(place_of(start)) as listening:
        assert shown(await until(listening, 3)) == [(ONE, Q), (ONE, C), (TWO, Q)]


async def test_a_long_log_ends_with_the_ends_of_tasks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all other events, however many parts are read."""
    async with bench.feed.subscribe(None) as listening:
        (start,) = await listening.next_items()
    monkeypatch.setattr(feeds, "READ_ENTRIES_MAX", 2)
    await bench.add(kit.finished(1, 2), kit.finished(1, 1, state=AttemptState.RELEASED))
    await bench.add(kit.finished(1, 3, state=AttemptState.FAILED))

    async with bench.feed.subscribe(place_of(start)) as listening:
        received = await until(listening, 3)

    assert shown(received) == [(ONE, C), (ONE, Q), (ONE, C)]


async def test_the_log_is_read_once_for_all_listeners(bench: Bench) -> None:
    """A hundred listeners cost one read for each commit."""
    async with asyncio.TaskGroup() as tasks:
        ready = asyncio.Barrier(101)

        async def hear() -> list[tuple[str, TaskState]]:
            async with bench.feed.subscribe(None) as listening:
                await listening.next_items()
                await ready.wait()
                return shown(await until(listening, 1))

        heard = [tasks.create_task(hear()) for _ in range(100)]
        await ready.wait()
        await bench.add(kit.assigned(1))

    assert all(task.result() == [(ONE, R)] for task in heard)
    assert bench.store.reads <= 4


async def test_nothing_is_read_without_listeners(bench: Bench) -> None:
    """Nor kept."""
    async with bench.feed.subscribe(None) as listening:
        await bench.add(kit.assigned(1))
        await until(listening, 1)
    before = bench.store.reads

    await bench.add(kit.finished(1))
    bench.mesh(member("a"))

    assert bench.store.reads == before
    assert not bench.feed.members


async def test_a_slow_listener_reads_the_log_for_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page is kept for it for long, and it delays no other."""
    monkeypatch.setattr(feeds, "KEPT_PAGES_MAX", 2)
    async with bench.feed.subscribe(None) as slow, bench.feed.subscribe(None) as quick:
        await slow.next_items()
        await quick.next_items()
        for n in (2, 3, 4, 5):
            await bench.add(kit.submitted(n))
            await until(quick, 1)
        before = bench.store.reads

        found = [task for task, _ in shown(await until(slow, 4))]

    assert found == [kit.task_id(n) for n in (2, 3, 4, 5)]
    assert bench.store.reads == before + 1


async def test_a_stream_starts_with_all_nodes_and_reports_changes(bench: Bench) -> None:
    """The past of nodes is in no log."""
    ana, bo = member("a"), member("b")
    bench.mesh(ana, bo)
    async with bench.feed.subscribe(None) as listening:
        first = await until(listening, 2)
        bench.mesh(ana, bo)
        bench.mesh(ana, member("b", NodeState.LOST))
        rest = await until(listening, 1)
        bench.mesh(ana)
        bench.mesh(ana, member("c"))
        rest += await until(listening, 2)

    assert [news.content for news in first] == [NodeEvent(ana), NodeEvent(bo)]
    assert [news.content for news in rest] == [
        NodeEvent(member("b", NodeState.LOST)),
        NodeEvent(member("c")),
        NodeEvent(member("b", NodeState.LOST), is_gone=True),
    ]


async def test_only_a_dispatcher_sends_events(bench: Bench) -> None:
    """The log of another node may be behind."""
    bench.stream = None

    with pytest.raises(NotDispatcher):
        async with bench.feed.subscribe(None):
            pass


async def test_the_end_of_an_array_follows_its_last_member(bench: Bench) -> None:
    """A client that disconnects in between gets both."""
    asked = TaskOptions(array=ArraySpec(count=2))
    await bench.add(kit.submitted(5, options=asked))
    first, second = (f"{kit.task_id(5)}.{n}" for n in (0, 1))

    def ended(member: str) -> Finished:
        return replace(kit.finished(5), task=TaskId(member))

    async with bench.feed.subscribe(None) as listening:
        await bench.add(ended(first))
        (one,) = await until(listening, 1)
        await bench.add(ended(second))
        two = await until(listening, 2)
        await bench.add(kit.submitted(6, options=asked))
        await bench.add(TaskCancelled(kit.task_id(6), "ana"))
        three = await until(listening, 2)
    async with bench.feed.subscribe(place_of(one)) as listening:
        again = await until(listening, 4)

    assert shown([one]) == [(first, C)]
    assert shown(two) == [(second, C), (kit.task_id(5), C)]
    assert [news.position is None for news in two] == [True, False]
    assert shown(three) == [(kit.task_id(6), Q), (kit.task_id(6), TaskState.CANCELLED)]
    assert shown(again) == shown([*two, *three])


async def test_the_end_of_an_array_is_sent_once_after_all_of_its_members(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a reader has missed, and also once its webhook was sent."""
    asked = TaskOptions(array=ArraySpec(count=3), notify_url="http://localhost")
    await bench.add(kit.submitted(5, options=asked))
    members = [TaskId(f"{kit.task_id(5)}.{n}") for n in range(3)]
    monkeypatch.setattr(feeds, "READ_ENTRIES_MAX", 2)

    async with bench.feed.subscribe(None) as listening:
        (first,) = await listening.next_items()
        await bench.add(*(replace(kit.finished(5), task=task) for task in members))
        live = await until(listening, 4)
        await bench.add(Notified(kit.task_id(5)))
        await bench.add(kit.submitted(6))
        live += await until(listening, 1)
    async with bench.feed.subscribe(place_of(first)) as listening:
        caught_up = await until(listening, 5)

    assert shown(live) == [
        *((task, C) for task in members),
        (kit.task_id(5), C),
        (kit.task_id(6), Q),
    ]
    assert shown(caught_up) == shown(live)


async def test_a_client_that_reconnects_between_two_pages_gets_the_end_of_an_array(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only later entry says that its webhook was sent."""
    array = kit.task_id(5)
    asked = TaskOptions(array=ArraySpec(count=1), notify_url="http://localhost")
    async with bench.feed.subscribe(None) as listening:
        (start,) = await listening.next_items()
    await bench.add(kit.submitted(5, options=asked))
    await bench.add(replace(kit.finished(5), task=TaskId(f"{array}.0")))
    await bench.add(Notified(array))
    monkeypatch.setattr(feeds, "READ_ENTRIES_MAX", 2)

    place = place_of(start)
    async with bench.feed.subscribe(place) as listening:
        for item in await until(listening, 2):
            place = item.position or place
    async with bench.feed.subscribe(place) as listening:
        assert shown(await until(listening, 3))[-1] == (array, C)


async def test_nothing_is_kept_for_a_client_that_catches_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tasks wait, and have ended since."""
    async with bench.feed.subscribe(None) as listening:
        (start,) = await listening.next_items()
    numbers = range(2, 12)
    await bench.add(*map(kit.submitted, numbers))
    await bench.add(*map(kit.finished, numbers))
    monkeypatch.setattr(feeds, "READ_ENTRIES_MAX", len(numbers))

    async with bench.feed.subscribe(place_of(start)) as listening:
        received = await until(listening, len(numbers))
        assert not listening._place.cursor.owed_ends
        received += await until(listening, len(numbers))

    assert [state for _, state in shown(received)] == [Q] * 10 + [C] * 10


async def test_an_array_cancelled_by_force_ends_with_its_last_process(
    bench: Bench,
) -> None:
    """Its members are cancelled before their processes have exited."""
    array, gone = kit.task_id(5), TaskState.CANCELLED
    members = [TaskId(f"{array}.{n}") for n in range(2)]
    asked = TaskOptions(array=ArraySpec(count=2))
    await bench.add(
        kit.submitted(5, options=asked),
        *(replace(kit.assigned(5), task=task) for task in members),
    )
    killed = [
        replace(kit.finished(5, state=AttemptState.CANCELLED), task=task)
        for task in members
    ]

    async with bench.feed.subscribe(None) as listening:
        await bench.add(
            TaskCancelled(array, "ana"),
            *(TaskCancelled(task, "ana") for task in members),
        )
        cancelled = await until(listening, 2)
        await bench.add(killed[0])
        one = await until(listening, 1)
        await bench.add(killed[1])
        two = await until(listening, 2)

    assert shown(cancelled) == [(task, gone) for task in members]
    assert shown(one) == [(members[0], gone)]
    assert shown(two) == [(members[1], gone), (array, gone)]


async def test_a_late_log_repeats_the_end_of_an_array(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its facts are older than the latest about the array, and may change its end."""
    array = kit.task_id(5)
    members = [TaskId(f"{array}.{n}") for n in range(2)]
    asked = TaskOptions(array=ArraySpec(count=2))
    await bench.add(kit.submitted(5, options=asked))
    failed = kit.finished(5, state=AttemptState.FAILED)
    late = [
        Entry(EARLY, 1, 25, replace(kit.finished(5), task=members[0])),
        Entry(EARLY, 2, 26, kit.submitted(7)),
        Entry(EARLY, 3, 27, kit.submitted(8)),
    ]
    monkeypatch.setattr(feeds, "READ_ENTRIES_MAX", 2)

    async with bench.feed.subscribe(None) as listening:
        await bench.add(*(replace(failed, task=task) for task in members))
        await until(listening, 3)
        await bench.put(late)
        repeated = await until(listening, 4)

    assert (array, TaskState.FAILED) in shown(repeated)


@pytest.mark.parametrize("late", ["an end", "an assignment"])
async def test_the_end_of_an_array_follows_the_repeated_ends_of_its_members(
    bench: Bench, late: str
) -> None:
    """A client that stops reading at the end of the array misses no other end."""
    array = kit.task_id(5)
    members = [TaskId(f"{array}.{n}") for n in range(2)]
    await bench.add(kit.submitted(5, options=TaskOptions(array=ArraySpec(count=2))))
    failed = kit.finished(5, state=AttemptState.FAILED)
    first = AttemptId(1, EARLY, 1, 1)
    fact: Fact = Assigned(members[0], first, kit.WORKER)
    shows = TaskState.RUNNING
    if late == "an end":
        fact = replace(failed, task=members[0], attempt=first, decided_term=0)
        shows = TaskState.QUEUED

    async with bench.feed.subscribe(None) as listening:
        await bench.add(*(replace(failed, task=task) for task in members))
        await until(listening, 3)
        await bench.put([Entry(EARLY, 1, 25, fact)])
        repeated = await until(listening, 3)

    assert shown(repeated) == [
        (members[0], shows),
        (members[0], TaskState.FAILED),
        (array, TaskState.FAILED),
    ]


async def test_a_client_that_resumes_hears_of_nodes_that_changed_meanwhile(
    bench: Bench,
) -> None:
    """Between its list of nodes and the end of what it has missed."""
    await bench.add(kit.submitted(1))
    bench.mesh(member("a"), member("b"), member("c"))
    async with bench.feed.subscribe(None) as first:
        (start, *_) = await first.next_items()
        await bench.add(kit.assigned(1))

        async with bench.feed.subscribe(start.position) as again:
            bench.mesh(member("a"), member("b", NodeState.LOST))
            seen: list[tuple[str, str]] = []
            while ("c", "gone") not in seen:
                for item in await again.next_items():
                    if isinstance(event := item.content, NodeEvent):
                        state = "gone" if event.is_gone else event.member.state
                        seen.append((event.member.name, state))

    assert seen == [
        *((name, NodeState.READY) for name in "abc"),
        ("b", NodeState.LOST),
        ("c", "gone"),
    ]


async def test_results_of_an_array_precede_its_end_while_the_feed_lags(
    bench: Bench,
) -> None:
    """The first news about the array may be that it was accepted."""
    array = kit.task_id(5)
    await bench.add(kit.submitted(1))
    sent: list[str] = []
    is_read = asyncio.Event()

    async def read_members(*asked: Any) -> object:
        found = await bench.store.read_ended_members(*asked)
        is_read.set()
        return found

    async def send(shown: Any, *, event: str) -> None:
        sent.append(f"{event} {shown.id}")

    gateway = SimpleNamespace(
        find_task=bench.store.read_task,
        read_ended_members=read_members,
        node_names=dict,
    )
    request = SimpleNamespace(gateway=gateway, quota=SimpleNamespace(part=nullcontext))
    async with bench.feed.subscribe(None) as dashboard:
        await dashboard.next_items()
        await bench.add(kit.submitted(5, options=TaskOptions(array=ArraySpec(count=2))))
        bench.is_safe.clear()
        reading = asyncio.create_task(dashboard.next_items())
        await bench.is_asked.wait()
        record = await bench.store.read_task(array, TaskParts.BRIEF)
        assert record is not None
        sender = _ResultSender(
            cast("Request", request),
            cast("EventStream", SimpleNamespace(send=send)),
            record,
            0,
            is_by_number=False,
        )
        async with bench.feed.subscribe(None) as listening:
            sending = asyncio.create_task(sender.send_until_array_ended(listening))
            await is_read.wait()
            ends = [TaskId(f"{array}.{number}") for number in range(2)]
            await bench.add(*(replace(kit.finished(5), task=task) for task in ends))
            bench.is_safe.set()
            await asyncio.wait_for(sending, WAIT_S_MAX)
        await reading

    assert sent == [*(f"result {task}" for task in ends), f"end {array}"]
