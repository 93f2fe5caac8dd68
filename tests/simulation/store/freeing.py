"""Stdin of ended tasks, which a disk in memory frees with each commit.

The store frees later, and keeps some stdin of failed tasks. Here each ended task is
freed at once, so that a peer gets as much freed stdin as possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from octaskly.core.log.facts import Entry, Submitted
from octaskly.core.model.task_options import without_stdin
from octaskly.core.model.tasks import TaskSpec

if TYPE_CHECKING:
    from tests.simulation.store.disk import Disk


def free_stdin(disk: Disk) -> None:
    """Free the stdin of all ended tasks, in their records and in the log."""
    if not disk.with_stdin:
        return  # Most worlds.
    ended = {}
    for task in disk.with_stdin:
        record = disk.records.get(task)
        if record and record.spec and has_stdin(record.spec) and record.state.is_final:
            ended[task] = freed_spec(record.spec)
    for task, spec in ended.items():
        disk.records[task] = replace(disk.records[task], spec=spec)
    disk.with_stdin -= ended.keys()
    if ended:
        for stream, log in disk.streams.items():
            disk.streams[stream] = [
                freed_entry(entry) if entry.fact.task in ended else entry
                for entry in log
            ]


def freed_entry(entry: Entry) -> Entry:
    """Return an entry without the bytes of a stdin."""
    fact = entry.fact
    if not isinstance(fact, Submitted) or not has_stdin(fact.spec):
        return entry
    return replace(entry, fact=Submitted(freed_spec(fact.spec)))


def freed_spec(spec: TaskSpec) -> TaskSpec:
    """Return a specification without the bytes of its stdin."""
    assert spec.options is not None
    return replace(spec, options=without_stdin(spec.options))


def has_stdin(spec: TaskSpec) -> bool:
    """Return True if a specification has the bytes of a stdin."""
    return spec.options is not None and bool(spec.options.stdin)
