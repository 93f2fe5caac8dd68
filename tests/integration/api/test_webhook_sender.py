"""Webhooks from a real log to real receivers, each delivered at least once."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from octaskly.agent import webhooks
from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.agent.webhooks import WebhookScheduler
from octaskly.api import webhook_sender as posting
from octaskly.api.webhook_sender import WebhookSender
from octaskly.core.effects import PublishMeshState
from octaskly.core.events import Event, TasksNotified
from octaskly.core.log.facts import Entry, Fact, Notified
from octaskly.core.model.ids import Epoch, NodeId, TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState
from octaskly.errors import NotDispatcher
from octaskly.ports.store import PendingNotifications
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from tests.contract import log_kit as kit
from tests.support.agents import WAIT_S_MAX
from tests.support.receiver import is_signed, receiver

EPOCH = kit.EPOCHS[0][1]
KEY = b"k" * 32
SILENT = 60  #: receivers that never answer


class Log:
    """Collects log lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    debug = info = error = warning

    def bind(self, **_: Any) -> Log:
        return self


class CountingStore(Store):
    """A store that counts the queries for pending webhooks."""

    asked = 0

    async def read_pending_notifications(
        self, known: frozenset[int], limit: int
    ) -> PendingNotifications:
        self.asked += 1
        return await super().read_pending_notifications(known, limit)


class Bench:
    """A dispatcher's log, which records delivered webhooks."""

    def __init__(self, path: Path) -> None:
        self.store = CountingStore(
            path, kit.PicklePacker(), self._hear, kit.HandClock(), free_bytes_min=0
        )
        self.view = MeshView(EPOCH.node, {kit.WORKER: "pi4"})
        self.log = Log()
        self.delivered: list[TaskId] = []
        self.safe = asyncio.Event()  #: whether a standby has all
        self.safe.set()
        self.when_safe: Callable[[], Awaitable[None]] = self._wait_until_safe
        self.waits = 0  #: times that a delivery waited for that
        self.sender: WebhookScheduler | None = None
        self._seq = self._number = self._durable = 0
        self._changed = asyncio.Event()
        self._term = 0

    async def add(self, *facts: Fact) -> None:
        """Append facts, and wait until they are durable."""
        number = self._append(facts)
        async with asyncio.timeout(WAIT_S_MAX):
            while self._durable < number:
                self._changed.clear()
                await self._changed.wait()
        if self.sender is not None:
            self.sender.on_tasks_ended()

    async def end(self, number: int, url: str, **more: Any) -> TaskId:
        """End a task with a webhook."""
        options = TaskOptions(notify_url=url)
        await self.add(
            kit.submitted(number, options=options), kit.finished(number, **more)
        )
        return kit.task_id(number)

    async def until_delivered(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while len(self.delivered) < count:  # noqa: ASYNC110  another task adds to it
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def dispatching(self) -> AsyncIterator[WebhookScheduler]:
        """Be dispatcher until the block ends."""
        self._term += 1
        epoch = Epoch(self._term, EPOCH.node)
        self.view.on_published(
            PublishMeshState(epoch, EPOCH.node, is_serving=True, roster=None)
        )
        self.sender = WebhookScheduler(
            self.store,
            self.view,
            WebhookSender(KEY),
            SystemClock(),
            self.log,
            self._write,
            self.when_safe,
        )
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.sender.run())
            try:
                yield self.sender
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running

    async def _wait_until_safe(self) -> None:
        self.waits += 1
        await self.safe.wait()

    def _write(self, event: Event) -> None:
        assert isinstance(event, TasksNotified)
        self.delivered += event.tasks
        self._append([Notified(task) for task in event.tasks])

    def _append(self, facts: Sequence[Fact]) -> int:
        entries = []
        for fact in facts:
            self._seq += 1
            entries.append(Entry(kit.STREAM, self._seq, 1000 + self._seq, fact))
        self._number += 1
        self.store.append_entries(self._number, entries, kit.EPOCHS)
        return self._number

    def _hear(self, number: int) -> None:
        self._durable = number
        self._changed.set()


@pytest.fixture
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(webhooks, "RETRY_BASE_S", 0.01)
    monkeypatch.setattr(webhooks, "COALESCE_S", 0.01)
    monkeypatch.setattr(webhooks, "RETRY_CAP_S", 0.1)
    monkeypatch.setattr(webhooks, "POLL_S", 0.1)
    # A slow machine must cause neither a timeout nor a repeated delivery.
    monkeypatch.setattr(webhooks, "TRIES_MAX", 1_000_000)
    monkeypatch.setattr(posting, "RESPONSE_S_MAX", 2 * WAIT_S_MAX)
    made = Bench(tmp_path / "log.db")
    await asyncio.to_thread(made.store.open)
    yield made
    await made.store.close()


async def test_a_receiver_gets_the_end_of_a_task(bench: Bench) -> None:
    """Signed, with code and times, without command and output.

    Recorded after its answer.
    """
    async with receiver() as server, bench.dispatching():
        task = await bench.end(
            1,
            server.url,
            state=AttemptState.FAILED,
            exit_code=3,
            stdout=b"secret",
            stderr=b"secret",
        )
        await bench.until_delivered(1)
        await bench.add(kit.submitted(2), kit.finished(2))
        await bench.end(3, server.url)
        await bench.until_delivered(2)  # Later than the receiver, which has to answer.

    (first, headers, body), (_, later, _) = server.got
    assert first == "POST /hook HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == task
    assert is_signed(headers, body, KEY)
    assert not is_signed({**headers, "webhook-timestamp": "1"}, body, KEY)
    assert later["webhook-id"] == kit.task_id(3)
    payload = server.bodies()[0]
    assert payload["type"] == "task.failed"
    assert payload["data"] == {
        "id": task,
        "status": "failed",
        "worker_id": "pi4",
        "attempt": 1,
        "exit_code": 3,
        "signal": None,
        "reason": "exit",
        "duration_ms": 7,
        "created_at": "2027-01-15T08:00:00Z",
        "started_at": "2027-01-15T08:00:00Z",
        "completed_at": None,
        "array": None,
    }
    assert b"secret" not in body
    assert b"echo" not in body
    assert bench.delivered == [task, kit.task_id(3)]


async def test_no_webhook_is_sent_before_a_standby_has_the_end(bench: Bench) -> None:
    """No failover undoes a delivery; events wait as long."""
    bench.safe.clear()
    async with receiver() as server, bench.dispatching():
        await bench.end(1, server.url)
        async with asyncio.timeout(WAIT_S_MAX):
            while not bench.waits:  # noqa: ASYNC110  another task adds to it
                await asyncio.sleep(0.005)
        assert server.got == []
        bench.safe.set()
        await bench.until_delivered(1)


async def test_an_end_that_cannot_be_replicated_is_sent_later(bench: Bench) -> None:
    """After an aborted handover, or by the next dispatcher."""
    failures = iter([NotDispatcher("it hands over")])

    async def when_safe() -> None:
        for failure in failures:
            raise failure

    bench.when_safe = when_safe
    async with receiver() as server, bench.dispatching():
        await bench.end(1, server.url)
        await bench.until_delivered(1)


async def test_the_store_is_queried_only_for_pending_webhooks(
    bench: Bench,
) -> None:
    """Thousands of tasks without a webhook end; a query for each would be expensive."""
    async with receiver() as server, bench.dispatching():
        first = await bench.end(1, server.url)
        await bench.until_delivered(1)
        before = bench.store.asked
        for n in range(2, 30):
            await bench.add(kit.submitted(n), kit.finished(n))
            await asyncio.sleep(0.01)  # While ends are collected.
        meanwhile = bench.store.asked
        second = await bench.end(30, server.url)
        await bench.until_delivered(2)

    assert bench.delivered == [first, second]
    # A query that finds a row before it is counted is followed by one more.
    assert meanwhile <= before + 1
    assert bench.store.asked <= meanwhile + 2


async def test_a_receiver_that_recovers_gets_each_webhook(bench: Bench) -> None:
    """After no answer, an error, or a late answer."""
    listener = socket.socket()  # It has the port, and does not listen yet.
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    async with bench.dispatching():
        ids = [await bench.end(n, url) for n in range(1, 6)]
        failing = receiver(listener, answer=b"HTTP/1.1 500 No\r\n\r\n")
        async with failing as server:
            await server.until(3)
            assert bench.delivered == []
            server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            await bench.until_delivered(5)

    assert sorted(bench.delivered) == ids
    assert {headers["webhook-id"] for _, headers, _ in server.got} == set(ids)
    assert bench.log.lines == []


async def test_a_receiver_that_moved_is_found_by_the_next_try(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try resolves the name again."""
    look_up, looks = socket.getaddrinfo, iter(["127.0.0.2", "127.0.0.1"])

    def moving(host: str, *args: Any, **options: Any) -> Any:
        place = next(looks, "127.0.0.1") if host == "hook.test" else host
        return look_up(place, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", moving)
    async with receiver() as server, bench.dispatching():
        await bench.end(1, server.url.replace("127.0.0.1", "hook.test"))
        await bench.until_delivered(1)

    [(_, headers, _)] = server.got
    assert headers["host"] == f"hook.test:{server.port}"
    assert next(looks, None) is None


async def test_names_that_are_looked_up_for_long_occupy_no_other_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent needs the threads of the loop, for example to renew the secret."""
    look_up, answered = socket.getaddrinfo, threading.Event()
    asked: list[str] = []

    def wait_for_answer(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".test"):
            asked.append(host)
            answered.wait(2 * WAIT_S_MAX)
        return look_up("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait_for_answer)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    async with receiver() as server, bench.dispatching():
        for n in range(1, 5):
            await bench.end(n, f"http://host{n}.test:{server.port}/hook")
        async with asyncio.timeout(WAIT_S_MAX):
            while len(asked) < 2:  # noqa: ASYNC110  another thread adds to it
                await asyncio.sleep(0.005)
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                assert await asyncio.to_thread(len, "work") == 4
        finally:
            answered.set()
        await bench.until_delivered(4)


async def test_the_next_dispatcher_sends_pending_webhooks(bench: Bench) -> None:
    """And no others: the log records delivered ones."""
    async with receiver() as server, receiver() as other:
        server.answer = b"HTTP/1.1 503 Later\r\n\r\n"
        async with bench.dispatching():
            missed = await bench.end(1, server.url)
            heard = await bench.end(2, other.url)
            await server.until(1)
            await bench.until_delivered(1)
        await bench.add(kit.submitted(9))  # The delivery is durable now.
        server.answer = b"HTTP/1.1 200 OK\r\n\r\n"
        async with bench.dispatching():
            await bench.until_delivered(2)

    assert bench.delivered == [heard, missed]
    assert {headers["webhook-id"] for _, headers, _ in server.got} == {missed}
    assert len(other.got) == 1


async def test_a_follower_sends_no_webhooks(bench: Bench) -> None:
    """Each node has the log, but one sends."""
    async with receiver() as server, bench.dispatching():
        news = PublishMeshState(Epoch(9, NodeId("other")), NodeId("other"), False, None)
        bench.view.on_published(news)
        await bench.end(1, server.url)
        await asyncio.sleep(0.3)  # Three queries.

    assert server.got == []


async def _hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(2 * WAIT_S_MAX)


async def _trickle(writer: asyncio.StreamWriter) -> None:
    """Send a header line now and then, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _flood(writer: asyncio.StreamWriter) -> None:
    """Send a body without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize("behave", [_hang, _trickle])
async def test_a_receiver_that_never_answers_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, behave: Any
) -> None:
    """The log line omits secrets in the URL."""
    monkeypatch.setattr(webhooks, "TRIES_MAX", 2)
    monkeypatch.setattr(posting, "RESPONSE_S_MAX", 0.3)
    async with receiver(behave=behave) as hostile, bench.dispatching():
        url = f"{hostile.url}?token=hidden"
        lost = [await bench.end(n, url) for n in range(1, 5)]
        await bench.until_delivered(4)
    assert sorted(bench.delivered) == lost
    assert [event for event, _ in bench.log.lines] == ["webhook delivery failed"] * 4
    assert all(fields["tries"] == 2 for _, fields in bench.log.lines)
    assert "hidden" not in repr(bench.log.lines)


async def test_one_silent_receiver_does_not_delay_others(bench: Bench) -> None:
    """However many webhooks it has."""
    async with (
        receiver(behave=_hang) as hostile,
        receiver() as kind,
        bench.dispatching(),
    ):
        for n in range(1, 5):
            await bench.end(n, hostile.url)
        await hostile.until(webhooks.CONCURRENT_PER_HOST_MAX)
        heard = await bench.end(9, kind.url)
        await bench.until_delivered(1)
        assert bench.delivered == [heard]


async def test_a_host_is_the_same_however_it_is_spelled(bench: Bench) -> None:
    """Otherwise one silent host would take the places of all others."""
    async with receiver(behave=_hang) as hostile, bench.dispatching():
        for n, host in enumerate(("localhost", "LOCALHOST", "Localhost", "LocalHost")):
            await bench.end(n + 1, hostile.url.replace("127.0.0.1", host))
        await hostile.until(webhooks.CONCURRENT_PER_HOST_MAX)
        async with receiver() as kind:
            heard = await bench.end(9, kind.url)
            await bench.until_delivered(1)

        assert bench.delivered == [heard]
        assert len(hostile.got) == webhooks.CONCURRENT_PER_HOST_MAX


async def test_silent_receivers_of_one_submitter_do_not_delay_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are; each occupies a place until its timeout."""
    monkeypatch.setattr(posting, "RESPONSE_S_MAX", 0.2)
    listener = socket.socket()
    listener.bind(("0.0.0.0", 0))
    port = listener.getsockname()[1]
    facts: list[Fact] = []
    for n in range(1, SILENT + 1):
        options = TaskOptions(notify_url=f"http://127.0.0.{n}:{port}/hook")
        facts += [kit.submitted(n, options=options), kit.finished(n)]
    async with (
        receiver(listener, behave=_hang) as hostile,
        receiver() as kind,
        bench.dispatching(),
    ):
        await bench.add(*facts)
        await hostile.until(webhooks.CONCURRENT_MAX)
        options = TaskOptions(notify_url=kind.url)
        await bench.add(
            kit.submitted(99, options=options, submitter="bob"), kit.finished(99)
        )
        await bench.until_delivered(1)
        tried = len(hostile.got)

    assert bench.delivered == [kit.task_id(99)]
    assert tried < SILENT


async def test_an_endless_answer_is_not_read(bench: Bench) -> None:
    """Its status is enough."""
    async with receiver(behave=_flood) as server, bench.dispatching():
        await bench.end(1, server.url)
        await bench.until_delivered(1)

    assert len(server.got) == 1


async def test_redirects_are_not_followed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could lead to other hosts, or in a circle."""
    monkeypatch.setattr(webhooks, "TRIES_MAX", 2)
    async with receiver() as target, receiver() as server, bench.dispatching():
        answer = f"HTTP/1.1 307 Go\r\nLocation: {target.url}\r\n\r\n"
        server.answer = answer.encode()
        await bench.end(1, server.url)
        await bench.until_delivered(1)

    assert target.got == []
    assert bench.log.lines[0][1]["error"] == "the receiver answered 307"


async def test_concurrent_deliveries_are_bounded(bench: Bench) -> None:
    """However many receivers there are."""
    busy: Counter[int] = Counter()
    most = most_of_one = 0

    async def slow(writer: asyncio.StreamWriter) -> None:
        nonlocal most, most_of_one
        port = writer.get_extra_info("sockname")[1]
        busy[port] += 1
        most, most_of_one = max(most, busy.total()), max(most_of_one, *busy.values())
        await asyncio.sleep(0.05)
        busy[port] -= 1

    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(receiver(behave=slow)) for _ in range(5)
        ]
        for n in range(1, 31):
            await bench.end(n, servers[n % 5].url)
        await stack.enter_async_context(bench.dispatching())
        await bench.until_delivered(30)

    assert most <= webhooks.CONCURRENT_MAX
    assert most_of_one <= webhooks.CONCURRENT_PER_HOST_MAX
    assert sum(len(server.got) for server in servers) == 30
