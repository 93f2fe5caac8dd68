"""Burst's rule: the cases that its docstrings promise, one by one."""

from __future__ import annotations

from octaskly.cli.burst.policy import (
    ADMITTED_S,
    FAILURES_MAX,
    GONE_S,
    NO_JOIN_S,
    OVERDUE_S,
    OVERTAKEN_S,
    PROVEN_S,
    RETRY_S,
    RETRY_S_MAX,
    SETTLE_S,
    WAITED_S,
    Action,
    BurstPolicy,
    CommandEnded,
    CommandKeepsFailing,
    Failed,
    Joined,
    Left,
    NobodyJoined,
    NotPolled,
    Overdue,
    Polled,
    RunCommand,
    TimeIsUp,
    Visitor,
    VisitorsRunNothing,
    Withdraw,
)

REQUEST_S = 7200.0
IDLE_S = 60.0
NODE17 = Visitor(name="node17", slots=32, leaves_at="16:40")


class Clocked:
    """A policy with a clock that each step advances."""

    def __init__(self, visitors_max: int = 4, until_s: float | None = None) -> None:
        self.policy = BurstPolicy(visitors_max, REQUEST_S, IDLE_S, until_s)
        self.now_s = 1000.0

    def poll(
        self,
        waiting: int,
        *here: int,
        worked: tuple[int, ...] = (),
        after_s: float = 1.0,
    ) -> list[Action]:
        """Poll the mesh a while later; `here` are the runs whose visitors are there."""
        visitors = dict.fromkeys(here, NODE17)
        return self.see(Polled(waiting, visitors, frozenset(worked)), after_s)

    def see(self, polled: Polled, after_s: float = 1.0) -> list[Action]:
        """See the mesh in this state a while later."""
        self.now_s += after_s
        return self.policy.step(polled, self.now_s)

    def end(self, run: int, error: str | None = None) -> list[Action]:
        """End a run of the command at once."""
        return self.policy.step(CommandEnded(run, error), self.now_s)

    def idle(self, run: int, waiting: int = 9) -> list[Action]:
        """Let the visitor of a run be there for its idle time, and leave."""
        self.poll(waiting, run)
        self.poll(waiting, run, after_s=IDLE_S)
        return self.leave(waiting)

    def leave(self, waiting: int, worked: tuple[int, ...] = ()) -> list[Action]:
        """Poll without visitors, and again once those that were there are gone."""
        assert self.poll(waiting, worked=worked) == []
        return self.poll(waiting, worked=worked, after_s=GONE_S)

    def wait(self) -> None:
        """Let tasks wait for long enough."""
        assert self.poll(9) == []
        self.now_s += WAITED_S - 1.0


def test_command_runs_once_tasks_have_waited() -> None:
    """A queue that is gone in a moment needs no other machine."""
    burst = Clocked()

    assert burst.poll(1) == []
    assert burst.poll(1, after_s=WAITED_S - 0.1) == []
    assert burst.poll(0, after_s=0.1) == []
    assert burst.poll(1) == []
    assert burst.poll(1, after_s=WAITED_S) == [RunCommand(1)]


def test_visitors_max_bounds_requested_and_present_visitors() -> None:
    """Each run counts from its start until its visitor has left."""
    burst = Clocked(visitors_max=2)
    burst.wait()

    assert burst.poll(9) == [RunCommand(1)]
    burst.end(1)
    assert burst.poll(9) == [RunCommand(2)]
    burst.end(2)
    assert burst.poll(9) == []
    assert burst.poll(9, 1) == [Joined(1, NODE17)]
    assert burst.poll(9, 1, after_s=SETTLE_S) == []
    assert (burst.policy.requested, dict(burst.policy.visitors)) == (1, {1: NODE17})


def test_no_more_visitors_are_requested_than_tasks_wait() -> None:
    """One task needs one slot."""
    burst = Clocked()
    burst.wait()

    assert burst.poll(1) == [RunCommand(1)]
    burst.end(1)
    assert burst.poll(1) == []
    assert burst.poll(2) == [RunCommand(2)]


def test_next_run_waits_for_the_end_of_the_last_one() -> None:
    """Until then it is not known whether the command works."""
    burst = Clocked()
    burst.wait()
    burst.poll(9)

    assert burst.poll(9) == []
    burst.end(1)
    assert burst.poll(9) == [RunCommand(2)]


def test_command_that_stays_is_followed_by_another_run() -> None:
    """`ssh` runs as long as its visitor."""
    burst = Clocked()
    burst.wait()
    burst.poll(9)

    assert burst.poll(9, after_s=PROVEN_S) == [RunCommand(2)]
    assert burst.poll(9, 2) == [Joined(2, NODE17)]
    assert burst.poll(9, 2, after_s=SETTLE_S) == [RunCommand(3)]


def test_command_that_has_worked_is_not_waited_for() -> None:
    """`sbatch --wait` runs as long as its job; many may be wanted at once."""
    burst = Clocked(visitors_max=4)
    burst.wait()
    burst.poll(9)
    burst.poll(9, 1)

    assert burst.poll(9, 1, after_s=SETTLE_S) == [RunCommand(2)]
    assert burst.poll(9, 1) == [RunCommand(3)]
    burst.end(3, "no")
    assert burst.poll(9, 1, after_s=RETRY_S) == [RunCommand(4)]
    assert burst.poll(9, 1) == []  # It has failed since, so it must prove itself.


def test_visitor_gets_a_moment_to_take_the_waiting_tasks() -> None:
    """The poll that shows it may have counted tasks that it has now."""
    burst = Clocked()
    burst.wait()
    burst.poll(9)
    burst.end(1)

    assert burst.poll(9, 1) == [Joined(1, NODE17)]
    assert burst.poll(0, 1, after_s=SETTLE_S) == []


def test_burst_stops_when_the_command_has_failed_three_times() -> None:
    """It is tried again after a pause that doubles, and the last error is shown."""
    burst = Clocked()
    burst.wait()
    for failure in range(1, FAILURES_MAX):
        assert burst.poll(9) == [RunCommand(failure)]
        retry_s = RETRY_S * 2 ** (failure - 1)
        assert burst.end(failure, "no controller") == [
            Withdraw(failure),
            Failed(failure, "no controller", retry_s),
        ]
        assert burst.poll(9, after_s=retry_s - 1.0) == []
    assert burst.poll(9) == [RunCommand(FAILURES_MAX)]

    stop = CommandKeepsFailing("no controller")
    assert burst.end(FAILURES_MAX, "no controller") == [Withdraw(FAILURES_MAX), stop]
    assert burst.policy.stopped == stop
    assert burst.poll(9, after_s=3600.0) == []


def test_success_between_failures_starts_the_count_again() -> None:
    """Only failures in a row stop burst."""
    burst = Clocked(visitors_max=9)
    burst.wait()
    for run, error in enumerate(["no", "no", None, "no", "no"], 1):
        assert burst.poll(9, after_s=100.0) == [RunCommand(run)]
        burst.end(run, error)

    assert burst.policy.stopped is None


def test_end_of_a_command_whose_visitor_was_here_is_no_failure() -> None:
    """`ssh` ends with an error if its visitor is killed."""
    burst = Clocked()
    burst.wait()
    burst.poll(1)
    burst.poll(1, 1)

    assert burst.end(1, "killed") == []
    left = [Left(1, NODE17, has_worked=True)]
    assert burst.leave(0, worked=(1,)) == left


def test_visitor_that_is_missing_for_a_moment_has_not_left() -> None:
    """A new dispatcher meets the nodes one after the other."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.poll(9, 1)

    assert burst.poll(9) == []
    assert burst.poll(9, after_s=GONE_S - 0.1) == []
    assert burst.poll(9, 1) == []
    assert burst.leave(9) == [Left(1, NODE17, has_worked=False)]


def test_visitor_has_not_left_because_a_poll_took_long() -> None:
    """A poll takes long, and the new dispatcher does not know the visitors yet."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.poll(9, 1)

    assert burst.poll(9, after_s=10 * GONE_S) == []
    assert burst.poll(9, 1) == []


def test_cancelled_allocation_is_replaced_while_tasks_wait() -> None:
    """Its visitor leaves, and its tasks wait again."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.end(1)
    burst.poll(9, 1, worked=(1,))

    assert burst.leave(9, worked=(1,)) == [
        Left(1, NODE17, has_worked=True),
        RunCommand(2),
    ]


def test_burst_stops_when_three_visitors_in_a_row_got_no_task() -> None:
    """Tasks that no such visitor gets would cost for ever."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    actions: list[Action] = []
    for run in range(1, FAILURES_MAX + 1):
        if run == 1:
            assert burst.poll(9) == [RunCommand(1)]
        burst.end(run)
        actions = burst.idle(run)

    last = Left(FAILURES_MAX, NODE17, has_worked=False)
    assert actions == [last, VisitorsRunNothing()]


def test_visitor_that_ran_a_task_starts_the_count_of_idle_ones_again() -> None:
    """Only visits without a task in a row stop burst."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    for run in range(1, 9):
        burst.end(run)
        burst.poll(9, run, worked=() if run % 3 else (run,))
        burst.idle(run)

    assert burst.policy.stopped is None


def test_visitor_without_a_task_is_no_sign_where_none_waits() -> None:
    """The others may have done the work before it came."""
    burst = Clocked(visitors_max=1)
    for run in range(1, 9):
        burst.wait()
        assert burst.poll(9) == [RunCommand(run)]
        burst.end(run)
        burst.idle(run, waiting=0)

    assert burst.policy.stopped is None


def test_visitors_that_are_ended_early_do_not_stop_burst() -> None:
    """Whoever cancels allocations says nothing about the tasks; burst slows down."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    for run in range(1, 12):
        burst.end(run)
        burst.poll(9, run)
        left = burst.leave(9)
        assert left == [Left(run, NODE17, has_worked=False)]
        pause_s = min(RETRY_S_MAX, RETRY_S * 2 ** (run - 1))
        assert burst.poll(9, after_s=pause_s - 1.0) == []
        assert burst.poll(9) == [RunCommand(run + 1)]


def test_visitor_that_ran_a_task_ends_the_pause_after_short_visits() -> None:
    """From then on the next one may come at once."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.poll(9, 1)
    assert burst.leave(9) == [Left(1, NODE17, has_worked=False)]
    assert burst.poll(9, after_s=RETRY_S) == [RunCommand(2)]

    burst.poll(9, 2, worked=(2,))

    assert burst.leave(9, worked=(2,)) == [
        Left(2, NODE17, has_worked=True),
        RunCommand(3),
    ]


def test_command_that_has_worked_may_fail_for_long() -> None:
    """A cluster refuses jobs beyond a limit, and its controller restarts at times."""
    burst = Clocked(visitors_max=2)
    burst.wait()
    burst.poll(9)
    burst.end(1)
    burst.poll(9, 1)
    burst.now_s += SETTLE_S
    for failure in range(1, 12):
        assert burst.poll(9, 1) == [RunCommand(failure + 1)]
        pause_s = min(RETRY_S_MAX, RETRY_S * 2 ** (failure - 1))
        assert burst.end(failure + 1, "too many jobs") == [
            Withdraw(failure + 1),
            Failed(failure + 1, "too many jobs", pause_s),
        ]
        assert burst.poll(9, 1, after_s=pause_s - 1.0) == []

    assert burst.policy.stopped is None


def test_failures_do_not_stop_burst_while_a_visitor_is_expected() -> None:
    """Its allocation waits in the queue of the cluster."""
    burst = Clocked(visitors_max=2)
    burst.wait()
    burst.poll(9)
    burst.end(1)
    for failure in range(2, 2 + FAILURES_MAX):
        assert burst.poll(9, after_s=100.0) == [RunCommand(failure)]
        burst.end(failure, "too many jobs")

    assert burst.policy.stopped is None
    assert burst.poll(9, 1) == [Joined(1, NODE17)]


def test_overdue_request_takes_no_place() -> None:
    """Its allocation was cancelled, perhaps, before the visitor joined."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.end(1)

    assert burst.poll(9, after_s=OVERDUE_S - 1.0) == []
    assert burst.poll(9) == [Overdue(1, OVERDUE_S), RunCommand(2)]
    burst.end(2)
    # A full cluster gets few more requests.
    assert burst.poll(9, after_s=2 * OVERDUE_S - 1.0) == []
    assert burst.poll(9) == [
        Overdue(2, 2 * OVERDUE_S),
        NobodyJoined(2),
        RunCommand(3),
    ]
    assert (burst.policy.requested, burst.policy.overdue) == (1, 2)
    assert burst.policy.requests == [1, 2, 3]


def test_overdue_visitor_may_still_come() -> None:
    """Then it takes the place, and requests beyond `visitors_max` are withdrawn."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    for run in (1, 2):
        burst.poll(9, after_s=2 * OVERDUE_S)
        burst.end(run)
    burst.poll(9, after_s=2 * OVERDUE_S)

    assert burst.poll(9, 2) == [Joined(2, NODE17), Withdraw(1), Withdraw(3)]
    assert burst.poll(9, 2, after_s=REQUEST_S / 2) == []


def test_overtaken_request_is_overdue_soon() -> None:
    """Clusters start equal jobs of one user in their order."""
    burst = Clocked(visitors_max=2)
    burst.wait()
    for run in (1, 2):
        burst.poll(9)
        burst.end(run)
    burst.poll(9, 2)

    assert burst.poll(9, 2, after_s=OVERTAKEN_S - 1.0) == []
    assert burst.poll(9, 2)[0] == Overdue(1, OVERTAKEN_S + 2.0)


def test_request_is_not_overdue_while_its_command_runs() -> None:
    """`sbatch --wait` ends with its job, however long that waits."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)

    assert burst.poll(9, after_s=REQUEST_S / 3) == [NobodyJoined(1)]
    assert burst.poll(9, after_s=REQUEST_S / 3) == []


def test_absence_of_visitors_is_reported_once() -> None:
    """An allocation may wait for hours, so burst goes on."""
    burst = Clocked(visitors_max=2)
    burst.wait()
    burst.poll(9)
    burst.poll(9, after_s=PROVEN_S)

    assert burst.poll(9, after_s=NO_JOIN_S - PROVEN_S - 1.0) == []
    assert burst.poll(9, after_s=1.0) == [NobodyJoined(2)]
    assert burst.poll(9, after_s=NO_JOIN_S) == []
    assert burst.poll(9, 1) == [Joined(1, NODE17)]
    assert burst.poll(9, 1, after_s=NO_JOIN_S) == [NobodyJoined(1)]


def test_request_ends_with_its_invite() -> None:
    """A visitor that comes later is refused, so another one may be requested."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.poll(9, after_s=NO_JOIN_S)

    assert burst.poll(9, after_s=REQUEST_S) == [Withdraw(1), RunCommand(2)]


def test_request_ends_when_its_invite_does() -> None:
    """The agent may have started anew, and with it all invites."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.end(1)

    assert burst.see(Polled(9, {}, closed=frozenset({1}))) == [
        Withdraw(1),
        RunCommand(2),
    ]


def test_visitor_that_was_admitted_and_never_came_has_left() -> None:
    """It may have been cancelled in that moment."""
    burst = Clocked(visitors_max=1)
    burst.wait()
    burst.poll(9)
    burst.end(1)
    admitted = Polled(9, {}, admitted=frozenset({1}))
    assert burst.see(admitted) == []

    assert burst.see(admitted, after_s=ADMITTED_S - 0.1) == []
    assert burst.see(admitted, after_s=0.1) == [Left(1, None, has_worked=False)]
    assert burst.poll(9, after_s=RETRY_S) == [RunCommand(2)]


def test_burst_stops_at_the_time_that_the_user_set() -> None:
    """Whatever waits then."""
    burst = Clocked(until_s=2000.0)
    burst.wait()

    assert burst.poll(9, after_s=1000.0) == [TimeIsUp()]
    assert burst.poll(9) == []


def test_burst_stops_in_time_although_the_mesh_does_not_answer() -> None:
    """Until then it does nothing without knowing what waits."""
    burst = Clocked(until_s=2000.0)
    burst.wait()

    assert burst.policy.step(NotPolled(), 1999.0) == []
    assert burst.policy.step(NotPolled(), 2000.0) == [TimeIsUp()]


def test_events_of_unknown_runs_change_nothing() -> None:
    """A visitor can claim any number."""
    burst = Clocked()
    burst.wait()

    assert burst.poll(9, 7) == [RunCommand(1)]
    assert burst.end(7, "no") == []
    assert burst.policy.requested == 1
