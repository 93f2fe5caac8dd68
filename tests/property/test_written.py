"""Any message of a member can be written and shown, or is refused.

An error in the writer ends the agent. An error from a value on disk returns after each
start, on each node with a copy. Therefore the test changes one value of a well-formed
message, and a real store receives the node's effects.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import msgpack
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from octaskly.api.schemas import task_response
from octaskly.core.effects import (
    Append,
    Effect,
    LoadLive,
    LoadQueued,
    MergeRows,
    Save,
    Spool,
    StageRows,
)
from octaskly.core.events import Persisted, Received, TimerFired
from octaskly.core.log.facts import (
    NO_FLOOR,
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    Notified,
    Reprioritized,
    StreamFloor,
    Submitted,
    Unblocked,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.model.ids import Epoch, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import (
    After,
    ArraySpec,
    Requirements,
    Retry,
    TaskLimits,
    TaskOptions,
)
from octaskly.core.model.tasks import Attempt, AttemptState
from octaskly.core.protocol.messages import (
    Assign,
    Entries,
    Message,
    Replicate,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire
from octaskly.ports.store import TaskQuery
from octaskly.store.reading import pages, queries, queue
from octaskly.store.tables import node_state
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.property.fuzzing import fuzz
from tests.support import sample_messages as samples
from tests.support.builders import moment
from tests.unit.core.node.test_message_checks import (
    KNOWN,
    ME,
    OTHER,
    PEER,
    THEIRS,
    WRITER,
    Shell,
    hello_of,
)

WISHES = TaskOptions(
    name="n",
    labels=(("a", "b"),),
    env=(("A", "b"),),
    grace_s=1,
    requires=Requirements(cpus=1, memory_mb=5),
    limits=TaskLimits(memory_mb=5, processes=3),
    retry=Retry(retries=2, codes=(1,)),
    array=ArraySpec(count=3, items=("a", "b", "c"), has_items=True),
    notify_url="http://x/",
    after=After(tasks=("t1",)),
)
SPEC = replace(samples.SPEC, options=WISHES)
TASK, ATTEMPT, OUTCOME = samples.TASK, samples.ATTEMPT, samples.OUTCOME
FACTS: tuple[Fact, ...] = (
    Submitted(SPEC),
    Assigned(TASK, ATTEMPT, ME),
    Finished(TASK, ATTEMPT, ME, OUTCOME),
    samples.RECORD,
    Unblocked(TASK),
    Notified(TASK),
    Reprioritized(TASK, 3, 1000, 7),
)
LOGGED = tuple(Entry(KNOWN, 5 + n, 1000 + n, fact) for n, fact in enumerate(FACTS))
TRIED = Attempt(id=ATTEMPT, node=ME, state=AttemptState.FAILED, outcome=OUTCOME)
ROW = TaskRow(
    TaskRecord(id=TASK, spec=samples.SPEC, attempts=(TRIED,)),
    SubmissionTimes(3, 4, KNOWN, 5),
    6,
)
HEAD = SnapshotHead(
    vector=((KNOWN, 9),), epochs=((KNOWN, WRITER),), floor=NO_FLOOR, hlc=1005
)
WRITERS = ((KNOWN, WRITER),)
ODD: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 1 << 31, 1 << 53, (1 << 62) - 1, 1 << 62, (1 << 63) - 1),
    *(-(1 << 63), 1.5, 1e308, True, None, (), (0,), ((1, 2),), b"", b"\xff" * 99),
    *("", "x", "a\n", "\x00", "x" * 200, "t.1", f"{TASK}.1", f"{TASK}~2", str(OTHER)),
    *("completed", "ok", "running", "lost", str(ME), "/", "..", "\u202e\x1b]0;"),
)


class Writing(Shell):
    """A node with a store that performs all its writes."""

    def __init__(self, *, is_following: bool) -> None:
        self.db = kit.database()
        self.packer = wire.WirePacker()
        self.tables = TableWriter(self.db, self.packer, kit.HandClock())
        before = [Entry(KNOWN, seq, seq, FACTS[-1]) for seq in range(1, 5)]
        self.tables.append_entries([Append(1, tuple(before), WRITERS)])
        super().__init__(hello_of(THEIRS) if is_following else None)
        if not is_following:
            self.become_dispatcher()

    def feed(self, *events: Any) -> list[Effect]:
        done: list[Effect] = []
        for event in events:
            effects = self.node.step(event, moment(self.seconds))
            for effect in effects:
                self._write(effect)
            done += effects
            for effect in effects:
                if isinstance(effect, Append | Save | StageRows | MergeRows):
                    done += self.feed(Persisted(effect.number))
        return done

    def _write(self, effect: Effect) -> None:
        match effect:
            case Append():
                self.tables.append_entries([effect])
            case StageRows():
                self.tables.stage_rows(effect)
            case MergeRows():
                self.tables.merge_rows(effect)
            case Save(stream=stream):
                node_state.write_saves(self.db, [effect])
                if stream is not None:
                    self.tables.add_stream(*stream)
            case Spool():
                node_state.write_spool(self.db, self.packer, [effect])
            case _:
                pass

    def show(self) -> None:
        """Perform all reads of a store, as at its start and by the API."""
        db: sqlite3.Connection = self.db
        for record in pages.read_task_page(db, TaskQuery(limit=50)).records:
            task_response.encode(task_response.listed(record, {}))
            task_response.encode(
                task_response.task(queries.read_task(db, record.id) or record, {})
            )
        queue.load_queued_tasks(db, LoadQueued(1, 0, 100))
        queue.load_live_tasks(db, LoadLive(1, 0, 100))
        queries.read_stats(db)
        node_state.read_saved(db, self.packer, 1 << 41)


def _here(value: Any) -> Any:
    """Return a sample as the peer of these nodes would send it."""
    if isinstance(value, Epoch):
        return THEIRS
    if isinstance(value, str):
        names = {str(samples.NODE): PEER, str(samples.OTHER): OTHER}
        return names.get(value, value)
    if isinstance(value, Struct):
        own = {name: _here(getattr(value, name)) for name in value.__struct_fields__}
        return replace(value, **own)
    if isinstance(value, tuple):
        items = map(_here, value)
        return type(value)._make(items) if hasattr(value, "_make") else tuple(items)
    return value


SAID: tuple[Message, ...] = (
    *(_here(message) for message in samples.MESSAGES),
    Entries(LOGGED, WRITERS, False, ((KNOWN, 10),)),
    Replicate(THEIRS, 3, LOGGED, WRITERS),
    Assign(THEIRS, ((ATTEMPT, SPEC),)),
    Snapshot(rows=(ROW,), cursor=SnapshotCursor(1005, 7), has_more=True, head=HEAD),
    Snapshot(
        rows=(ROW,),
        cursor=SnapshotCursor(1005, 7),
        has_more=False,
        head=HEAD,
    ),
)


def _places(plain: Any, place: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    yield place
    if isinstance(plain, tuple):
        for index, item in enumerate(plain):
            yield from _places(item, (*place, index))


def _changed(plain: Any, place: tuple[int, ...], value: Any) -> Any:
    if not place:
        return value
    items = list(plain)
    items[place[0]] = _changed(items[place[0]], place[1:], value)
    return tuple(items)


PLAIN = [
    msgpack.unpackb(wire.WirePacker().pack(message), use_list=False) for message in SAID
]
PLACES = [(plain, place) for plain in PLAIN for place in _places(plain)]


@fuzz(st.sampled_from(PLACES), st.sampled_from(ODD), st.booleans(), share=0.4)
def test_any_message_of_a_member_is_refused_or_can_be_stored(
    place: tuple[Any, tuple[int, ...]], value: Any, is_following: bool
) -> None:
    """One value of one message is changed."""
    frame = wire.build_frame([msgpack.packb(_changed(*place, value))])
    try:
        said = wire.Decoder(Limits()).receive_data(frame)
    except RemoteProtocolError:
        return
    shell = Writing(is_following=is_following)

    shell.feed(Received(PEER, tuple(said)))
    shell.seconds += 0.5
    shell.feed(TimerFired())

    shell.show()


def _rowed(task: str, ord_: int, *, array: ArraySpec | None = None) -> TaskRow:
    """Return a row of a task that was accepted at a time and has ended."""
    spec = replace(samples.SPEC, id=TaskId(task), ord=ord_)
    if array is not None:
        spec = replace(spec, options=TaskOptions(array=array))
    tries = () if array is not None else (TRIED,)
    return TaskRow(
        TaskRecord(spec.id, spec, attempts=tries),
        ROW.submission_times,
        ROW.last_change_hlc,
    )


def _merge(shell: Writing, head: SnapshotHead, *parts: tuple[TaskRow, ...]) -> None:
    """Merge parts of a snapshot, all but the last part."""
    for key, rows in enumerate(parts):
        part = Snapshot(
            rows=rows,
            cursor=SnapshotCursor(1, key + 1),
            has_more=True,
            head=None if key else head,
        )
        shell.tables.stage_rows(StageRows(1, 1, PEER, part))
    for _ in parts:
        shell.tables.merge_rows(MergeRows(1, 1, head, (), is_last=False))


ARRAY = "task-001-0123abcd"
ONE, TWO = f"{ARRAY}.1", f"{ARRAY}.2"


def _joined(*parts: tuple[TaskRow, ...]) -> dict[str, tuple[int, int]]:
    """Join parts of a snapshot; return the time and the attempts of each task."""
    shell = Writing(is_following=True)
    _merge(shell, HEAD, *parts)
    shell.show()
    told = [queries.read_task(shell.db, name) for name in (ARRAY, ONE, TWO)]
    return {t.id: (t.spec.ord, len(t.attempts)) for t in told if t and t.spec}


def test_envelope_in_the_row_of_a_member_is_ignored() -> None:
    """It follows from the array, so our nodes send none; another node's might differ.

    Once, the writer took the member for a later task of that name, and stopped.
    """
    array = _rowed(ARRAY, 5, array=ArraySpec(count=2, first=1))
    first, second = (array, _rowed(ONE, 5)), (_rowed(ONE, 9), _rowed(TWO, 9))

    assert _joined(first, second) == {ARRAY: (5, 0), ONE: (5, 1), TWO: (5, 1)}


def test_first_of_two_rows_of_one_task_in_one_part_counts() -> None:
    """Our nodes send no such part, but the writer goes on all the same."""
    floor = Floor(9, (StreamFloor(KNOWN, 5, WRITER),))
    shell = Writing(is_following=True)
    head = replace(HEAD, floor=floor)

    _merge(shell, head, (_rowed("a", 5), _rowed("a", 9)))

    record = queries.read_task(shell.db, "a")
    assert record is not None
    assert record.spec is not None
    assert record.spec.ord == 5


def test_array_keeps_its_first_specification() -> None:
    """A hostile member may send another array with its id, to all nodes and again."""
    first = _rowed(ARRAY, 5, array=ArraySpec(count=2, first=1)).record.spec
    more = _rowed(ARRAY, 1, array=ArraySpec(count=9)).record.spec
    plain = _rowed(ARRAY, 1).record.spec
    assert first is not None
    assert more is not None
    assert plain is not None
    for others in ((first, more, plain), (plain, first, more)):
        shell = Writing(is_following=True)
        facts: list[Fact] = [Submitted(spec) for spec in others]
        facts += [Assigned(TaskId(task), ATTEMPT, ME) for task in (TWO, f"{ARRAY}.8")]
        told = [Entry(KNOWN, 5 + n, 9, fact) for n, fact in enumerate(facts)]

        shell.tables.append_entries([Append(1, tuple(told), WRITERS)])
        shell.show()

        record = queries.read_task(shell.db, ARRAY)
        assert record is not None
        assert record.spec is not None
        assert record.spec.array == others[0].array
