"""The log of a mesh that lives for years, on real tables without a writer thread."""

from __future__ import annotations

from collections import deque
from typing import Final

from octaskly.core.dispatcher.compaction import retire
from octaskly.core.effects import (
    Append,
    Effect,
    MergeRows,
    PlanFloor,
    Save,
    Send,
    ServePull,
    StageRows,
)
from octaskly.core.log.facts import Fact, Finished, Floor, Submitted
from octaskly.core.log.merge import facts_of, join_floors
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.hlc import HLC_EPOCH_MS, hlc_of
from octaskly.core.model.ids import (
    STREAMS_MAX,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import (
    Entries,
    Hello,
    Pull,
    Snapshot,
    SnapshotCursor,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.mesh import wire
from octaskly.store.reading import queries
from octaskly.store.reading.compaction_plan import plan_compaction
from octaskly.store.reading.snapshot import (
    is_snapshot_needed,
    read_snapshot_head,
    read_snapshot_part,
)
from octaskly.store.tables.node_state import read_saved
from octaskly.store.writing.stream_repair import repair_streams
from octaskly.store.writing.table_merge import TableWriter
from tests.contract import log_kit as kit
from tests.support.builders import attempt, node_info

PART_BYTES: Final = 1 << 17
SERVER: Final = NodeId("s")
START_MS: Final = 1_800_000_000_000
NO_TASKS_MAX: Final = 1 << 40
AGES: Final = TaskAges(HLC_EPOCH_MS)  #: timestamps serve, as no clock is wrong


class AgingLog:
    """The journal and the tables of one node, which commit each write at once."""

    def __init__(self) -> None:
        self.db = kit.database()
        self.tables = TableWriter(self.db, wire.WirePacker(), kit.HandClock())
        self.wall_ms = START_MS
        self.hello_bytes_max = self.floor_bytes_max = self.tasks = 0
        self._term = 0
        self.restart()

    def restart(self) -> None:
        """Read the state from the tables, like a process that starts."""
        saved = read_saved(self.db, wire.WirePacker(), self.wall_ms)
        self.journal = Journal(saved, Outbox())
        self.exchange = AntiEntropy(self.journal, Outbox(), {})

    def repair(self, streams_max: int = STREAMS_MAX) -> None:
        """Restart like an agent, whose store repairs a log with too many streams."""
        repair_streams(self.db, streams_max)
        self.tables.reload()
        self.restart()
        self._purge()

    def copy(self) -> AgingLog:
        """Return a node with what this one holds now."""
        other = AgingLog()
        other.db.deserialize(self.db.serialize())
        other.tables.reload()
        other.restart()
        other.wall_ms, other._term = self.wall_ms, self._term
        return other

    def now(self) -> Moment:
        """Return the time of the mesh."""
        return Moment(self.wall_ms / 1000, self.wall_ms)

    def claim(self, number: int, nodes: int) -> None:
        """Let one of the nodes become dispatcher, and say the floor."""
        self._term += 1
        drawn = self._term * 0x9E3779B97F4A7C15 + number
        stream = StreamId(drawn % (1 << 62) + 1)
        epoch = Epoch(self._term, NodeId(f"node{number % nodes:012d}"))
        self.journal.close_stream()
        self._perform([self.journal.save(stream=(stream, epoch))])
        self.journal.open_stream(stream)
        self._say_floor(self.journal.floor)

    def run_task(self) -> TaskId:
        """Accept a task, run it, and return its id."""
        submitted = self._submission()
        self._append([submitted, self._end_of(submitted.task)])
        return submitted.task

    def submit_task(self) -> TaskId:
        """Accept a task, and return its id."""
        submitted = self._submission()
        self._append([submitted])
        return submitted.task

    def end_task(self, task: TaskId) -> None:
        """Run a task."""
        self._append([self._end_of(task)])

    def _submission(self) -> Submitted:
        self.tasks += 1
        task = TaskId(f"task-{self.journal.stream}-{self.tasks}")
        place = self.journal.reserve_timestamps(self.now())
        return Submitted(
            TaskSpec(id=task, command="true", created_ms=self.wall_ms, ord=place)
        )

    def _end_of(self, task: TaskId) -> Finished:
        stream = self.journal.stream
        assert stream is not None
        end = Outcome(state=AttemptState.OK, reason=EndReason.EXIT)
        return Finished(task, attempt(stream=stream), kit.WORKER, end, 1)

    def compact(self, retention_ms: int) -> None:
        """Raise the floor as far as it may rise, and purge what is void."""
        before = hlc_of(self.wall_ms - retention_ms)
        stream = self.journal.stream
        assert stream is not None
        while True:
            planned = plan_compaction(
                self.db,
                wire.WirePacker(),
                PlanFloor(before, NO_TASKS_MAX, stream),
                1 << 40,
                AGES,
            )
            facts = [fact for record in planned.carried for fact in facts_of(record)]
            if facts or planned.records:
                self._append([*facts, *planned.records])
            if planned.floor is not None:
                joined = join_floors(self.journal.floor, planned.floor)
                self._say_floor(retire(joined, planned.floor))
            self._purge()
            if not planned.has_more:
                break
        hello = Hello(
            node=node_info("a"),
            epoch=Epoch(1, NodeId("a")),
            dispatcher=None,
            vector=self.journal.vector_items(),
            retired=self.journal.retired_summary(),
        )
        self.hello_bytes_max = max(self.hello_bytes_max, len(wire.encode([hello])))

    def pull_all(self, server: AgingLog) -> None:
        """Pull everything that another node holds."""
        self._perform(self.exchange.pull_from(SERVER), server)
        self._purge()

    def _purge(self) -> None:
        while not self.tables.is_purged:
            self.tables.purge_some()

    def _say_floor(self, floor: Floor) -> None:
        said = self.journal.floor_for_own_stream(floor)
        self.floor_bytes_max = max(
            self.floor_bytes_max, len(wire.WirePacker().pack(said))
        )
        self._append([said])

    def _append(self, facts: list[Fact]) -> None:
        self._perform([self.journal.append(facts, self.now())])

    def _perform(self, effects: list[Effect], server: AgingLog | None = None) -> None:
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            match effect:
                case Append():
                    self.tables.append_entries([effect])
                case StageRows():
                    self.tables.stage_rows(effect)
                case MergeRows():
                    self.tables.merge_rows(effect)
                case Save(stream=stream) if stream is not None:
                    self.tables.add_stream(*stream)
                case Send(messages=(Pull() as pull,)) if server is not None:
                    waiting += self._on_answer(server.answer(pull))
                    continue
                case _:
                    raise AssertionError(effect)
            self.journal.on_persisted(effect.number)
            waiting += self.journal.run_deferred(self.now())

    def answer(self, pull: Pull) -> Entries | Snapshot:
        """Answer a PULL, as the store does."""
        known = self.journal.retired_count_of(pull.retired.digest, pull.included)
        serve = ServePull(NodeId("p"), pull.vector, pull.cursor, known)
        cursor, head = pull.cursor, None
        if cursor is None and is_snapshot_needed(self.db, serve):
            head = read_snapshot_head(self.db)
            cursor = SnapshotCursor(1, retired_key=known or 0)
        if cursor is not None:
            return read_snapshot_part(
                self.db, wire.WirePacker(), cursor, PART_BYTES, AGES, head
            )
        packer = wire.WirePacker()
        packed = queries.pack_entries_beyond(
            self.db, packer, dict(pull.vector), PART_BYTES
        )
        return packer.unpack(packed.data, Entries)

    def _on_answer(self, answer: Entries | Snapshot) -> list[Effect]:
        if isinstance(answer, Entries):
            return self.exchange.on_entries(SERVER, answer)
        return self.exchange.on_snapshot(SERVER, answer, lambda _: [])

    def shown(self) -> set[str]:
        """Return the ids of all tasks."""
        return {task for (task,) in self.db.execute("SELECT id FROM tasks")}

    def ended(self) -> set[str]:
        """Return the ids of the tasks that have ended."""
        found = self.db.execute("SELECT id FROM tasks WHERE state > 1")
        return {task for (task,) in found}
