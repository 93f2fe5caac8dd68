"""Invariants that must hold after every case, one function for each number.

The numbers are those of the fault catalogue. I7 and I10 need a node's internal state,
so the simulation checks them. Each function raises AssertionError with its findings.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.mesh.databases import Held, Place
from tests.mesh.forming import Task
from tests.mesh.history import History, Outcome, Run, key_of

SHOWN = 5  #: examples of each finding
DESCRIPTORS_MORE_MAX = 24
MEMORY_MORE_MB_MAX = 64


class ResourceUse(NamedTuple):
    """The resources of a process."""

    descriptors: int
    memory_mb: float


@dataclass
class Evidence:
    """All data that was read from all hosts once a case was at rest."""

    history: History
    lists: Mapping[str, Mapping[str, Task]]  #: tasks from the API, by host and id
    #: databases of dispatcher and standbys, by host
    held: Mapping[str, Mapping[str, Held]]
    logs: Mapping[str, Mapping[Place, tuple[int, str, bytes]]]  #: of all hosts
    writers: Mapping[str, Mapping[int, tuple[int, str]]]
    runs: Collection[Run]
    spooled: Mapping[str, int]
    heads: Mapping[str, str | None]  #: the dispatcher that each host names
    suspects: Collection[str]  #: hosts that were killed, stopped or cut off
    lost: Collection[str] = ()  #: tasks whose every copy the case destroyed
    before: Mapping[int, ResourceUse] = field(
        default_factory=dict
    )  #: resources, by pid
    after: Mapping[int, ResourceUse] = field(default_factory=dict)
    gap_s_max: float = 60.0
    memory_more_mb_max: float = MEMORY_MORE_MB_MAX

    @property
    def final(self) -> Mapping[str, Task]:
        """The tasks in the list of one of the hosts."""
        return next(iter(self.lists.values()))


def lost_tasks(seen: Evidence) -> list[str]:
    """Return the accepted tasks that are in no final set, but should be."""
    accepted = set(seen.history.accepted.values()) - set(seen.lost)
    return sorted(accepted - set(seen.final))


def i1_nothing_accepted_is_lost(seen: Evidence) -> None:
    """I1: every accepted task is in the final set, and has run to its end."""
    accepted = set(seen.history.accepted.values()) - set(seen.lost)
    gone = lost_tasks(seen)
    assert not gone, f"{len(gone)} of {len(accepted)} are lost: {gone[:SHOWN]}"
    others = [t for i in accepted if (t := seen.final[i])["status"] != "completed"]
    assert not others, f"{len(others)} of {len(accepted)} failed: {others[:SHOWN]}"


def i2_nothing_was_made_up(seen: Evidence) -> None:
    """I2: a client submitted every task, and no key became two tasks (G8)."""
    keys = Counter(key_of(task["command"]) for task in seen.final.values())
    strangers = sorted(set(keys) - set(seen.history.asked))
    assert not strangers, f"no client submitted {strangers[:SHOWN]}"
    twice = sorted(key for key, many in keys.items() if many > 1)
    assert not twice, f"two tasks of one key: {twice[:SHOWN]}"


def i3_all_nodes_show_one_outcome(seen: Evidence) -> None:
    """I3: all APIs and the databases of dispatcher and standbys agree."""
    _all_equal("the API", seen.lists)
    _all_equal("the database", seen.held)


def i4_no_accepted_task_was_denied(seen: Evidence) -> None:
    """I4: no host answered 404 for an accepted task that it could know."""
    denied = seen.history.denied()
    assert not denied, f"{len(denied)} times 404: {denied[:SHOWN]}"


def i5_results_are_kept(seen: Evidence) -> None:
    """I5: a result that was shown stays, and no result waits on a worker any more."""
    ended = [read for read in seen.history.reads if read.outcome is not None]
    others = [r for r in ended if seen.final[r.task]["status"] != r.state]
    assert not others, f"other states later: {others[:SHOWN]}"
    changed = seen.history.changed_without_split()
    assert not changed, f"{len(changed)} other outcomes later: {changed[:SHOWN]}"
    outputs = {(run.task, f"{run.number}\n") for run in seen.runs}
    strange = [r for r in ended if r.output and (r.task, r.output) not in outputs]
    assert not strange, f"output of no run: {strange[:SHOWN]}"
    waiting = {host: many for host, many in seen.spooled.items() if many}
    assert not waiting, f"results not acknowledged: {waiting}"


def i6_a_stream_has_one_writer_and_one_content(seen: Evidence) -> None:
    """I6: no two nodes hold different entries at one position of the log."""
    entries: dict[Place, tuple[int, str, bytes]] = {}
    for host, log in seen.logs.items():
        for place, entry in log.items():
            assert entries.setdefault(place, entry) == entry, f"{host}: {place}"
    epochs: dict[int, tuple[int, str]] = {}
    for host, writers in seen.writers.items():
        for stream, epoch in writers.items():
            assert epochs.setdefault(stream, epoch) == epoch, f"{host}: {stream}"
    twice = [epoch for epoch, many in Counter(epochs.values()).items() if many > 1]
    assert not twice, f"epochs with two streams: {twice}"


def i8_there_is_one_dispatcher(seen: Evidence) -> None:
    """I8: all hosts name the same dispatcher."""
    assert len(set(seen.heads.values())) == 1, seen.heads
    assert None not in seen.heads.values(), seen.heads


def i9_nothing_ran_twice_without_need(seen: Evidence) -> None:
    """I9: each task ran once, or again only if an earlier run was on a faulty host."""
    by_task: dict[str, list[Run]] = {}
    for run in seen.runs:
        by_task.setdefault(run.task, []).append(run)
    idle = sorted(set(seen.final) - set(by_task))
    assert not idle, f"{len(idle)} never ran: {idle[:SHOWN]}"
    needless = [
        runs
        for runs in by_task.values()
        if sum(run.node not in seen.suspects for run in runs) > 1
    ]
    assert not needless, f"{len(needless)} ran twice: {needless[:SHOWN]}"


def i11_the_mesh_came_back_in_time(seen: Evidence) -> None:
    """I11: the longest time without an accepted task is within its limit."""
    gap_s = seen.history.longest_gap_s()
    assert gap_s <= seen.gap_s_max, f"{gap_s:.1f} s without an accepted task"


def i12_nothing_leaks(seen: Evidence) -> None:
    """I12: agents that survived hold about the same resources as before."""
    for pid, before in seen.before.items():
        if (after := seen.after.get(pid)) is not None:
            told = f"process {pid}: {before} before, {after} after"
            more = after.descriptors - before.descriptors
            assert more <= DESCRIPTORS_MORE_MAX, told
            assert after.memory_mb - before.memory_mb <= seen.memory_more_mb_max, told


def _all_equal(what: str, views: Mapping[str, Mapping[str, object]]) -> None:
    first, *others = views.items()
    for host, view in others:
        name, told = first
        odd = sorted(
            task
            for task in told.keys() | view.keys()
            if told.get(task) != view.get(task)
        )
        assert not odd, (
            f"{what} of {name} and of {host} differ in {len(odd)} tasks: "
            f"{odd[0]} is {told.get(odd[0])} and {view.get(odd[0])}"
        )


ALL: tuple[Callable[[Evidence], None], ...] = (
    i8_there_is_one_dispatcher,
    i1_nothing_accepted_is_lost,
    i2_nothing_was_made_up,
    i3_all_nodes_show_one_outcome,
    i4_no_accepted_task_was_denied,
    i5_results_are_kept,
    i6_a_stream_has_one_writer_and_one_content,
    i9_nothing_ran_twice_without_need,
    i11_the_mesh_came_back_in_time,
    i12_nothing_leaks,
)


def outcomes(history: History) -> Counter[str]:
    """Return the counts of answers to clients, for the report of a case."""
    return Counter(
        f"{operation.outcome} {operation.status}"
        for operation in history.operations
        if operation.outcome is not Outcome.OK
    )
