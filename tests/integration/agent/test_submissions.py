"""Repeated submissions against a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import NoneType

import pytest
from msgspec.structs import replace

from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.agent.gateway.rerun import build_retry
from octaskly.agent.gateway.submissions import (
    WEBHOOK_COUNT_S,
    QueueLimits,
    QueueQuota,
    Submission,
    SubmissionService,
)
from octaskly.agent.gateway.task_lookup import TaskFinder
from octaskly.agent.health import HealthChecks
from octaskly.core.events import Event, TasksSubmitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import TaskDraft, log_id_of
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.model.task_options import ArraySpec, TaskOptions, without_stdin
from octaskly.core.model.tasks import PRIORITY_BAND, PRIORITY_SHIFT, TaskSpec
from octaskly.core.replies import TasksAccepted
from octaskly.errors import (
    NotDispatcher,
    QueueFull,
    QueueTooSmall,
    StdinFreed,
    StoreFull,
    TaskExists,
)
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from tests.contract import log_kit as kit

NAME = TaskId("nightly")
ARRAY = TaskOptions(array=ArraySpec(count=3, step=2))  #: members 0, 2 and 4


Commits = asyncio.Queue[int]  #: numbers of what has become durable


@pytest.fixture
async def commits() -> Commits:
    return asyncio.Queue()


@pytest.fixture
async def store(tmp_path: Path, commits: Commits) -> AsyncIterator[Store]:
    """A store where two halves of a split gave one name to different tasks of ana."""
    store = Store(
        tmp_path / "log.db", kit.PicklePacker(), commits.put_nowait, kit.HandClock()
    )
    await asyncio.to_thread(store.open)
    named = log_id_of(
        TaskDraft(command="true", id=TaskId("sums"), options=ARRAY), "ana"
    )
    facts = [
        kit.submitted(number, id=task or kit.task_id(number), options=ARRAY)
        for number, task in ((3, named), (4, None))
    ]
    facts += [
        kit.submitted(
            number,
            id=log_id_of(TaskDraft(command=command, id=NAME), "ana"),
            command=command,
            timeout_s=3600,
            submitter="ana",
            ord=(PRIORITY_BAND << PRIORITY_SHIFT) | number,
        )
        for number, command in enumerate(("first", "second"), 1)
    ]
    store.append_entries(1, kit.entries(facts), kit.EPOCHS)
    await commits.get()
    yield store
    await store.close()


def submissions(
    store: Store, keep: Callable[[TaskDraft], Awaitable[None]] | None = None
) -> SubmissionService:
    """Return the submissions of a core that accepts and persists `keep`, or nothing."""
    at_work = []

    async def accept(event: TasksSubmitted) -> None:
        for draft in event.drafts:
            assert keep is not None
            await keep(draft)
        specs = [
            TaskSpec(id=log_id_of(draft, "ana") or TaskId(""), command=draft.command)
            for draft in event.drafts
        ]
        tickets.set_reply(event.ticket, TasksAccepted(tuple(specs), 2))

    def post(event: Event) -> None:
        assert isinstance(event, TasksSubmitted)
        assert keep is not None or not event.drafts
        at_work.append(asyncio.create_task(accept(event)))

    tickets = PendingRequests(post)
    return way_in(store, tickets)


def way_in(
    store: Store,
    tickets: PendingRequests,
    failure: Callable[[], str | None] = lambda: None,
) -> SubmissionService:
    """Return the submissions of a core that answers by tickets."""
    finder = TaskFinder(store, tickets)
    return SubmissionService(
        mesh_id="mesh",
        store=store,
        clock=SystemClock(),
        pending_requests=tickets,
        find_task=finder.find_task,
        files_of=lambda _tree: {},
        stream=lambda: kit.OTHER,
        health_checks=HealthChecks(write_failure=failure, has_disk_room=lambda: True),
        queue_limits=QueueLimits(19),
    )


def asked(command: str, key: str | None) -> Submission:
    """Return a request for a task with the chosen name."""
    drafts = (TaskDraft(command=command, id=NAME),)
    return Submission(
        drafts=drafts, submitter="ana", idempotency_key=key, is_strict=False
    )


async def test_a_key_of_a_list_whose_first_tasks_had_own_ids_is_used_up(
    store: Store, commits: Commits
) -> None:
    """Only the last task of the list has an id that the key gives."""
    service = submissions(store)
    other = Submission(
        drafts=(TaskDraft(command="other"),),
        submitter="ana",
        idempotency_key="key",
        is_strict=False,
    )
    last = kit.submitted(9, id=service._keyed_id(other, 1))
    store.append_entries(2, kit.entries([last], after=4), kit.EPOCHS)
    await commits.get()

    with pytest.raises(TaskExists):
        await service.accept_submission(other)


@pytest.mark.parametrize(
    ("command", "name"), [("first", "nightly"), ("second", "nightly~2")]
)
async def test_a_repeated_request_finds_its_own_task(
    store: Store, command: str, name: str
) -> None:
    """Whichever half of the split had accepted it."""
    records, replicas = await submissions(store).accept_submission(
        asked(command, "key")
    )

    assert [record.name for record in records] == [name]
    assert [record.spec.command for record in records if record.spec] == [command]
    assert replicas == 2


@pytest.mark.parametrize(("command", "key"), [("third", "key"), ("second", None)])
async def test_a_used_name_is_not_given_again(
    store: Store, command: str, key: str | None
) -> None:
    """Only a split can create a second task with one name, never a request."""
    with pytest.raises(TaskExists):
        await submissions(store).accept_submission(asked(command, key))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("sums.2", None),
        (f"{kit.task_id(4)}.0", None),
        ("new.0", TaskDraft(command="true", id=TaskId("new"), options=ARRAY)),
    ],
)
async def test_the_name_of_a_member_is_reserved_before_it_starts(
    store: Store, name: str, array: TaskDraft | None
) -> None:
    """A client of that task would otherwise see another one."""
    draft = TaskDraft(command="true", id=TaskId(name))
    drafts = (draft,) if array is None else (draft, array)
    request = Submission(
        drafts=drafts, submitter="ana", idempotency_key=None, is_strict=False
    )

    with pytest.raises(TaskExists) as refused:
        await submissions(store).accept_submission(request)

    assert refused.value.hint == f"{name} is a member of the array {name[:-2]}"


@pytest.mark.parametrize("name", ["sums.1", "sums.6", "sums.02", "sums.x", "other.2"])
async def test_other_names_with_a_dot_are_free(store: Store, name: str) -> None:
    """Versions are written so, too."""
    draft = TaskDraft(command="true", id=TaskId(name))
    request = Submission(
        drafts=(draft,), submitter="ana", idempotency_key=None, is_strict=False
    )

    with pytest.raises(
        AssertionError
    ):  # The core gets the request, and accepts nothing here.
        await submissions(store).accept_submission(request)


async def test_a_submission_during_a_disk_error_does_not_wait(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says that the task may still be accepted."""
    monkeypatch.setattr("octaskly.agent.gateway.pending_requests.REPLY_CHECK_S", 0.01)
    drafts = (TaskDraft(command="true"),)
    request = Submission(
        drafts=drafts, submitter="ana", idempotency_key=None, is_strict=False
    )
    posted: list[Event] = []
    way = way_in(
        store, PendingRequests(posted.append), lambda: "it is full" if posted else ""
    )

    with pytest.raises(StoreFull, match="may be accepted later"):
        await asyncio.wait_for(way.accept_submission(request), 60)
    assert len(posted) == 1


BATCH = tuple(TaskDraft(command=command) for command in ("one", "two", "three"))


def keyed(*drafts: TaskDraft) -> Submission:
    """Return a request with a key."""
    return Submission(
        drafts=drafts, submitter="ana", idempotency_key="batch", is_strict=False
    )


async def append_two(store: Store, commits: Commits, stream: StreamId) -> None:
    """Put the first two tasks of the batch into a stream, and not the third."""
    drafts = await submissions(store)._with_keyed_ids(keyed(*BATCH))
    facts = [
        kit.submitted(
            number,
            id=log_id_of(draft, "ana"),
            command=draft.command,
            timeout_s=draft.timeout_s,
            submitter="ana",
            ord=(PRIORITY_BAND << PRIORITY_SHIFT) | number,
        )
        for number, draft in enumerate(drafts[:2], 5)
    ]
    after = 4 if stream == kit.STREAM else 0
    store.append_entries(2, kit.entries(facts, stream=stream, after=after))
    await commits.get()


async def test_a_partial_batch_of_a_lost_dispatcher_is_completed(
    store: Store, commits: Commits
) -> None:
    """It died while it sent the batch, which was too large for one message."""
    await append_two(store, commits, kit.STREAM)
    brought = []

    async def keep(draft: TaskDraft) -> None:
        brought.append(draft.command)

    records, replicas = await submissions(store, keep).accept_submission(keyed(*BATCH))

    assert brought == ["three"]
    assert [r.spec.command for r in records if r.spec] == ["one", "two", "three"]
    assert len({record.name for record in records}) == len(BATCH)
    assert replicas == 2


@pytest.mark.parametrize(
    ("stream", "drafts"),
    [
        (kit.OTHER, BATCH),
        (kit.STREAM, (BATCH[0], BATCH[2], BATCH[2])),
        (kit.STREAM, BATCH[:1]),
    ],
)
async def test_another_batch_with_the_same_key_is_refused(
    store: Store, commits: Commits, stream: StreamId, drafts: tuple[TaskDraft, ...]
) -> None:
    """This dispatcher's own batches are complete, so more tasks are another batch."""
    await append_two(store, commits, stream)

    with pytest.raises(TaskExists) as refused:
        await submissions(store).accept_submission(keyed(*drafts))

    assert refused.value.field == "Idempotency-Key"
    assert "used before with other tasks" in str(refused.value.hint)


def named(name: str, options: TaskOptions | None = None) -> Submission:
    """Return a request for one task with this name."""
    draft = TaskDraft(command="true", id=TaskId(name), options=options)
    return Submission(
        drafts=(draft,), submitter="ana", idempotency_key=None, is_strict=False
    )


async def keep(store: Store, commits: Commits, draft: TaskDraft) -> None:
    """Make a task of ana's durable."""
    task = log_id_of(draft, "ana")
    fact = kit.submitted(5, id=task, options=draft.options)
    store.append_entries(2, kit.entries([fact], after=4))
    await commits.get()


async def test_an_array_cannot_use_a_task_s_name_for_a_member(
    store: Store, commits: Commits
) -> None:
    """A client of the member would see the task."""
    await keep(store, commits, *named("new.4").drafts)

    with pytest.raises(TaskExists) as refused:
        await submissions(store).accept_submission(named("new", ARRAY))

    assert refused.value.hint == "new.4 already exists and would be a member"


@pytest.mark.parametrize("task", ["new.1", "new.6", "new.04", "new.x", "new.0.x", "ne"])
async def test_an_array_may_share_a_prefix_with_other_names(
    store: Store, commits: Commits, task: str
) -> None:
    """A suffix that is no member number makes no member name."""
    await keep(store, commits, *named(task).drafts)

    with pytest.raises(
        AssertionError
    ):  # The core gets the request, and accepts nothing here.
        await submissions(store).accept_submission(named("new", ARRAY))


@pytest.mark.parametrize("is_array_first", [False, True])
async def test_an_array_and_a_task_named_like_a_member_exclude_each_other(
    store: Store, commits: Commits, *, is_array_first: bool
) -> None:
    """Both find their names free, as long as neither is durable."""
    accepted: list[TaskId | None] = []

    async def accept(draft: TaskDraft) -> None:
        accepted.append(draft.id)
        await keep(store, commits, draft)

    way = submissions(store, accept)
    requests = [named("new.2"), named("new", ARRAY)]

    answers = await asyncio.gather(
        *map(way.accept_submission, reversed(requests) if is_array_first else requests),
        return_exceptions=True,
    )

    assert accepted == ["new" if is_array_first else "new.2"]
    assert isinstance(answers[1], TaskExists)


async def test_a_durability_wait_ends_with_a_redirect_at_a_stopping_node(
    store: Store,
) -> None:
    """It only waits, so the client may repeat it elsewhere."""
    tickets = PendingRequests(lambda _: tickets.close())

    with pytest.raises(NotDispatcher):
        await way_in(store, tickets).wait_until_replicated()


async def test_a_submission_above_the_queue_size_is_refused_for_good(
    store: Store,
) -> None:
    """It must not wait until some tasks have run."""
    array = TaskOptions(array=ArraySpec(count=20))
    draft = TaskDraft(command="true", options=array)
    request = Submission(
        drafts=(draft,), submitter="ana", idempotency_key=None, is_strict=False
    )

    with pytest.raises(QueueTooSmall) as refused:
        await submissions(store).accept_submission(request)

    assert "20 tasks, and the queue holds 19" in (refused.value.hint or "")


WEBHOOK = TaskDraft(command="true", options=TaskOptions(notify_url="http://a/"))


async def test_webhooks_are_counted_again_when_a_subject_has_too_many(
    store: Store, commits: Commits
) -> None:
    """Until they are sent; other requests at the same time do not exceed the quota."""
    clock = kit.HandClock()
    quota = QueueQuota(store, clock, QueueLimits(webhooks_per_subject=2))
    with pytest.raises(QueueTooSmall):
        await quota.reserve([WEBHOOK] * 3, "ada")
    answers = await asyncio.gather(
        *(quota.reserve([WEBHOOK], "ada") for _ in range(4)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [NoneType] * 2 + [QueueFull] * 2
    await quota.reserve([WEBHOOK], "bob")

    clock.mono_s += WEBHOOK_COUNT_S
    facts = [kit.submitted(5, options=WEBHOOK.options, submitter="ada")]
    store.append_entries(2, kit.entries(facts, after=4), kit.EPOCHS)
    await commits.get()

    await quota.reserve([WEBHOOK], "ada")
    with pytest.raises(QueueFull) as refused:
        await quota.reserve([WEBHOOK], "ada")
    assert "2 webhooks of ada are pending, the maximum is 2" in (
        refused.value.hint or ""
    )


STDIN = TaskOptions(stdin=b"x" * 5000)


def failed_task(options: TaskOptions) -> TaskRecord:
    """Return a failed task, as the store has it."""
    spec = kit.submitted(
        8, options=options, ord=(PRIORITY_BAND << PRIORITY_SHIFT) | 8
    ).spec
    return TaskRecord(spec.id, replace(spec, submitter="ana"), cancelled_by="ana")


async def test_a_task_without_its_stdin_is_not_repeated(store: Store) -> None:
    """It would run with an empty one."""
    repeat = await build_retry(failed_task(without_stdin(STDIN)), store, "ana")

    with pytest.raises(StdinFreed) as refused:
        await submissions(store).accept_submission(repeat)

    assert kit.task_id(8) in str(refused.value.hint)
    assert "5000 bytes" in str(refused.value.hint)


async def test_a_repeat_is_found_again_after_the_stdin_was_freed(
    store: Store, commits: Commits
) -> None:
    """A client may ask for the repeat of a task more than once."""

    async def keep(draft: TaskDraft) -> None:
        fact = kit.submitted(
            9,
            id=log_id_of(draft, "ana"),
            command=draft.command,
            timeout_s=draft.timeout_s,
            options=draft.options,
            ord=(PRIORITY_BAND << PRIORITY_SHIFT) | 9,
        )
        store.append_entries(2, kit.entries([fact], after=4), kit.EPOCHS)
        await commits.get()

    first = await build_retry(failed_task(STDIN), store, "ana")
    accepted, _ = await submissions(store, keep).accept_submission(first)

    second = await build_retry(failed_task(without_stdin(STDIN)), store, "ana")
    found, _ = await submissions(store).accept_submission(second)

    assert [record.id for record in found] == [record.id for record in accepted]
