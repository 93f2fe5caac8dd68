"""A mesh in one process: virtual time, seeded chance, no event loop.

Machines run the real `Node`; everything around it (disk, network, mDNS, commands) is
a model with faults. Two runs of a seed do the same, event by event.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from octaskly.core import records, replies
from octaskly.core.arrays import member_of
from octaskly.core.effects import (
    Answer,
    Append,
    Browse,
    Dial,
    Disconnect,
    Effect,
    Join,
    Learnt,
    Load,
    LoadLive,
    LoadRipe,
    Note,
    PlanFloor,
    Remember,
    Save,
    Send,
    ServePull,
    Spool,
    Start,
    Stop,
    Stopped,
    Unspool,
)
from octaskly.core.events import (
    Advert,
    AttemptsEnded,
    BarrierAsked,
    CancelRequested,
    DiskChanged,
    Draft,
    Event,
    LiveLoaded,
    Persisted,
    RecordAsked,
    RecordDraft,
    Saved,
    Seen,
    SteeringAsked,
    StopAsked,
    TasksSubmitted,
    Woke,
)
from octaskly.core.facts import CancelAsked, Finished, Ready, Recorded, Submitted
from octaskly.core.merge import TaskRow
from octaskly.core.messages import Cursor, Entries, Message, Report, Results, ResultsOk
from octaskly.core.model import (
    Address,
    AttemptId,
    AttemptState,
    Limits,
    Moment,
    NodeId,
    NodeInfo,
    Outcome,
    Reason,
    Settings,
    Steering,
    TaskId,
    TaskSpec,
    TaskState,
    Timing,
    Vector,
    name_of,
)
from octaskly.core.node import Node
from octaskly.core.options import (
    After,
    ArraySpec,
    Requires,
    Retry,
    TaskOptions,
    slots_of,
)
from octaskly.core.replies import Accepted, CancelDone, Passed, Reply, Steered
from octaskly.core.timestamps import born_hlc
from tests.simulation.cores import Cores
from tests.simulation.disk import GOOD, Disk, Kept, kept
from tests.simulation.network import Network

MEMORY_MB = 100  #: of each machine
WALL_MS = 1_700_000_000_000
RETRY_S = 0.25  #: between two tries of a write that fails
KILL_S = 0.01  #: until a command that is killed is gone
NUMBERED = (Append, Join, Save)  #: effects that go to the disk, in order
RULES = (
    None,
    None,
    Retry(retries=1),
    Retry(retries=5),
    Retry(retries=2, on_failure=False, codes=(7,)),
    Retry(retries=1, on_lost=False),
    Retry(on_lost=False),
)
"""Of tasks that may fail."""
CHUNK = 20  #: entries in one answer to PULL, few so that several are needed
Due = tuple[float, int]  #: a time, and which of those at that time comes first


@dataclass(frozen=True)
class Started:
    """One attempt that a machine began to run."""

    at_s: float
    node: NodeId
    task: TaskId
    attempt: AttemptId
    seen_term: int  #: of the highest epoch that the node knew
    born: int  #: when the task was accepted, as a hybrid timestamp


@dataclass
class Machine:
    """One host: its disk survives, its process comes and goes."""

    id: NodeId
    index: int
    slots: int
    log_version: int = 1  #: of the log, that its program reads and writes
    disk: Disk = field(default_factory=Disk)
    node: Node | None = None
    life: int = 0  #: counts process starts; callbacks of an earlier one are void
    is_paused: bool = False
    held: list[Callable[[], None]] = field(default_factory=list)
    is_asleep: bool = False  #: suspended, so disk and commands stand still, too
    frozen: list[Callable[[], None]] = field(default_factory=list)
    running: dict[tuple[TaskId, AttemptId], TaskSpec] = field(default_factory=dict)
    waiting: list[tuple[AttemptId, TaskSpec]] = field(default_factory=list)
    is_browsing: bool = False
    has_stopped: bool = False
    stall_s: float = 0.0  #: the disk answers nothing before this time
    full_s: float = 0.0  #: the disk takes no writes before this time
    is_failing: bool = False  #: a write has failed and is tried again
    wall_skew_ms: int = 0
    restored_s: float = -1e9  #: when it lost part of its disk last
    lost: list[Disk] = field(default_factory=list)  #: as they were then
    timer: Due | None = None  #: when it steps without an event
    alarm: Due | None = None  #: when the world looks whether that is so; never later
    learnt: dict[tuple[str, str], Recorded] = field(default_factory=dict)
    """What this process was told to go by."""
    is_committing: bool = False
    dies_after_s: float | None = None  #: a crash so long after the next write
    notes: list[tuple[float, Note]] = field(default_factory=list)

    @property
    def boot(self) -> str:
        """The name of this process."""
        return f"{self.id}-{self.life}"

    @property
    def address(self) -> Address:
        """Where its peer port is."""
        return Address(f"10.0.0.{self.index + 1}", 7878)

    def has_room(self, spec: TaskSpec) -> bool:
        """Whether a task may begin beside those that run."""
        specs = (*self.running.values(), spec)
        return sum(slots_of(each.options) for each in specs) <= self.slots


class World:
    """Machines, their network, and the clients."""

    late_share = 0.0  #: of tasks that come after another one
    needy_share = 0.0  #: of tasks that ask for much of a machine
    failing_share = 0.0  #: of commands that end with an error
    array_share = 0.0  #: of tasks that are arrays
    members_most = 12  #: of one of them
    is_calm = False  #: no fault happens any more
    is_unordered = False  #: who is asked for entries mixes the streams
    repeated: tuple[TaskSpec, ...] = ()  #: of the last answer, accepted before
    updated_share = 0.0  #: of starts before which the program is updated

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        slots: int = 2,
        node_type: type[Node] = Node,
        timing: Timing | None = None,
        cores: int | None = None,
        is_traced: bool = False,
    ) -> None:
        self.random, self.late, self.needy, self.notes, self.tries = (
            random.Random(text)
            for text in (
                *(seed, f"late {seed}", f"needy {seed}", f"notes {seed}"),
                f"tries {seed}",
            )
        )
        self.time_s = 1000.0
        self.node_type = node_type
        self.timing = timing or Timing(orphan_s=60.0)
        self.limits = Limits()
        self.is_strict = False  #: nothing is accepted that only one disk holds
        self.machines = {
            NodeId(f"node{index:012d}"): Machine(
                NodeId(f"node{index:012d}"), index, slots
            )
            for index in range(nodes)
        }
        self.network = Network(self)
        self.cores = None if cores is None else Cores(self, cores)
        self.disk_ms = (1.0, 15.0)
        self.duration_s = (0.05, 1.5)
        self.accepted: dict[TaskId, TaskSpec] = {}
        self.asked: set[str] = set()  #: commands, as tasks have no ids before
        self.wanted: set[tuple[TaskId, str]] = set()
        """What clients asked for that were told that it is accepted."""
        self.promises: dict[Kept, set[NodeId]] = {}
        """What was confirmed to clients and workers, and which disks held it then."""
        self.promised: dict[TaskId, set[NodeId]] = {}  #: the tasks among it
        self.started: list[Started] = []
        self.early: list[TaskId] = []  #: that began before what they come after ended
        self.died: set[NodeId] = set()  #: machines whose process ended unasked
        self.restored: set[NodeId] = set()  #: machines that lost part of their disk
        self.reported: dict[tuple[TaskId, AttemptId], AttemptState] = {}
        self.ended: dict[TaskId, int] = {}  #: and when on any disk first, as an hlc
        self.ends: dict[TaskId, set[TaskState]] = {}  #: and how, on a lost one, too
        self.forgotten: dict[TaskId, TaskRow] = {}  #: as a disk held it last
        self.is_skewed = False  #: a wall clock was moved, so ages mean little
        self.refused = self.snapshots = 0  #: the latter came to their end
        self.watchers: list[Callable[[Machine, Event, list[Effect]], None]] = []
        self.gone_watchers: list[Callable[[Machine, TaskRow], None]] = []
        self.answer_watchers: list[Callable[[Machine, Reply, float], None]] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = self._ticket = 0
        self._drafts: dict[int, tuple[Draft, ...]] = {}  #: by ticket
        self._held: dict[int, tuple[TaskSpec, ...]] = {}  #: what it repeats
        self._asked_s: dict[int, float] = {}  #: open requests, and since when
        self._barriers: dict[int, Callable[[Machine], None]] = {}  #: by ticket
        self._log: list[tuple[object, ...]] = []  #: what tells two runs apart
        self._is_traced = is_traced
        self.trace: list[str] = []

    # Time

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._order += 1
        heapq.heappush(self._queue, (self.time_s + delay_s, self._order, action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end_s = self.time_s + seconds
        while self._queue and self._queue[0][0] <= end_s:
            self.time_s, _, action = heapq.heappop(self._queue)
            action()
        self.time_s = end_s

    def run_until(self, condition: Callable[[], bool], most_s: float) -> bool:
        """Let time pass until a condition holds; return whether it came to hold."""
        end_s = self.time_s + most_s
        while not condition():
            if self.time_s >= end_s:
                return False
            self.run(0.1)
        return True

    def now(self, machine: Machine) -> Moment:
        """Return the clocks of one machine."""
        wall_ms = WALL_MS + int(self.time_s * 1000) + machine.wall_skew_ms
        return Moment(self.time_s, wall_ms)

    # Processes

    def saved(self, machine: Machine) -> Saved:
        """Return what a machine knows when its process starts."""
        return machine.disk.saved()

    def may_meet(self, dialler: NodeId, listener: NodeId) -> bool:
        """Whether TLS between two machines succeeds."""
        return True

    def may_stay(self, _end: NodeId, _peer: NodeId) -> bool:
        """Whether a peer that has met this end may still be there when it is up."""
        return True

    def start(self, node_id: NodeId) -> None:
        """Start a machine's agent."""
        machine = self.machines[node_id]
        if machine.node is not None:
            return
        machine.life += 1
        machine.has_stopped = False
        if self.updated_share and self.random.random() < self.updated_share:
            machine.log_version = 2
        machine.learnt = {}
        info = NodeInfo(
            id=node_id,
            boot=machine.boot,
            name="pi",
            slots=machine.slots,
            version="1.0",
            peer_port=machine.address.port,
            lan_port=3443,
            addresses=(machine.address.host,),
            memory_mb=MEMORY_MB,
            os="linux",
        )
        settings = Settings(
            node=info,
            timing=self.timing,
            limits=self.limits,
            is_strict=self.is_strict,
            log_version=machine.log_version,
        )
        machine.node = self.node_type(settings, self.saved(machine))
        self.feed(machine, Woke(self.random.random()))

    def start_all(self) -> None:
        """Start every machine's agent at the same instant."""
        for node_id in self.machines:
            self.start(node_id)

    def boot_all(self, least_s: float, most_s: float) -> None:
        """Start every machine's agent, each after so much time of a shared core."""
        assert self.cores is not None
        for node_id in self.machines:
            cost_s = self.random.uniform(least_s, most_s)
            self.cores.boot(node_id, cost_s, partial(self.start, node_id))

    def crash(self, node_id: NodeId) -> None:
        """End a process without a word; its commands die with it."""
        machine = self.machines[node_id]
        if machine.node is None:
            return
        machine.node = None
        if not machine.has_stopped:
            self.died.add(node_id)
        machine.life += 1
        machine.timer = None
        self._wake(machine)
        machine.held.clear()
        machine.frozen.clear()
        machine.disk.crash()
        machine.is_committing = machine.is_failing = False
        machine.running.clear()
        machine.waiting.clear()
        machine.is_browsing = False
        self.network.on_process_end(node_id)

    def pause(self, node_id: NodeId, seconds: float) -> None:
        """Stop a process (SIGSTOP) for some time; its commands run on."""
        machine = self.machines[node_id]
        if machine.node is None or machine.is_paused:
            return
        machine.is_paused = True
        life = machine.life
        self.at(seconds, lambda: self.resume(node_id) if machine.life == life else None)

    def sleep(self, node_id: NodeId, seconds: float) -> None:
        """Suspend a whole machine; only the clock goes on (CLOCK_BOOTTIME)."""
        machine = self.machines[node_id]
        if machine.node is None or machine.is_paused:
            return
        self.pause(node_id, seconds)
        machine.is_asleep = True
        for other in self.machines:
            if other != node_id:
                self.network.cut(node_id, other)

    def resume(self, node_id: NodeId) -> None:
        """End a pause or a sleep; what waited happens now."""
        machine = self.machines[node_id]
        self._wake(machine)
        held, machine.held = machine.held, []
        frozen, machine.frozen = machine.frozen, []
        for action in held + frozen:
            action()

    def _wake(self, machine: Machine) -> None:
        if machine.is_asleep:
            for other in self.machines:
                self.network.heal(machine.id, other)
        machine.is_paused = machine.is_asleep = False

    def restore(self, node_id: NodeId, backup: Disk) -> None:
        """Put an older state of its disk under a machine that is down."""
        machine = self.machines[node_id]
        assert machine.node is None
        machine.lost.append(machine.disk)
        machine.disk = backup
        self.restored.add(node_id)
        machine.restored_s = self.time_s
        for key, holders in self.promises.items():
            if key not in backup.kept:
                holders.discard(node_id)

    def stop(self, node_id: NodeId, drain_s: float = 5.0) -> None:
        """Ask an agent to stop."""
        machine = self.machines[node_id]
        if machine.node is not None:
            self.feed(machine, StopAsked(drain_s))

    def steer(self, node_id: NodeId, steering: Steering) -> None:
        """Tell a node as an operator does."""
        self.feed(self.machines[node_id], SteeringAsked(0, steering, "ana"))

    def _stopped(self, node_id: NodeId) -> None:
        self.crash(node_id)
        if self.is_calm:
            self.start(node_id)

    def when_alive(self, machine: Machine, action: Callable[[], None]) -> None:
        """Do something in this life of a process, later if it is paused now."""
        if machine.is_paused:
            machine.held.append(action)
        else:
            action()

    def later(
        self, machine: Machine, delay_s: float, action: Callable[[], None]
    ) -> None:
        """Do something later, if the process lives so long."""
        life = machine.life

        def act_now() -> None:
            if machine.life == life and machine.node is not None:
                action()

        def due() -> None:
            if machine.life == life and machine.node is not None:
                self.when_alive(machine, act_now)

        self.at(delay_s, due)

    def feed(self, machine: Machine, event: Event) -> None:
        """Step a node and perform what it asks for."""
        node = machine.node
        if node is None:
            return
        if machine.is_paused:
            machine.held.append(lambda: self.feed(machine, event))
            return
        if self.cores is None:
            self._step(machine, node, event)
            return

        def step() -> None:
            if machine.node is node:
                self._step(machine, node, event)

        self.cores.run(machine.id, event, step)

    def _step(self, machine: Machine, node: Node, event: Event) -> None:
        effects = node.step(event, self.now(machine))
        name, epoch = type(event).__name__, node.epoch
        self._log.append((self.time_s, machine.id, name, len(effects), *epoch))
        if self._is_traced:
            self._record(machine, event, effects)
        if effects:
            self._perform_all(machine, node, effects)
        if machine.node is not node:
            return
        for watch in self.watchers:
            watch(machine, event, effects)
        self._set_timer(machine, node)

    def _perform_all(self, machine: Machine, node: Node, effects: list[Effect]) -> None:
        number = 0
        for effect in effects:
            if isinstance(effect, NUMBERED):
                assert effect.number >= number, f"appends out of order: {effects}"
                number = effect.number
            # As in the agent, a node that has stopped performs nothing more.
            if machine.node is node:
                self._perform(machine, node, effect)

    def trace_hash(self) -> str:
        """Return a digest of everything that happened."""
        lines = (" ".join(map(str, step)) + ";" for step in self._log)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _record(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        line = f"{self.time_s:.3f} {machine.id[-2:]} {event!r} -> {effects!r}"
        self.trace.append(line)

    def _set_timer(self, machine: Machine, node: Node) -> None:
        """Let a node step when it wants to now, and not when it wanted to before."""
        self._order += 1
        delay_s = max(0.001, node.deadline() - self.time_s)
        machine.timer = (self.time_s + delay_s, self._order)
        # Most steps only put it off: it is enough to look again at the earlier time.
        if machine.alarm is None or machine.timer < machine.alarm:
            self._set_alarm(machine, machine.timer)

    def _set_alarm(self, machine: Machine, due: Due) -> None:
        machine.alarm = due
        time_s, order = due
        ring: Callable[[], None] = partial(self._ring, machine, due)
        heapq.heappush(self._queue, (time_s, order, ring))

    def _ring(self, machine: Machine, due: Due) -> None:
        if machine.alarm != due:
            return  # An earlier one took its place.
        machine.alarm = None
        if machine.timer == due:
            self.feed(machine, Woke(self.random.random()))
        elif machine.timer is not None:
            self._set_alarm(machine, machine.timer)

    # Effects

    def _perform(self, machine: Machine, node: Node, effect: Effect) -> None:
        match effect:
            case Send(peer, messages):
                self.network.send(machine.id, peer, messages)
            case Append() | Join() | Save():
                self._write(machine.disk, effect)
                self._commit_soon(machine)
            case Dial(peer, addresses):
                self.network.dial(machine.id, peer, addresses)
            case Disconnect(peer, reason):
                self.network.disconnect(machine.id, peer, reason)
            case Answer(ticket, reply):
                self._answer(machine, ticket, reply)
            case Learnt(some):
                self._learn(machine, some)
            case Start(items):
                self._run(machine, node, items)
            case Stop(items, reason):
                self._kill(machine, items, reason)
            case Stopped():
                machine.has_stopped = True
                self.at(0.0, lambda: self._stopped(machine.id))
            case _:
                self._perform_store(machine, effect)

    def _learn(self, machine: Machine, some: tuple[Recorded, ...]) -> None:
        """Let a process go by what is on its disk."""
        for record in some:
            key = (record.kind, record.key)
            assert key in machine.disk.notes, f"{machine.id}: {key} is on no disk"
            machine.learnt[key] = record

    def _write(self, disk: Disk, effect: Append | Join | Save) -> None:
        match effect:
            case Append():
                disk.append(effect)
            case Join():
                disk.join(effect)
                self.snapshots += effect.is_last
            case Save():
                disk.save(effect)

    def _perform_store(self, machine: Machine, effect: Effect) -> None:
        disk = machine.disk
        match effect:
            case Note():
                # Nobody here lies, but old frames that come again may look like it.
                assert effect.event != "peer refused" or self.network.repeats, effect
                machine.notes.append((self.time_s, effect))
            case ServePull(peer, vector, cursor):
                self.later(
                    machine,
                    self.random.uniform(0.001, 0.01),
                    lambda: self._serve(machine, peer, dict(vector), cursor),
                )
            case Load() | LoadLive() | LoadRipe() | PlanFloor():
                draw = self.late if isinstance(effect, LoadRipe) else self.random
                self.later(
                    machine,
                    draw.uniform(0.001, 0.01),
                    lambda: self.feed(machine, _read(disk, effect)),
                )
            case Unspool(items):
                disk.forget(items)
                self._commit_soon(machine)
            case Spool(reports):
                disk.keep(reports)
                self._commit_soon(machine)
            case Remember(peer, _, addresses):
                disk.peers[peer] = addresses
            case Browse(is_wanted):
                self._browse(machine, is_wanted=is_wanted)
            case _:
                pass

    def _commit_soon(self, machine: Machine) -> None:
        life = machine.life
        if machine.dies_after_s is not None:
            dies_after_s, machine.dies_after_s = machine.dies_after_s, None

            def die() -> None:
                if machine.life == life and not self.is_calm:
                    self.crash(machine.id)

            self.at(dies_after_s, die)
        if machine.is_committing:
            return
        machine.is_committing = True
        delay_s = self.random.uniform(*self.disk_ms) / 1000
        delay_s = max(delay_s, machine.stall_s - self.time_s)
        count = len(machine.disk.waiting)
        self.at(delay_s, lambda: self._commit(machine, life, count))

    def _commit(self, machine: Machine, life: int, count: int) -> None:
        """End one write; the writer is a thread, so a paused loop does not stop it."""
        if machine.life != life:
            return
        if machine.is_asleep:
            machine.frozen.append(lambda: self._commit(machine, life, count))
            return
        is_failing = self.time_s < machine.full_s
        if is_failing is not machine.is_failing:
            machine.is_failing = is_failing
            self.feed(machine, DiskChanged(is_failing))
        if is_failing:
            self.at(RETRY_S, lambda: self._commit(machine, life, count))
            return
        machine.is_committing = False
        number = machine.disk.commit(max(count, 1))
        self._note_ends(machine)
        if number is not None:
            self.feed(machine, Persisted(number))
        if machine.life == life and machine.disk.waiting:
            self._commit_soon(machine)

    def _note_ends(self, machine: Machine) -> None:
        """Take away what a disk says of tasks that ended, and that it forgot."""
        disk = machine.disk
        for task, hlc, state in disk.ended:
            self.ended[task] = min(hlc, self.ended.get(task, hlc))
            self.ends.setdefault(task, set()).add(state)
        for row in disk.gone:
            for watch in self.gone_watchers:
                watch(machine, row)
            self.forgotten[row.record.id] = row
        disk.ended, disk.gone = [], []

    def _serve(
        self, machine: Machine, peer: NodeId, vector: Vector, cursor: Cursor | None
    ) -> None:
        disk = machine.disk
        snapshot = disk.snapshot(vector, cursor)
        if snapshot is not None:
            self.network.send(machine.id, peer, (snapshot,))
            return
        draw = self.random if self.is_unordered else None
        entries, epochs, more = disk.entries_after(vector, CHUNK, draw)
        message = Entries(entries, epochs, more, disk.vector())
        self.network.send(machine.id, peer, (message,))

    def _browse(self, machine: Machine, *, is_wanted: bool) -> None:
        machine.is_browsing = is_wanted
        if not is_wanted or not self.network.has_multicast:
            return
        for other in self.machines.values():
            if other is machine or other.node is None:
                continue
            if self.network.is_cut(machine.id, other.id):
                continue
            self._advertise(other, machine)
            if other.is_browsing:
                self._advertise(machine, other)

    def _advertise(self, seen: Machine, by: Machine) -> None:
        is_dispatcher = seen.node is not None and seen.node.is_dispatcher
        advert = Advert(seen.id, (seen.address,), is_dispatcher=is_dispatcher)
        delay_s = self.random.uniform(0.02, 0.3)
        self.later(by, delay_s, lambda: self.feed(by, Seen((advert,))))

    # Commands

    def _run(
        self,
        machine: Machine,
        node: Node,
        items: tuple[tuple[AttemptId, TaskSpec], ...],
    ) -> None:
        for attempt, spec in items:
            seen = node.epoch.term
            if not self._may_start(spec):
                self.early.append(spec.id)
            self.started.append(
                Started(self.time_s, machine.id, spec.id, attempt, seen, born_hlc(spec))
            )
            machine.waiting.append((attempt, spec))
        self._fill(machine)

    def _may_start(self, spec: TaskSpec) -> bool:
        """Whether some disk shows that what it comes after ended as it should.

        What was found ready stays so, though the other half of a split goes on with
        what had ended; and of what is on a lost disk that may be all that is left.
        """
        if (place := member_of(spec.id)) is not None:
            found = (m.disk.records.get(place[0]) for m in self.machines.values())
            spec = next((r.spec for r in found if r and r.spec), spec)
        after = None if spec.options is None else spec.options.after
        disks = [machine.disk for machine in self.machines.values()]
        is_ready = any((Ready, spec.id, None) in disk.kept for disk in disks)
        for parent in () if after is None else after.tasks:
            assert after is not None
            task = TaskId(parent)
            states = {d.records[task].state for d in disks if task in d.records}
            states |= {d.past[task] for d in disks if task in d.past}
            if is_ready or self.restored:
                states |= self.ends.get(task, set())
            if states and not states & GOOD[after.end]:
                return False
        return True

    def _fill(self, machine: Machine) -> None:
        while machine.waiting and machine.has_room(machine.waiting[0][1]):
            attempt, spec = machine.waiting.pop(0)
            key = (spec.id, attempt)
            machine.running[key] = spec
            life = machine.life

            def end(key: tuple[TaskId, AttemptId] = key, life: int = life) -> None:
                # A command ends whether or not its agent is paused.
                if machine.is_asleep and machine.life == life:
                    machine.frozen.append(lambda: end(key, life))
                elif machine.life == life and key in machine.running:
                    del machine.running[key]
                    self._ended(machine, key, self._state(), Reason.EXIT)
                    self._fill(machine)

            self.at(self.random.uniform(*self.duration_s), end)

    def _state(self) -> AttemptState:
        """Return how a command that nobody ended came to its end."""
        is_failing = self.failing_share and self.tries.random() < self.failing_share
        return AttemptState.FAILED if is_failing else AttemptState.OK

    def _kill(
        self,
        machine: Machine,
        items: tuple[tuple[TaskId, AttemptId], ...],
        reason: Reason,
    ) -> None:
        for key in items:
            before = len(machine.waiting)
            machine.waiting = [
                item for item in machine.waiting if (item[1].id, item[0]) != key
            ]
            if key in machine.running or len(machine.waiting) < before:
                self.later(machine, KILL_S, self._killer(machine, key, reason))

    def _killer(
        self, machine: Machine, key: tuple[TaskId, AttemptId], reason: Reason
    ) -> Callable[[], None]:
        state = AttemptState.CANCELLED
        if reason is Reason.DRAINING:
            state = AttemptState.RELEASED
        is_running = key in machine.running

        def killed() -> None:
            # It may have come to its own end first, which then counts.
            if is_running and key not in machine.running:
                return
            machine.running.pop(key, None)
            self._ended(machine, key, state, reason)
            self._fill(machine)

        return killed

    def _ended(
        self,
        machine: Machine,
        key: tuple[TaskId, AttemptId],
        state: AttemptState,
        reason: Reason,
    ) -> None:
        code = 0 if state is AttemptState.OK else None
        if state is AttemptState.FAILED:
            code = self.tries.choice((None, 7))
            reason = Reason.SIGNAL if code is None else reason
        outcome = Outcome(
            state=state,
            reason=reason,
            exit_code=code,
            stdout=f"{machine.id} {key[1]}".encode(),
        )
        report = Report(task=key[0], attempt=key[1], outcome=outcome)
        self.feed(machine, AttemptsEnded((report,)))

    # Clients

    def submit(
        self, node_id: NodeId, count: int = 1, task_id: TaskId | None = None
    ) -> None:
        """Submit tasks through one node, or one of two that want to have this id."""
        machine = self.machines[node_id]
        if machine.node is None or machine.is_failing:
            return  # The gateway refuses what cannot be written.
        if task_id is not None and (held := self._named(machine, task_id)):
            self._repeat(machine, held)
            return
        suffixes = tuple(f"{self.random.getrandbits(32):08x}" for _ in range(count))
        drafts = tuple(
            Draft(command=f"run {suffix}", id=None)
            if task_id is None
            else Draft(command=f"run {task_id} {int(suffix, 16) % 2}", id=task_id)
            for suffix in suffixes
        )
        if task_id is None:
            drafts = tuple(self._made_late(draft, machine) for draft in drafts)
            drafts = tuple(self._made_needy(draft, machine) for draft in drafts)
        drafts = tuple(map(self._made_trying, drafts))
        self.asked.update(draft.command for draft in drafts)
        ticket = self._next_ticket()
        self._drafts[ticket] = drafts
        event = TasksSubmitted(ticket, drafts, "client", suffixes)
        self.feed(machine, event)

    def _named(self, machine: Machine, name: TaskId) -> list[TaskSpec]:
        """Return the tasks of that name on a node's disk."""
        records = machine.disk.records.values()
        return [r.spec for r in records if r.spec and name_of(r.id) == name]

    def _repeat(self, machine: Machine, held: list[TaskSpec]) -> None:
        """Let the gateway answer from its log, once that is safe."""
        ticket = self._next_ticket()
        self._drafts[ticket] = ()
        self._held[ticket] = tuple(held)
        self.feed(machine, TasksSubmitted(ticket, (), "client", ()))

    def _made_late(self, draft: Draft, machine: Machine) -> Draft:
        """Let some tasks come after another one that this node knows."""
        known = list(machine.disk.records)
        if not known or self.late.random() >= self.late_share:
            return draft
        after = After(
            tasks=(self.late.choice(known),), end=self.late.choice(("success", "any"))
        )
        return replace(draft, options=TaskOptions(after=after))

    def _made_needy(self, draft: Draft, machine: Machine) -> Draft:
        """Let some tasks ask for a whole machine, or for most of its memory."""
        if self.needy.random() >= self.needy_share:
            return draft
        requires = self.needy.choice(
            (
                Requires(cpus=machine.slots),
                Requires(memory_mb=MEMORY_MB - 1),
                Requires(os="linux"),
            )
        )
        options = replace(draft.options or TaskOptions(), requires=requires)
        return replace(draft, options=options)

    def _made_trying(self, draft: Draft) -> Draft:
        """Let tasks be tried again, and some stand for many.

        What has a name asks for the same each time that it is handed in.
        """
        if not self.failing_share:
            return draft
        draw = self.tries if draft.id is None else random.Random(draft.command)
        options = replace(draft.options or TaskOptions(), retry=draw.choice(RULES))
        if draw.random() < self.array_share:
            array = ArraySpec(
                count=draw.randint(1, self.members_most),
                first=draw.choice((0, 7)),
                step=draw.choice((1, 3)),
                max_fails=draw.choice((None, None, 0, 2)),
            )
            options = replace(options, array=array)
        if options == TaskOptions():
            return draft
        return replace(draft, options=options)

    def cancel(self, node_id: NodeId, task: TaskId, *, force: bool) -> None:
        """Cancel a task, an array or one of its members through one node."""
        machine = self.machines[node_id]
        record = machine.disk.shown(task)
        if machine.node is None or record is None:
            return
        array = record if record.progress else None
        event = CancelRequested(
            self._next_ticket(), task, record.state, force, "client", array
        )
        self.feed(machine, event)

    def cancelled_as(self, task: TaskId) -> tuple[Kept, ...]:
        """Return the fact by which some disk says that a task is cancelled, if any.

        A member may be so by its array, and an array by each of its members.
        """
        place = member_of(task)
        is_array = any(task in m.disk.members for m in self.machines.values())
        if place is None and not is_array:
            return ((CancelAsked, task, None),)
        for one in (task,) if place is None else (task, place[0]):
            key: Kept = (CancelAsked, one, None)
            if any(key in machine.disk.kept for machine in self.machines.values()):
                return (key,)
        return ()

    def is_gone(self, task: TaskId) -> bool:
        """Whether a task was forgotten somewhere, a member with its array."""
        place = member_of(task)
        return (task if place is None else place[0]) in self.forgotten

    def record(self, node_id: NodeId) -> None:
        """Let somebody record something; some keys are few, so that they clash."""
        machine = self.machines[node_id]
        if machine.node is None or machine.is_failing:
            return
        draw = self.notes
        kind, few = draw.choice(
            (
                (records.TOKEN_REVOKED, True),
                (records.TOKEN_REVOKED, False),
                (records.AUDIT, False),
            )
        )
        key = str(draw.randrange(6)) if few else f"{draw.getrandbits(64):x}"
        drafts = (RecordDraft(kind, key, draw.randbytes(4)),)
        self.feed(machine, RecordAsked(self._next_ticket(), drafts))

    def on_unknown(self, machine: Machine, say: Callable[[Machine], None]) -> None:
        """Ask for what a node does not know; `say` is done where it answers 404."""
        ticket = self._next_ticket()
        self._barriers[ticket] = say
        self.feed(machine, BarrierAsked(ticket))

    def _next_ticket(self) -> int:
        self._ticket += 1
        self._asked_s[self._ticket] = self.time_s
        return self._ticket

    def _answer(self, machine: Machine, ticket: int, reply: Reply) -> None:
        if isinstance(reply, Steered):
            return
        match reply:
            case Passed(is_complete):
                say = self._barriers.pop(ticket)
                if is_complete:
                    say(machine)
            case Accepted(specs, replicas):
                self.repeated = self._held.pop(ticket, ())
                reply = Accepted((*specs, *self.repeated), replicas)
                for spec, draft in zip(specs, self._drafts[ticket], strict=True):
                    self.accepted[spec.id] = spec
                    self.wanted.add((spec.id, draft.command))
                    self._promise((Submitted, spec.id, None))
            case replies.Kept(some):
                self._promise(*map(kept, some))
            case CancelDone(task, _, was_done) if was_done:
                self._promise(*self.cancelled_as(task))
            case _:
                self.refused += 1
        waited_s = self.time_s - self._asked_s.pop(ticket)
        for watch in self.answer_watchers:
            watch(machine, reply, waited_s)

    def _promise(self, *keys: Kept) -> None:
        """Note which disks hold what somebody relies on from now on."""
        for key in keys:
            self._promise_one(key)

    def _promise_one(self, key: Kept) -> None:
        # Of a task that is gone a late result is void as soon as it is there.
        is_late = key[0] is Finished and self.is_gone(key[1])
        if key not in self.promises and not is_late:
            holders = {m.id for m in self.machines.values() if key in m.disk.kept}
            if not holders and self.is_gone(key[1]):
                return  # It ended long ago, as these worlds count, before the answer.
            assert holders, f"{key} was confirmed, and is on no disk"
            self.promises[key] = holders
            if key[0] is Submitted:
                self.promised[key[1]] = holders

    def on_arrival(self, messages: tuple[Message, ...]) -> None:
        """Note what workers reported, and what they were allowed to forget."""
        for message in messages:
            if isinstance(message, Results):
                for report in message.reports:
                    key = (report.task, report.attempt)
                    self.reported[key] = report.outcome.state
            elif isinstance(message, ResultsOk):
                for task, attempt in message.items:
                    self._promise((Finished, task, attempt))

    # What people see

    @property
    def steps(self) -> int:
        """How many steps all nodes have taken."""
        return len(self._log)

    def alive(self) -> list[Machine]:
        """Return the machines whose agent runs."""
        return [m for m in self.machines.values() if m.node is not None]

    def dispatchers(self) -> list[NodeId]:
        """Return the nodes that reign."""
        return [m.id for m in self.alive() if m.node and m.node.is_dispatcher]

    def is_settled(self) -> bool:
        """Whether every agent names the same dispatcher, which reigns."""
        reigning = self.dispatchers()
        return len(reigning) == 1 and all(
            m.node is not None and m.node.dispatcher == reigning[0]
            for m in self.alive()
        )


def _read(disk: Disk, asked: Load | LoadLive | LoadRipe | PlanFloor) -> Event:
    """Return what the store answers."""
    match asked:
        case Load():
            return disk.load(asked)
        case LoadLive():
            return LiveLoaded(disk.live(asked))
        case LoadRipe():
            return disk.ripe(asked)
        case PlanFloor():
            return disk.plan(asked)
