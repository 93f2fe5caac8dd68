"""Fair turns: no flow starves, slots are shared equally, flows keep their order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from octaskly.core.model.task_options import Requirements, TaskOptions
from octaskly.core.scheduling.turns import flow_of
from tests.support.builders import draft, node_info
from tests.support.dispatcher import queued_count
from tests.support.dispatcher_with_workers import DispatcherWithWorkers, array_draft

SUBMITTERS = st.sampled_from(["ann", "bo", "cy"])
CPUS_MAX = 3
SUBMISSIONS = st.tuples(
    st.just("submit"),
    SUBMITTERS,
    st.sampled_from(["one", "array"]),
    st.integers(1, 9),
    st.integers(1, CPUS_MAX),
)
ACTIONS = st.lists(
    SUBMISSIONS | st.tuples(st.just("end"), st.integers(0, 9)), min_size=5, max_size=80
)

FIRST = 8  #: number of the first member, so that ids and numbers sort differently


class World:
    """A mesh with one worker, and what waits for it."""

    def __init__(self, slots: int) -> None:
        self.mesh = DispatcherWithWorkers(node_info("b", slots))
        self.slots = slots
        self.submissions = 0
        self.placed: list[tuple[str, str, int]] = []  #: submitter, flow and number
        self.cpus: dict[str, int] = {}  #: slots that each task of a flow holds
        self.held: Counter[str] = Counter()  #: slots, by flow
        self.waiting: Counter[str] = Counter()  #: tasks, by flow

    def submit(self, who: str, kind: str, count: int, cpus: int = 1) -> None:
        """Submit an array, or tasks of the submitter's only flow of single ones."""
        self.submissions += 1
        # All single tasks hold as many slots as the first of them.
        flow = f"{who}/{self.submissions if kind == 'array' else 'one'}"
        cpus = self.cpus.setdefault(flow, min(cpus, self.slots))
        requires = None if cpus == 1 else Requirements(cpus=cpus)
        if kind == "array":
            drafts = [array_draft(flow, count, requires)]
        else:
            options = None if cpus == 1 else TaskOptions(requires=requires)
            numbers = (self.submissions * 100 + n for n in range(count))
            drafts = [replace(draft(f"{flow} {n}"), options=options) for n in numbers]
        self.waiting[flow] += count
        self.note(self.mesh.ask(*drafts, by=who))

    def end(self, draw: int) -> None:
        running = list(self.mesh.live)
        if running:
            command = running[draw % len(running)]
            flow = command.split()[0]
            self.held[flow] -= self.cpus[flow]
            self.note(self.mesh.end(command))

    def note(self, commands: list[str]) -> None:
        """Check whose turn it was in one step.

        Before the last task that somebody started, no other that still waits held less,
        if its tasks need no more slots.
        """
        started: set[str] = set()
        for command in commands:
            flow, number = command.split()
            self.held[flow] += self.cpus[flow]
            self.waiting[flow] -= 1
            self.placed.append((flow.split("/")[0], flow, int(number)))
            started.add(flow)
        waiting = [flow for flow, count in self.waiting.items() if count]
        of_submitters: Counter[str] = Counter()
        for flow, slots in self.held.items():
            of_submitters[flow.split("/")[0]] += slots
        for flow in started:
            who, most = flow.split("/")[0], self.cpus[flow]
            own = [each for each in started if each.startswith(f"{who}/")]
            before = of_submitters[who] - max(self.cpus[each] for each in own)
            least = min(self.cpus[each] for each in own)
            for other in waiting:
                other_who = other.split("/")[0]
                if other_who == who and self.cpus[other] <= most:
                    assert self.held[flow] - most <= self.held[other]
                elif other_who != who and self.cpus[other] <= least:
                    assert before <= of_submitters[other_who]

    @property
    def flows(self) -> set[tuple[str, str]]:
        return {(who, flow) for who, flow, _ in self.placed}


def run(slots: int, actions: list[tuple[object, ...]]) -> World:
    """Perform the actions, then end all that runs, again and again."""
    world = World(slots)
    for action in actions:
        match action:
            case "submit", str(who), str(kind), int(count), int(cpus):
                world.submit(who, kind, count, cpus)
            case "end", int(draw):
                world.end(draw)
            case _:
                raise AssertionError(action)
    while world.mesh.live:
        world.end(0)
    assert not +world.waiting
    return world


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), ACTIONS)
def test_slots_go_to_who_holds_fewest_and_flows_keep_their_order(
    slots: int, actions: list[tuple[object, ...]]
) -> None:
    """Every task runs, whatever arrives in between."""
    world = run(slots, actions)

    for flow in world.flows:
        own = [number for *rest, number in world.placed if tuple(rest) == flow]
        assert own == sorted(own)
    queue = world.mesh.dispatch._queue
    assert queued_count(queue) == 0
    for submitter in queue.turns._submitters.shares.values():
        shares = [submitter, *submitter.flows.shares.values()]
        assert {(share.held, share.waiting) for share in shares} == {(0, 0)}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(SUBMITTERS, st.integers(1, 4)), min_size=2, max_size=8),
    st.lists(st.tuples(SUBMITTERS, st.integers(1, 3)), max_size=30),
)
def test_no_flow_waits_for_more_turns_than_there_are_flows(
    first: list[tuple[str, int]], later: list[tuple[str, int]]
) -> None:
    """On one slot; new arrays arrive all the time."""
    world = World(slots=1)
    for who, count in first:
        world.submit(who, "array", 40 * count)
    arrivals = iter(later)
    for turn in range(200):
        if turn % 3 == 0 and (arrival := next(arrivals, None)) is not None:
            world.submit(arrival[0], "array", arrival[1])
        world.end(0)

    # Each submitter has every third turn at least, and each of its flows its part.
    bound = 3 * (len(first) + len(later) + 1)
    for flow in {f"{who}/{n}" for n, (who, _) in enumerate(first, 1)}:
        places = [at for at, (_, name, _) in enumerate(world.placed) if name == flow]
        gaps = [b - a for a, b in pairwise(places)]
        assert places
        assert places[0] <= bound
        assert max(gaps, default=0) <= bound


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 5))), max_size=12),
)
def test_members_that_are_given_back_keep_their_order(
    slots: int, counts: list[int], actions: list[tuple[bool, set[int]]]
) -> None:
    """Whoever starts is the first of the members of its array that wait."""
    mesh = DispatcherWithWorkers(node_info("b", slots))
    waiting: dict[str, set[int]] = {}

    def note(commands: list[str]) -> None:
        for command in commands:
            array, number = command.split()
            assert int(number) == min(waiting[array])
            waiting[array].remove(int(number))

    for name, count in zip("xyz", counts, strict=False):
        waiting[name] = set(range(FIRST, FIRST + count))
        note(mesh.ask(array_draft(name, count, first=FIRST)))
    for are_ends, draws in actions:
        running = sorted(mesh.live)
        some = [running[draw] for draw in draws if draw < len(running)]
        if are_ends:
            for command in some:
                note(mesh.end(command))
        elif some:
            for command in some:
                array, number = command.split()
                waiting[array].add(int(number))
            note(mesh.give_back(*some))


def test_a_member_belongs_to_the_flow_of_its_array() -> None:
    """So its slots count for the array."""
    mesh = DispatcherWithWorkers(node_info("b", 1))
    mesh.ask(array_draft("x", 2), replace(draft("y"), priority=-1))

    flows = {flow_of(task.spec) for task in mesh.dispatch._queue.tasks._tasks.values()}

    assert len(flows) == 2
