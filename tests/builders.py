"""Small worlds for tests: values with defaults, and a node's halves wired together."""

from __future__ import annotations

from octaskly.core.events import Draft, Saved
from octaskly.core.facts import HLC_EPOCH_MS
from octaskly.core.journal import Journal
from octaskly.core.messages import Report
from octaskly.core.model import (
    AttemptId,
    AttemptState,
    Epoch,
    Limits,
    Moment,
    NodeId,
    NodeInfo,
    Outcome,
    Reason,
    Settings,
    StreamId,
    TaskId,
    TaskSpec,
    Timing,
)

START_MS = HLC_EPOCH_MS + 1_000_000
STREAM = StreamId(77)
BAND = 50 << 56


def moment(seconds: float = 0.0) -> Moment:
    """Return both clocks, `seconds` after the start of the test's world."""
    return Moment(100.0 + seconds, START_MS + round(seconds * 1000))


def node_id(name: str) -> NodeId:
    """Return the id of a node that tests call by a short name."""
    return NodeId(name)


def settings(
    name: str = "a", *, slots: int = 2, limits: Limits | None = None
) -> Settings:
    """Return what a node called `name` is told at its start."""
    info = NodeInfo(
        id=node_id(name),
        boot="boot",
        name=name,
        slots=slots,
        version="0",
        peer_port=1,
        lan_port=2,
    )
    return Settings(node=info, timing=Timing(), limits=limits or Limits())


def epoch(term: int = 1, name: str = "a") -> Epoch:
    """Return a reign of the node `name`."""
    return Epoch(term, node_id(name))


def journal(stream: StreamId = STREAM) -> Journal:
    """Return a journal whose own stream is open."""
    made = Journal(Saved())
    made.open_stream(stream)
    return made


def spec(name: str = "t", *, ord: int = 1, command: str = "true") -> TaskSpec:  # noqa: A002
    """Return an accepted task; `ord` is its place in the queue."""
    return TaskSpec(
        id=TaskId(name),
        command=command,
        submitter="tester",
        created_ms=START_MS,
        ord=BAND | ord,
    )


def draft(command: str = "true", *, id: str | None = None) -> Draft:  # noqa: A002
    """Return a task that somebody asks for."""
    return Draft(command=command, id=None if id is None else TaskId(id))


def attempt(n: int = 1, *, term: int = 1, stream: StreamId = STREAM) -> AttemptId:
    """Return the name of an attempt."""
    return AttemptId(term, stream, n)


def outcome(
    state: AttemptState = AttemptState.OK,
    reason: Reason = Reason.EXIT,
    *,
    duration_ms: int | None = None,
    stdout: bytes = b"",
    detail: str = "",
) -> Outcome:
    """Return how an attempt ended."""
    return Outcome(
        state=state,
        reason=reason,
        duration_ms=duration_ms,
        stdout=stdout,
        detail=detail,
    )


def released(reason: Reason, detail: str = "") -> Outcome:
    """Return the end of an attempt that was given back."""
    return outcome(AttemptState.RELEASED, reason, detail=detail)


def report(
    task: str = "t",
    of: AttemptId | None = None,
    end: Outcome | None = None,
    envelope: TaskSpec | None = None,
) -> Report:
    """Return what a worker says of one attempt."""
    return Report(
        task=TaskId(task),
        attempt=of or attempt(),
        outcome=end or outcome(),
        spec=envelope,
    )
