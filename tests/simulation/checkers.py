"""What must hold, one function each; each raises AssertionError with what it saw."""

from __future__ import annotations

from octaskly.core.effects import Effect, Send
from octaskly.core.facts import CancelAsked, Fact, Finished, Submitted
from octaskly.core.messages import Claim, ClaimOk
from octaskly.core.model import NO_EPOCH, Epoch, NodeId, StreamId, TaskId, TaskState
from octaskly.core.node import Node
from octaskly.core.succession import covers
from tests.simulation.disk import Disk
from tests.simulation.world import Machine, Started, World


class Watch:
    """Checks that look at a world after every step of a node, and at every answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._terms: dict[NodeId, tuple[Disk, int]] = {}
        self._epochs: dict[NodeId, tuple[Node, Epoch]] = {}
        self._checked = 0
        world.watchers.append(self)

    def __call__(self, machine: Machine, effects: list[Effect]) -> None:
        """Check after one step and what it brought about."""
        self._no_claim_before_its_term(machine, effects)
        self._terms_never_decrease(machine)
        self._epochs_never_decrease(machine)
        self._no_stale_start()

    def _terms_never_decrease(self, machine: Machine) -> None:
        """§ 3.4: a term on a disk only grows."""
        disk, last = self._terms.get(machine.id, (machine.disk, 0))
        term = machine.disk.term
        assert disk is not machine.disk or term >= last, (
            f"{machine.id}: term {term} after {last}"
        )
        self._terms[machine.id] = machine.disk, term

    def _no_claim_before_its_term(
        self, machine: Machine, effects: list[Effect]
    ) -> None:
        """§ 3.4: what a node claims or follows is on its disk before others hear it."""
        for effect in effects:
            for message in effect.messages if isinstance(effect, Send) else ():
                if isinstance(message, Claim | ClaimOk):
                    saved = machine.disk.epoch
                    assert saved >= message.epoch, f"{machine.id}: {saved}, {message}"

    def _epochs_never_decrease(self, machine: Machine) -> None:
        """I6: the epochs that one process goes by only grow."""
        assert machine.node is not None
        node, last = self._epochs.get(machine.id, (machine.node, NO_EPOCH))
        epoch = machine.node.epoch
        assert node is not machine.node or epoch >= last, (
            f"{machine.id}: {epoch} after {last}"
        )
        self._epochs[machine.id] = machine.node, epoch

    def _no_stale_start(self) -> None:
        """I7: no start for an epoch lower than one already seen."""
        for started in self._world.started[self._checked :]:
            assert started.attempt.term >= started.seen_term, f"stale: {started}"
        self._checked = len(self._world.started)


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


def cancels_are_kept(world: World) -> None:
    """I1: so is every cancel that was confirmed."""
    _is_kept(world, CancelAsked)


def acknowledged_results_are_present(world: World) -> None:
    """I5: a result that a worker was allowed to forget is in the log."""
    _is_kept(world, Finished)


def _is_kept(world: World, kind: type[Fact]) -> None:
    """What was promised is kept as long as one of the disks that held it then is."""
    (dispatcher,) = world.dispatchers()
    kept = world.machines[dispatcher].disk.kept
    lost = sorted(
        f"{key[1:]} on {sorted(holders)}"
        for key, holders in world.promises.items()
        if key[0] is kind and holders and key not in kept
    )
    assert not lost, f"lost {len(lost)} of {len(world.promises)}: {lost[:3]}"


def no_phantom_tasks(world: World) -> None:
    """I2: every task on a disk was asked for by a client."""
    for machine in world.machines.values():
        for record in machine.disk.records.values():
            if record.spec is not None:
                assert record.spec.command in world.asked, f"phantom {record.id}"


def every_accepted_task_is_final(world: World) -> None:
    """Liveness: once faults stop, all that was accepted comes to an end."""
    open_ = unfinished(world)
    assert not open_, f"{len(open_)} of {len(world.accepted)} open: {open_[:3]}"


def one_dispatcher(world: World) -> None:
    """I8: after settling, all name one dispatcher."""
    views = {m.id: m.node.dispatcher for m in world.alive() if m.node}
    assert world.is_settled(), f"dispatchers {world.dispatchers()}, views {views}"


def one_outcome(world: World) -> None:
    """I3: who holds the same facts of a task shows the same; none has more."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for machine in world.machines.values():
        for stream, log in machine.disk.streams.items():
            held = len(disk.streams.get(stream, []))
            assert held >= len(log), (
                f"{machine.id} holds {len(log)} entries of {stream}, "
                f"the dispatcher {dispatcher} {held}"
            )
        if machine.disk.vector() == disk.vector():
            assert machine.disk.records == disk.records


def cancelled_stays_cancelled(world: World) -> None:
    """A cancel that was confirmed loses only against a success."""
    (dispatcher,) = world.dispatchers()
    disk = world.machines[dispatcher].disk
    for kind, task, _ in disk.kept:
        if kind is CancelAsked:
            state = disk.records[task].state
            assert state in (TaskState.CANCELLED, TaskState.COMPLETED), f"{task}"


def results_are_kept(world: World) -> None:
    """I5: nothing that a worker spooled is left over once all is quiet."""
    for machine in world.machines.values():
        keys = sorted(machine.disk.spool)
        assert not keys, f"{machine.id} still keeps {keys[:3]}"


def nothing_runs_twice(world: World) -> None:
    """I9: no task is started again unless the node that ran it died."""
    first: dict[str, Started] = {}
    for started in world.started:
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


def _promised(world: World) -> list[TaskId]:
    """Return the accepted tasks that a disk still holds which held them then."""
    return [
        task
        for (kind, task, _), holders in world.promises.items()
        if kind is Submitted and holders
    ]


def is_quiet(world: World) -> bool:
    """Whether the world has come to rest after its faults."""
    machines = world.machines.values()
    if any(m.running or m.disk.spool for m in machines) or not world.is_settled():
        return False
    (dispatcher,) = world.dispatchers()
    held = dict(world.machines[dispatcher].disk.vector())
    is_whole = all(covers(held, m.disk.vector()) for m in machines)
    return is_whole and not unfinished(world)


FINAL = (
    one_dispatcher,
    one_writer_per_stream,
    nothing_accepted_is_lost,
    no_phantom_tasks,
    cancels_are_kept,
    acknowledged_results_are_present,
    every_accepted_task_is_final,
    one_outcome,
    cancelled_stays_cancelled,
    results_are_kept,
)
