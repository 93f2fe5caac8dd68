"""The rule by which burst starts visitors, warns, and gives up, without I/O.

While tasks wait that a visitor could run, the user's command is run again, until
`visitors_max` visitors are requested or present. There are never more requested
visitors than waiting tasks. The runs follow each other: the next one starts when the
last one has ended, when its visitor has joined, or after `PROVEN_S`. So a command that
does not work is not run many times before that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

WAITED_S: Final = 5.0  #: tasks wait for so long before the first run
SETTLE_S: Final = 2.0  #: after a visitor joined, which takes some of the tasks
PROVEN_S: Final = 10.0  #: a run that takes longer is one that stays, as `ssh` does
RETRY_S: Final = 10.0  #: after a failed run; twice as long after the second one
GONE_S: Final = 5.0  #: a visitor may be missing during a failover
ADMITTED_S: Final = 60.0  #: from the use of an invite until the visitor is a node
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
class NobodyJoined:
    """Say that no visitor has joined for `NO_JOIN_S`, although some are requested."""

    requested: int


@dataclass(frozen=True, slots=True)
class CommandKeepsFailing:
    """Stop: the command failed `FAILURES_MAX` times in a row."""

    error: str


@dataclass(frozen=True, slots=True)
class VisitorsRunNothing:
    """Stop: `FAILURES_MAX` visitors in a row left without a task, while tasks wait."""


@dataclass(frozen=True, slots=True)
class TimeIsUp:
    """Stop: the time that the user set is over."""


Stop: TypeAlias = CommandKeepsFailing | VisitorsRunNothing | TimeIsUp
Action: TypeAlias = RunCommand | Withdraw | Joined | Left | Failed | NobodyJoined | Stop


@dataclass(slots=True)
class _Run:
    """A run of the command, and the visitor that it started."""

    started_s: float
    is_running: bool = True  #: the command has not ended
    visitor: Visitor | None = None  #: as last seen
    seen_s: float | None = None  #: last time; first the time of its admission
    has_worked: bool = False


@dataclass(slots=True)
class BurstPolicy:
    """Decides what burst does; times are seconds on one monotonic clock.

    Args:
        visitors_max: Most visitors that are requested or present at the same time.
        request_s: How long a requested visitor may take to join; its invite expires.
        until_s: When to stop; None: never.
    """

    visitors_max: int
    request_s: float
    until_s: float | None = None
    waiting: int = 0  #: tasks, at the last poll
    stopped: Stop | None = None
    _runs: dict[int, _Run] = field(default_factory=dict)
    _last_run: int = 0
    _waited_since_s: float | None = None
    _joined_s: float = float("-inf")
    _next_run_s: float = float("-inf")
    _failures: int = 0  #: runs that failed, in a row
    _idle_visits: int = 0  #: visitors that left without a task, in a row
    _is_absence_reported: bool = False

    @property
    def requests(self) -> list[int]:
        """The runs whose visitors have not joined."""
        return [n for n, run in self._runs.items() if run.visitor is None]

    @property
    def requested(self) -> int:
        """Number of requested visitors that have not joined."""
        return len(self.requests)

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
        retry_s = RETRY_S * 2 ** (self._failures - 1)
        self._next_run_s = now_s + retry_s
        if self._failures == FAILURES_MAX:
            return [Withdraw(number), CommandKeepsFailing(error)]
        return [Withdraw(number), Failed(number, error, retry_s)]

    # --- The mesh

    def _on_poll(self, poll: Polled, now_s: float) -> list[Action]:
        self.waiting = poll.waiting
        if not poll.waiting:
            self._waited_since_s = None
        elif self._waited_since_s is None:
            self._waited_since_s = now_s
        actions = self._follow_visitors(poll, now_s)
        if self._idle_visits == FAILURES_MAX:
            return [*actions, VisitorsRunNothing()]
        if self._is_nobody_joining(now_s):
            self._is_absence_reported = True
            actions.append(NobodyJoined(self.requested))
        if self._may_run(now_s):
            self._last_run += 1
            self._runs[self._last_run] = _Run(now_s)
            actions.append(RunCommand(self._last_run))
        return actions

    def _follow_visitors(self, poll: Polled, now_s: float) -> list[Action]:
        """Note who joined and left, and which requests have expired."""
        actions: list[Action] = []
        for number, visitor in poll.visitors.items():
            if not 0 < number <= self._last_run:
                continue
            # It may have been taken for gone during a long failover.
            run = self._runs.setdefault(number, _Run(now_s, is_running=False))
            if run.visitor is None:
                actions.append(Joined(number, visitor))
                self._joined_s, self._failures = now_s, 0
                self._is_absence_reported = False
            run.visitor, run.seen_s = visitor, now_s
        for number, run in tuple(self._runs.items()):
            if number in poll.admitted and run.seen_s is None:
                run.seen_s = now_s
            if number in poll.worked:
                run.has_worked, self._idle_visits = True, 0
            actions += self._end_run(
                number, run, now_s, is_closed=number in poll.closed
            )
        return actions

    def _end_run(
        self, number: int, run: _Run, now_s: float, *, is_closed: bool
    ) -> list[Action]:
        """Forget a run whose visitor has left, or will not come."""
        if run.seen_s is None:
            if not is_closed and now_s - run.started_s < self.request_s:
                return []
            del self._runs[number]
            return [Withdraw(number)]
        if now_s - run.seen_s < (ADMITTED_S if run.visitor is None else GONE_S):
            return []
        del self._runs[number]
        if not run.has_worked and self.waiting:
            self._idle_visits += 1
        return [Left(number, run.visitor, run.has_worked)]

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
        if len(self._runs) >= self.visitors_max or self.requested >= self.waiting:
            return False
        return not any(
            run.is_running and run.visitor is None and now_s - run.started_s < PROVEN_S
            for run in self._runs.values()
        )
