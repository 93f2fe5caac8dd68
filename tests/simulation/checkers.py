"""What must hold, one function each; each raises AssertionError with what it saw."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

from octaskly.core.arrays import member_of
from octaskly.core.effects import Append, Effect, Join, Note, Save, Send
from octaskly.core.events import Event, Received
from octaskly.core.facts import CancelAsked, Entry, Fact, Finished, Recorded, Submitted
from octaskly.core.merge import TaskRecord, TaskRow, join
from octaskly.core.messages import Claim, ClaimOk, Repl, ReplOk, Results, ResultsOk
from octaskly.core.model import (
    NO_EPOCH,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    TaskState,
    name_of,
)
from octaskly.core.node import Node
from octaskly.core.phases import (
    Following,
    Phase,
    Reigning,
    Seeking,
    Succeeding,
    TakingOver,
    Yielding,
)
from octaskly.core.records import KINDS, first
from octaskly.core.replies import Accepted, CancelDone, Reply
from octaskly.core.retention import STEP_S
from octaskly.core.succession import covers
from octaskly.core.timestamps import HLC_MAX, born_hlc, hlc_of
from tests.simulation.commands import Started
from tests.simulation.disk import ENDING, STEP_TASKS, Disk, Kept
from tests.simulation.machine import Machine
from tests.simulation.shell import NUMBERED
from tests.simulation.world import WALL_MS, World

NOTICED_S = 5.0  #: within which the end of a process is noticed elsewhere
TOLD_S = 20.0  #: within which a dispatcher has told its standbys what its rows say
CLAIMS = (Claim, ClaimOk)  #: what says whom a node reigns for or follows
TELLS: dict[type[Phase], set[str]] = {
    Seeking: {"seeking", "stopped"},
    Following: {"dispatcher followed", "yielded"},
    Succeeding: {"dispatcher lost"},
    TakingOver: {"claiming"},
    Reigning: {"dispatcher elected"},
    Yielding: {"yielding", "dispatcher followed"},
}
"""The lines of the log that tell of each phase."""
LINES = set().union(*TELLS.values())


class Watch:
    """Checks that look at a world after every step of a node, and at every answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._terms: dict[NodeId, tuple[Disk, int]] = {}
        self._epochs: dict[NodeId, tuple[Node, Epoch]] = {}
        self._level: dict[NodeId, Node] = {}
        self._reigned: dict[Epoch, Disk] = {}  #: the disk of each reign, at its begin
        self._told_s: dict[tuple[Node, TaskId, AttemptId], float] = {}
        """Since when each process knows results that it has not acknowledged."""
        self._ahead_s: dict[NodeId, float] = {}
        self._heirs: dict[NodeId, tuple[Epoch, NodeId, set[TaskId]]] = {}
        """Of whom each dispatcher was standby, and which of its tasks it lacks."""
        self._versions: dict[StreamId, int] = {}  #: of who writes each stream
        self._is_stale: dict[tuple[NodeId, Epoch, int], bool] = {}
        self._phases: dict[NodeId, tuple[Node, type[Phase]]] = {}
        self._checked = 0
        world.watchers.append(self)
        world.clients.answer_watchers.append(self.on_answer)
        world.storage.gone_watchers.append(self.on_gone)

    def __call__(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """Check after one step and what it brought about."""
        node = machine.node
        assert node is not None
        if isinstance(event, Received):
            self._note_stale(machine, event)
            self._note_results(node, event)
        for effect in effects:
            if isinstance(effect, Send):
                self._on_sent(machine, effect)
            elif isinstance(effect, NUMBERED):
                self._on_written(machine, effect)
        self._transitions_are_told(machine, effects)
        if node.is_dispatcher:
            self._rows_are_told(machine, node)
            self._heirs_know_what_they_lack(machine, node)
        else:
            self._ahead_s.pop(machine.id, None)
            self._heirs.pop(machine.id, None)
        self._terms_never_decrease(machine)
        self._epochs_never_decrease(machine, node)
        self._no_stale_start()
        if _has_level_standby(machine):
            self._level[machine.id] = node
        else:
            self._level.pop(machine.id, None)

    def _on_sent(self, machine: Machine, sent: Send) -> None:
        for message in sent.messages:
            if isinstance(message, CLAIMS):
                self._is_on_disk(machine, message)
            elif isinstance(message, ReplOk):
                self._is_not_stale(machine, message)
            elif isinstance(message, ResultsOk):
                self._results_are_safe(machine, message)

    def _on_written(self, machine: Machine, written: Append | Join | Save) -> None:
        self._is_readable(machine, written)
        for entry in written.entries if isinstance(written, Append) else ():
            if isinstance(entry.fact, Submitted):
                self._is_not_brought_back(machine, entry, entry.fact)

    def on_answer(self, machine: Machine, reply: Reply, waited_s: float) -> None:
        """Check one answer to a client, at the instant at which it leaves."""
        if isinstance(reply, CancelDone) and reply.was_done and self._world.is_strict:
            # It may have been cancelled long ago, and be forgotten meanwhile.
            is_gone = self._world.storage.is_gone(reply.task)
            for fact in self._world.promises.cancelled_as(reply.task):
                holders = self._holders(fact)
                assert is_gone or len(holders) > 1, (
                    f"{reply.task} cancelled on {holders}, though strict"
                )
        if isinstance(reply, Accepted):
            self._replicas_are_real(reply)
            self._standbys_are_waited_for(machine, reply, waited_s)

    def on_gone(self, machine: Machine, row: TaskRow) -> None:
        """F19: only what ended long ago is ever forgotten."""
        world, task = self._world, row.record.id
        assert task in world.storage.ended, (
            f"{machine.id} forgot {row}, which has not ended"
        )
        now_ms = WALL_MS + int(world.time_s * 1000)
        oldest_hlc = hlc_of(now_ms - round(world.timing.retention_s * 1000))
        assert world.is_skewed or world.storage.ended[task] <= oldest_hlc, (
            f"{machine.id} forgot {row} too early"
        )

    def _is_readable(self, machine: Machine, effect: Append | Join | Save) -> None:
        """3.10: no node is given entries that its program cannot read."""
        streams: set[StreamId] = set()
        match effect:
            case Save(stream=(stream, _)):
                self._versions[stream] = machine.log_version
            case Append():
                streams = {entry.stream for entry in effect.entries}
            case Join():
                streams = {stream for stream, _ in effect.head.vector}
            case Save():
                return
        for stream in streams:
            version = self._versions[stream]
            assert version <= machine.log_version, f"{machine.id} cannot read {stream}"

    def _is_not_brought_back(
        self, machine: Machine, entry: Entry, fact: Submitted
    ) -> None:
        """I2: who has heard that a task is gone does not write it again."""
        row = self._world.storage.forgotten.get(fact.task)
        if row is None:
            return
        spec, disk = row.record.spec, machine.disk
        if spec is None or spec.ord != fact.spec.ord or entry.stream != _own(machine):
            return
        # It may still be shown for what was said of it elsewhere meanwhile, by others
        # who had not heard that it is gone.
        is_shown = fact.task in disk.records or any(
            not _is_below_floor(disk, _row(other.disk, fact.task))
            for other in self._world.machines.values()
            if fact.task in other.disk.records
        )
        assert (
            is_shown or not _is_below_floor(disk, row) or self._is_news(machine, row)
        ), f"{machine.id} wrote {fact.task} again, which is gone: {row}"

    def _is_news(self, machine: Machine, row: TaskRow) -> bool:
        """Whether a worker tells of a task that a reign unknown here has placed.

        What else that reign said of it, this node cannot know: it keeps the task.
        """
        return any(
            task == row.record.id and not machine.disk.have(attempt.stream)
            for worker in self._world.machines.values()
            for task, attempt in (*worker.running, *worker.disk.spool)
        )

    def _replicas_are_real(self, reply: Accepted) -> None:
        """I10: so many disks hold the tasks as the answer says."""
        for spec in reply.specs:
            machines = self._world.machines.values()
            # A row of half a snapshot is on disk as well.
            holders = [m.id for m in machines if self._has_task(m, spec.id)]
            is_gone = spec.id in self._world.storage.forgotten
            assert is_gone or reply.replicas <= len(holders), (
                f"{spec.id}: {reply.replicas} replicas said, on {holders}"
            )

    def _has_task(self, machine: Machine, task: TaskId) -> bool:
        key = (Submitted, task, None)
        disks = self._disks(machine)
        return any(task in disk.records or key in disk.kept for disk in disks)

    def _disks(self, machine: Machine) -> list[Disk]:
        """Return the disk of a machine, and what it was a moment ago.

        Until the end of a process is noticed, others count on what it had.
        """
        is_late = self._world.time_s >= machine.restored_s + NOTICED_S
        return [machine.disk] if is_late else [machine.disk, *machine.lost]

    def _rows_are_told(self, machine: Machine, node: Node) -> None:
        """I10: what only rows of a dispatcher say does not stay on one disk."""
        if (
            not machine.disk.stands_for
            or not machine.disk.ahead()
            or not (node.has_level_standby and node.has_read_all)
            or self._world.time_s < max(machine.full_s, machine.stall_s)
        ):
            self._ahead_s.pop(machine.id, None)
            return
        now_s = self._world.time_s
        since_s = self._ahead_s.setdefault(machine.id, now_s)
        steps = machine.disk.rows / STEP_TASKS  # Here a row is much, there a thousand.
        is_late = now_s >= since_s + TOLD_S + steps * STEP_S
        assert not is_late, f"{machine.id} keeps rows to itself"

    def _heirs_know_what_they_lack(self, machine: Machine, node: Node) -> None:
        """I4: a standby that reigns says 404 of nothing that its dispatcher had."""
        epoch, before, lacked = self._heirs.get(machine.id, (None, machine.id, set()))
        if epoch != node.epoch:
            level = node.level_epoch
            before = level.node or machine.id
            disk = self._world.machines[before].disk
            if level.node and disk is not self._reigned.get(level):
                disk = machine.disk  # A backup, or another one: as if it had nothing.
            self._reigned[node.epoch] = machine.disk
            lacked = disk.records.keys() & self._world.promises.tasks.keys()
            lacked -= machine.disk.records.keys() | self._world.storage.forgotten.keys()
            # A chosen name may be on its way anew, whose first task is lost for good.
            lacked = {task for task in lacked if name_of(task) == task}
            self._heirs[machine.id] = node.epoch, before, lacked
        if not lacked or not knows_all(self._world, node):
            return
        disks = [each.disk for each in self._world.machines.values()]
        for task in sorted(lacked - machine.disk.records.keys()):
            had = self._world.machines[before]
            holders = sum(task in disk.records for disk in disks)
            is_sole = holders == 1 and task in had.disk.records and not had.node
            is_gone = task in self._world.storage.forgotten
            assert is_gone or not is_sole, f"{machine.id}: 404 for {task}, on {before}"

    def _holders(self, key: Kept) -> list[NodeId]:
        machines = self._world.machines.values()
        return [machine.id for machine in machines if key in machine.disk.kept]

    def _standbys_are_waited_for(
        self, machine: Machine, reply: Accepted, waited_s: float
    ) -> None:
        """I10: one copy is said to be enough only where no standby keeps up."""
        if reply.replicas > 1:
            return
        assert not self._world.is_strict, f"{machine.id}: one copy, though strict"
        if self._world.clients.repeated:
            return  # Of what rows alone say, standbys keep nothing yet.
        was_level = self._level.get(machine.id) is machine.node
        assert (
            not was_level
            or not _has_level_standby(machine)
            or (waited_s >= self._world.timing.solo_s - 0.01)
        ), f"{machine.id} waited {waited_s:.3f} s for no standby"

    def _note_results(self, node: Node, event: Received) -> None:
        for message in event.messages:
            for report in message.reports if isinstance(message, Results) else ():
                key = (node, report.task, report.attempt)
                self._told_s.setdefault(key, self._world.time_s)

    def _results_are_safe(self, machine: Machine, message: ResultsOk) -> None:
        """G3: what a worker may forget is on two disks, as what a client is told."""
        world, node = self._world, machine.node
        assert node is not None
        for task, attempt in message.items:
            told_s = self._told_s.pop((node, task, attempt), None)
            holders = [
                m.id
                for m in world.machines.values()
                if any(_has_end(disk, task, attempt) for disk in self._disks(m))
            ]
            if len(holders) > 1 or world.storage.is_gone(task):
                continue
            assert not world.is_strict, f"{task} has ended on {holders}, though strict"
            if self._level.get(machine.id) is node and _has_level_standby(machine):
                assert told_s is not None
                waited_s = world.time_s - told_s
                assert waited_s >= world.timing.solo_s - 0.01, (
                    f"{machine.id} acknowledged {task} on {holders} after {waited_s} s"
                )

    def _transitions_are_told(self, machine: Machine, effects: list[Effect]) -> None:
        """Each transition is one line of the log, with its reason."""
        assert machine.node is not None
        phase = type(machine.node.phase)
        node, before = self._phases.get(machine.id, (None, Seeking))
        told = [e for e in effects if isinstance(e, Note) and e.event in LINES]
        if not told and node is machine.node and phase is before:
            return
        self._phases[machine.id] = machine.node, phase
        assert all(dict(note.fields).get("reason") for note in told), told
        events = [note.event for note in told]
        assert all(a != b for a, b in pairwise(events)), f"{machine.id}: {events}"
        if node is machine.node and phase is before:
            return
        assert events, f"{machine.id}: {phase} after {before} without a line"
        assert events[-1] in TELLS[phase], f"{machine.id}: {events} tells of {phase}"

    def _terms_never_decrease(self, machine: Machine) -> None:
        """§ 3.4: a term on a disk only grows."""
        disk, last = self._terms.get(machine.id, (None, 0))
        term = machine.disk.term
        if disk is machine.disk and term == last:
            return
        assert disk is not machine.disk or term >= last, (
            f"{machine.id}: term {term} after {last}"
        )
        self._terms[machine.id] = machine.disk, term

    def _is_on_disk(self, machine: Machine, message: Claim | ClaimOk) -> None:
        """§ 3.4: what a node claims or follows is on its disk before others hear it."""
        saved = machine.disk.epoch
        assert saved >= message.epoch, f"{machine.id}: {saved}, {message}"

    def _note_stale(self, machine: Machine, event: Received) -> None:
        node, epoch = self._epochs.get(machine.id, (None, NO_EPOCH))
        for message in event.messages:
            if isinstance(message, Repl) and node is machine.node:
                key = (machine.id, message.epoch, message.number)
                # What came in time may come again, and is acknowledged once.
                self._is_stale.setdefault(key, message.epoch < epoch)

    def _is_not_stale(self, machine: Machine, message: ReplOk) -> None:
        """I7: a standby does not serve a dispatcher that it knows to be deposed."""
        key = (machine.id, message.epoch, message.number)
        assert not self._is_stale.get(key), f"{machine.id} served {message.epoch}"

    def _epochs_never_decrease(self, machine: Machine, node: Node) -> None:
        """I6: the epochs that one process goes by only grow."""
        known, last = self._epochs.get(machine.id, (None, NO_EPOCH))
        epoch = node.epoch
        if known is node and epoch is last:
            return
        assert known is not node or epoch >= last, f"{machine.id}: {epoch} after {last}"
        self._epochs[machine.id] = node, epoch

    def _no_stale_start(self) -> None:
        """I7: no start for an epoch lower than one already seen."""
        if self._checked == len(self._world.commands.started):
            return
        for started in self._world.commands.started[self._checked :]:
            assert started.attempt.term >= started.seen_term, f"stale: {started}"
        self._checked = len(self._world.commands.started)


def _has_level_standby(machine: Machine) -> bool:
    node = machine.node
    return node is not None and node.has_level_standby


def _has_end(disk: Disk, task: TaskId, attempt: AttemptId) -> bool:
    """Whether a disk says how an attempt ended, perhaps in a row of half a snapshot."""
    if (Finished, task, attempt) in disk.kept:
        return True
    record = disk.shown(task)
    ended = () if record is None else (a.id for a in record.attempts if a.outcome)
    return attempt in ended


def _counting(disk: Disk) -> dict[TaskId, TaskRecord]:
    """Return the tasks whose submission is not void.

    Others wait until a late fact is void as well. Arrays come with their members.
    """
    marks = {mark.stream: mark.seq for mark in disk.floor.marks}
    found = {
        task: record
        for task, record in disk.records.items()
        for birth in [disk.births[task]]
        if marks.get(birth.stream, 0) < birth.seq
    }
    for array, said in disk.members.items():
        if array in found:
            found[array] = replace(found[array], progress=None)
            found.update((record.id, record) for record in said.values())
    return found


def _own(machine: Machine) -> StreamId | None:
    node = machine.node
    epoch = node.epoch if node else None
    for stream, writer in machine.disk.writers.items():
        if writer == epoch and writer.node == machine.id:
            return stream
    return None


def _row(disk: Disk, task: TaskId) -> TaskRow:
    return TaskRow(disk.records[task], disk.births[task], disk.changed[task])


def _is_below_floor(disk: Disk, row: TaskRow) -> bool:
    marks = {mark.stream: mark.seq for mark in disk.floor.marks}
    is_below = row.birth.seq <= marks.get(row.birth.stream, 0)
    return is_below and row.changed <= disk.floor.horizon


def knows_all(world: World, node: Node) -> bool:
    """Whether a node counts on nobody who may hold what it does not know."""
    return node._completeness.is_complete(world.time_s)


def never_not_found(world: World) -> None:
    """I4: in a split, and while a merge runs, no promised task is called unknown.

    A dispatcher may say so of what only nodes hold that it counts on no more.
    """
    for machine in world.alive():
        node = machine.node
        if machine.is_paused or not (node and node.is_dispatcher):
            continue
        views = node.peers
        knowing = [
            m
            for m in world.alive()
            if world.network.is_up(machine.id, m.id)
            # One that started anew behind a cut claims before its silence is noticed.
            or (m.id in views and views[m.id].info.boot == m.boot)
        ]
        records = machine.disk.records
        lacked = [task for task in _promised(world) if task not in records]
        lacked = [t for t in lacked if any(t in m.disk.records for m in knowing)]
        if lacked:
            world.clients.on_unknown(machine, partial(_are_known_by_now, world, lacked))


def _are_known_by_now(world: World, tasks: list[TaskId], machine: Machine) -> None:
    """A node says 404 where it does not find what others held when it was asked."""
    for task in set(tasks) & set(_promised(world)) - machine.disk.records.keys():
        holders = [m.id for m in world.alive() if task in m.disk.records]
        assert not holders, f"{machine.id} calls {task} unknown, not {holders}"


def one_writer_per_stream(world: World) -> None:
    """I6: all disks agree who wrote a stream, and what stands at each place."""
    writers: dict[StreamId, Epoch] = {}
    entries: dict[tuple[StreamId, int], object] = {}
    epochs: dict[Epoch, StreamId] = {}
    for machine in world.machines.values():
        for stream, epoch in machine.disk.writers.items():
            known = writers.setdefault(stream, epoch)
            assert known == epoch, f"stream {stream}: {known} and {epoch}"
            first = epochs.setdefault(epoch, stream)
            # Who has lost its terms with its disk may name one once more.
            assert first == stream or epoch.node in world.restored, (
                f"epoch {epoch} wrote {first} and {stream}"
            )
        for log in machine.disk.streams.values():
            for entry in log:
                fact = entries.setdefault((entry.stream, entry.seq), entry)
                assert fact == entry, f"two facts at {entry.stream}/{entry.seq}"


def nothing_accepted_is_lost(world: World) -> None:
    """I1: every accepted task is known to the dispatcher after the heal."""
    _is_kept(world, Submitted)


def accepted_tasks_are_what_was_asked_for(world: World) -> None:
    """I1: so is what it shall do, whoever else chose the same name for a task."""
    (dispatcher,) = world.dispatchers()
    records = world.machines[dispatcher].disk.records.values()
    known = {(name_of(r.id), r.spec.command) for r in records if r.spec is not None}
    gone = {name_of(task) for task in world.storage.forgotten}
    for task, command in sorted(world.clients.wanted):
        if (
            world.promises.holders.get((Submitted, task, None))
            and name_of(task) not in gone
        ):
            assert (name_of(task), command) in known, f"{task} is not {command!r}"


def cancels_are_kept(world: World) -> None:
    """I1: so is every cancel that was confirmed."""
    _is_kept(world, CancelAsked)


def acknowledged_results_are_present(world: World) -> None:
    """I5: a result that a worker was allowed to forget is in the log."""
    _is_kept(world, Finished)


def records_are_kept(world: World) -> None:
    """What was confirmed to be recorded is in the log, also after the floor."""
    _is_kept(world, Recorded)
    (dispatcher,) = world.dispatchers()
    known = {f"{kind}/{key}" for kind, key in world.machines[dispatcher].disk.notes}
    for kind, place, _ in world.machines[dispatcher].disk.kept:
        assert kind is not Recorded or place in known, f"{place} is in no table"


def all_go_by_the_same_records(world: World) -> None:
    """What every node goes by is known to each, whether it keeps a log or not."""
    (dispatcher,) = world.dispatchers()
    for key, (record, _) in world.machines[dispatcher].disk.notes.items():
        if KINDS[record.kind].is_told:
            for machine in world.alive():
                mine = machine.learnt.get(key)
                assert mine is not None, f"{machine.id} was not told {key}"
                # It may have heard of an earlier one, whose log is lost.
                counts = first(mine, record)
                assert counts == mine, f"{machine.id} goes by {mine}, not {record}"


def _is_kept(world: World, kind: type[Fact]) -> None:
    """What was promised is kept as long as one of the disks that held it then is."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    lost = sorted(
        f"{key[1:]} on {sorted(holders)}"
        for key, holders in world.promises.holders.items()
        if key[0] is kind and holders and key not in disk.kept
        if not world.storage.is_gone(key[1])
        if kind not in ENDING or not _has_no_disk(world, disk, key[1])
    )
    assert not lost, f"lost {len(lost)} of {len(world.promises.holders)}: {lost[:3]}"


def _has_no_disk(world: World, disk: Disk, task: TaskId) -> bool:
    """Whether all disks that held a task are lost, and it is too old to come back.

    Its results are told to no end then, and there is nothing to cancel: a worker's copy
    is written again only while the floor has not passed the time of its submission.
    """
    if (place := member_of(task)) is not None:
        task = place[0]  # An array is lost with all that its members did.
        key: Kept = (Submitted, task, None)
        return not any(key in m.disk.kept for m in world.machines.values())
    key = (Submitted, task, None)
    born = [started.born for started in world.commands.started if started.task == task]
    if task in world.clients.accepted:
        born.append(born_hlc(world.clients.accepted[task]))
    is_old = max(born, default=HLC_MAX) <= disk.floor.horizon
    return is_old and not any(key in m.disk.kept for m in world.machines.values())


def no_phantom_tasks(world: World) -> None:
    """I2: every task on a disk was asked for by a client."""
    for machine in world.machines.values():
        for record in machine.disk.records.values():
            if record.spec is not None:
                assert record.spec.command in world.clients.asked, (
                    f"phantom {record.id}"
                )


def nothing_runs_before_its_parents(world: World) -> None:
    """A task begins when what it comes after has ended as it asked."""
    assert not world.commands.early, f"began too early: {world.commands.early[:3]}"


def every_accepted_task_is_final(world: World) -> None:
    """Liveness: once faults stop, all that was accepted comes to an end."""
    open_ = unfinished(world)
    assert not open_, f"{len(open_)} of {len(world.clients.accepted)} open: {open_[:3]}"


def one_dispatcher(world: World) -> None:
    """I8: after settling, all name one dispatcher."""
    views = {m.id: m.node.dispatcher for m in world.alive() if m.node}
    assert world.is_settled(), f"dispatchers {world.dispatchers()}, views {views}"


def one_outcome(world: World) -> None:
    """I3: who holds the same facts of a task shows the same; none has more."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for machine in world.machines.values():
        for stream in machine.disk.streams:
            held = disk.have(stream)
            assert held >= machine.disk.have(stream), (
                f"{machine.id} holds {machine.disk.have(stream)} entries of {stream}, "
                f"the dispatcher {dispatcher} {held}"
            )
        if machine.disk.vector() == disk.vector():
            ours, theirs = _counting(disk), _counting(machine.disk)
            # Who forgot a task before it was carried elsewhere has less of it.
            for task in sorted(ours.keys() | theirs.keys()):
                if world.storage.is_gone(task):
                    continue
                mine, its = ours.get(task), theirs.get(task)
                if its is not None and machine.disk.ahead():
                    # It knows more than its log, and tells the others when it reigns.
                    mine = its if mine is None else join(mine, its)
                assert mine == its, f"{task} differs: {mine} and {its}"


def cancelled_stays_cancelled(world: World) -> None:
    """A cancel that was confirmed loses only against a success."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for kind, task, _ in disk.kept:
        record = disk.shown(task) if kind is CancelAsked else None
        if record is not None and record.progress is None:
            is_so = record.state in (TaskState.CANCELLED, TaskState.COMPLETED)
            assert is_so, f"{task}"


def what_is_forgotten_stays_away(world: World) -> None:
    """I2: no task shows again that is gone; F19, also after long absences."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for task in world.storage.forgotten.keys() & disk.records.keys():
        row = _row(disk, task)
        assert not _is_below_floor(disk, row), f"{row} is back"


def results_are_kept(world: World) -> None:
    """I5: nothing that a worker spooled is left over once all is quiet.

    But where only the dispatcher's disk can hold it, and that shall not do.
    """
    (dispatcher,) = world.dispatchers()
    reads = world.machines[dispatcher].log_version
    others = [one for one in world.alive() if one.id != dispatcher]
    if world.is_strict and all(one.log_version < reads for one in others):
        return
    for machine in world.machines.values():
        keys = sorted(machine.disk.spool)
        assert not keys, f"{machine.id} still keeps {keys[:3]}"


def nothing_runs_twice(world: World) -> None:
    """I9: no task is started again unless the node that ran it died."""
    first: dict[str, Started] = {}
    for started in world.commands.started:
        earlier = first.setdefault(started.task, started)
        if earlier is started or earlier.node in world.died:
            continue
        raise AssertionError(f"started twice: {earlier} and {started}")


def unfinished(world: World) -> list[str]:
    """Return the tasks that the dispatcher knows, or ought to, and that are open."""
    reigning = world.dispatchers()
    if len(reigning) != 1:
        return [f"dispatchers: {reigning}"]
    records = world.machines[reigning[0]].disk.records
    unknown = [task for task in _promised(world) if task not in records]
    return sorted(unknown) + [
        f"{record}"
        for record in records.values()
        if record.spec is not None and not record.state.is_final
    ]


def _is_finished(world: World, disk: Disk) -> bool:
    """Whether `unfinished` would have nothing to say of who has this disk."""
    records = disk.records
    if any(task not in records for task in _promised(world)):
        return False
    # The latest are the last to end.
    return all(r.spec is None or r.state.is_final for r in reversed(records.values()))


def _promised(world: World) -> list[TaskId]:
    """Return the accepted tasks that a disk still holds which held them then."""
    return [
        task
        for task, holders in world.promises.tasks.items()
        if holders and task not in world.storage.forgotten
    ]


def is_quiet(world: World) -> bool:
    """Whether the world has come to rest after its faults."""
    machines = world.machines.values()
    if any(m.running or m.disk.spool or m.disk.waiting for m in machines):
        return False
    if len(world.alive()) < len(machines) or not world.is_settled():
        return False
    (dispatcher,) = world.dispatchers()
    held = dict(world.machines[dispatcher].disk.vector())
    reign = world.machines[dispatcher].node
    assert reign is not None
    if len(list(reign._members.followers(reign.epoch))) < len(machines) - 1:
        return False  # Who came last is told nothing before it has confirmed the reign.
    others = (m.id for m in machines if m.id != dispatcher)
    if not all(world.network.is_up(dispatcher, other) for other in others):
        return False  # A link that broke silently still has to be noticed.
    if not world.network.is_prompt:
        return False  # What all go by may be on its way.
    is_whole = all(covers(held, m.disk.vector()) for m in machines)
    if world.machines[dispatcher].disk.ahead():
        return False  # It still has to write again what only rows have told it.
    return is_whole and _is_finished(world, world.machines[dispatcher].disk)


FINAL = (
    one_dispatcher,
    one_writer_per_stream,
    nothing_accepted_is_lost,
    accepted_tasks_are_what_was_asked_for,
    no_phantom_tasks,
    nothing_runs_before_its_parents,
    cancels_are_kept,
    records_are_kept,
    all_go_by_the_same_records,
    acknowledged_results_are_present,
    every_accepted_task_is_final,
    one_outcome,
    cancelled_stays_cancelled,
    what_is_forgotten_stays_away,
    results_are_kept,
)
