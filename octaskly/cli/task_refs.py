"""Resolution of what a user types for a task: an id, a short id, `last` or a name."""

from __future__ import annotations

import contextlib
import re
from contextlib import closing
from itertools import islice

from octaskly.cli.output.task_view import command_of
from octaskly.cli.output.terminal import cut, on_one_line
from octaskly.client import Session
from octaskly.client.errors import Invalid, NotFound
from octaskly.client.flows import queries, rest_calls
from octaskly.errors import MeshError
from octaskly.rest.client_types import Task, TaskPage

_ID = re.compile(r"task-[0-9]+(-[0-9a-f]{8}(\.[0-9]+)?(~[0-9]+)?)?")  #: id in full form
_NUMBER = re.compile(r"task-[0-9]+")  #: short form, for the only task with this number
_DIGITS = re.compile(r"[0-9a-f]{4,8}")  #: start of the hexadecimal digits of an id
DERIVED_DIGITS = 12  #: of the number of an id from an idempotency key
CANDIDATES_MAX = 4  #: tasks that the error for an ambiguous reference names
CANDIDATE_CHARS = 60  #: of each of their commands


def resolve_ref(client: Session, ref: str) -> str:
    """Return the reference that the API accepts for a user's reference to a task.

    A user's reference is a full id, its number, the first 4 or more of its hexadecimal
    digits, `last`, or a name. A member of an array is the array's reference, a dot and
    the member's number.

    Raises:
        MeshError: there is no last task, or the reference is ambiguous.
        NotFound: the task does not exist.
    """
    if not ref:  # The argument was probably an unset variable.
        raise NotFound("Task not found", status=404, hint="an empty id names no task")
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
    if (task := _find_only(client, ref) or _resolve_member(client, ref)) is not None:
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


def _find_only(client: Session, ref: str) -> str | None:
    """Return the only task with these hexadecimal digits or this name, if any.

    Raises:
        MeshError: there are several.
    """
    found: list[Task] = []
    if _DIGITS.fullmatch(ref):
        found = client.send_and_decode(rest_calls.candidates(ref), TaskPage).tasks
    if not found:
        with contextlib.suppress(Invalid):  # Not every text can be a name.
            flow = queries.tasks(client.requests, {"name": ref, "newest": True})
            with closing(client.iterate(flow)) as named:
                found = list(islice(named, CANDIDATES_MAX))
    if len(found) > 1:
        count = f"{len(found)}{' or more' if len(found) == CANDIDATES_MAX else ''}"
        lines = [f"{ref!r} matches {count} tasks:", *map(_describe, found)]
        known = found[0].short_id or found[0].id
        raise MeshError("\n".join(lines), hint=f"octaskly show {known}")
    return found[0].id if found else None


def _describe(task: Task) -> str:
    """Return a candidate on one line."""
    command = cut(on_one_line(command_of(task)), CANDIDATE_CHARS)
    return f"{task.short_id or task.id}  {task.status}  {command}"


def _resolve_member(client: Session, ref: str) -> str | None:
    """Return the id of the member that `12.7` or `last.7` names."""
    array, _, number = ref.rpartition(".")
    if not array or not number.isdecimal():
        return None
    found = client.send_and_decode(rest_calls.task(resolve_ref(client, array)), Task)
    return f"{found.id}.{number}"


def pad_task_number(ref: str) -> str:
    """Return `task-012` for `12`, and any other text unchanged."""
    if not (ref.isascii() and ref.isdigit()):
        return ref
    is_derived = len(ref) >= DERIVED_DIGITS
    return f"task-{ref if is_derived else ref.lstrip('0'):0>3}"
