"""The compaction floor, the facts carried past it, and snapshots."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.compaction import (
    CLOCK_GAIN_MS_MAX,
)
from octaskly.core.effects import (
    Answer,
    Append,
    Effect,
    LogLine,
    MergeRows,
    PlanFloor,
    Send,
    StageRows,
)
from octaskly.core.events import (
    FloorPlanned,
    PeerUp,
    PurgeRequested,
    SavedState,
)
from octaskly.core.log.facts import (
    Entry,
    Finished,
    Floor,
    StreamFloor,
    Submitted,
)
from octaskly.core.log.merge import SubmissionTimes, TaskRow
from octaskly.core.log.retired_streams import NONE_RETIRED
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.hlc import hlc_of
from octaskly.core.model.ids import (
    NO_EPOCH,
    STREAMS_MAX,
    STREAMS_WARN,
    Address,
    Moment,
    StreamId,
)
from octaskly.core.model.tasks import Attempt, AttemptState
from octaskly.core.protocol.messages import (
    Hello,
    Pull,
    Report,
    Results,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replies import NotDispatching, TasksPurged
from tests.support.builders import (
    STREAM,
    attempt,
    epoch,
    journal,
    moment,
    outcome,
    settings,
    spec,
)
from tests.support.dispatcher import (
    A,
    B,
    DispatcherWithJournal,
    appended_facts,
    deliver_results,
    dispatcher_with,
    task_record,
)

DAY_MS = 86_400_000
OTHER = StreamId(5)
FLOOR = Floor(9, (StreamFloor(OTHER, 3, epoch()),))
HEAD = SnapshotHead(
    vector=((OTHER, 7),), epochs=((OTHER, epoch()),), floor=FLOOR, hlc=70
)
ROW = TaskRow(task_record(), SubmissionTimes(1, 1, OTHER, 5), 2)


def pulls(effects: list[Effect]) -> list[Pull]:
    """Return the PULL messages among these effects."""
    sent = [e.messages for e in effects if isinstance(e, Send)]
    return [m for some in sent for m in some if isinstance(m, Pull)]


def part(
    key: int, *, more: bool, head: SnapshotHead | None = None, id_: int = 70
) -> Snapshot:
    """Return one part of the snapshot of `HEAD`."""
    after = SnapshotCursor(id_, key - 1) if head is None else None
    return Snapshot(
        rows=(ROW,),
        cursor=SnapshotCursor(id_, key),
        has_more=more,
        head=head,
        after=after,
    )


def nothing(_: Moment) -> list[Effect]:
    """Do nothing once a part is merged."""
    return []


def planned(world: DispatcherWithJournal, event: FloorPlanned) -> list[Effect]:
    """Ask the store when planning is due, and return its answer's effects."""
    asked = world.dispatch.on_time(moment(61))
    assert [type(effect) for effect in asked] == [PlanFloor]
    return world.dispatch.on_store_answer(event, moment(61))


def test_carried_facts_precede_the_floor() -> None:
    """All facts of a live task are carried, with its envelope last.

    A node that has forgotten the task never takes it back without its end.
    """
    world = dispatcher_with()
    ended = Attempt(attempt(), B, AttemptState.OK, outcome())
    carried = task_record("t", ended)

    written = appended_facts(planned(world, FloorPlanned(FLOOR, (carried,))))

    envelope = Submitted(carried.spec or spec())
    assert written == [
        Finished(carried.id, ended.id, B, outcome()),
        envelope,
        FLOOR,
    ]
    assert world.journal.floor == FLOOR
    assert world.journal.vector[OTHER] == 3


def test_what_is_carried_without_a_floor_is_durable_before_the_next_plan() -> None:
    """A step writes some results of tasks that are elsewhere; the next plan sees it."""
    world = dispatcher_with()
    ended = Attempt(attempt(), B, AttemptState.OK, outcome())
    elsewhere = replace(task_record("t", ended), spec=None)

    written = planned(world, FloorPlanned(None, (elsewhere,), has_more=True))
    assert appended_facts(written) == [Finished(elsewhere.id, ended.id, B, outcome())]
    assert world.dispatch.on_time(moment(62)) == []
    world.commit()

    again = world.dispatch.on_time(moment(62))
    assert [type(effect) for effect in again] == [PlanFloor]


def test_a_plan_from_before_a_floor_is_repeated() -> None:
    """That floor may have removed a task to be carried."""
    world = dispatcher_with()
    world.dispatch.on_time(moment(61))
    world.journal.raise_floor(FLOOR)

    assert (
        world.dispatch.on_store_answer(
            FloorPlanned(FLOOR, (task_record(),)), moment(61)
        )
        == []
    )


def test_a_clock_that_jumps_ahead_makes_nothing_older() -> None:
    """Forgotten tasks are gone on every node, for good."""
    world = dispatcher_with()
    late = moment(61)._replace(wall_ms=moment(61).wall_ms + 400 * DAY_MS)

    (asked,) = world.dispatch.on_time(late)

    assert isinstance(asked, PlanFloor)
    in_time = moment(61).wall_ms - 7 * DAY_MS
    assert asked.before_hlc <= hlc_of(in_time + CLOCK_GAIN_MS_MAX)


def meet(world: DispatcherWithJournal, wall_ms: int) -> None:
    """Let node b connect, with this clock."""
    node = settings("b").node
    hello = Hello(node=node, epoch=NO_EPOCH, dispatcher=None, wall_ms=wall_ms)
    event = PeerUp(B, hello, hello, Address("10.0.0.2", 7878))
    world.replication.peer_table.on_peer_up(event, moment())


def test_age_is_judged_by_the_slowest_clock() -> None:
    """One machine with a fast clock must not forget for all."""
    world = dispatcher_with()
    behind_ms = 600_000
    meet(world, moment().wall_ms - behind_ms)

    (asked,) = world.dispatch.on_time(moment(61))

    assert isinstance(asked, PlanFloor)
    assert asked.before_hlc == hlc_of(moment(61).wall_ms - 7 * DAY_MS - behind_ms)


@pytest.mark.parametrize("is_complete", [False, True])
def test_the_store_learns_whether_other_nodes_may_know_tasks(
    *, is_complete: bool
) -> None:
    """Old results of tasks that one of them knows must not be dropped."""
    world = dispatcher_with()
    world.is_log_complete = is_complete

    (asked,) = world.dispatch.on_time(moment(61))

    assert isinstance(asked, PlanFloor)
    assert asked.is_log_complete is is_complete


def test_an_unset_clock_is_ignored() -> None:
    """A board without a battery starts in 1970; nothing would ever be forgotten."""
    world = dispatcher_with()
    meet(world, DAY_MS)

    (asked,) = world.dispatch.on_time(moment(61))

    assert isinstance(asked, PlanFloor)
    assert asked.before_hlc == hlc_of(moment(61).wall_ms - 7 * DAY_MS)


def test_nothing_is_planned_during_a_step() -> None:
    """The next step is planned from the durable result of this one."""
    world = dispatcher_with()
    planned(world, FloorPlanned(FLOOR, has_more=True))

    assert world.dispatch.on_time(moment(65)) == []
    world.commit(65)
    assert any(isinstance(e, PlanFloor) for e in world.dispatch.on_time(moment(65)))


def test_a_log_with_many_streams_is_reported_long_before_it_has_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once in an epoch, with what to do."""
    assert STREAMS_WARN * 4 == STREAMS_MAX
    monkeypatch.setattr("octaskly.core.dispatcher.compaction.STREAMS_WARN", 0)
    world = dispatcher_with()
    world.journal.vector[STREAM] = 1

    warned, asked = world.dispatch.on_time(moment(61))
    again = world.dispatch.on_store_answer(FloorPlanned(None), moment(61))
    again += world.dispatch.on_time(moment(122))

    assert isinstance(warned, LogLine)
    assert (warned.level, warned.event) == ("warning", "log has many streams")
    assert dict(warned.fields)["max"] == STREAMS_MAX
    assert "octaskly forget" in str(dict(warned.fields)["hint"])
    assert isinstance(asked, PlanFloor)
    assert not any(isinstance(effect, LogLine) for effect in again)


def asked_to_forget(
    world: DispatcherWithJournal, ticket: int, seconds: int
) -> PlanFloor:
    """Ask between two checks of the age; return the questions to the store."""
    world.dispatch.compaction.on_purge_requested(
        PurgeRequested(ticket, seconds), moment(5)
    )
    assert world.timers.next_at() <= moment(5).mono_s
    (ask,) = world.dispatch.on_time(moment(5))
    assert isinstance(ask, PlanFloor)
    return ask


def answered(effects: list[Effect]) -> list[Answer]:
    return [effect for effect in effects if isinstance(effect, Answer)]


def test_a_request_to_forget_is_answered_with_the_durable_count() -> None:
    """It runs at once, in steps, and ignores the usual age."""
    world = dispatcher_with()

    ask = asked_to_forget(world, 3, 60)
    assert hlc_of(moment(5).wall_ms - 60_000) <= ask.purge_hlc
    assert ask.purge_hlc < hlc_of(moment(5).wall_ms - 59_000)
    first = FloorPlanned(FLOOR, has_more=True, purged_count=10)
    assert answered(world.dispatch.on_store_answer(first, moment(5))) == []
    assert answered(world.commit(5)) == []
    (again,) = world.dispatch.on_time(moment(6))
    assert isinstance(again, PlanFloor)
    assert again.purge_hlc == ask.purge_hlc
    last = FloorPlanned(replace(FLOOR, horizon=10), purged_count=4)
    assert answered(world.dispatch.on_store_answer(last, moment(6))) == []

    assert answered(world.commit(6)) == [Answer(3, TasksPurged(14))]

    (later,) = world.dispatch.on_time(moment(70))
    assert isinstance(later, PlanFloor)
    assert later.purge_hlc == 0


def test_nothing_to_forget_is_answered_unless_rows_are_being_deleted() -> None:
    """Void rows still precede the next ones."""
    world = dispatcher_with()
    asked_to_forget(world, 3, 0)

    deleting = world.dispatch.on_store_answer(
        FloorPlanned(None, has_more=True), moment(5)
    )
    assert deleting == []
    assert len(world.dispatch.on_time(moment(6))) == 1
    done = world.dispatch.on_store_answer(FloorPlanned(None), moment(6))

    assert done == [Answer(3, TasksPurged(0))]


def test_a_request_to_forget_during_a_plan_is_planned_next() -> None:
    """Tasks beyond the first request are not reported as forgotten."""
    world = dispatcher_with()
    asked_to_forget(world, 3, 60)
    world.dispatch.compaction.on_purge_requested(PurgeRequested(4, 0), moment(5))

    assert world.dispatch.on_store_answer(FloorPlanned(None), moment(5)) == []
    assert len(world.dispatch.on_time(moment(6))) == 1
    done = world.dispatch.on_store_answer(FloorPlanned(None), moment(6))

    assert done == [Answer(3, TasksPurged(0)), Answer(4, TasksPurged(0))]


def test_a_request_to_forget_is_answered_when_the_epoch_ends() -> None:
    """The client asks the next dispatcher at once."""
    world = dispatcher_with()
    asked_to_forget(world, 3, 60)

    assert world.dispatch.stop_dispatching() == [Answer(3, NotDispatching())]


def test_an_epoch_starts_with_the_known_floor() -> None:
    """A reader of its stream knows which tasks were gone before it."""
    world = DispatcherWithJournal()
    world.journal.raise_floor(FLOOR)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())

    assert appended_facts(world.dispatch.on_time(moment())) == [FLOOR]
    assert world.dispatch.on_time(moment()) == []


def test_a_result_below_the_floor_restores_no_task() -> None:
    """It is written and acknowledged, but its envelope is not."""
    world = dispatcher_with(a=1)
    ended = attempt(stream=OTHER)
    world.journal.raise_floor(FLOOR)
    old, new = spec("old", ord=9), spec("new", ord=10)
    reports = tuple(
        Report(task=s.id, attempt=ended, outcome=outcome(), spec=s) for s in (old, new)
    )

    effects = deliver_results(world.dispatch, A, Results(reports, 1), moment())

    assert appended_facts(effects) == [
        Finished(old.id, ended, A, outcome()),
        Submitted(new),
        Finished(new.id, ended, A, outcome()),
    ]


def test_a_floor_waits_for_the_entries_of_its_writer() -> None:
    """A task could otherwise disappear here before its copy or its end arrives."""
    log = journal()
    floor = replace(FLOOR, required_vector=((StreamId(6), 1),))
    entries = [Entry(StreamId(8), 1, 10, floor)]
    assert log.append_remote(entries, ()) is None
    assert (
        log.append_remote([Entry(StreamId(6), 1, 10, Submitted(spec()))], ())
        is not None
    )

    assert isinstance(log.append_remote(entries, ()), Append)
    assert log.floor == FLOOR


def test_a_snapshot_is_staged_then_merged_and_moves_the_vector_at_its_end() -> None:
    """The next step is taken once the previous one is on disk."""
    log = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(log, Outbox(), {})
    exchange.pull_from(A)

    def next_step() -> list[Effect]:
        log.on_persisted(log.last_number)
        return log.run_deferred(moment())

    first = exchange.on_snapshot(A, part(1, more=True, head=HEAD), nothing)
    assert [type(effect) for effect in first] == [StageRows]
    assert pulls(next_step()) == [Pull((), SnapshotCursor(70, 1))]
    last = exchange.on_snapshot(A, part(2, more=False), nothing)
    assert [type(effect) for effect in last] == [StageRows]
    exchange.drop_peer(A)  # All parts are here, so that does not matter any more.
    assert log.will_hold_log(HEAD.vector, NONE_RETIRED)
    assert next_step() == [MergeRows(3, 1, HEAD, (), is_last=False)]
    assert exchange.is_pulling
    assert next_step() == [MergeRows(4, 1, HEAD, (), is_last=True)]
    assert log.vector == {OTHER: 7}
    assert log.floor == FLOOR
    assert not exchange.is_pulling


def test_an_interrupted_snapshot_starts_again() -> None:
    """Parts of the previous one do not count for the next."""
    log = Journal(SavedState(), Outbox())
    exchange = AntiEntropy(log, Outbox(), {})
    exchange.pull_from(A)
    exchange.on_snapshot(A, part(1, more=True, head=HEAD), nothing)
    exchange.drop_peer(A)
    log.on_persisted(1)

    assert pulls(log.run_deferred(moment())) == []
    assert exchange.on_snapshot(A, part(2, more=False), nothing) == []
    assert log.vector == {}
    later = replace(HEAD, hlc=71)
    exchange.on_snapshot(A, part(1, more=True, head=later, id_=71), nothing)
    assert exchange.on_snapshot(A, part(2, more=False), nothing) == []
