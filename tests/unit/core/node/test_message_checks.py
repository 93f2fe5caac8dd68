"""Messages that no correct peer sends are refused before they change anything."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from octaskly.core.effects import (
    Append,
    Disconnect,
    Effect,
    LogLine,
    Save,
    Send,
    ServePull,
)
from octaskly.core.events import (
    Event,
    PeerUp,
    Persisted,
    Received,
    SavedState,
    TasksSubmitted,
    TimerFired,
)
from octaskly.core.log.facts import (
    NO_FLOOR,
    Decided,
    Entry,
    Fact,
    Finished,
    MembersAssigned,
    MembersSucceeded,
    Recorded,
    Submitted,
    SuccessTimes,
    TaskCancelled,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRecord, TaskRow
from octaskly.core.log.mesh_records import AUDIT
from octaskly.core.log.range_rows import RUNNING, MemberEnd, MemberState, RangeRow
from octaskly.core.model.arrays import (
    MEMBER_NUMBER_MAX,
    RANGE_MAX,
    MemberRange,
    RangeMembers,
)
from octaskly.core.model.field_types import COUNT_MAX
from octaskly.core.model.hlc import hlc_of
from octaskly.core.model.ids import (
    NO_EPOCH,
    Address,
    AttemptId,
    Epoch,
    StreamId,
    TaskId,
    Vector,
)
from octaskly.core.model.nodes import NodeState, Role, RosterEntry
from octaskly.core.model.task_options import ArraySpec, FreedStdin, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.node.message_checks import REATTACH_PARTS_MAX, TERMS_AHEAD_MAX
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import (
    MEMBER_FACTS_MAX,
    RANGE_ROWS_MAX,
    Assign,
    AssignRanges,
    Claim,
    ClaimOk,
    ClaimRejected,
    Entries,
    Heartbeat,
    Hello,
    Kill,
    MemberSuccess,
    Message,
    Pull,
    RangeReport,
    RangeResults,
    RangeResultsOk,
    Reattach,
    RecordBatch,
    Redirect,
    Replicate,
    ReplicateOk,
    Results,
    Roster,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
    Transfer,
)
from tests.support.builders import (
    attempt,
    draft,
    epoch,
    moment,
    node_id,
    outcome,
    report,
    settings,
    spec,
)

ME, PEER, OTHER = node_id("a"), node_id("b"), node_id("c")
THEIRS = Epoch(5, PEER)
KNOWN, NEW = StreamId(5), StreamId(6)
WRITER = Epoch(2, OTHER)
FACT = TaskCancelled(TaskId("t"), "x")
RECORD = Recorded("gossip", "key", b"", 0, 5)
FREED = FreedStdin("0" * 64, 2)
FAR = Epoch(TERMS_AHEAD_MAX + 5, PEER)
READY = NodeState.READY


class Shell:
    """A node that has met a peer, with a disk that answers at once."""

    def __init__(self, theirs: Hello | None = None) -> None:
        saved = SavedState(
            term=3, vector=((KNOWN, 4),), epochs=((KNOWN, WRITER),), hlc=9
        )
        self.node = Node(settings("a"), saved)
        self.seconds = 0.0
        self.feed(TimerFired())
        hello = theirs or hello_of(NO_EPOCH)
        sent = self.node.hello(moment())
        self.met = self.feed(PeerUp(PEER, sent, hello, Address("::1", 7)))

    def feed(self, *events: Event) -> list[Effect]:
        done: list[Effect] = []
        for event in events:
            effects = self.node.step(event, moment(self.seconds))
            done += effects
            for effect in effects:
                if isinstance(effect, Append | Save):
                    done += self.feed(Persisted(effect.number))
        return done

    def hear(self, *messages: Message) -> list[Effect]:
        return self.feed(Received(PEER, messages))

    def become_dispatcher(self) -> StreamId:
        """Become dispatcher, followed by the peer; return the node's own stream."""
        while not self.node.is_dispatcher:
            self.seconds += 0.1
            self.feed(TimerFired())
        self.hear(ClaimOk(self.node.epoch, ()), Reattach((), 2, READY))
        known = {KNOWN}
        (own,) = {s for s, _ in self.node.hello(moment()).vector} - known
        return own

    @property
    def vector(self) -> Vector:
        return dict(self.node.hello(moment()).vector)


def hello_of(of: Epoch, **more: object) -> Hello:
    info = replace(settings("b").node, id=PEER)
    dispatcher = PEER if of.node == PEER else None
    hello = Hello(node=info, epoch=of, dispatcher=dispatcher)
    return replace(hello, **more)


def entries(*items: tuple[int, int], hlc: int = 10) -> tuple[Entry, ...]:
    """Return entries by stream and sequence number."""
    return tuple(Entry(StreamId(stream), seq, hlc, FACT) for stream, seq in items)


def pulled(
    *items: tuple[int, int], epochs: tuple[tuple[StreamId, Epoch], ...] = ()
) -> Entries:
    named = epochs or ((KNOWN, WRITER), (NEW, WRITER))
    return Entries(entries(*items), named, False, ())


def leasing(*, count: int, first: int = 0) -> AssignRanges:
    """Return a range of an array, assigned by the peer."""
    options = TaskOptions(array=ArraySpec(count=count, first=first))
    whole = replace(spec("task-001-0000000a"), options=options)
    return AssignRanges(THEIRS, (MemberRange(whole, 0, attempt()),))


def ranged(
    *,
    array: str = "task-001-0000000a",
    number: int = 1,
    count: int = 1,
    end_count: int = 1,
    later_hlc: int = 1,
    decided_term: int = 1,
    lasting_ms: int = 5,
) -> Snapshot:
    """Return a part of a snapshot with ranges; one member of each runs."""
    end = MemberEnd(later_hlc, decided_term, 1_000, lasting_ms, 5, None, None)
    members: tuple[MemberState, ...] = (RUNNING, *(end,) * end_count)
    row = RangeRow(TaskId(array), number, 1, attempt(), ME, 9, members)
    cursor = SnapshotCursor(1, 1)
    return Snapshot(rows=(), ranges=(row,) * count, cursor=cursor, has_more=True)


def named(
    *offsets: int, array: str = "task-001-0000000a", step: int = 1
) -> RangeMembers:
    return RangeMembers(TaskId(array), 1, step, attempt(), offsets)


def succeeding(
    *offsets: int,
    array: str = "task-001-0000000a",
    step: int = 1,
    successes: int | None = None,
) -> RangeResults:
    """Return a report of members at these places of a range."""
    count = len(offsets) if successes is None else successes
    ends = (MemberSuccess(None, None, None),) * count
    return RangeResults(
        (RangeReport(named(*offsets, array=array, step=step), ends),), 1
    )


def telling(entry: Entry) -> Entries:
    return Entries((entry,), ((KNOWN, WRITER),), False, ())


def ended(state: AttemptState = AttemptState.OK, **more: Any) -> Entry:
    """Return an entry with the end of an attempt."""
    how = replace(outcome(state), **more)
    return Entry(KNOWN, 5, 9, Finished(TaskId("t"), attempt(), ME, how))


def assigned(*, seq: int = 5, array: str = "task-001-0000000a", **more: int) -> Entry:
    """Return an entry with an assignment of members."""
    fields = {"number": 0, "step": 1, "count": RANGE_MAX, **more}
    fact = MembersAssigned(TaskId(array), attempt(), ME, **fields)
    return Entry(KNOWN, seq, 9, fact)


def many_assigned(count: int) -> Entries:
    """Return entries with so many assignments of as many members as may be."""
    some = tuple(assigned(seq=5 + RANGE_MAX * at) for at in range(count))
    return Entries(some, ((KNOWN, WRITER),), False, ())


def succeeded(*times: SuccessTimes) -> Entry:
    """Return an entry with the successes of two members."""
    members = TaskId("task-001-0000000a"), attempt(), ME, 0, 1, (0, 1)
    return Entry(KNOWN, 5, 9, MembersSucceeded(*members, 1, 1000, times))


def decided(state: TaskState) -> Entry:
    """Return an entry with a verdict."""
    return Entry(KNOWN, 5, 9, Decided(TaskId("t"), state, 1, attempt(), ME))


def rowed(state: AttemptState, end: Outcome | None) -> Snapshot:
    """Return a snapshot of one task with this attempt."""
    tried = Attempt(id=attempt(), node=ME, state=state, outcome=end)
    record = TaskRecord(id=spec().id, spec=spec(), attempts=(tried,))
    row = TaskRow(record, SubmissionTimes(1, 1, KNOWN, 1), 1)
    return Snapshot(rows=(row,), cursor=SnapshotCursor(1, 1), has_more=True)


LATE = replace(spec(), created_ms=1 << 62)
EMPTY = SnapshotHead(vector=(), epochs=(), floor=NO_FLOOR, hlc=9)


def demanding(**options: Any) -> TaskSpec:
    """Return a task with these requirements."""
    return replace(spec(), options=TaskOptions(**options))


def submitting(**options: Any) -> Entry:
    """Return an entry with such a task."""
    return Entry(KNOWN, 5, 9, Submitted(demanding(**options)))


def array_of(**fields: Any) -> Entry:
    """Return an entry with an invalid array."""
    return submitting(array=ArraySpec(**fields))


def listing(**more: Any) -> Roster:
    """Return a roster with one node and these values."""
    line = RosterEntry(
        id=PEER,
        name="pi",
        role=Role.DISPATCHER,
        state=READY,
        addresses=(),
        lan_port=1,
        slots=1,
    )
    return Roster(THEIRS, 1, (replace(line, **more),))


def two_named() -> Snapshot:
    """Return a snapshot of a row with the ids of two tasks."""
    record = TaskRecord(id=TaskId("another"), spec=spec())
    row = TaskRow(record, SubmissionTimes(1, 1, KNOWN, 1), 1)
    return Snapshot(rows=(row,), cursor=SnapshotCursor(1, 1), has_more=True)


def waiting(fact: Fact) -> Snapshot:
    """Return a snapshot with this fact of an unknown task."""
    entry = Entry(KNOWN, 5, 9, fact)
    return Snapshot(
        rows=(), cursor=SnapshotCursor(1, 1), has_more=True, pending=(entry,)
    )


WRONG = {
    "snapshot with a submission that waits": (waiting(Submitted(spec())), "fact"),
    "snapshot with a floor that waits": (waiting(NO_FLOOR), "fact"),
    "heartbeat of a far term": (Heartbeat(FAR, 0.0), "term"),
    "claim of a far term": (Claim(FAR, NEW, ()), "term"),
    "redirect to a far term": (Redirect(FAR, OTHER, ()), "term"),
    "refused claim with a far term": (ClaimRejected(FAR), "term"),
    "entries of a far epoch": (pulled((6, 1), epochs=((NEW, FAR),)), "term"),
    "heartbeat for another": (Heartbeat(Epoch(5, OTHER), 0.0), "epoch"),
    "claim for another": (Claim(Epoch(5, OTHER), NEW, ()), "epoch"),
    "roster for another": (Roster(Epoch(5, OTHER), 1, ()), "epoch"),
    "order for another": (Assign(Epoch(5, OTHER), ()), "epoch"),
    "kill for another": (Kill(Epoch(5, OTHER), ()), "epoch"),
    "transfer for another": (Transfer(Epoch(5, OTHER), ()), "epoch"),
    "copy for another": (Replicate(Epoch(5, OTHER), 1, (), ()), "epoch"),
    "thanks to another": (ReplicateOk(Epoch(5, OTHER), 1), "epoch"),
    "a gap": (pulled((5, 5), (5, 7)), "gap"),
    "a repetition": (pulled((5, 5), (5, 5)), "gap"),
    "sequence zero": (pulled((6, 0)), "gap"),
    "a gap in a copy": (Replicate(THEIRS, 1, entries((5, 5), (5, 7)), ()), "gap"),
    "a stream without a writer": (
        pulled((9, 1), epochs=((KNOWN, WRITER),)),
        "stream",
    ),
    "a later entry of a stream without a writer": (
        pulled((9, 6), epochs=((KNOWN, WRITER),)),
        "stream",
    ),
    "a copy of a stream without a writer": (
        Replicate(THEIRS, 1, entries((9, 1)), ()),
        "stream",
    ),
    "another writer": (pulled((5, 5), epochs=((KNOWN, THEIRS),)), "writer"),
    "two writers": (
        pulled((6, 1), epochs=((NEW, WRITER), (NEW, THEIRS))),
        "writer",
    ),
    "a claim to another's stream": (Claim(THEIRS, KNOWN, ()), "writer"),
    "stream zero": (Claim(THEIRS, StreamId(0), ()), "writer"),
    "an end that is none": (telling(ended(AttemptState.RUNNING)), "fact"),
    "a verdict that is none": (telling(decided(TaskState.QUEUED)), "fact"),
    "a result that is none": (
        Results((report(end=outcome(AttemptState.ASSIGNED)),), 1),
        "fact",
    ),
    "a result with the envelope of another task": (
        Results((report("a", envelope=spec("b")),), 1),
        "fact",
    ),
    "a range of a task": (
        AssignRanges(THEIRS, (MemberRange(spec(), 0, attempt()),)),
        "fact",
    ),
    "a range of too many": (leasing(count=RANGE_MAX + 1), "fact"),
    "too many ranges": (
        AssignRanges(THEIRS, leasing(count=RANGE_MAX).items * 65),
        "fact",
    ),
    "a range beyond all numbers": (leasing(count=2, first=MEMBER_NUMBER_MAX), "fact"),
    "a range of nothing": (leasing(count=0), "fact"),
    "members in reverse": (succeeding(3, 1), "fact"),
    "a member twice": (succeeding(1, 1), "fact"),
    "no members": (succeeding(), "fact"),
    "members beyond a range": (succeeding(0, RANGE_MAX), "fact"),
    "more members than successes": (succeeding(0, 1, successes=1), "fact"),
    "members of a task": (succeeding(0, array="t"), "fact"),
    "members that go nowhere": (succeeding(0, 1, step=0), "fact"),
    "members beyond all numbers": (succeeding(0, 1, step=MEMBER_NUMBER_MAX), "fact"),
    "a range of another's epoch": (AssignRanges(Epoch(5, OTHER), ()), "epoch"),
    "an acknowledgement in reverse": (RangeResultsOk((named(1, 0),)), "fact"),
    "a fact about members of a task": (telling(assigned(array="t")), "fact"),
    "a fact about members beyond all numbers": (
        telling(assigned(number=MEMBER_NUMBER_MAX)),
        "fact",
    ),
    "a fact about too few successes": (
        telling(succeeded(SuccessTimes(0, 0, 0))),
        "fact",
    ),
    "a success before all times": (
        telling(succeeded(*[SuccessTimes(-1001, 0, 0)] * 2)),
        "fact",
    ),
    "a gap after a fact about members": (
        Entries((assigned(), *entries((5, 5 + 1))), ((KNOWN, WRITER),), False, ()),
        "gap",
    ),
    "facts about too many members": (
        many_assigned(1 + MEMBER_FACTS_MAX // RANGE_MAX),
        "members",
    ),
    "a range of no array": (ranged(array="t"), "fact"),
    "a range that goes beyond all numbers": (
        ranged(number=MEMBER_NUMBER_MAX),
        "fact",
    ),
    "a range that ended in no epoch": (ranged(decided_term=0), "fact"),
    "a range that ended before all times": (ranged(lasting_ms=-1_001), "fact"),
    "a range of the far future": (ranged(later_hlc=COUNT_MAX - 1), "fact"),
    "too many members in the ranges of a snapshot": (
        ranged(count=RANGE_ROWS_MAX, end_count=MEMBER_FACTS_MAX // RANGE_ROWS_MAX),
        "members",
    ),
    "a row of two states": (rowed(AttemptState.FAILED, outcome()), "fact"),
    "a row that ended without an end": (rowed(AttemptState.OK, None), "fact"),
    "records for another": (RecordBatch(Epoch(5, OTHER), ()), "epoch"),
    "a record of no kind": (telling(Entry(KNOWN, 5, 9, RECORD)), "fact"),
    "a record that is too long": (
        RecordBatch(THEIRS, (replace(RECORD, kind=AUDIT, body=b"x" * 4096),)),
        "fact",
    ),
    "a record that breaks lines": (
        RecordBatch(THEIRS, (replace(RECORD, kind=AUDIT, key="a\nb"),)),
        "fact",
    ),
    "a member that says more than a line": (listing(version="1\n2"), "node"),
    "a row of two tasks": (two_named(), "fact"),
    "an array without end": (telling(array_of(count=1 << 62)), "fact"),
    "an array that goes nowhere": (telling(array_of(count=2, step=0)), "fact"),
    "an array of nothing": (telling(array_of(count=0)), "fact"),
    "an array that lacks items": (telling(array_of(count=2, has_items=True)), "fact"),
    "a stdin that is here and freed": (
        telling(submitting(stdin=b"in", freed_stdin=FREED)),
        "fact",
    ),
    "an order to run without the stdin": (
        Assign(THEIRS, ((attempt(), demanding(freed_stdin=FREED)),)),
        "fact",
    ),
    "a worker that runs without the stdin": (
        Reattach(((attempt(), demanding(freed_stdin=FREED)),), 2, READY),
        "fact",
    ),
    "a vector of no stream": (ClaimOk(NO_EPOCH, ((StreamId(0), 1),)), "vector"),
}


@pytest.mark.parametrize(("message", "code"), WRONG.values(), ids=list(WRONG))
def test_an_impossible_message_closes_the_link_and_changes_nothing(
    message: Message, code: str
) -> None:
    """Log, term and role stay; the rest of the frame is dropped."""
    shell = Shell()
    before = shell.vector

    effects = shell.hear(message, Pull(()))

    assert Disconnect(PEER, f"protocol: {code}") in effects
    assert not [e for e in effects if isinstance(e, Append | Save | Send | ServePull)]
    assert shell.vector == before
    assert shell.node.dispatcher is None
    assert shell.hear(Pull(())) == []


def test_a_hello_with_a_far_term_is_refused() -> None:
    """It would push every later claim towards the largest number."""
    shell = Shell(hello_of(FAR))

    assert Disconnect(PEER, "protocol: term") in shell.met
    assert shell.hear(Pull(())) == []


@pytest.mark.parametrize(
    "more",
    [
        {"name": "a\x1b]0;b"},
        {"version": "1\n2"},
    ],
)
def test_a_node_name_with_control_characters_is_refused(
    more: dict[str, Any],
) -> None:
    """Terminals show these names as they are."""
    hello = hello_of(NO_EPOCH)
    shell = Shell(replace(hello, node=replace(hello.node, **more)))

    assert Disconnect(PEER, "protocol: node") in shell.met


def test_each_kind_of_refusal_is_counted_always_and_logged_once() -> None:
    """However often a broken peer comes back."""
    shell = Shell()
    received_effects = []
    for _ in range(3):
        received_effects += shell.hear(Heartbeat(FAR, 0.0))
        sent = shell.node.hello(moment())
        shell.feed(PeerUp(PEER, sent, hello_of(NO_EPOCH), Address("::1", 7)))
    received_effects += shell.hear(pulled((5, 7), (5, 9)))

    notes = [
        e.fields
        for e in received_effects
        if isinstance(e, LogLine) and "refused" in e.event
    ]
    assert notes == [
        (("peer", PEER), ("reason", "protocol: term")),
        (("peer", PEER), ("reason", "protocol: gap")),
    ]
    assert shell.node.refused_counts == {"term": 3, "gap": 1}


def test_unknown_streams_and_old_frames_are_harmless() -> None:
    """A vector may name a stream unknown to this node, and replays are known."""
    shell = Shell()

    asked = shell.hear(Pull(((StreamId(99), 7),)))
    again = shell.hear(pulled((5, 3), (5, 4)), pulled((5, 4), (5, 5)), pulled((5, 5)))
    beyond = shell.hear(pulled((5, 9), (5, 10)))

    assert ServePull(PEER, ((StreamId(99), 7),)) in asked
    assert [e.entries for e in again if isinstance(e, Append)] == [entries((5, 5))]
    assert not [e for e in beyond if isinstance(e, Append | Disconnect)]


@pytest.mark.parametrize("off_s", [-3600, -6, 0, 4, 6, 3600, 10**10])
def test_a_wrong_clock_is_logged_once(off_s: int) -> None:
    """B36: it changes nothing else, and the peer stays connected."""
    shell = Shell()
    sent = shell.node.hello(moment())
    theirs = hello_of(NO_EPOCH, wall_ms=sent.wall_ms + off_s * 1000)

    clock_effects = [
        effect
        for _ in range(2)
        for effect in shell.feed(PeerUp(PEER, sent, theirs, Address("::1", 7)))
        if isinstance(effect, LogLine | Disconnect)
    ]

    notes = [e for e in clock_effects if isinstance(e, LogLine) and "clock" in e.event]
    assert [dict(note.fields)["ahead_s"] for note in notes] == (
        [off_s] if abs(off_s) > 5 else []
    )
    assert not [effect for effect in clock_effects if isinstance(effect, Disconnect)]


@pytest.mark.parametrize(
    ("off_s", "is_logged"), [(-12, False), (12, False), (17, True)]
)
def test_a_late_handshake_is_not_a_wrong_clock(off_s: int, is_logged: bool) -> None:
    """On a busy machine one side sends HELLO seconds after the other one."""
    shell = Shell()
    sent = shell.node.hello(moment())
    theirs = hello_of(NO_EPOCH, wall_ms=sent.wall_ms + off_s * 1000)

    up = PeerUp(PEER, sent, theirs, Address("::1", 7), handshake_ms=10_000)
    effects = shell.feed(up)

    notes = [e for e in effects if isinstance(e, LogLine) and "clock" in e.event]
    assert bool(notes) == is_logged


def test_entries_from_the_future_are_kept_and_logged_once() -> None:
    """Their facts are true; only a clock is wrong."""
    shell = Shell()
    ahead = hlc_of(moment(7200.0).wall_ms)

    effects = shell.hear(telling(Entry(KNOWN, 5, ahead, FACT)))
    effects += shell.hear(telling(Entry(KNOWN, 6, ahead, FACT)))

    assert len([e for e in effects if isinstance(e, Append)]) == 2
    notes = [e.event for e in effects if isinstance(e, LogLine)]
    assert notes.count("entries with future timestamps") == 1


@pytest.mark.parametrize("kind", ["entries", "a snapshot"])
def test_no_peer_writes_into_the_stream_of_this_epoch(kind: str) -> None:
    """Only entries that this node wrote may come back to it."""
    shell = Shell()
    own = shell.become_dispatcher()
    written = ((own, shell.node.epoch),)
    head = replace(EMPTY, vector=((own, COUNT_MAX - 1),), epochs=written)

    forged: dict[str, Message] = {
        "entries": Entries(entries((own, 1)), written, False, ()),
        "a snapshot": Snapshot(
            rows=(), cursor=SnapshotCursor(1, 1), has_more=False, head=head
        ),
    }

    assert Disconnect(PEER, "protocol: writer") in shell.hear(forged[kind])


ASKED = TasksSubmitted(1, (draft("true"),), "ana", ("00000001",), (None,))


@pytest.mark.parametrize("kind", ["a report", "a report of members", "a running one"])
def test_no_worker_has_an_attempt_that_was_not_assigned_yet(kind: str) -> None:
    """The log would get an end for each, and the worker an acknowledgement."""
    shell = Shell()
    own = shell.become_dispatcher()
    shell.feed(ASKED)
    last = AttemptId(shell.node.epoch.term, own, shell.vector[own], 1)
    members = RangeMembers(TaskId("task-001-0000000a"), 1, 1, last, (0,))

    def message(last: AttemptId, offset: int) -> Message:
        seen = replace(last, seq=last.seq + offset)
        match kind:
            case "a report":
                return Results((report("t", seen),), 2)
            case "a running one":
                return Reattach(((seen, spec("t")),), 2, READY)
            case _:
                named = replace(members, offsets=(offset,))
                end = MemberSuccess(None, None, None)
                return RangeResults((RangeReport(named, (end,)),), 2)

    known = shell.hear(message(last, 0))
    before = shell.vector
    unknown = shell.hear(message(last, before[own] - last.seq + 1))

    assert not [e for e in known if isinstance(e, Disconnect)]
    assert Disconnect(PEER, "protocol: attempt") in unknown
    assert not [e for e in unknown if isinstance(e, Append)]
    assert shell.vector == before


def test_only_appended_entries_can_be_acknowledged() -> None:
    """A standby cannot have anything else."""
    shell = Shell()
    shell.become_dispatcher()

    old = shell.hear(ReplicateOk(Epoch(1, ME), 10**9))
    wrong = shell.hear(ReplicateOk(shell.node.epoch, 10**9))

    assert not [e for e in old if isinstance(e, Disconnect)]
    assert Disconnect(PEER, "protocol: number") in wrong


def test_append_numbers_of_an_epoch_never_decrease_on_one_link() -> None:
    """A replayed frame would be acknowledged like a new one."""
    shell = Shell(hello_of(THEIRS))

    right = shell.hear(*(Replicate(THEIRS, n, (), ()) for n in (3, 3, 0, 7)))
    wrong = shell.hear(Replicate(THEIRS, 6, (), ()))

    assert not [e for e in right if isinstance(e, Disconnect)]
    assert Disconnect(PEER, "protocol: number") in wrong


def test_the_parts_of_a_worker_report_are_bounded() -> None:
    """Each part is kept until the last."""
    shell = Shell()
    shell.become_dispatcher()
    part = Reattach((), 1, READY, has_more=True)

    kept = shell.hear(*[part] * REATTACH_PARTS_MAX)
    beyond = shell.hear(part)

    assert not [e for e in kept if isinstance(e, Disconnect)]
    assert Disconnect(PEER, "protocol: parts") in beyond


def test_a_peer_of_the_next_term_is_accepted() -> None:
    """The bound is far above real terms."""
    shell = Shell()
    theirs = epoch(1 << 19, "b")

    effects = shell.hear(Claim(theirs, NEW, ((KNOWN, 9),)))

    assert not [e for e in effects if isinstance(e, Disconnect)]
    assert shell.node.epoch == theirs
