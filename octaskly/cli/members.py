"""How the members of an array look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from octaskly.cli.render import note, print_fields

if TYPE_CHECKING:
    from octaskly.client import Client, Task

STATES = ("queued", "running", "completed", "failed", "cancelled")
SHOWN_FAILED = 20  #: failed members that `show` names


def progress(counts: Mapping[str, int]) -> str:
    """Return how many have ended of how many."""
    ended = counts["completed"] + counts["failed"] + counts["cancelled"]
    return f"{ended}/{counts['total']}"


def show_array(client: Client, task: Task) -> None:
    """Print how far an array is, and which members failed."""
    counts = dict(task.array or {})
    failed = client.failed_members(task.id, limit=SHOWN_FAILED)
    shown = [f"{member.id} (exit code {_code(member)})" for member in failed]
    more = counts["failed"] - len(failed)
    print_fields(
        [
            ("id", task.id),
            ("name", task.name),
            ("state", task.status),
            ("command", task.command),
            ("range", counts.get("range")),
            ("members", counts["total"]),
            *((state, counts[state] or None) for state in STATES),
            ("most failures", counts.get("max_fails")),
            ("created", task.created_at),
            ("repeats", task.retry_of),
            ("failures", "\n".join(shown) or None),
        ]
    )
    if more > 0:
        note(f"{more} more: octaskly ls --array {task.id} --status failed")


def _code(member: Task) -> str:
    return "-" if member.exit_code is None else str(member.exit_code)
