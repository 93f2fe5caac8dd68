"""Resolution of what a user types for a task: id, number, `last`, end of id or name."""

from __future__ import annotations

import contextlib
import re

from octaskly.cli.output.render import cut
from octaskly.client import Session
from octaskly.client.errors import Invalid, NotFound
from octaskly.client.flows import rest_calls
from octaskly.errors import MeshError
from octaskly.rest.client_types import Task, TaskPage

_ID = re.compile(r"task-[0-9]+(-[0-9a-f]{8}(\.[0-9]+)?(~[0-9]+)?)?")  #: id in full form
_NUMBER = re.compile(r"task-[0-9]+")  #: short form, for the only task with this number
SUFFIX_MIN = 4  #: length from which a text is tried as the end of an id
SEARCHED_TASKS = 1000  #: newest tasks searched for a name or the end of an id


def resolve_ref(client: Session, ref: str) -> str:
    """Return the reference that the API accepts for a user's reference to a task.

    A user's reference is a full id, a number, `last`, the end of an id, or a name. Ends
    and names are searched only among the newest tasks. A member of an array is the
    array's reference, a dot and the member's number.

    Raises:
        MeshError: there is no last task, or the reference is ambiguous.
        NotFound: the task does not exist.
    """
    if not ref:  # The argument was probably an unset variable.
        raise NotFound("Task not found", status=404, hint="an empty text names no task")
    if ref == "last":
        if newest := newest_tasks(client, 1):
            return newest[0].id
        raise MeshError("there is no task yet", hint="octaskly run -- echo hello")
    if _ID.fullmatch(ref):
        return ref
    full = pad_task_number(ref)
    for known in dict.fromkeys((full, ref)):
        with contextlib.suppress(NotFound, Invalid):  # A name may be an invalid id.
            found = client.send_and_decode(rest_calls.task(known), Task)
            return found.id if known == ref else known  # Messages use the short form.
    if (
        task := _find_among_newest(client, ref) or _resolve_member(client, ref)
    ) is not None:
        return task
    raise NotFound(
        "Task not found", status=404, hint=f"no task is called {cut(full, 80)}"
    )


def resolve_id(client: Session, ref: str) -> str:
    """Return the full id for a user's reference; raise as `resolve_ref` does."""
    known = resolve_ref(client, ref)
    if _NUMBER.fullmatch(known):
        return client.send_and_decode(rest_calls.task(known), Task).id
    return known


def newest_tasks(client: Session, limit: int) -> list[Task]:
    """Return the newest tasks, at most `limit`, newest first."""
    return client.send_and_decode(rest_calls.newest(limit), TaskPage).tasks


def _find_among_newest(client: Session, ref: str) -> str | None:
    """Return the only task among the newest with this id suffix or name."""
    found = [
        task.id
        for task in newest_tasks(client, SEARCHED_TASKS)
        if task.name == ref or (len(ref) >= SUFFIX_MIN and task.id.endswith(ref))
    ]
    if len(found) > 1:
        raise MeshError(
            f"{ref!r} may be any of {len(found)} tasks, the newest first:"
            f" {', '.join(found[:3])}",
            hint=f"octaskly show {found[0]}",
        )
    return found[0] if found else None


def _resolve_member(client: Session, ref: str) -> str | None:
    """Return the id of the member that `12.7` or `last.7` names."""
    array, _, number = ref.rpartition(".")
    if not array or not number.isdecimal():
        return None
    found = client.send_and_decode(rest_calls.task(resolve_ref(client, array)), Task)
    return f"{found.id}.{number}"


def pad_task_number(ref: str) -> str:
    """Return `task-012` for `12`, and any other text unchanged."""
    is_number = ref.isascii() and ref.isdigit()
    return f"task-{ref.lstrip('0'):0>3}" if is_number else ref
