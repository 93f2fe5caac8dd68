"""Flows that submit, wait for, cancel and retry tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from msgspec.structs import replace

from octaskly.client.errors import TaskFailed
from octaskly.client.flows import rest_calls
from octaskly.client.flows.request_flow import RequestFlow, may_have_taken_effect
from octaskly.client.flows.rest_calls import Call
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import Flow, RunBlocking
from octaskly.client.flows.task_fields import (
    TASKS_MAX,
    Durability,
    Paths,
    TaskFields,
    encode_batch,
    encode_json,
    make_draft,
    paths_of,
    ref_of,
)
from octaskly.core.end_text import end_text
from octaskly.errors import OctasklyError
from octaskly.rest.client_types import (
    Draft,
    SentDigests,
    Task,
    has_all_output,
    sent_with,
    with_sent,
)
from octaskly.rest.tasks import Reprioritized

POLL_S: Final = 60.0  #: duration of one long poll
RUN_WAIT_S: Final = 0.05  #: for which a submission waits for the end of its task
CANCEL_S_MAX: Final = 5.0  #: how long an interrupted flow tries to cancel its tasks


class Loan(Protocol):
    """Files that a client sends in the background; all methods may block."""

    def cancel_on_failure(self, task: str) -> None:
        """Cancel a task as soon as its files cannot be sent."""

    def finish(self) -> None:
        """End the loan after the task; raise why files could not be sent, if so."""

    def close(self) -> None:
        """End the loan."""


class DraftWithFiles(NamedTuple):
    """A task to submit, whose files were sent or are lent."""

    draft: Draft
    sent: SentDigests | None = None
    loan: Loan | None = None

    def bind(self, task: Task) -> Flow[Task]:
        """Tie the files to the submitted task; return it."""
        if self.loan is not None:
            yield RunBlocking(partial(self.loan.cancel_on_failure, task.id))
        return with_sent(task, self.sent)

    def finish(self) -> Flow[None]:
        """End lending after the end of the task; raise an error of it."""
        if self.loan is not None:
            yield RunBlocking(self.loan.finish)

    def close(self) -> Flow[None]:
        """End lending in any case."""
        if self.loan is not None:
            yield RunBlocking(self.loan.close)


AttachFiles: TypeAlias = Callable[[RequestFlow, Draft, Deadline], Flow[DraftWithFiles]]
"""Sends or lends the files of a task."""


AttachToMany: TypeAlias = Callable[
    [RequestFlow, Sequence[Draft], Deadline], Flow[list[DraftWithFiles]]
]
"""Sends the files that all of several tasks get."""


def attach_nothing(
    _requests: RequestFlow, draft: Draft, _deadline: Deadline
) -> Flow[DraftWithFiles]:
    """Return a task without files."""
    yield from ()
    return DraftWithFiles(draft)


def submit(
    requests: RequestFlow,
    command: str,
    fields: TaskFields,
    *,
    attach_files: AttachFiles = attach_nothing,
    array: Mapping[str, Any] | None = None,
    key: str | None = None,
    durability: Durability | None = None,
    until: Deadline | None = None,
) -> Flow[Task]:
    """Submit one task."""
    until = until or requests.deadline_after(None)
    draft = make_draft(command, fields, array)
    attached = yield from attach_files(requests, draft, until)
    task = yield from submit_draft(
        requests, attached.draft, key=key, durability=durability, until=until
    )
    return with_sent(task, attached.sent)


def submit_draft(
    requests: RequestFlow,
    draft: Draft,
    *,
    key: str | None,
    durability: Durability | None = None,
    until: Deadline | None = None,
) -> Flow[Task]:
    """Submit one task whose files were sent."""
    call = _submission_call(requests, encode_json(draft), key, durability)
    return (yield from requests.send_and_decode(call, Task, until))


def submit_cancellable(
    requests: RequestFlow,
    draft: Draft,
    *,
    durability: Durability | None = None,
    wait_s: float | None = None,
    deadline: Deadline,
) -> Flow[Task]:
    """Submit a task and cancel it if the caller is interrupted.

    If the interrupt comes before the response, the task may already run. With `wait_s`,
    a task that ends so soon is returned with its end.
    """
    call = _submission_call(requests, encode_json(draft), None, durability, wait_s)
    try:
        return (yield from requests.send_and_decode(call, Task, deadline))
    except BaseException as error:
        if may_have_taken_effect(error):
            yield from _cancel_submitted(requests, call)
        raise


def submit_many(
    requests: RequestFlow,
    drafts: Iterable[Draft | str],
    *,
    attach_files: AttachToMany | None = None,
    outputs: Paths = (),
    key: str | None,
    durability: Durability | None,
    deadline: Deadline,
) -> Flow[list[Task]]:
    """Submit all tasks or none, with the same files; each also has these outputs."""
    given = (d if isinstance(d, Draft) else make_draft(d, {}) for d in drafts)
    more = paths_of(outputs, "outputs")
    wanted = [
        replace(draft, outputs=[*draft.outputs, *more]) if more else draft
        for draft in islice(given, TASKS_MAX + 1)
    ]
    body, files = encode_batch(wanted), [DraftWithFiles(draft) for draft in wanted]
    if body == b"[]":
        return []
    if attach_files is not None:
        files = yield from attach_files(requests, wanted, deadline)
        body = encode_batch(each.draft for each in files)
    call = _submission_call(requests, body, key, durability)
    tasks = yield from requests.send_and_decode(call, list[Task], deadline)
    return [with_sent(task, each.sent) for task, each in zip(tasks, files, strict=True)]


def task(requests: RequestFlow, ref: str | Task) -> Flow[Task]:
    """Return the current state of a task."""
    call = rest_calls.task(ref_of(ref))
    found = yield from requests.send_and_decode(call, Task)
    return with_sent(found, sent_with(ref))


def run(
    requests: RequestFlow,
    command: str,
    fields: TaskFields,
    *,
    attach_files: AttachFiles = attach_nothing,
    check: bool,
    durability: Durability | None,
    deadline: Deadline,
) -> Flow[Task]:
    """Submit a task and return it once it has ended; cancel it if interrupted."""
    draft = make_draft(command, fields)
    attached = yield from attach_files(requests, draft, deadline)
    task = None
    try:
        task = yield from submit_cancellable(
            requests,
            attached.draft,
            durability=durability,
            wait_s=deadline.cap(RUN_WAIT_S),
            deadline=deadline,
        )
        task = ended = yield from attached.bind(task)
        if not has_all_output(task):
            ended = yield from wait(requests, task, deadline=deadline)
        yield from attached.finish()
    except BaseException:
        if task is not None:
            yield from cancel_abandoned(requests, task)
        raise
    finally:
        yield from attached.close()
    if check and ended.status != "completed":
        raise _task_failed(ended)
    return ended


def wait(requests: RequestFlow, task: str | Task, *, deadline: Deadline) -> Flow[Task]:
    """Return a task once it has ended."""
    ref = ref_of(task)
    while True:
        call = rest_calls.task(ref, wait_s=deadline.cap(POLL_S))
        now = yield from requests.send_and_decode(call, Task, deadline)
        if now.is_final:
            return with_sent(now, sent_with(task))
        deadline.check(f"{ref} is {now.status}; it has not ended")


def cancel(requests: RequestFlow, ref: str | Task, *, force: bool) -> Flow[Task]:
    """Cancel a task."""
    return (
        yield from requests.send_and_decode(
            rest_calls.cancel(ref_of(ref), force=force), Task
        )
    )


def reprioritize(requests: RequestFlow, ref: str | Task, priority: int) -> Flow[None]:
    """Change the priority of a task that waits."""
    yield from requests.send_and_decode(
        rest_calls.reprioritize(ref_of(ref), priority), Reprioritized
    )


def retry(requests: RequestFlow, task: str | Task) -> Flow[Task]:
    """Rerun an ended task as a new task; a repeated call returns the same one."""
    return (yield from requests.send_and_decode(rest_calls.retry(ref_of(task)), Task))


def cancel_abandoned(requests: RequestFlow, task: Task) -> Flow[None]:
    """Try to cancel an abandoned task, for at most `CANCEL_S_MAX`."""
    # The task may have ended; that error must not replace the original one.
    with suppress(OctasklyError):
        call = rest_calls.cancel(task.id, force=True)
        yield from requests.send(call, requests.deadline_after(CANCEL_S_MAX))


def _submission_call(
    requests: RequestFlow,
    body: bytes,
    key: str | None,
    durability: Durability | None,
    wait_s: float | None = None,
) -> Call:
    """Return the call that submits tasks, idempotent by its key.

    An empty key is sent and refused: it usually comes from an unset variable.
    """
    key = requests.new_key() if key is None else key
    return rest_calls.submission(body, key=key, durability=durability, wait_s=wait_s)


def _cancel_submitted(requests: RequestFlow, submission: Call) -> Flow[None]:
    """Cancel a task by its submission, which returns the same task if repeated."""
    with suppress(OctasklyError):
        until = requests.deadline_after(CANCEL_S_MAX)
        task = yield from requests.send_and_decode(submission, Task, until)
        yield from cancel_abandoned(requests, task)


def _task_failed(task: Task) -> TaskFailed:
    why = end_text(task.reason or task.status, task.exit_code, task.signal, task.detail)
    last = (task.stderr or "").strip().rpartition("\n")[2][:200]
    text = f"{task.id} {task.status}: {why}" + (f": {last}" if last else "")
    return TaskFailed(text, task=task, hint=f"octaskly show {task.id}")
