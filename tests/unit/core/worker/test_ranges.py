"""Members of arrays that a worker got by a range: each is an attempt like any other."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Send, Start
from octaskly.core.model.arrays import MemberRange, RangeMembers
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import (
    AssignRanges,
    Kill,
    MemberSuccess,
    RangeReport,
    RangeResults,
    RangeResultsOk,
    Reattach,
    Report,
    Results,
)
from octaskly.core.worker.worker import Worker
from tests.support.builders import attempt, epoch, moment, released, spec
from tests.support.worker import D, E, attached_worker

ARRAY = replace(
    spec("task-001-0000000a", command="echo {} {#}"),
    options=TaskOptions(array=ArraySpec(count=3, first=20, step=5)),
)
LEASED = MemberRange(ARRAY, 4, attempt())
MEMBERS = tuple(LEASED.members())
DONE = Outcome(AttemptState.OK, EndReason.EXIT, 0, duration_ms=1, stdout=b"20")
FAILED = Outcome(AttemptState.FAILED, EndReason.EXIT, 1)


def with_range(worker: Worker | None = None) -> Worker:
    worker = worker or attached_worker()
    effects = worker.on_assign(D, AssignRanges(epoch(1, "d"), (LEASED,)), moment())
    assert effects == [Start(MEMBERS)]
    return worker


def ended(*ends: tuple[int, Outcome]) -> tuple[Report, ...]:
    return tuple(
        Report(MEMBERS[at][1].id, MEMBERS[at][0], outcome) for at, outcome in ends
    )


def named(*offsets: int) -> RangeMembers:
    return RangeMembers(ARRAY.id, 20, 5, attempt(), offsets)


def sent(effects: list[object]) -> list[object]:
    return [m for e in effects if isinstance(e, Send) for m in e.messages]


def test_a_range_starts_its_members_in_order() -> None:
    """Placeholders have the values that they have in the whole array."""
    with_range()

    assert [one.command for _, one in MEMBERS] == [
        "echo 20 5",
        "echo 25 6",
        "echo 30 7",
    ]
    assert [of.seq for of, _ in MEMBERS] == [1, 2, 3]


def test_a_range_that_is_sent_again_starts_nothing() -> None:
    """The first message may have arrived although its link broke."""
    worker = with_range()

    effects = worker.on_assign(D, AssignRanges(epoch(1, "d"), (LEASED,)), moment())

    assert effects == []
    assert worker.running == 2


def test_successes_are_reported_by_range_and_failures_one_by_one() -> None:
    """In the order of the members, whatever the order of the ends."""
    worker = with_range()

    effects = worker.on_attempts_ended(
        ended((2, DONE), (1, FAILED), (0, DONE)), moment()
    )

    success = MemberSuccess(None, None, 1, b"20")
    by_range, single = sent([*effects])
    assert isinstance(by_range, RangeResults)
    assert by_range.items == (RangeReport(named(0, 2), (success, success)),)
    assert isinstance(single, Results)
    assert single.reports == ended((1, FAILED))


def test_an_acknowledgement_of_members_lets_the_worker_forget_their_results() -> None:
    """Those that it does not name are sent again, with their specs."""
    worker = with_range()
    worker.on_attempts_ended(ended((0, DONE), (1, DONE), (2, DONE)), moment())

    worker.on_results_ok(RangeResultsOk((named(0, 2),)), moment())

    assert not worker.is_idle
    (again,) = sent([*worker.on_time(moment(1.5))])
    assert isinstance(again, Results)
    assert again.reports == (replace(ended((1, DONE))[0], spec=MEMBERS[1][1]),)
    worker.on_results_ok(RangeResultsOk((named(1),)), moment(2.0))
    assert worker.is_idle


def test_members_are_killed_and_listed_one_by_one() -> None:
    """A cancel may be about one of them, and the next dispatcher knows no ranges."""
    worker = with_range()
    key = (MEMBERS[1][1].id, MEMBERS[1][0])

    worker.on_kill(Kill(epoch(1, "d"), (key,)), moment())
    effects = worker.on_attempts_ended(ended((1, DONE)), moment())

    (single,) = sent([*effects])
    assert isinstance(single, Results)
    assert single.reports[0].outcome.state is AttemptState.CANCELLED
    (reattach,) = (
        message
        for message in sent([*worker.attach(E, epoch(2, "e"), moment())])
        if isinstance(message, Reattach)
    )
    assert reattach.running[:2] == (MEMBERS[0], MEMBERS[2])


def test_a_range_of_a_deposed_dispatcher_is_refused() -> None:
    """Rule I7 holds for each member."""
    worker = attached_worker()
    worker.attach(E, epoch(2, "e"), moment())

    effects = worker.on_assign(D, AssignRanges(epoch(1, "d"), (LEASED,)), moment())

    (refused,) = sent([*effects])
    assert isinstance(refused, Results)
    assert [r.outcome for r in refused.reports] == [released(EndReason.STALE)] * 3
    assert worker.is_idle
