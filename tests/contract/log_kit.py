"""Facts, packer and clock for tests of the `Store`."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from octaskly.core.effects import ServePull
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    PackedEntry,
    Submitted,
    TaskCancelled,
)
from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.tasks import (
    AttemptState,
    EndReason,
    LaneKey,
    Outcome,
    TaskSpec,
)
from octaskly.core.protocol.messages import Entries, PackedMessage
from octaskly.store import Store
from octaskly.store.tables.log_rows import read_entries
from octaskly.store.tables.schema import MIGRATIONS

LANE = LaneKey(0, "local:ada@n1")
ARRAYS = LaneKey(0, "local:ada@n1", is_array=True)
STREAM = StreamId(71)
OTHER = StreamId(1 << 62)
EPOCHS = ((STREAM, Epoch(1, NodeId("a" * 16))), (OTHER, Epoch(2, NodeId("b" * 16))))
WORKER = NodeId("w" * 16)
WALL_MS = 1_800_000_000_000


T = TypeVar("T")


class PicklePacker:
    """The simplest packer: good for our own bytes in a test, for nothing else."""

    def unpack_entry(self, stream: StreamId, seq: int, hlc: int, body: bytes) -> Entry:
        return Entry(stream, seq, hlc, pickle.loads(body))  # noqa: S301

    def pack_entries(
        self,
        stored: Sequence[PackedEntry],
        epochs: Sequence[tuple[StreamId, Epoch]],
        vector: VectorItems,
        *,
        more: bool,
        retired: int,
    ) -> PackedMessage:
        found = tuple(self.unpack_entry(*entry) for entry in stored)
        message = Entries(found, tuple(epochs), more, vector, retired)
        return PackedMessage(self.pack(message))

    def pack(self, value: Struct) -> bytes:
        return pickle.dumps(value, protocol=5)

    def unpack(self, data: bytes, kind: type[T]) -> T:
        value = pickle.loads(data)  # noqa: S301
        assert isinstance(value, kind)
        return value


PEER = NodeId("p")


async def entries_of(
    log: Store, vector: Mapping[StreamId, int], bytes_max: int = 1 << 20
) -> Entries:
    """Pull entries that lie beyond a vector."""
    pull = ServePull(PEER, tuple(vector.items()))
    packed = await log.read_pull_reply(pull, bytes_max)
    return PicklePacker().unpack(packed.data, Entries)


class HandClock:
    """A clock that only the test moves."""

    def __init__(self, wall_ms: int = WALL_MS) -> None:
        self.wall_ms = wall_ms
        self.mono_s = 0.0

    def now(self) -> Moment:
        return Moment(self.mono_s, self.wall_ms)

    def pass_time(self, ms: int) -> None:
        """Move both clocks."""
        self.wall_ms += ms
        self.mono_s += ms / 1000

    def draw(self) -> float:
        return 0.5


def task_id(number: int) -> TaskId:
    return TaskId(f"task-{number:03d}-{number:08x}")


def attempt_id(n: int = 1, stream: StreamId = STREAM, term: int = 1) -> AttemptId:
    return AttemptId(term, stream, n, n)


def submitted(number: int, **fields: Any) -> Submitted:
    """A task whose position in the queue is its number."""
    asked = {
        "id": task_id(number),
        "command": f"echo {number}",
        "created_ms": WALL_MS + number,
        "ord": number,
        "submitter": "local:ada@n1",
    }
    return Submitted(TaskSpec(**{**asked, **fields}))


def assigned(number: int, n: int = 1, node: NodeId = WORKER) -> Assigned:
    return Assigned(task_id(number), attempt_id(n), node)


def finished(
    number: int,
    n: int = 1,
    *,
    node: NodeId = WORKER,
    state: AttemptState = AttemptState.OK,
    reason: EndReason = EndReason.EXIT,
    **fields: Any,
) -> Finished:
    """The end of an attempt; a success or failure decides the task."""
    committed = {"exit_code": 0, "started_ms": WALL_MS, "duration_ms": 7}
    outcome = Outcome(state=state, reason=reason, **{**committed, **fields})
    term = int(state in (AttemptState.OK, AttemptState.FAILED))
    return Finished(task_id(number), attempt_id(n), node, outcome, term)


def cancelled(number: int, by: str = "ada") -> TaskCancelled:
    return TaskCancelled(task_id(number), by)


def entries(
    facts: Iterable[Fact], *, stream: StreamId = STREAM, after: int = 0
) -> list[Entry]:
    """Number facts as a stream does."""
    found: list[Entry] = []
    seq = after + 1
    for fact in facts:
        found.append(Entry(stream, seq, 1000 + seq, fact))
        seq += fact.count
    return found


@cache
def _empty() -> bytes:
    db = sqlite3.connect(":memory:")
    for script in MIGRATIONS:
        db.executescript(script)
    made = db.serialize()
    db.close()
    return made


class _InMemory(sqlite3.Connection):
    """A connection that ends with its last user: it has nothing but memory.

    Python 3.13 warns of those that nobody has closed.
    """

    def __del__(self) -> None:
        self.close()


def database() -> sqlite3.Connection:
    """Return empty tables; creating them anew takes a hundred times as long."""
    # The garbage collector may end it in the thread of another test's store.
    db = sqlite3.connect(
        ":memory:", isolation_level=None, factory=_InMemory, check_same_thread=False
    )
    db.deserialize(_empty())
    return db


def logged_entries(db: sqlite3.Connection) -> list[Entry]:
    """Return all entries of the log, ordered by stream."""
    streams = db.execute("SELECT DISTINCT stream FROM log ORDER BY stream").fetchall()
    return [
        PicklePacker().unpack_entry(*stored.packed)
        for (stream,) in streams
        for stored in read_entries(db, stream, 0)
    ]


def open_store(path: Path, committed: list[int] | None = None, **options: Any) -> Store:
    """Create a store whose commits are appended to a list; the caller opens it."""
    numbers = [] if committed is None else committed
    clock = options.pop("clock", HandClock())
    return Store(path, PicklePacker(), numbers.append, clock, **options)
