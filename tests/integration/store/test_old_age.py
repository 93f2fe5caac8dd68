"""A mesh that lives for years, or whose dispatchers change all the time, goes on.

Vectors, floors and HELLOs stay small, and nodes that join or return converge.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from octaskly.core.events import SavedState
from octaskly.core.log.facts import Floor
from octaskly.core.model.ids import StreamId
from octaskly.core.model.settings import Limits
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import Hello
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire
from tests.contract import log_kit as kit
from tests.support.aging_log import START_MS, AgingLog
from tests.support.builders import moment, settings

SMALL_BYTES = 64 * 1024  #: that a HELLO and a floor stay below
DAY_MS = 86_400_000
OLD_STREAMS = range(1000, 1000 + 65_537)  #: as a program left them that retired none


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "days"), [(20, 20), pytest.param(100, 3650, marks=pytest.mark.soak)]
)
def test_a_mesh_with_daily_restarts_never_gets_too_old(nodes: int, days: int) -> None:
    """Each restart takes over once; tasks are kept for a week."""
    log, away = AgingLog(), AgingLog()
    for day in range(days):
        for number in range(nodes):
            log.wall_ms += DAY_MS // nodes
            log.claim(number, nodes)
            log.run_task()
            if number % 10 == 0:
                log.compact(7 * DAY_MS)
        if day == 2:
            away = log.copy()
    newcomer = AgingLog()

    newcomer.pull_all(log)
    away.pull_all(log)

    print(f"{log.hello_bytes_max=} {log.floor_bytes_max=} {len(log.journal.retired)=}")
    assert log.hello_bytes_max < SMALL_BYTES
    assert log.floor_bytes_max < SMALL_BYTES
    assert len(log.journal.retired) > (days - 9) * nodes
    for other in (newcomer, away):
        assert other.journal.vector == log.journal.vector
        assert other.journal.retired.digest == log.journal.retired.digest
        assert other.shown() == log.shown()
    assert log.run_task() in log.shown()


@pytest.mark.slow
@pytest.mark.parametrize(
    "claims", [1500, pytest.param(100_000, marks=pytest.mark.soak)]
)
def test_a_mesh_whose_dispatcher_changes_each_second_goes_on(claims: int) -> None:
    """An agent that crashes all the time opens streams without tasks."""
    log = AgingLog()
    tasks = set()
    for number in range(claims):
        log.wall_ms += 1000
        log.claim(number, 100)
        if number % 500 == 0:
            tasks.add(log.run_task())
        if number % 100 == 0:
            log.compact(7 * DAY_MS)
    newcomer = AgingLog()

    newcomer.pull_all(log)

    print(f"{log.hello_bytes_max=} {log.floor_bytes_max=} {len(log.journal.retired)=}")
    assert log.hello_bytes_max < SMALL_BYTES
    assert log.floor_bytes_max < SMALL_BYTES
    assert log.shown() == newcomer.shown()
    assert tasks <= log.shown() or log.wall_ms > START_MS + 7 * DAY_MS


async def test_a_log_with_too_many_streams_is_mended_at_the_next_start(
    tmp_path: Path,
) -> None:
    """Before, its HELLO was refused by all nodes for ever."""
    path, told = tmp_path / "log.db", list[int]()
    store = kit.open_store(path, told)
    await asyncio.to_thread(store.open)
    store.append_entries(1, kit.entries([kit.submitted(1)]), kit.EPOCHS)
    await store.close()
    await asyncio.to_thread(add_old_streams, path)
    before = SavedState(vector=tuple((StreamId(n), 1) for n in OLD_STREAMS))
    assert not is_readable(hello_of(before))

    store = kit.open_store(path, told)
    saved = await asyncio.to_thread(store.open)
    record = await store.read_task(kit.task_id(1))
    await store.close()

    assert record is not None
    assert saved.vector == ((kit.STREAM, 1),)
    assert len(saved.retired) == len(OLD_STREAMS)
    assert is_readable(hello_of(saved))


YOUNG_STREAMS_MAX = 100  #: instead of STREAMS_MAX, to save time


def aged_logs() -> tuple[AgingLog, AgingLog, set[str], set[str]]:
    """Return a log with a young task in each of too many streams, and a peer's log.

    The sets have all tasks, and those that have ended. The peer knows no end.
    """
    log = AgingLog()
    log.claim(0, 1)
    log.run_task()
    log.wall_ms += 8 * DAY_MS
    log.claim(0, 1)
    log.compact(7 * DAY_MS)
    assert log.journal.floor.horizon
    tasks = []
    for number in range(YOUNG_STREAMS_MAX + 1):
        log.wall_ms += 1000
        log.claim(number, 10)
        tasks.append(log.submit_task())
    peer, ended = log.copy(), tasks[::2]
    log.claim(0, 10)
    for task in ended:
        log.end_task(task)
    return log, peer, {*tasks}, {*ended}


def test_a_log_with_a_young_task_in_each_of_too_many_streams_is_mended() -> None:
    """No floor could be planned for it, so no task was ever forgotten."""
    log, _, tasks, ended = aged_logs()
    assert len(log.journal.vector) > YOUNG_STREAMS_MAX

    log.repair(YOUNG_STREAMS_MAX)

    assert log.shown() == tasks
    assert len(log.journal.vector) == 1
    log.claim(1, 10)
    log.compact(7 * DAY_MS)
    assert log.shown() == tasks
    log.wall_ms += 1000
    log.compact(0)
    assert log.shown() == tasks - ended
    log.compact(0)  # Retires the stream of the repair.
    assert len(log.journal.vector) == 1


@pytest.mark.parametrize("is_rewritten", [False, True])
def test_a_mended_log_and_its_peer_converge(is_rewritten: bool) -> None:
    """The peer holds the entries that are void now, and neither loses a task."""
    log, peer, tasks, ended = aged_logs()
    log.repair(YOUNG_STREAMS_MAX)
    peer.claim(5, 10)
    tasks.add(peer.submit_task())
    if is_rewritten:
        log.claim(6, 10)
        log.compact(7 * DAY_MS)

    peer.pull_all(log)
    log.pull_all(peer)

    for each in (log, peer):
        assert each.shown() == tasks
        assert each.ended() == ended
    assert log.journal.vector == peer.journal.vector
    assert log.journal.retired.digest == peer.journal.retired.digest


def add_old_streams(path: Path) -> None:
    """Add streams that hold a floor each, as an agent leaves them that crashes."""
    body = kit.PicklePacker().pack(Floor(0, ()))
    with sqlite3.connect(path) as db:
        db.executemany(
            "INSERT INTO streams (stream, term, node, last_seq) VALUES (?, ?, 'n', 1)",
            ((number, number) for number in OLD_STREAMS),
        )
        db.executemany(
            "INSERT INTO log (stream, seq, n, hlc, heads, body)"
            " VALUES (?, 1, 1, 5, '[[0,0]]', ?)",
            ((number, body) for number in OLD_STREAMS),
        )
    db.close()


def hello_of(saved: SavedState) -> Hello:
    """Return the HELLO of a node that starts with this state."""
    return Node(settings("a"), saved).hello(moment())


def is_readable(hello: Hello) -> bool:
    """Return True if a peer accepts the frame."""
    try:
        return wire.Decoder(Limits()).receive_data(wire.encode([hello])) == [hello]
    except RemoteProtocolError:
        return False
