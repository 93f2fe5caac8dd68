"""How the members of an array look."""

from __future__ import annotations

import msgspec

from octaskly.cli.render import note, print_fields, took
from octaskly.cli.wishes import asked_fields, pairs
from octaskly.client import Members, Session, Task
from octaskly.client.calls import ARRAYS, Call, path_of

STATES = ("queued", "running", "completed", "failed", "cancelled")
SHOWN_FAILED = 20  #: failed members that `show` names


class _Array(msgspec.Struct):
    """What is read of an array."""

    failed_members: list[Task] = []


def progress(counts: Members) -> str:
    """Return how many have ended of how many."""
    ended = counts.completed + counts.failed + counts.cancelled
    return f"{ended}/{counts.total}"


def show_array(client: Session, task: Task) -> None:
    """Print how far an array is, and which members failed."""
    counts = task.array or Members()
    failed = client.asked(
        Call("GET", path_of(ARRAYS, task.id), {"limit": SHOWN_FAILED}), _Array
    ).failed_members
    shown = [f"{member.id} (exit code {_code(member)})" for member in failed]
    more = counts.failed - len(failed)
    print_fields(
        [
            ("id", task.id),
            ("name", task.name),
            ("labels", pairs(task.labels)),
            ("state", task.status),
            ("command", task.command),
            ("range", counts.range),
            ("members", counts.total),
            *((state, getattr(counts, state) or None) for state in STATES),
            ("most failures", counts.max_fails),
            *asked_fields(task),
            ("created", task.created_at),
            ("started", task.started_at),
            ("ended", task.completed_at),
            ("took", took(task.duration_ms)),
            ("failures", "\n".join(shown) or None),
        ]
    )
    if more > 0:
        note(f"{more} more: octaskly ls --array {task.id} --status failed")


def _code(member: Task) -> str:
    return "-" if member.exit_code is None else str(member.exit_code)
