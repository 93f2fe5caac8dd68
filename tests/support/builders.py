"""Builders for tests: values with defaults, and the connected parts of a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from octaskly.core.effects import LoadLive, LoadQueued, LoadTasks
from octaskly.core.events import LiveLoaded, QueuedLoaded, SavedState, TasksLoaded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import lane_key_of, split_member_id
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.hlc import HLC_EPOCH_MS
from octaskly.core.model.ids import AttemptId, Epoch, Moment, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Limits, Settings, Timing
from octaskly.core.model.task_options import Pairs, Requirements, requires_of
from octaskly.core.model.tasks import (
    MEMBERS_LANE,
    AttemptState,
    EndReason,
    LaneKey,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.protocol.messages import Report
from octaskly.core.replication.journal import Journal

START_MS = HLC_EPOCH_MS + 1_000_000
STREAM = StreamId(77)
BAND = 50 << 56


def moment(seconds: float = 0.0) -> Moment:
    """Return both clocks, `seconds` after the start of the test's world."""
    return Moment(100.0 + seconds, START_MS + round(seconds * 1000))


def node_moment(seconds: float) -> Moment:
    """Return both clocks; the monotonic one began `seconds` ago, in 2023."""
    return Moment(seconds, 1_700_000_000_000 + int(seconds * 1000))


def node_id(name: str) -> NodeId:
    """Return the id of the node with a short test name."""
    return NodeId(name)


def node_info(
    name: str = "a",
    slots: int = 2,
    *,
    memory_mb: int = 0,
    gpus: tuple[str, ...] = (),
    labels: Pairs = (),
    os: str = "linux",
    arch: str = "x86_64",
    pythons: tuple[str, ...] = (),
) -> NodeInfo:
    """Return the announcement of a node called `name`."""
    return NodeInfo(
        id=node_id(name),
        boot="boot",
        name=name,
        slots=slots,
        version="0",
        peer_port=1,
        lan_port=2,
        memory_mb=memory_mb,
        labels=labels,
        os=os,
        arch=arch,
        pythons=pythons,
        cpus=slots,
        gpus=gpus,
    )


def settings(
    name: str = "a", *, slots: int = 2, limits: Limits | None = None
) -> Settings:
    """Return the settings of a node called `name` at its start."""
    info = node_info(name, slots)
    return Settings(node=info, timing=Timing(), limits=limits or Limits())


def epoch(term: int = 1, name: str = "a") -> Epoch:
    """Return an epoch of the node `name`."""
    return Epoch(term, node_id(name))


def journal(stream: StreamId = STREAM) -> Journal:
    """Return a journal whose own stream is open."""
    made = Journal(SavedState(), Outbox())
    made.open_stream(stream)
    return made


def spec(name: str = "t", *, ord: int = 1, command: str = "true") -> TaskSpec:  # noqa: A002
    """Return an accepted task; `ord` is its position in the queue."""
    return TaskSpec(
        id=TaskId(name),
        command=command,
        submitter="tester",
        created_ms=START_MS,
        ord=BAND | ord,
    )


def draft(command: str = "true", *, id: str | None = None) -> TaskDraft:  # noqa: A002
    """Return a requested task."""
    return TaskDraft(command=command, id=None if id is None else TaskId(id))


def load_reply(queued: Iterable[TaskRecord], asked: LoadQueued) -> QueuedLoaded:
    """Return a store's answer to a read, with these tasks in its queue."""
    lanes: dict[LaneKey, Requirements | None] = {}
    found = []
    for record in queued:
        assert record.spec is not None
        lane = lane_key_of(record.spec)
        if split_member_id(record.id) is not None:
            lane = LaneKey(lane.shape)
        lanes[lane] = requires_of(record.spec.options) if lane.shape else None
        if lane == asked.lane and record.ord > asked.after_ord:
            found.append(record)
    # Tasks of one position stay together, so there may be more than the limit.
    last = found[: asked.limit][-1] if found else None
    loaded = [record for record in found if last and record.ord <= last.ord]
    is_front = asked.lane == MEMBERS_LANE and asked.after_ord < 0
    lanes.pop(MEMBERS_LANE, None)
    return QueuedLoaded(
        asked.term,
        tuple(loaded),
        len(found) > len(loaded),
        asked.lane,
        tuple(lanes.items()) if is_front else (),
    )


def live_reply(
    stored: Iterable[TaskRecord],
    asked: LoadLive,
    is_live: Callable[[TaskRecord], object],
) -> LiveLoaded:
    """Return the answer of a store with these tasks, in the order of their keys."""
    keyed = [(key, record) for key, record in enumerate(stored, 1) if is_live(record)]
    beyond = [pair for pair in keyed if pair[0] > asked.after_key]
    some = beyond[: asked.limit]
    next_key = some[-1][0] if len(beyond) > len(some) else None
    return LiveLoaded(asked.term, tuple(record for _, record in some), next_key)


def tasks_reply(stored: Iterable[TaskRecord], asked: LoadTasks) -> TasksLoaded:
    """Return a store's answer to a read by id, cut so that it takes several."""
    tasks = asked.tasks[: len(asked.tasks) // 2 + 1]
    found = tuple(record for record in stored if record.id in tasks)
    return TasksLoaded(asked.term, tasks, found)


def is_live(record: TaskRecord) -> bool:
    """Return True if the store lists a task as live.

    It runs, or its last attempt has no end.
    """
    last = record.attempts[-1:]
    return record.state is TaskState.RUNNING or any(a.state.is_live for a in last)


def attempt(
    n: int = 1, *, seq: int | None = None, term: int = 1, stream: StreamId = STREAM
) -> AttemptId:
    """Return the id of an attempt, by default as if nothing else were in the log."""
    return AttemptId(term, stream, n if seq is None else seq, n)


def outcome(
    state: AttemptState = AttemptState.OK,
    reason: EndReason = EndReason.EXIT,
    *,
    duration_ms: int | None = None,
    stdout: bytes = b"",
    detail: str = "",
) -> Outcome:
    """Return the outcome of an attempt."""
    return Outcome(
        state=state,
        reason=reason,
        exit_code=0 if state is AttemptState.OK else None,
        duration_ms=duration_ms,
        stdout=stdout,
        detail=detail,
    )


def released(reason: EndReason, detail: str = "") -> Outcome:
    """Return the end of an attempt that was given back."""
    return outcome(AttemptState.RELEASED, reason, detail=detail)


def report(
    task: str = "t",
    of: AttemptId | None = None,
    end: Outcome | None = None,
    envelope: TaskSpec | None = None,
) -> Report:
    """Return a worker's report of one attempt."""
    return Report(
        task=TaskId(task),
        attempt=of or attempt(),
        outcome=end or outcome(),
        spec=envelope,
    )
