"""The contract of every Gateway; it runs on the fake and on the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import pytest

from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskState
from octaskly.errors import (
    NotDispatcher,
    OutputNotFound,
    PermissionDenied,
    TaskExists,
    TaskNotCancellable,
    TaskNotFound,
)
from octaskly.ports.gateway import Gateway
from octaskly.ports.store import TaskQuery
from octaskly.ports.tokens import Principal
from tests.support.fake_gateway import FakeGateway

ANA = Principal(subject="ana", role="admin")
BO = Principal(subject="bo", role="client")
CY = Principal(subject="cy", role="client")


class Subject(Protocol):
    """A gateway of a dispatcher, with controls for the test."""

    gateway: Gateway

    def run(self, task: TaskId) -> None:
        """Start a queued task, and let it run on."""

    def end(self, task: TaskId) -> None:
        """Complete a running task."""

    def depose(self) -> None:
        """Make another node dispatcher."""


class FakeSubject:
    def __init__(self) -> None:
        self._fake = FakeGateway()
        self.gateway: Gateway = self._fake

    def run(self, task: TaskId) -> None:
        self._fake.start(task)

    def end(self, task: TaskId) -> None:
        self._fake.finish(task)

    def depose(self) -> None:
        self._fake.elect(self._fake.view_of("node-b", term=2))


SUBJECTS: dict[str, Callable[[], Subject]] = {"fake": FakeSubject}


@pytest.fixture(params=list(SUBJECTS.values()), ids=list(SUBJECTS))
async def subject(request: pytest.FixtureRequest) -> Subject:
    made: Subject = request.param()
    return made


async def _submit(
    subject: Subject, *commands: str, principal: Principal = ANA, key: str | None = None
) -> list[TaskId]:
    drafts = [TaskDraft(command=command) for command in commands]
    records, replicas = await subject.gateway.submit_tasks(
        drafts, principal=principal, idempotency_key=key
    )
    assert replicas >= 1
    return [record.id for record in records]


async def test_submitted_tasks_come_back_in_order_and_queued(subject: Subject) -> None:
    """One record for each draft, with the envelope filled in."""
    drafts = [TaskDraft(command=f"echo {n}", timeout_s=n + 1) for n in range(20)]

    records, _ = await subject.gateway.submit_tasks(drafts, principal=BO)

    specs = [record.spec for record in records if record.spec]
    assert [spec.command for spec in specs] == [draft.command for draft in drafts]
    assert [spec.timeout_s for spec in specs] == list(range(1, 21))
    assert {spec.submitter for spec in specs} == {"bo"}
    assert {record.state for record in records} == {TaskState.QUEUED}
    assert len({record.id for record in records}) == 20


async def test_a_task_is_found_by_id_and_by_number(subject: Subject) -> None:
    """`task-<sequence>` alone is accepted where it is unique."""
    (task,) = await _submit(subject, "true")

    by_id = await subject.gateway.find_task(task)
    by_number = await subject.gateway.find_task(task.rpartition("-")[0])

    assert by_id.id == by_number.id == task


async def test_ids_can_be_reserved_before_their_tasks(subject: Subject) -> None:
    """They have numbers of their own, which no later task gets."""
    ids = await subject.gateway.reserve_task_ids(2)
    drafts = [TaskDraft(command="true", id=task) for task in ids]
    later = await _submit(subject, "true")

    records, _ = await subject.gateway.submit_tasks(drafts, principal=ANA)

    assert [record.id for record in records] == list(ids)
    assert len({task.split("-")[1] for task in (*ids, *later)}) == 3


async def test_an_unknown_task_is_not_found(subject: Subject) -> None:
    """By every request."""
    gateway = subject.gateway

    with pytest.raises(TaskNotFound):
        await gateway.find_task("nothing")
    with pytest.raises(TaskNotFound):
        await gateway.wait_for_end("nothing")
    with pytest.raises(TaskNotFound):
        await gateway.cancel_task("nothing", force=True, principal=ANA)
    with pytest.raises(TaskNotFound):
        await gateway.locate_output("nothing", "a.txt")


async def test_a_chosen_id_is_kept_and_used_once(subject: Subject) -> None:
    """All or nothing: the free id of the second batch is not accepted either."""
    chosen = TaskDraft(command="true", id=TaskId("mine"))
    await subject.gateway.submit_tasks([chosen], principal=ANA)

    with pytest.raises(TaskExists):
        await subject.gateway.submit_tasks(
            [TaskDraft(command="false", id=TaskId("free")), chosen], principal=ANA
        )

    assert (await subject.gateway.find_task("mine")).id == "mine"
    with pytest.raises(TaskNotFound):
        await subject.gateway.find_task("free")


async def test_key_makes_a_submission_repeatable(subject: Subject) -> None:
    """The same tasks for the same body; a conflict for another one."""
    first = await _submit(subject, "a", "b", key="k")

    again = await _submit(subject, "a", "b", key="k")

    assert first == again
    with pytest.raises(TaskExists):
        await _submit(subject, "a", "c", key="k")


async def test_keys_of_two_subjects_differ(subject: Subject) -> None:
    """No client learns of another's tasks by guessing a key."""
    mine = await _submit(subject, "a", principal=BO, key="k")

    other = await _submit(subject, "a", principal=CY, key="k")

    assert mine != other


async def test_pages_are_oldest_first_with_an_exact_total(subject: Subject) -> None:
    """The total counts all matches, not only those returned."""
    tasks = await _submit(subject, *[f"echo {n}" for n in range(7)])

    page = await subject.gateway.list_tasks(TaskQuery(limit=3, offset=2))
    beyond = await subject.gateway.list_tasks(TaskQuery(limit=3, offset=100))
    none = await subject.gateway.list_tasks(TaskQuery(state=TaskState.FAILED))

    assert ([record.id for record in page.records], page.total) == (tasks[2:5], 7)
    assert (beyond.records, beyond.total) == ((), 7)
    assert (none.records, none.total) == ((), 0)


async def test_wait_ends_with_the_task(subject: Subject) -> None:
    """Not before, so its caller needs a limit."""
    (task,) = await _submit(subject, "true")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await subject.gateway.wait_for_end(task)
    subject.run(task)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(subject.gateway.wait_for_end(task))
        await asyncio.sleep(0)
        subject.end(task)

    assert waiting.result().state is TaskState.COMPLETED


async def test_a_repeated_cancel_of_a_queued_task_succeeds(subject: Subject) -> None:
    """The second cancel changes nothing."""
    (task,) = await _submit(subject, "true")

    await subject.gateway.cancel_task(task, force=False, principal=ANA)
    await subject.gateway.cancel_task(task, force=False, principal=ANA)

    assert (await subject.gateway.find_task(task)).state is TaskState.CANCELLED


async def test_running_task_is_cancelled_by_force_only(subject: Subject) -> None:
    """A design choice of the reference, and its exception."""
    (task,) = await _submit(subject, "sleep 60")
    subject.run(task)

    with pytest.raises(TaskNotCancellable):
        await subject.gateway.cancel_task(task, force=False, principal=ANA)
    await subject.gateway.cancel_task(task, force=True, principal=ANA)

    assert (await subject.gateway.find_task(task)).state is TaskState.CANCELLED


async def test_a_finished_task_cannot_be_cancelled(subject: Subject) -> None:
    """The answer is "not found", as the reference says."""
    (task,) = await _submit(subject, "true")
    subject.run(task)
    subject.end(task)

    with pytest.raises(TaskNotFound):
        await subject.gateway.cancel_task(task, force=True, principal=ANA)


async def test_clients_cancel_their_own_tasks_only(subject: Subject) -> None:
    """Admins cancel all tasks."""
    (task,) = await _submit(subject, "true", principal=BO)

    with pytest.raises(PermissionDenied):
        await subject.gateway.cancel_task(task, force=False, principal=CY)
    await subject.gateway.cancel_task(task, force=False, principal=BO)


async def test_undeclared_output_is_not_found(subject: Subject) -> None:
    """Before the end, and by an undeclared name."""
    (task,) = await _submit(subject, "true")

    with pytest.raises(OutputNotFound):
        await subject.gateway.locate_output(task, "a.txt")


async def test_stats_count_the_tasks(subject: Subject) -> None:
    """By state, of the whole mesh."""
    first, _ = await _submit(subject, "a", "b")
    await subject.gateway.cancel_task(first, force=False, principal=ANA)

    counts = (await subject.gateway.mesh_stats()).counts

    assert (counts[TaskState.QUEUED], counts[TaskState.CANCELLED]) == (1, 1)


async def test_the_own_node_is_found_by_name_and_id(subject: Subject) -> None:
    """Requests may use either."""
    gateway = subject.gateway
    name = gateway.node_names()[gateway.node_id]

    assert gateway.find_node_id(name) == gateway.find_node_id(gateway.node_id)
    assert gateway.find_node_id(name) == gateway.node_id
    assert gateway.find_node_id("nobody-here") is None


async def test_a_node_that_is_not_dispatcher_refuses(subject: Subject) -> None:
    """Every call that needs the dispatcher; the API then forwards."""
    gateway = subject.gateway
    (task,) = await _submit(subject, "true")
    subject.depose()

    view = gateway.dispatcher()
    assert view is None or not view.is_self
    with pytest.raises(NotDispatcher):
        await _submit(subject, "true")
    with pytest.raises(NotDispatcher):
        await gateway.find_task(task)
    with pytest.raises(NotDispatcher):
        await gateway.wait_for_end(task)
    with pytest.raises(NotDispatcher):
        await gateway.list_tasks(TaskQuery())
    with pytest.raises(NotDispatcher):
        await gateway.cancel_task(task, force=False, principal=ANA)
    with pytest.raises(NotDispatcher):
        await gateway.mesh_stats()
