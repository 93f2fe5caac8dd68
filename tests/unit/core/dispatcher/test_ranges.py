"""Members of arrays that go by ranges: each is a task as before."""

from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Append, Effect, LoadQueued, Send
from octaskly.core.events import CancelRequested, LiveLoaded, TasksLoaded
from octaskly.core.log.facts import Assigned, Fact, Finished, TaskCancelled
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.range_facts import member_entries
from octaskly.core.model.arrays import (
    ArrayProgress,
    MemberRange,
    RangeMembers,
    attempt_at,
    member_id,
)
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, TaskSpec, TaskState
from octaskly.core.protocol.messages import (
    ITEMS_MAX,
    AssignRanges,
    Kill,
    MemberSuccess,
    RangeReport,
    RangeResults,
    RangeResultsOk,
    Results,
    ResultsOk,
)
from octaskly.core.replies import TaskExplanation
from tests.support.builders import (
    STREAM,
    draft,
    epoch,
    load_reply,
    moment,
    node_info,
    outcome,
    released,
    report,
)
from tests.support.dispatcher import (
    A,
    B,
    DispatcherWithJournal,
    deliver_results,
    reattach_report,
    submission,
)
from tests.support.dispatcher_with_workers import roster_line

FAILED = outcome(AttemptState.FAILED)
SUCCESS = MemberSuccess(1, 2, 1)


class Mesh(DispatcherWithJournal):
    """A dispatcher with workers, to which an array is submitted."""

    def __init__(self, array: ArraySpec, **slots: int) -> None:
        super().__init__()
        self.names = tuple(slots)
        self.dispatch.start_dispatching(epoch(), STREAM, moment())
        self.dispatch.on_queued_loaded(
            load_reply([], LoadQueued(1, -1, 5000)), moment()
        )
        self.dispatch.on_submitted(submission(array_draft(array)), moment())
        self.effects: list[Effect] = []
        self.settle()
        self.array: TaskSpec = next(
            iter(self.dispatch._queue.tasks._tasks.values())
        ).spec
        self.dispatch.on_live_loaded(LiveLoaded(1, ()), moment())
        self.dispatch.pause_accepting()
        for name, count in slots.items():
            self.dispatch.on_worker_up(node_info(name, count), moment())
            self.dispatch.on_reattach(*reattach_report(name, count), moment())
        self.effects += self.dispatch.resume_accepting(moment())
        self.settle()

    def settle(self) -> None:
        """Commit until nothing follows."""
        while found := self.commit():
            self.effects += found

    def facts(self) -> list[Fact]:
        appends = [each for each in self.effects if isinstance(each, Append)]
        entries = [entry for each in appends for entry in each.entries]
        return [entry.fact for entry in member_entries(entries)]

    def ranges(self, name: str) -> list[MemberRange]:
        """Return what a worker got since the last call of `clear`."""
        return [
            item
            for effect in self.effects
            if isinstance(effect, Send) and effect.peer == name
            for message in effect.messages
            if isinstance(message, AssignRanges)
            for item in message.items
        ]

    def clear(self) -> None:
        self.effects.clear()

    def succeed(
        self, name: str, leased: MemberRange, *offsets: int, credit: int = 0
    ) -> None:
        """Let a worker report successes of members."""
        ended = RangeReport(members(leased, *offsets), (SUCCESS,) * len(offsets))
        results = RangeResults((ended,), credit)
        self.effects += deliver_results(self.dispatch, NodeId(name), results, moment())

    def fail(self, name: str, leased: MemberRange, offset: int) -> None:
        ((task, attempt),) = members(leased, offset).attempt_keys()
        results = Results((report(str(task), attempt, FAILED),), 0)
        self.effects += deliver_results(self.dispatch, NodeId(name), results, moment())

    def member(self, number: int) -> TaskId:
        return member_id(self.array.id, number)

    @property
    def held(self) -> dict[str, int]:
        return {name: self.dispatch.outstanding(NodeId(name)) for name in self.names}


def array_draft(array: ArraySpec) -> TaskDraft:
    return replace(draft("echo {}"), options=TaskOptions(array=array))


def members(leased: MemberRange, *offsets: int) -> RangeMembers:
    array = leased.array.array
    assert array is not None
    return RangeMembers(
        leased.array.id, array.first, array.step, leased.attempt, offsets
    )


def states(mesh: Mesh) -> dict[str, list[int]]:
    """Return the numbers of the members with each kind of fact."""
    found: dict[str, list[int]] = {}
    for fact in mesh.facts():
        _, dot, number = fact.task.rpartition(".")
        if dot:
            found.setdefault(type(fact).__name__, []).append(int(number))
    return found


def killed(mesh: Mesh, name: str) -> list[TaskId]:
    """Return the tasks whose attempts a worker is to end."""
    return [
        task
        for effect in mesh.effects
        if isinstance(effect, Send) and effect.peer == name
        for message in effect.messages
        if isinstance(message, Kill)
        for task, _ in message.items
    ]


def test_an_array_has_unended_members_until_its_last_one_is_decided() -> None:
    """Those that no worker has count, too."""
    mesh = Mesh(ArraySpec(count=5, first=1), a=2, b=1)
    has_unended = partial(mesh.dispatch.has_unended_members, mesh.array.id)
    first, second = *mesh.ranges("a"), *mesh.ranges("b")

    mesh.clear()
    mesh.succeed("a", first, 0, 1, credit=2)
    mesh.settle()
    (third,) = mesh.ranges("a")
    assert has_unended()
    mesh.succeed("a", third, 0, 1)
    assert has_unended()
    mesh.fail("b", second, 0)
    assert not has_unended()


def test_workers_get_consecutive_members_in_one_message() -> None:
    """Their attempts follow each other in the log."""
    mesh = Mesh(ArraySpec(count=7, first=10, step=5), b=3)

    (leased,) = mesh.ranges("b")
    assert leased.position == 0
    assert [spec.command for _, spec in leased.members()] == [
        "echo 10",
        "echo 15",
        "echo 20",
    ]
    assigned = [fact for fact in mesh.facts() if isinstance(fact, Assigned)]
    assert [(fact.task, fact.attempt) for fact in assigned] == [
        (spec.id, attempt) for attempt, spec in leased.members()
    ]
    appends = [effect for effect in mesh.effects if isinstance(effect, Append)]
    entries = [entry for each in appends for entry in each.entries]
    seqs = {entry.fact.task: entry.seq for entry in member_entries(entries)}
    assert all(fact.attempt.seq == seqs[fact.task] for fact in assigned)


def test_members_of_one_step_are_divided_between_workers_in_order() -> None:
    """Each worker gets members that follow each other."""
    mesh = Mesh(ArraySpec(count=9, items=tuple("abcdefghi"), has_items=True), a=2, b=4)

    ((on_a,), (on_b,)) = mesh.ranges("a"), mesh.ranges("b")
    commands = [
        [spec.command.removeprefix("echo ") for _, spec in each.members()]
        for each in sorted((on_a, on_b), key=lambda each: each.position)
    ]
    assert sorted(map(len, commands)) == [2, 4]
    assert "".join(item for some in commands for item in some) == "abcdef"
    for each in (on_a, on_b):
        assert each.array.array is not None
        assert len(each.array.array.items) == each.count


def test_successes_of_a_range_are_written_and_acknowledged_together() -> None:
    """The worker forgets them once they are durable."""
    mesh = Mesh(ArraySpec(count=6), b=4)
    (leased,) = mesh.ranges("b")
    mesh.clear()

    mesh.succeed("b", leased, 0, 2)

    ended = [fact for fact in mesh.facts() if isinstance(fact, Finished)]
    assert [(fact.task, fact.attempt, fact.decided_term) for fact in ended] == [
        (mesh.member(0), leased.attempt, 1),
        (mesh.member(2), attempt_at(leased.attempt, 2), 1),
    ]
    assert not [e for e in mesh.effects if isinstance(e, Send)]
    mesh.settle()
    acks = [m for e in mesh.effects if isinstance(e, Send) for m in e.messages]
    assert acks == [RangeResultsOk((members(leased, 0, 2),))]
    assert mesh.held["b"] == 2
    assert mesh.dispatch.ended_counts[TaskState.COMPLETED] == 2


def test_a_repeated_report_writes_nothing_until_it_is_acknowledged() -> None:
    """Else a worker could make the log grow."""
    mesh = Mesh(ArraySpec(count=3), b=3)
    (leased,) = mesh.ranges("b")
    mesh.succeed("b", leased, 0, 1)
    mesh.clear()

    mesh.succeed("b", leased, 0, 1)
    mesh.succeed("b", leased, 1, 2)

    assert states(mesh) == {"Finished": [2]}
    mesh.settle()
    assert mesh.held["b"] == 0
    assert mesh.dispatch._queue.tasks.count == 0
    assert not mesh.dispatch._queue.tasks.ranges


def test_a_failed_member_leaves_the_others_of_its_range() -> None:
    """It may be retried, and counts for `max_fails`."""
    mesh = Mesh(ArraySpec(count=5, max_fails=3), b=5)
    (leased,) = mesh.ranges("b")
    mesh.clear()

    mesh.fail("b", leased, 1)
    mesh.succeed("b", leased, 0, 2, 3, 4)
    mesh.settle()

    assert states(mesh) == {"Finished": [1, 0, 2, 3, 4]}
    assert mesh.dispatch.ended_counts[TaskState.FAILED] == 1
    assert mesh.dispatch.ended_counts[TaskState.COMPLETED] == 4
    assert mesh.dispatch._queue.tasks.count == 0
    assert not mesh.dispatch._queue.tasks.ranges


def test_a_range_of_which_all_members_fail_leaves_memory() -> None:
    """Each of them has left the range before."""
    mesh = Mesh(ArraySpec(count=3), b=3)
    (leased,) = mesh.ranges("b")

    mesh.succeed("b", leased, 1)
    mesh.settle()
    for offset in (0, 2):
        mesh.fail("b", leased, offset)
    mesh.settle()

    assert mesh.dispatch._queue.tasks.count == 0
    assert not mesh.dispatch._queue.tasks.ranges


@pytest.mark.parametrize("workers", [2, 50])
def test_too_many_failures_in_many_ranges_cut_the_array_off_once(workers: int) -> None:
    """What was prefetched is given up, what runs goes on."""
    names = [f"w{number}" for number in range(workers)]
    mesh = Mesh(ArraySpec(count=1000, max_fails=2), **dict.fromkeys(names, 4))
    leases = {name: mesh.ranges(name)[0] for name in names}
    mesh.clear()

    for offset in range(4):
        for name, leased in leases.items():
            mesh.fail(name, leased, offset)
    mesh.settle()

    cancels = [fact for fact in mesh.facts() if isinstance(fact, TaskCancelled)]
    assert [fact.task for fact in cancels] == [mesh.array.id]
    assert sorted(states(mesh)["Finished"]) == list(range(4 * workers))
    assert not any(mesh.held.values())
    assert mesh.dispatch._queue.tasks.count == 0
    assert not mesh.dispatch._queue.tasks.ranges


def test_a_cancel_by_force_ends_every_member_that_runs() -> None:
    """Also those of ranges of which others have succeeded."""
    mesh = Mesh(ArraySpec(count=100), a=3, b=3)
    (leased,) = mesh.ranges("a")
    mesh.succeed("a", leased, 1)
    mesh.clear()
    progress = ArrayProgress(queued=94, running=5, completed=1)
    record = TaskRecord(mesh.array.id, mesh.array, progress=progress)
    cancel = CancelRequested(
        5, mesh.array.id, TaskState.RUNNING, True, "ann", array_record=record
    )

    mesh.effects += mesh.dispatch.on_cancel_requested(cancel, moment())

    names = [mesh.member(number) for number in (0, 2, 3, 4, 5)]
    assert sorted(killed(mesh, "a") + killed(mesh, "b")) == names
    assert sorted(states(mesh)["TaskCancelled"]) == [0, 2, 3, 4, 5]


def test_a_cancelled_array_counts_as_its_members_do() -> None:
    """All of them run, so the array itself is no longer in memory."""
    mesh = Mesh(ArraySpec(count=2), b=2)
    (leased,) = mesh.ranges("b")
    progress = ArrayProgress(running=2)
    record = TaskRecord(mesh.array.id, mesh.array, progress=progress)
    cancel = CancelRequested(
        5, mesh.array.id, TaskState.RUNNING, True, "ann", array_record=record
    )

    mesh.effects += mesh.dispatch.on_cancel_requested(cancel, moment())
    for offset in (0, 1):
        mesh.fail("b", leased, offset)
    mesh.settle()

    assert mesh.dispatch.ended_counts[TaskState.CANCELLED] == 2


def test_a_cancel_by_force_ends_200_ranges() -> None:
    """In each range some members have succeeded, one has failed, and some run."""
    names = [f"w{number}" for number in range(200)]
    mesh = Mesh(ArraySpec(count=10_000), **dict.fromkeys(names, 5))
    leases = {name: mesh.ranges(name)[0] for name in names}
    for name, leased in leases.items():
        mesh.succeed(name, leased, 0, 3)
        mesh.fail(name, leased, 1)
    mesh.settle()
    mesh.clear()
    progress = ArrayProgress(queued=9000, running=400, completed=400, failed=200)
    record = TaskRecord(mesh.array.id, mesh.array, progress=progress)
    cancel = CancelRequested(
        5, mesh.array.id, TaskState.RUNNING, True, "ann", array_record=record
    )

    mesh.effects += mesh.dispatch.on_cancel_requested(cancel, moment())
    for name, leased in leases.items():
        assert len(killed(mesh, name)) == 2
        mesh.fail(name, leased, 2)
        mesh.fail(name, leased, 4)
    mesh.settle()
    ended = ArrayProgress(completed=400, failed=200, cancelled=9400)
    read = TasksLoaded(1, (record.id,), (replace(record, progress=ended),))
    mesh.effects += mesh.dispatch.on_tasks_loaded(read, moment())
    mesh.settle()

    cancels = [fact.task for fact in mesh.facts() if isinstance(fact, TaskCancelled)]
    assert len(cancels) == len(set(cancels)) == 1 + 400
    assert mesh.dispatch.ended_counts[TaskState.COMPLETED] == 400
    assert mesh.dispatch.ended_counts[TaskState.FAILED] == 200
    assert mesh.dispatch.ended_counts[TaskState.CANCELLED] == 400
    assert not any(mesh.held.values())
    assert mesh.dispatch._queue.tasks.count == 0
    assert not mesh.dispatch._queue.tasks.ranges


def test_a_cancel_spares_the_members_that_have_begun() -> None:
    """The worker begins them in order, so those behind its slots only wait there."""
    mesh = Mesh(ArraySpec(count=100), b=2)
    mesh.effects += deliver_results(mesh.dispatch, B, Results((), 6), moment())
    assert [leased.count for leased in mesh.ranges("b")] == [2, 4]
    mesh.clear()
    progress = ArrayProgress(queued=94, running=6)
    record = TaskRecord(mesh.array.id, mesh.array, progress=progress)
    cancel = CancelRequested(
        5, mesh.array.id, TaskState.RUNNING, False, "ann", array_record=record
    )

    mesh.effects += mesh.dispatch.on_cancel_requested(cancel, moment())

    sent = [e for e in mesh.effects if isinstance(e, Send)]
    (kill,) = [m for each in sent for m in each.messages if isinstance(m, Kill)]
    assert kill.spares_begun
    names = [mesh.member(number) for number in (2, 3, 4, 5)]
    assert [task for task, _ in kill.items] == names

    returned = released(EndReason.RETURNED)
    ends = [report(str(task), of, returned) for task, of in kill.items[:3]]
    begun = report(str(names[3]), kill.items[3][1], outcome())
    results = Results((*ends, begun), 2)
    mesh.effects += deliver_results(mesh.dispatch, B, results, moment())
    mesh.settle()
    cancels = [f.task for f in mesh.facts() if isinstance(f, TaskCancelled)]
    ended = [f.task for f in mesh.facts() if getattr(f, "decided_term", 0)]
    assert (cancels, ended) == ([mesh.array.id], [names[3]])
    assert not [f for f in mesh.facts() if isinstance(f, Assigned)]
    assert mesh.dispatch.ended_counts[TaskState.CANCELLED] == 3


def test_members_of_a_lost_worker_run_again() -> None:
    """Those that it had reported do not."""
    mesh = Mesh(ArraySpec(count=4), a=1, b=3)
    (leased,) = mesh.ranges("b")
    mesh.succeed("b", leased, 0)
    mesh.settle()
    mesh.clear()

    mesh.effects += mesh.dispatch.on_worker_down(B, moment(9.0))
    mesh.dispatch.reconciler.expire_absent_workers(moment(9.0))
    mesh.settle()

    ends = [fact for fact in mesh.facts() if isinstance(fact, Finished)]
    assert {fact.outcome.reason for fact in ends} == {EndReason.LOST}
    assert len(ends) == 2
    assert mesh.held == {"a": 1, "b": 0}


def test_members_that_a_worker_was_not_given_are_reports_of_unknown_attempts() -> None:
    """They neither end a member that another worker has, nor free its slot."""
    mesh = Mesh(ArraySpec(count=8), a=4, b=4)
    (leased,) = mesh.ranges("b")
    mesh.clear()

    mesh.succeed("a", leased, 0, 1)
    far = replace(leased, attempt=AttemptId(1, STREAM, 900, 1))
    mesh.succeed("b", far, 0, 1)

    assert mesh.held == {"a": 4, "b": 4}


def test_a_report_over_two_ranges_of_its_worker_ends_each_member_once() -> None:
    """No correct worker sends it; each attempt in it is one that the worker has."""
    mesh = Mesh(ArraySpec(count=6), b=2)
    mesh.effects += deliver_results(mesh.dispatch, B, Results((), 6), moment())
    first, second = mesh.ranges("b")
    mesh.clear()

    mesh.succeed("b", first, *range(6))
    mesh.succeed("b", second, *range(4))
    mesh.settle()

    assert states(mesh) == {"Finished": list(range(6))}
    assert mesh.dispatch.ended_counts[TaskState.COMPLETED] == 6
    assert mesh.held["b"] == 0
    assert mesh.dispatch._queue.tasks.count == 0


def test_a_report_of_the_range_of_another_worker_ends_no_attempt_there() -> None:
    """A success counts whoever reports it; the other worker stops, and says so."""
    mesh = Mesh(ArraySpec(count=8), a=4, b=4)
    (others,) = mesh.ranges("a")
    mesh.clear()

    mesh.succeed("b", others, 1, 2)
    mesh.settle()

    names = sorted(task for task, _ in members(others, 1, 2).attempt_keys())
    assert sorted(killed(mesh, "a")) == names
    assert mesh.held == {"a": 4, "b": 4}
    assert mesh.dispatch.ended_counts[TaskState.COMPLETED] == 0
    for offset in (1, 2):
        mesh.fail("a", others, offset)
    mesh.settle()
    assert mesh.held == {"a": 2, "b": 4}
    assert mesh.dispatch.ended_counts[TaskState.COMPLETED] == 2
    assert mesh.dispatch.ended_counts[TaskState.FAILED] == 0


def test_as_many_failures_as_a_message_holds_fail_each_member_once() -> None:
    """No correct worker reports a member again in one message."""
    mesh = Mesh(ArraySpec(count=16), b=8)
    (leased,) = mesh.ranges("b")
    mesh.clear()
    keys = members(leased, *range(8)).attempt_keys()
    failures = [report(str(task), attempt, FAILED) for task, attempt in keys]

    repeated = Results(tuple(failures) * (ITEMS_MAX // 8), 0)
    mesh.effects += deliver_results(mesh.dispatch, B, repeated, moment())
    mesh.settle()

    ended = [fact.task for fact in mesh.facts() if isinstance(fact, Finished)]
    assert ended == [task for task, _ in keys]
    assert mesh.dispatch.ended_counts[TaskState.FAILED] == 8
    assert mesh.held["b"] == 0
    assert mesh.dispatch._queue.tasks.count <= 16


def test_a_range_with_few_members_left_is_given_up_for_tasks() -> None:
    """A long command must not keep hundreds of ended members in memory."""
    mesh = Mesh(ArraySpec(count=16), b=16)
    (leased,) = mesh.ranges("b")

    mesh.succeed("b", leased, *range(15))
    mesh.settle()

    tasks = mesh.dispatch._queue.tasks
    assert not tasks.ranges
    assert list(tasks._tasks) == [mesh.member(15)]
    mesh.succeed("b", leased, 15)
    mesh.settle()
    assert tasks.count == 0
    assert mesh.held["b"] == 0


def test_memory_is_bounded_while_every_third_member_fails() -> None:
    """Failed members leave their ranges, and leave memory once they are durable."""
    mesh = Mesh(ArraySpec(count=3000), b=60)
    most = 0
    while leases := mesh.ranges("b"):
        mesh.clear()
        for leased in leases:
            for offset in range(0, leased.count, 3):
                mesh.fail("b", leased, offset)
            rest = [at for at in range(leased.count) if at % 3]
            if rest:
                mesh.succeed("b", leased, *rest, credit=60)
            else:
                mesh.effects += deliver_results(
                    mesh.dispatch, B, Results((), 60), moment()
                )
        mesh.settle()
        most = max(most, mesh.dispatch._queue.tasks.count)

    counts = mesh.dispatch.ended_counts
    assert (counts[TaskState.FAILED], counts[TaskState.COMPLETED]) == (1000, 2000)
    assert most <= 61
    assert mesh.dispatch._queue.tasks.count == 0
    assert not mesh.dispatch._queue.tasks.ranges


def test_acknowledgements_name_single_results_as_before() -> None:
    """A failure goes by itself."""
    mesh = Mesh(ArraySpec(count=2), b=2)
    (leased,) = mesh.ranges("b")
    mesh.clear()

    mesh.fail("b", leased, 1)
    mesh.settle()

    acks = [m for e in mesh.effects if isinstance(e, Send) for m in e.messages]
    assert acks == [ResultsOk(tuple(members(leased, 1).attempt_keys()))]
    assert A not in {e.peer for e in mesh.effects if isinstance(e, Send)}


@pytest.mark.parametrize(
    ("slots", "is_paused", "text"),
    [
        ({"b": 4}, False, "3 of 9 members are running on b"),
        ({"b": 4}, True, "3 of 9 members are running on b, which is paused"),
        ({"b": 2, "c": 2}, False, "3 of 9 members are running"),
        ({"b": 2, "c": 2}, True, "3 of 9 members are running; b is paused"),
    ],
)
def test_the_last_members_show_a_paused_node(
    slots: dict[str, int], is_paused: bool, text: str
) -> None:
    """They count as running, but make no progress."""
    mesh = Mesh(ArraySpec(count=4), **slots)
    mesh.dispatch._queue.tasks.get(mesh.member(0))  # It becomes a task of its own.
    states = {"b": NodeState.PAUSED if is_paused else NodeState.READY}
    nodes = [
        roster_line(node_info(name, count), states.get(name, NodeState.READY))
        for name, count in slots.items()
    ]
    record = TaskRecord(mesh.array.id, mesh.array, progress=ArrayProgress(0, 3, 6))

    explanation = mesh.dispatch.explainer.explain_task(
        record, nodes, moment(), {node.id: node.name for node in nodes}
    )

    assert explanation == TaskExplanation(TaskState.RUNNING, text)
