"""What a client does with a mesh, without input and output: one flow for each word.

Both clients run these; what they differ in is how they perform the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from octaskly.client.errors import TaskFailed
from octaskly.client.flows import calls
from octaskly.client.flows.calls import Call
from octaskly.client.flows.request import Asker, may_be_done
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import Flow
from octaskly.client.flows.task_fields import (
    Asked,
    Durability,
    body_of,
    draft,
    encoded,
    ref_of,
)
from octaskly.errors import OctasklyError
from octaskly.rest.client_types import Draft, Task

POLL_S: Final = 60.0  #: how long one long poll waits
CANCEL_S_MAX: Final = 5.0  #: how long who leaves tries to cancel what it leaves


def submit(
    asker: Asker,
    command: str,
    asked: Asked,
    *,
    array: Mapping[str, Any] | None = None,
    key: str | None = None,
    durability: Durability | None = None,
    until: Deadline | None = None,
) -> Flow[Task]:
    """Submit one task."""
    body = encoded(draft(command, asked, array))
    call = _submission(asker, body, key, durability)
    return (yield from asker.asked(call, Task, until))


def begin(
    asker: Asker,
    command: str,
    asked: Asked,
    *,
    array: Mapping[str, Any] | None = None,
    durability: Durability | None = None,
    until: Deadline,
) -> Flow[Task]:
    """Submit one task that nobody wants who does not wait for it.

    Who leaves before the answer is there takes it back: it may run already.
    """
    body = encoded(draft(command, asked, array))
    call = _submission(asker, body, None, durability)
    try:
        return (yield from asker.asked(call, Task, until))
    except BaseException as error:
        if may_be_done(error):
            yield from _take_back(asker, call)
        raise


def submit_many(
    asker: Asker,
    drafts: Iterable[Draft | str],
    *,
    key: str | None,
    durability: Durability | None,
    until: Deadline,
) -> Flow[list[Task]]:
    """Submit tasks, all or none."""
    wanted = (Draft(command=d) if isinstance(d, str) else d for d in drafts)
    body = body_of(wanted)
    if body == b"[]":
        return []
    call = _submission(asker, body, key, durability)
    return (yield from asker.asked(call, list[Task], until))


def task(asker: Asker, ref: str | Task) -> Flow[Task]:
    """Return a task as it is now."""
    return (yield from asker.asked(calls.task(ref_of(ref)), Task))


def run(
    asker: Asker,
    command: str,
    asked: Asked,
    *,
    check: bool,
    durability: Durability | None,
    until: Deadline,
) -> Flow[Task]:
    """Submit a task and return it once it has ended; who leaves cancels it."""
    task = None
    try:
        task = yield from begin(
            asker, command, asked, durability=durability, until=until
        )
        ended = yield from wait(asker, task, until=until)
    except BaseException:
        if task is not None:
            yield from give_up(asker, task)
        raise
    if check and ended.status != "completed":
        raise _failed(ended)
    return ended


def wait(asker: Asker, task: str | Task, *, until: Deadline) -> Flow[Task]:
    """Return a task once it has ended."""
    ref = ref_of(task)
    while True:
        call = calls.task(ref, wait_s=until.cap(POLL_S))
        now = yield from asker.asked(call, Task, until)
        if now.is_final:
            return now
        until.check(f"{ref} is {now.status}; it has not ended")


def cancel(asker: Asker, ref: str | Task, *, force: bool) -> Flow[Task]:
    """Cancel a task."""
    return (yield from asker.asked(calls.cancel(ref_of(ref), force=force), Task))


def retry(asker: Asker, task: str | Task) -> Flow[Task]:
    """Run an ended task once more, as another; who repeats it gets that."""
    return (yield from asker.asked(calls.retry(ref_of(task)), Task))


def give_up(asker: Asker, task: Task) -> Flow[None]:
    """Cancel what nobody waits for any more, as far as that goes quickly."""
    # It may have ended by itself, or the mesh is away: who leaves, leaves.
    with suppress(OctasklyError):
        call = calls.cancel(task.id, force=True)
        yield from asker.ask(call, asker.until(CANCEL_S_MAX))


def _submission(
    asker: Asker, body: bytes, key: str | None, durability: Durability | None
) -> Call:
    """Return the call that submits tasks, which can be repeated by its key.

    An empty key is sent as it is, and refused: it is of a variable that is not set.
    """
    key = asker.new_key() if key is None else key
    return calls.submission(body, key=key, durability=durability)


def _take_back(asker: Asker, submission: Call) -> Flow[None]:
    """Cancel what may have been submitted; by its key that is the same task."""
    with suppress(OctasklyError):
        until = asker.until(CANCEL_S_MAX)
        task = yield from asker.asked(submission, Task, until)
        yield from give_up(asker, task)


def _failed(task: Task) -> TaskFailed:
    why = task.detail or task.reason or task.status
    if task.reason == "exit":
        why = f"exit code {task.exit_code}"
    last = (task.stderr or "").strip().rpartition("\n")[2][:200]
    text = f"{task.id} {task.status}: {why}" + (f": {last}" if last else "")
    return TaskFailed(text, task=task, hint=f"octaskly show {task.id}")
