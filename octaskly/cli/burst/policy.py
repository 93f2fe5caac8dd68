"""The rule by which burst starts visitors, warns, and gives up, without I/O.

While tasks wait that a visitor could run, the user's command is run again, until
`visitors_max` visitors are requested or present. There are never more requested
visitors than waiting tasks. Until the command has brought a visitor, and after a
failure, the runs follow each other: the next one starts when the last one has ended,
when its visitor has joined, or after `PROVEN_S`. So a command that does not work is not
run many times before that is known. Otherwise one starts with each poll.

Burst stops by itself only if nothing came of all that it did: the command has never
worked, or visitors had time to run a task and got none. Whoever ends allocations from
outside can only delay it. A command that ends before its visitor joins, as `sbatch`
does, leaves burst without a sign if the allocation is cancelled. So such a request is
overdue after a while, and another one takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

WAITED_S: Final = 5.0  #: tasks wait for so long before the first run
SETTLE_S: Final = 2.0  #: after a visitor joined, which takes some of the tasks
PROVEN_S: Final = 5.0  #: a run that takes longer is one that stays, as `ssh` does
RETRY_S: Final = 10.0  #: after a failure; twice as long after each further one
RETRY_S_MAX: Final = 600.0
GONE_S: Final = 10.0  #: polls may lack a visitor until it reaches a new dispatcher
ADMITTED_S: Final = 60.0  #: from the use of an invite until the visitor is a node
OVERDUE_S: Final = 600.0  #: of a request; twice as long after each further one
OVERTAKEN_S: Final = 60.0  #: the same, once the visitor of a later run has joined
IDLE_PART: Final = 0.75  #: of its idle time, which polls see of a visitor at least
NO_JOIN_S: Final = 1800.0
FAILURES_MAX: Final = 3  #: in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """A visitor as the roster shows it."""

    name: str
    slots: int
    leaves_at: str = ""  #: its end as a timestamp of the API, empty if unknown


# --- Events


@dataclass(frozen=True, slots=True)
class Polled:
    """The state of the mesh.

    Args:
        waiting: Number of queued tasks that a visitor could run.
        visitors: The visitors of this burst in the roster, by the number of the run.
        worked: Runs whose visitor, present or gone, was assigned a task.
        admitted: Runs whose invite was used.
        closed: Runs whose invite can no longer be used.
    """

    waiting: int
    visitors: Mapping[int, Visitor]
    worked: AbstractSet[int] = frozenset()
    admitted: AbstractSet[int] = frozenset()
    closed: AbstractSet[int] = frozenset()


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """A run of the command ended.

    Args:
        run: Its number.
        error: Why it failed; None if it succeeded.
    """

    run: int
    error: str | None


@dataclass(frozen=True, slots=True)
class NotPolled:
    """The mesh does not answer."""


Event: TypeAlias = Polled | NotPolled | CommandEnded


# --- Actions


@dataclass(frozen=True, slots=True)
class RunCommand:
    """Run the user's command with an invite of its own."""

    run: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Revoke the invite of a run, because its visitor will not come."""

    run: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Say that a visitor joined."""

    run: int
    visitor: Visitor


@dataclass(frozen=True, slots=True)
class Left:
    """Say that a visitor left."""

    run: int
    visitor: Visitor | None  #: None if it was admitted, but never became a node
    has_worked: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """Say that a run failed, and in how many seconds the next one may start."""

    run: int
    error: str
    retry_s: float


@dataclass(frozen=True, slots=True)
class Overdue:
    """Say that a visitor should have joined, and that another one may be requested."""

    run: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class NobodyJoined:
    """Say that no visitor has joined for `NO_JOIN_S`, although some are requested."""

    requested: int


@dataclass(frozen=True, slots=True)
class CommandKeepsFailing:
    """Stop: the command failed `FAILURES_MAX` times in a row, and never worked."""

    error: str


@dataclass(frozen=True, slots=True)
class VisitorsRunNothing:
    """Stop: `FAILURES_MAX` visitors in a row got no task in their idle time."""


@dataclass(frozen=True, slots=True)
class TimeIsUp:
    """Stop: the time that the user set is over."""


Stop: TypeAlias = CommandKeepsFailing | VisitorsRunNothing | TimeIsUp
Action: TypeAlias = (
    RunCommand | Withdraw | Joined | Left | Failed | Overdue | NobodyJoined | Stop
)


@dataclass(slots=True)
class _Run:
    """A run of the command, and the visitor that it started."""

    started_s: float
    is_running: bool = True  #: the command has not ended
    visitor: Visitor | None = None  #: as last seen
    joined_s: float | None = None
    seen_s: float | None = None  #: last time; first the time of its admission
    missing_s: float | None = None  #: since when polls lack its visitor
    has_worked: bool = False
    overtaken_s: float | None = None  #: since when the visitor of a later run is there
    is_overdue: bool = False  #: it takes no place, but its visitor may still come


@dataclass(slots=True)
class BurstPolicy:
    """Decides what burst does; times are seconds on one monotonic clock.

    Args:
        visitors_max: Most visitors that are requested or present at the same time.
        request_s: How long a requested visitor may take to join; its invite expires.
        idle_s: How long a visitor stays without a task.
        until_s: When to stop; None: never.
    """

    visitors_max: int
    request_s: float
    idle_s: float
    until_s: float | None = None
    waiting: int = 0  #: tasks, at the last poll
    stopped: Stop | None = None
    _runs: dict[int, _Run] = field(default_factory=dict)
    _last_run: int = 0
    _waited_since_s: float | None = None
    _joined_s: float = float("-inf")
    _has_joined: bool = False  #: a visitor, at any time
    _next_run_s: float = float("-inf")
    _failures: int = 0  #: runs that failed, in a row
    _idle_visits: int = 0  #: visitors that got no task in their idle time, in a row
    _short_visits: int = 0  #: visitors that ended earlier without a task, in a row
    _overdue_s: float = OVERDUE_S
    _last_overdue_s: float = float("-inf")
    _is_absence_reported: bool = False

    @property
    def requests(self) -> list[int]:
        """The runs whose visitors have not joined."""
        return [n for n, run in self._runs.items() if run.visitor is None]

    @property
    def overdue(self) -> int:
        """Number of requested visitors that should have joined long ago."""
        return sum(run.is_overdue for run in self._runs.values())

    @property
    def requested(self) -> int:
        """Number of the other requested visitors that have not joined."""
        return len(self.requests) - self.overdue

    @property
    def visitors(self) -> Mapping[int, Visitor]:
        """The present visitors by the numbers of their runs, in order of the runs."""
        return {n: r.visitor for n, r in self._runs.items() if r.visitor is not None}

    def step(self, event: Event, now_s: float) -> list[Action]:
        """Return what to do after an event, in order; nothing after a stop."""
        if self.stopped is not None:
            return []
        actions: list[Action] = []
        match event:
            case Polled() | NotPolled() if self._is_time_up(now_s):
                actions.append(TimeIsUp())
            case NotPolled():
                pass
            case Polled():
                actions = self._on_poll(event, now_s)
            case CommandEnded(number, error):
                actions = self._on_command_end(number, error, now_s)
            case _:
                assert_never(event)
        if actions and isinstance(actions[-1], Stop):
            self.stopped = actions[-1]
        return actions

    def _is_time_up(self, now_s: float) -> bool:
        return self.until_s is not None and now_s >= self.until_s

    # --- The command

    def _on_command_end(
        self, number: int, error: str | None, now_s: float
    ) -> list[Action]:
        run = self._runs.get(number)
        if run is None:
            return []
        run.is_running = False
        if run.visitor is not None:
            return []  # A command that stays, such as `ssh`, ends with its visitor.
        if error is None:
            self._failures = 0
            return []
        del self._runs[number]
        self._failures += 1
        # What has worked, or is still expected, may work again: a cluster refuses jobs
        # beyond a limit, and a command such as `ssh` fails if its visitor is killed.
        is_hopeless = not self._has_joined and not self._runs
        if self._failures >= FAILURES_MAX and is_hopeless:
            return [Withdraw(number), CommandKeepsFailing(error)]
        retry_s = self._pause(self._failures, now_s)
        return [Withdraw(number), Failed(number, error, retry_s)]

    def _pause(self, count: int, now_s: float) -> float:
        """Start no run for a while, after so many failures; return the seconds."""
        retry_s = min(RETRY_S_MAX, RETRY_S * 2.0 ** (count - 1))
        self._next_run_s = max(self._next_run_s, now_s + retry_s)
        return retry_s

    # --- The mesh

    def _on_poll(self, poll: Polled, now_s: float) -> list[Action]:
        self.waiting = poll.waiting
        if not poll.waiting:
            self._waited_since_s = None
        elif self._waited_since_s is None:
            self._waited_since_s = now_s
        actions = self._follow_visitors(poll, now_s)
        if self._idle_visits >= FAILURES_MAX:
            return [*actions, VisitorsRunNothing()]
        actions += self._follow_requests(now_s)
        if self._is_nobody_joining(now_s):
            self._is_absence_reported = True
            actions.append(NobodyJoined(len(self.requests)))
        if self._may_run(now_s):
            self._last_run += 1
            self._runs[self._last_run] = _Run(now_s)
            actions.append(RunCommand(self._last_run))
        return actions

    def _follow_visitors(self, poll: Polled, now_s: float) -> list[Action]:
        """Note who joined and left, and which requests have expired."""
        actions: list[Action] = []
        for number, visitor in poll.visitors.items():
            run = self._runs.get(number)
            if run is None:
                continue
            if run.visitor is None:
                actions.append(Joined(number, visitor))
                self._joined_s, self._failures = now_s, 0
                self._has_joined = True
                self._overdue_s, self._is_absence_reported = OVERDUE_S, False
                run.joined_s, run.is_overdue = now_s, False
                self._note_overtaken(number, now_s)
            run.visitor, run.seen_s, run.missing_s = visitor, now_s, None
        for number, run in tuple(self._runs.items()):
            if number in poll.admitted and run.seen_s is None:
                run.seen_s, run.is_overdue = now_s, False
            is_missing = run.seen_s is not None and number not in poll.visitors
            if is_missing and run.missing_s is None:
                # Not since it was seen: during a failover, a poll may take long.
                run.missing_s = now_s
            if number in poll.worked:
                run.has_worked, self._idle_visits, self._short_visits = True, 0, 0
            actions += self._end_run(
                number, run, now_s, is_closed=number in poll.closed
            )
        return actions

    def _note_overtaken(self, number: int, now_s: float) -> None:
        """Note that the visitor of a run has joined before those of earlier runs."""
        for earlier, run in self._runs.items():
            if earlier < number and run.seen_s is None and run.overtaken_s is None:
                run.overtaken_s = now_s

    def _end_run(
        self, number: int, run: _Run, now_s: float, *, is_closed: bool
    ) -> list[Action]:
        """Forget a run whose visitor has left, or will not come."""
        if run.seen_s is None:
            if not is_closed and now_s - run.started_s < self.request_s:
                return []
            del self._runs[number]
            return [Withdraw(number)]
        missing_s_max = ADMITTED_S if run.visitor is None else GONE_S
        if run.missing_s is None or now_s - run.missing_s < missing_s_max:
            return []
        del self._runs[number]
        if not run.has_worked and self.waiting:
            self._count_visit_without_work(run, now_s)
        return [Left(number, run.visitor, run.has_worked)]

    def _count_visit_without_work(self, run: _Run, now_s: float) -> None:
        """Count a visitor that left without a task, although tasks wait."""
        assert run.seen_s is not None
        stayed_s = 0.0 if run.joined_s is None else run.seen_s - run.joined_s
        if stayed_s >= IDLE_PART * self.idle_s:
            self._idle_visits += 1
            return
        # It was ended from outside, or crashed, so it says nothing about the tasks.
        self._short_visits += 1
        self._pause(self._short_visits, now_s)

    def _follow_requests(self, now_s: float) -> list[Action]:
        """Note which requests are overdue; withdraw all once each place is taken."""
        actions: list[Action] = []
        are_all_here = len(self.visitors) >= self.visitors_max
        for number, run in tuple(self._runs.items()):
            if run.seen_s is not None:
                continue
            if are_all_here:  # An overdue one has come, so there are too many.
                del self._runs[number]
                actions.append(Withdraw(number))
            elif self._is_newly_overdue(run, now_s):
                run.is_overdue = True
                actions.append(Overdue(number, now_s - run.started_s))
        return actions

    def _is_newly_overdue(self, run: _Run, now_s: float) -> bool:
        """Return True if another visitor may be requested in place of this one.

        While its command runs, its end will tell. An allocation may wait for hours in
        the queue of a cluster, which therefore gets few more of them.
        """
        if run.is_overdue or run.is_running or not self.waiting:
            return False
        if run.overtaken_s is not None and now_s - run.overtaken_s >= OVERTAKEN_S:
            return True
        since_s = max(run.started_s, self._joined_s, self._last_overdue_s)
        if now_s - since_s < self._overdue_s:
            return False
        self._last_overdue_s = now_s
        self._overdue_s *= 2
        return True

    def _is_nobody_joining(self, now_s: float) -> bool:
        """Return True if that must be said now."""
        if self._is_absence_reported:
            return False
        started_s = [r.started_s for r in self._runs.values() if r.visitor is None]
        if not started_s:
            return False
        return now_s - max(min(started_s), self._joined_s) >= NO_JOIN_S

    def _may_run(self, now_s: float) -> bool:
        """Return True if the command may be run now."""
        since_s = self._waited_since_s
        if since_s is None or now_s - since_s < WAITED_S:
            return False
        if now_s < self._next_run_s or now_s - self._joined_s < SETTLE_S:
            return False
        places = self.visitors_max - len(self._runs) + self.overdue
        if places <= 0 or self.requested >= self.waiting:
            return False
        if self._has_joined and not self._failures:
            return True
        return not any(
            run.is_running and run.visitor is None and now_s - run.started_s < PROVEN_S
            for run in self._runs.values()
        )
