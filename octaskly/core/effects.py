"""What a node asks its shell to do: the only outputs of `Node.step`.

The list is ordered and is performed in order. `Append` and `Save` are handed to the
one writer and not awaited: `Persisted(number)` comes back, and only then does the node
emit what depended on them (acknowledgements, claims, dispatches). So a disk that
stalls for a second never stops heartbeats, and nothing that needs durability can
leave before it.
"""

from __future__ import annotations

from msgspec import Struct

from octaskly.core.log.facts import Entry, Recorded
from octaskly.core.log.merge import TaskRow
from octaskly.core.model.ids import (
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    VectorItems,
)
from octaskly.core.model.keys import KeyringEffect
from octaskly.core.model.nodes import OperatorHold
from octaskly.core.model.tasks import EndReason, TaskSpec
from octaskly.core.protocol.messages import (
    Message,
    Report,
    Roster,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replies import Reply


class Append(Struct, frozen=True):
    """Make entries durable and join them into the task table, in one transaction.

    `epochs` names the writer of each stream that the store may not know yet.
    Entries that the store holds already are skipped; a gap is refused by assertion.
    """

    number: int  #: one more than that of the `Append` or `Save` before
    entries: tuple[Entry, ...]
    epochs: tuple[tuple[StreamId, Epoch], ...] = ()


class Save(Struct, frozen=True, kw_only=True):
    """Make the node's own state durable; fields that are None stay as they are."""

    number: int
    term: int | None = None
    epoch: Epoch | None = None
    stream: tuple[StreamId, Epoch] | None = None  #: a new stream of this node
    name: str | None = None
    hold: OperatorHold | None = None
    rewritten_rows: VectorItems = ()
    """What rows of snapshots said beyond the log up to here is in the log now."""
    records: tuple[Recorded, ...] = ()  #: that a dispatcher told, outside the log
    log_version: int | None = None


class MergeRows(Struct, frozen=True):
    """Join a peer's tasks into the task table, without entries of the log.

    With the last of them, in the same transaction, the node holds what `head` says.
    """

    number: int  #: as in `Append`
    rows: tuple[TaskRow, ...]
    head: SnapshotHead
    is_last: bool
    vector: VectorItems = ()  #: what the rows stand for, which may be more than `head`
    records: tuple[Recorded, ...] = ()


LogWrite = Append | MergeRows
"""What brings facts about tasks to the disk."""


class Send(Struct, frozen=True):
    """Put messages into the peer's bounded outbox; never waits for the network."""

    peer: NodeId
    messages: tuple[Message, ...]


class Dial(Struct, frozen=True):
    """Try these addresses in order until one leads to a connected peer.

    Idempotent: nothing happens while the peer is connected or a dial to it runs.
    """

    node: NodeId | None
    addresses: tuple[Address, ...]


class Disconnect(Struct, frozen=True):
    """Close the link to a peer after telling it why."""

    peer: NodeId
    reason: str


class ServePull(Struct, frozen=True):
    """Read what lies beyond `vector` and send it to the peer.

    As `Entries`, or as a `MeshSnapshot` where entries are gone or would be far more.
    """

    peer: NodeId
    vector: VectorItems
    cursor: SnapshotCursor | None = None  #: go on with this snapshot


class Browse(Struct, frozen=True):
    """Ask mDNS afresh (a new browser), or stop browsing."""

    is_wanted: bool


class Advertise(Struct, frozen=True):
    """Say over mDNS what this node is now."""

    is_dispatcher: bool
    term: int


class Start(Struct, frozen=True):
    """Run these attempts; each is reported once by `AttemptsEnded`."""

    items: tuple[tuple[AttemptId, TaskSpec], ...]


class Stop(Struct, frozen=True):
    """End these attempts, waiting ones too, and everything that they started.

    They are reported as CANCELLED, or as RELEASED where the reason is DRAINING.
    """

    items: tuple[tuple[TaskId, AttemptId], ...]
    reason: EndReason = EndReason.CANCELLED


class ReleaseWaiting(Struct, frozen=True):
    """Report the attempts that have not begun as released, for other nodes to run."""


class Freeze(Struct, frozen=True):
    """Stop all processes of all attempts where they are, or let them go on."""

    is_frozen: bool


class Spool(Struct, frozen=True):
    """Keep results on disk until `Unspool`; not awaited."""

    reports: tuple[Report, ...]


class Unspool(Struct, frozen=True):
    """Forget results that a dispatcher has made durable."""

    items: tuple[tuple[TaskId, AttemptId], ...]


class LoadQueued(Struct, frozen=True):
    """Read queued tasks of one shape with `ord > after_ord`; answered by `QueuedLoaded`."""

    after_ord: int
    limit: int
    shape: int = 0


class LoadUnblocked(Struct, frozen=True):
    """Read tasks whose wait for others is over; answered by `UnblockedLoaded`."""

    query_number: int  #: of the question, repeated in the answer
    limit: int
    before_hlc: int = 0
    """Tasks accepted earlier do not wait for tasks that the store does not know."""


class LoadLive(Struct, frozen=True):
    """Read all tasks with an attempt that has no end; answered by `LiveLoaded`."""

    looked_up: tuple[TaskId, ...] = ()  #: besides these, whether any of it runs or not


class PlanFloor(Struct, frozen=True):
    """Find how far the floor may rise; answered by `FloorPlanned`."""

    before_hlc: int  #: what ended before is old enough
    tasks_max: int  #: of more ended tasks than these, the oldest go, whatever their age
    stream: StreamId = StreamId(0)  #: of this reign: what was born there is in the log
    after_key: int = 0  #: as in `FloorPlanned`
    purge_hlc: int = 0
    """What ended before is to go; what waits is carried only as far as needed."""
    wall_ms: int = 0  #: wall clock; records that ended before are not carried


class Answer(Struct, frozen=True):
    """Release the request that carried this ticket."""

    ticket: int
    reply: Reply


class AnnounceTaskStates(Struct, frozen=True):
    """Tasks reached a new state that is durable: wake whoever waits for them."""

    tasks: tuple[TaskId, ...]


class ApplyRecords(Struct, frozen=True):
    """These records are on this node's disk, for the first time: go by them.

    After a start that is all that it kept. Kinds of which only a dispatcher is asked
    (`records.RecordKind.is_list_only`) are left out.
    """

    records: tuple[Recorded, ...]


class PublishMeshState(Struct, frozen=True):
    """The mesh changed: role, dispatcher or members; for API, log and systemd."""

    epoch: Epoch
    dispatcher: NodeId | None
    is_serving: bool  #: this node is dispatcher and accepts
    roster: Roster | None


class SavePeer(Struct, frozen=True):
    """Keep a peer's addresses for the next start."""

    peer: NodeId
    name: str
    addresses: tuple[Address, ...]


class LogLine(Struct, frozen=True):
    """One line for the agent's log: a constant event name and its fields."""

    level: str  #: `debug`, `info`, `warning` or `error`
    event: str
    fields: tuple[tuple[str, str | int | float], ...] = ()


class Stopped(Struct, frozen=True):
    """Hand-over and drain are complete; the process may end."""


Effect = (
    Append
    | Save
    | MergeRows
    | Send
    | Dial
    | Disconnect
    | ServePull
    | Browse
    | Advertise
    | Start
    | Stop
    | ReleaseWaiting
    | Freeze
    | Spool
    | Unspool
    | LoadQueued
    | LoadLive
    | LoadUnblocked
    | PlanFloor
    | Answer
    | AnnounceTaskStates
    | ApplyRecords
    | PublishMeshState
    | SavePeer
    | LogLine
    | Stopped
    | KeyringEffect
)
