"""What must hold, one function each; each raises AssertionError with what it saw."""

from __future__ import annotations

from octaskly.core.model import AttemptState, NodeId, StreamId, TaskState
from tests.simulation.world import Machine, Started, World


class Watch:
    """Checks that look at a world after every step of a node."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._terms: dict[NodeId, int] = {}
        self._checked = 0
        world.watchers.append(self)

    def __call__(self, machine: Machine) -> None:
        """Check after one step."""
        self._terms_never_decrease(machine)
        self._no_stale_start()

    def _terms_never_decrease(self, machine: Machine) -> None:
        """§ 3.4: a term on a disk only grows."""
        last = self._terms.get(machine.id, 0)
        term = machine.disk.term
        assert term >= last, f"{machine.id}: term {term} after {last}"
        self._terms[machine.id] = term

    def _no_stale_start(self) -> None:
        """I7: no start for an epoch lower than one already seen."""
        for started in self._world.started[self._checked :]:
            assert started.attempt.term >= started.seen_term, f"stale: {started}"
        self._checked = len(self._world.started)


def one_writer_per_stream(world: World) -> None:
    """I6: all disks agree who wrote a stream, and what stands at each place."""
    writers: dict[StreamId, object] = {}
    entries: dict[tuple[StreamId, int], object] = {}
    epochs: dict[object, StreamId] = {}
    for machine in world.machines.values():
        for stream, epoch in machine.disk.writers.items():
            known = writers.setdefault(stream, epoch)
            assert known == epoch, f"stream {stream}: {known} and {epoch}"
            first = epochs.setdefault(epoch, stream)
            assert first == stream, f"epoch {epoch} wrote {first} and {stream}"
        for log in machine.disk.streams.values():
            for entry in log:
                fact = entries.setdefault((entry.stream, entry.seq), entry)
                assert fact == entry, f"two facts at {entry.stream}/{entry.seq}"


def nothing_accepted_is_lost(world: World) -> None:
    """I1: every accepted task is known to the dispatcher after the heal."""
    (dispatcher,) = world.dispatchers()
    known = world.machines[dispatcher].disk.submitted()
    lost = sorted(set(world.accepted) - known)
    assert not lost, f"lost {len(lost)} of {len(world.accepted)}: {lost[:3]}"


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
    records = world.machines[dispatcher].disk.records
    for task in sorted(world.cancelled):
        state = records[task].state
        assert state in (TaskState.CANCELLED, TaskState.COMPLETED), f"{task}: {state}"


def results_are_kept(world: World) -> None:
    """I5: nothing that a worker spooled is left over once all is quiet."""
    for machine in world.machines.values():
        keys = sorted(machine.disk.spool)
        assert not keys, f"{machine.id} still keeps {keys[:3]}"


def acknowledged_results_are_present(world: World) -> None:
    """I5: a result that a worker was allowed to forget is in the log."""
    (dispatcher,) = world.dispatchers()
    records = world.machines[dispatcher].disk.records
    for task, attempt in sorted(world.acknowledged):
        reported = world.reported.get((task, attempt))
        if reported is not AttemptState.OK:
            continue
        record = records.get(task)
        states = [a.state for a in record.attempts if a.id == attempt] if record else []
        assert states == [reported], f"{task} {attempt}: {states}, not {reported}"


def nothing_runs_twice(world: World) -> None:
    """I9: where only the dispatcher died, no task of a survivor is started again."""
    first: dict[str, Started] = {}
    for started in world.started:
        earlier = first.setdefault(started.task, started)
        if earlier is started or earlier.node in world.died:
            continue
        raise AssertionError(f"started twice: {earlier} and {started}")


def unfinished(world: World) -> list[str]:
    """Return the accepted tasks that the dispatcher does not show as final."""
    reigning = world.dispatchers()
    if len(reigning) != 1:
        return [f"dispatchers: {reigning}"]
    records = world.machines[reigning[0]].disk.records
    return [
        f"{task}: {records.get(task)}"
        for task in sorted(world.accepted)
        if task not in records or not records[task].state.is_final
    ]


def is_quiet(world: World) -> bool:
    """Whether the world has come to rest after its faults."""
    if not world.is_settled() or unfinished(world):
        return False
    return all(not m.running and not m.disk.spool for m in world.machines.values())


FINAL = (
    one_dispatcher,
    one_writer_per_stream,
    nothing_accepted_is_lost,
    no_phantom_tasks,
    every_accepted_task_is_final,
    one_outcome,
    cancelled_stays_cancelled,
    results_are_kept,
    acknowledged_results_are_present,
)
