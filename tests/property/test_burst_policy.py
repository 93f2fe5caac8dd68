"""Burst's rule under any order of events: bounds hold, and burst never gets stuck."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from octaskly.cli.burst.policy import (
    FAILURES_MAX,
    GONE_S,
    PROVEN_S,
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
    Overdue,
    Polled,
    RunCommand,
    Visitor,
    VisitorsRunNothing,
    Withdraw,
)

REQUEST_S = 4000.0
IDLE_S = 30.0
NODE = Visitor(name="node", slots=2)

POLLS = st.tuples(
    st.just("poll"), st.sampled_from([0, 1, 2, 9]), st.sampled_from([0.5, 3.0, 12.0])
)
RUN = st.integers(0, 9)  #: counted from the oldest run
TO_A_RUN = st.sampled_from(
    ["succeed", "fail", "admit", "close", "join", "work", "leave"]
)
EVENTS = st.lists(
    POLLS
    | st.tuples(TO_A_RUN, RUN)
    | st.tuples(st.just("sleep"), st.sampled_from([60.0, 1900.0, REQUEST_S])),
    max_size=60,
)


@dataclass
class World:
    """A mesh, a command that may do anything, and what burst did."""

    visitors_max: int
    policy: BurstPolicy = field(init=False)
    now_s: float = 0.0
    waiting: int = 0
    waited_since_s: float | None = None
    running: dict[int, float] = field(default_factory=dict)  #: starts of commands
    open: set[int] = field(default_factory=set)  #: runs that burst must count
    here: dict[int, Visitor] = field(default_factory=dict)
    worked: set[int] = field(default_factory=set)
    admitted: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    joined: set[int] = field(default_factory=set)  #: as burst said
    overdue: set[int] = field(default_factory=set)  #: as burst said
    has_joined: bool = False  #: a visitor, at any time
    failures: int = 0  #: in a row
    started: int = 0

    def __post_init__(self) -> None:
        self.policy = BurstPolicy(self.visitors_max, REQUEST_S, IDLE_S)

    def poll(self, waiting: int, after_s: float) -> None:
        self.now_s += after_s
        self.waiting = waiting
        if not waiting:
            self.waited_since_s = None
        elif self.waited_since_s is None and self.policy.stopped is None:
            self.waited_since_s = self.now_s
        polled = Polled(
            waiting,
            dict(self.here),
            frozenset(self.worked),
            frozenset(self.admitted),
            frozenset(self.closed - self.admitted),
        )
        self.check(self.policy.step(polled, self.now_s))

    def end(self, run: int, error: str | None) -> None:
        if run not in self.running:
            return
        del self.running[run]
        if run in self.open and run not in self.joined:
            self.failures = 0 if error is None else self.failures + 1
        self.check(self.policy.step(CommandEnded(run, error), self.now_s))

    def check(self, actions: list[Action]) -> None:
        """Follow the actions, and check each of them."""
        for action in actions:
            match action:
                case RunCommand(run):
                    self.check_run(run)
                case Withdraw(run):
                    assert run in self.open - self.joined
                    self.open.remove(run)
                    self.overdue.discard(run)
                case Joined(run):
                    assert run in self.here
                    self.joined.add(run)
                    self.open.add(run)
                    self.failures, self.has_joined = 0, True
                    self.overdue.discard(run)
                case Overdue(run):
                    assert run not in self.running
                    assert run in self.open - self.joined - self.admitted
                    self.overdue.add(run)
                case Left(run, visitor, has_worked):
                    assert (visitor is not None) == (run in self.joined)
                    assert run in self.joined | self.admitted
                    assert run not in self.here
                    assert has_worked == (run in self.worked)
                    self.joined.discard(run)
                    self.open.remove(run)
                case Failed():
                    is_expected = self.has_joined or self.open
                    assert self.failures < FAILURES_MAX or is_expected
                case CommandKeepsFailing():
                    assert self.failures >= FAILURES_MAX
                    assert not self.has_joined
                    assert not self.open
                case _:
                    assert not isinstance(action, VisitorsRunNothing) or self.waiting
        self.overdue -= self.admitted
        requested = self.open - self.joined
        assert self.policy.overdue == len(self.overdue)
        assert self.policy.requested == len(requested - self.overdue)
        assert set(self.policy.visitors) == self.joined

    def check_run(self, run: int) -> None:
        """Check that the command may be run now, by the rule as the user reads it."""
        self.started += 1
        assert run == self.started
        assert self.waited_since_s is not None
        assert self.now_s - self.waited_since_s >= WAITED_S
        assert len(self.open - self.overdue) < self.visitors_max
        assert len(self.open - self.joined - self.overdue) < self.waiting
        is_proven = self.has_joined and not self.failures
        for other in () if is_proven else self.open - self.joined:
            assert self.now_s - self.running.get(other, float("-inf")) >= PROVEN_S
        self.running[run] = self.now_s
        self.open.add(run)

    def apply(self, event: tuple[object, ...]) -> None:
        """Apply one event; a number beyond the runs changes nothing."""
        match event:
            case "poll", int(waiting), float(after_s):
                self.poll(waiting, after_s)
            case "sleep", float(sleep_s):
                self.poll(self.waiting, sleep_s)
            case "succeed", int(run):
                self.end(run, None)
            case "fail", int(run):
                self.end(run, "it failed")
            case "admit", int(run) if run in self.open:
                self.admitted.add(run)
            case "close", int(run) if run in self.open:
                self.closed.add(run)
            case "join", int(run) if run in self.open:
                self.admitted.add(run)
                self.here[run] = NODE
            case "work", int(run) if run in self.joined:
                self.worked.add(run)
            case "leave", int(run):
                self.here.pop(run, None)
            case _:
                pass


@given(st.integers(1, 4), EVENTS)
def test_bounds_hold_whatever_happens(
    visitors_max: int, events: list[tuple[object, ...]]
) -> None:
    """`World` checks each action against the rule, and the counts after each step."""
    world = World(visitors_max)
    for event in events:
        world.apply(event)


@given(st.integers(1, 4), EVENTS)
def test_waiting_tasks_get_a_visitor_in_the_end(
    visitors_max: int, events: list[tuple[object, ...]]
) -> None:
    """Whatever happened before, the command runs once nothing stands against it."""
    world = World(visitors_max)
    for event in events:
        world.apply(event)
    if world.policy.stopped is not None:
        return
    world.here.clear()
    world.worked.update(world.joined)  # An idle visit is a reason to stop.
    world.poll(9, GONE_S)
    world.poll(9, REQUEST_S)
    before = world.started
    wait_s = max(WAITED_S, SETTLE_S, RETRY_S_MAX)
    for _ in range(3):
        world.poll(9, wait_s)

    assert world.started > before or world.policy.requested == visitors_max
