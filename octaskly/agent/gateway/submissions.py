"""Submissions of tasks to the core, with idempotency.

Task ids are derived from the `Idempotency-Key`, so they are the same on both sides of
a partition. A repeated request finds its tasks in the store, or waits for the first
request. Other nodes forward submissions to the dispatcher: see `api.http.node_client`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from msgspec import structs

from octaskly.agent.gateway.parent_lookup import (
    FilesOfTree,
    FindTask,
    check_input_paths,
    resolve_parents,
)
from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.agent.health import HealthChecks
from octaskly.config.defaults import (
    QUEUE_MAX,
    QUEUED_BYTES_PER_SUBJECT,
    WEBHOOKS_PER_SUBJECT,
)
from octaskly.config.settings import AgentOptions
from octaskly.core import events as ev
from octaskly.core import replies
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_name
from octaskly.core.model.drafts import (
    TaskDraft,
    log_id_of,
    matches_draft,
    with_visitors_allowed,
)
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.model.task_options import ArraySpec, is_stdin_freed
from octaskly.core.replies import Unplaceable
from octaskly.errors import (
    NoNodeFits,
    NotDispatcher,
    OutcomeUnknown,
    QueueFull,
    QueueTooSmall,
    StdinFreed,
    StoreFull,
    TaskExists,
)
from octaskly.ports.store import Clock
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.system.cooperative import map_in_batches

QUEUE_COUNT_S = 30.0  #: longest time between two counts, while tasks arrive
WEBHOOK_COUNT_S = 1.0  #: between two counts of a subject; longer than a commit takes
BYTES_COUNT_RATIO = 20  #: a count of bytes is repeated after so many times its time
UNCOUNTED_BYTES = 1024  #: of each task; a queue of small tasks is limited by number
MATCHED_AT_ONCE = 16  #: existing tasks in memory, to compare a repeated request
SMALL_BATCH_MAX = 1000  #: prepared and accepted in one turn of the event loop

AcceptedTasks = tuple[list[TaskRecord], int]
"""Accepted tasks in order, and the number of disks that hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Tasks to accept, all or none."""

    drafts: tuple[TaskDraft, ...]
    submitter: str
    idempotency_key: str | None
    is_key_shared: bool = False  #: the key means the same tasks for every submitter
    is_strict: bool  #: refuse the tasks if only one disk would hold them


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits on waiting tasks, and on who may run them."""

    tasks_max: int = QUEUE_MAX
    bytes_per_subject: int = QUEUED_BYTES_PER_SUBJECT
    """Bytes beyond `UNCOUNTED_BYTES` of each task."""
    webhooks_per_subject: int = WEBHOOKS_PER_SUBJECT
    allows_visitors: bool = False  #: of tasks that say nothing about visitors

    @classmethod
    def from_options(cls, options: AgentOptions) -> QueueLimits:
        """Return the limits in the settings of an agent."""
        return cls(
            options.queue_max,
            options.queued_bytes_per_subject,
            options.webhooks_per_subject,
            options.visitor_tasks == "all",
        )


@dataclass(slots=True)
class _WebhookCount:
    """The webhooks of one subject at the last count, and those accepted since."""

    pending: int
    count_due_s: float  #: earliest time of the next count


class QueueQuota:
    """Limits the queued tasks, and the bytes and webhooks of each subject.

    Counting is slow. The queue is counted again only if the last count is old, or if
    the last count and the tasks accepted since exceed a limit. Bytes are counted for
    at most a twentieth of the time, so that refused requests do not occupy the disk.
    """

    def __init__(self, store: Store, clock: Clock, limits: QueueLimits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        self._queued_estimate = 0
        self._counted_s = float("-inf")
        self._bytes_by_subject: dict[str, int] = {}
        self._bytes_due_s = float("-inf")  #: earliest time of the next count of bytes
        self._webhooks: dict[str, _WebhookCount] = {}  #: by subject
        self._webhook_lock = asyncio.Lock()

    async def reserve(self, drafts: Sequence[TaskDraft], subject: str) -> None:
        """Reserve room for the tasks of a subject.

        Raises:
            QueueFull: the queue has no room for them now.
            QueueTooSmall: they exceed the limit of an empty queue.
        """
        size_bytes = sum(map(_counted_bytes, drafts))
        if size_bytes:
            await self._check_bytes(size_bytes, subject)
        asking = [draft for draft in drafts if draft.options is not None]
        count = len(drafts)
        if asking:
            webhooks = sum(1 for d in asking if d.options and d.options.notify_url)
            if webhooks:
                await self._reserve_webhooks(webhooks, subject)
            count += sum(map(_count_tasks, asking)) - len(asking)
        await self._reserve_tasks(count)
        if size_bytes:
            before = self._bytes_by_subject.get(subject, 0)
            self._bytes_by_subject[subject] = before + size_bytes

    async def _reserve_tasks(self, count: int) -> None:
        tasks_max = self._limits.tasks_max
        if count > tasks_max:
            raise QueueTooSmall(
                "Queue is full",
                hint=f"these are {count} tasks, and the queue holds {tasks_max}; "
                "submit fewer at a time, or raise --queue-max of the agents",
            )
        now_s = self._clock.now().mono_s
        is_old = now_s - self._counted_s >= QUEUE_COUNT_S
        if count and (is_old or self._queued_estimate + count > tasks_max):
            self._counted_s = now_s
            self._queued_estimate = await self._store.count_queued_tasks()
            if self._queued_estimate + count > tasks_max:
                raise QueueFull(
                    "Queue is full",
                    hint=f"{self._queued_estimate} tasks are queued, the maximum is "
                    f"{tasks_max}; try again when some have run, or raise --queue-max "
                    "of the"
                    " agent",
                )
        self._queued_estimate += count

    async def _reserve_webhooks(self, count: int, subject: str) -> None:
        """Reserve webhooks: each occupies memory until its receiver has answered."""
        webhooks_max = self._limits.webhooks_per_subject
        if count > webhooks_max:
            raise QueueTooSmall(
                "Queue is full",
                hint=f"these tasks have {count} webhooks, the maximum for {subject} is"
                f" {webhooks_max}; submit one array, which has one webhook, or raise"
                " --webhooks-per-subject of the agents",
            )
        async with self._webhook_lock:
            known = self._webhooks.get(subject)
            now_s = self._clock.now().mono_s
            if known is None or (
                known.pending + count > webhooks_max and now_s >= known.count_due_s
            ):
                # Tasks that were just accepted may not be on disk yet, so the next
                # count comes later.
                pending = await self._store.count_webhooks(subject)
                known = _WebhookCount(pending, now_s + WEBHOOK_COUNT_S)
                self._webhooks[subject] = known
            if known.pending + count > webhooks_max:
                raise QueueFull(
                    "Queue is full",
                    hint=f"{known.pending} webhooks of {subject} are pending, the"
                    f" maximum is {webhooks_max}; try again when their receivers have"
                    " answered, or raise --webhooks-per-subject of the agents",
                )
            known.pending += count

    async def _check_bytes(self, size_bytes: int, subject: str) -> None:
        """Raise an error if the subject may not queue so many more bytes."""
        bytes_max = self._limits.bytes_per_subject
        setting = "--queued-bytes-per-subject of the agents"
        if size_bytes > bytes_max:
            raise QueueTooSmall(
                "Queue is full",
                hint=f"these tasks have {size_bytes} bytes, and the queue holds "
                f"{bytes_max} of {subject}; submit fewer at a time, upload large "
                "inputs as"
                f" files, or raise {setting}",
            )
        if self._bytes_by_subject.get(subject, 0) + size_bytes <= bytes_max:
            return
        started_s = self._clock.now().mono_s
        if started_s >= self._bytes_due_s:
            # Requests that arrive during the count use the old one.
            self._bytes_due_s = float("inf")
            try:
                self._bytes_by_subject = dict(
                    await self._store.read_queued_bytes(UNCOUNTED_BYTES)
                )
            finally:
                now_s = self._clock.now().mono_s
                self._bytes_due_s = now_s + BYTES_COUNT_RATIO * (now_s - started_s)
        waiting_bytes = self._bytes_by_subject.get(subject, 0)
        if waiting_bytes + size_bytes > bytes_max:
            raise QueueFull(
                "Queue is full",
                hint=f"{waiting_bytes} bytes of {subject} are queued, the maximum is "
                f"{bytes_max}; try again when some tasks have run, or raise {setting}",
            )


class SubmissionService:
    """Submits tasks to the core."""

    def __init__(
        self,
        *,
        mesh_id: str | None,
        store: Store,
        clock: SystemClock,
        pending_requests: PendingRequests,
        find_task: FindTask,
        files_of: FilesOfTree,
        stream: Callable[[], StreamId | None],
        health_checks: HealthChecks,
        queue_limits: QueueLimits,
    ) -> None:
        self._mesh_id = mesh_id
        self._store = store
        self._clock = clock
        self._pending_requests = pending_requests
        self._find_task = find_task
        self._files_of = files_of
        self._stream = stream
        self._health_checks = health_checks
        self._queue_quota = QueueQuota(store, clock, queue_limits)
        self._allows_visitors = queue_limits.allows_visitors
        self._claims: dict[TaskId, asyncio.Event] = {}

    async def accept_submission(self, submission: Submission) -> AcceptedTasks:
        """Accept new tasks; return tasks of an earlier, equal request as they are.

        Raises:
            TaskExists: another task has the id.
            StdinFreed: a new task would repeat one whose stdin is gone.
            NotDurable: durability is strict, and no standby acknowledges.
            NotDispatcher: this node is not dispatcher any more; nothing was accepted.
            ParentNotFound, ParentTooLarge, CyclicTasks, CatchingUp: see
                `resolve_parents`.
            InputsCollide: see `check_input_paths`.
            StoreFull: the disk takes no writes. The tasks may be accepted once it
                takes writes again.
        """
        if self._allows_visitors:
            drafts = tuple(map(with_visitors_allowed, submission.drafts))
            submission = replace(submission, drafts=drafts)
        after = None
        if submission.idempotency_key is not None:
            after = self._keyed_id(submission, len(submission.drafts))
            submission = replace(
                submission, drafts=tuple(await self._with_keyed_ids(submission))
            )
        drafts = await resolve_parents(
            submission.drafts, submission.submitter, self._store, self._find_task
        )
        if drafts is not submission.drafts:
            submission = replace(submission, drafts=drafts)
        chosen = [draft.id for draft in submission.drafts if draft.id is not None]
        if not chosen:
            return await self._submit_to_core(submission)
        async with self._claim_ids(submission.drafts, chosen):
            await self._refuse_member_names(submission.drafts)
            known = await self._find_repeated(submission.drafts, chosen, after)
            missing = tuple(d for d in submission.drafts if d.id not in known)
            _require_stdin(missing)
            await self._refuse_arrays_over_tasks(missing)
            # Submit even if no task is missing: an empty submission waits until all
            # earlier entries are replicated. This disk may hold the only copy of a
            # known task that another dispatcher accepted.
            fresh, replicas = await self._submit_to_core(
                replace(submission, drafts=missing)
            )
            if known and missing:  # The known tasks may have fewer copies.
                _, least = await self._submit_to_core(replace(submission, drafts=()))
                replicas = min(replicas, least)
            more = iter(fresh)
            held = (draft.id and known.get(draft.id) for draft in submission.drafts)
            return [record or next(more) for record in held], replicas

    async def reserve_task_ids(self, count: int) -> tuple[TaskId, ...]:
        """Return ids for tasks that may be submitted later.

        Raises:
            NotDispatcher: this node is not dispatcher any more.
        """
        suffixes = self._random_suffixes(count)
        reply = await self._pending_requests.send_request(
            lambda t: ev.TaskIdsRequested(t, suffixes)
        )
        assert isinstance(reply, replies.TaskIdsReserved)
        return reply.ids

    async def wait_until_replicated(self) -> None:
        """Wait until all that is on this disk is replicated like an accepted task.

        Raises:
            NotDispatcher: this node is not dispatcher any more, or stops.
        """
        event = partial(
            ev.TasksSubmitted, drafts=(), submitter="", id_suffixes=(), log_ids=()
        )
        try:
            await self._pending_requests.send_request(event)
        except OutcomeUnknown as error:
            raise NotDispatcher(str(error)) from None

    @asynccontextmanager
    async def _claim_ids(
        self, drafts: Sequence[TaskDraft], ids: Sequence[TaskId]
    ) -> AsyncIterator[None]:
        """Claim ids; wait while another request has claimed one of them.

        An array also waits for a request with the name of one of its members, and a
        task with such a name waits for a request with the array.
        """
        arrays = {draft.id for draft in drafts if _array_of(draft)}
        while busy := self._conflicting_claim(ids, arrays):
            await busy.wait()
        answered = asyncio.Event()
        claims = dict.fromkeys(ids, answered)
        self._claims.update(claims)
        try:
            yield
        finally:
            for task in claims:
                del self._claims[task]
            answered.set()

    def _conflicting_claim(
        self, ids: Sequence[TaskId], arrays: Collection[str | None]
    ) -> asyncio.Event | None:
        """Return the event of a request whose claim conflicts with these names."""
        for task in ids:
            place = split_member_name(task)
            for name in (task, place and TaskId(place[0])):
                if name and (busy := self._claims.get(name)):
                    return busy
        for task, claim in self._claims.items() if arrays else ():
            place = split_member_name(task)
            if place and place[0] in arrays:
                return claim
        return None

    async def _submit_to_core(self, submission: Submission) -> AcceptedTasks:
        await check_input_paths(
            submission.drafts, submission.submitter, self._store, self._files_of
        )
        await self._queue_quota.reserve(submission.drafts, submission.submitter)
        suffixes = self._random_suffixes(len(submission.drafts))
        logged = await self._logged_ids(submission)
        if len(submission.drafts) > SMALL_BATCH_MAX:
            # The step of the core is long, so it runs in its own turn of the loop.
            await asyncio.sleep(0)
        reply = await self._pending_requests.send_request(
            lambda ticket: ev.TasksSubmitted(
                ticket,
                submission.drafts,
                submission.submitter,
                suffixes,
                logged,
                submission.is_strict,
            ),
            check=self._require_writes,
        )
        if isinstance(reply, Unplaceable):
            place = "$" if len(submission.drafts) == 1 else f"$[{reply.index}]"
            raise NoNodeFits(
                "No node can run the task", hint=reply.reason, field=f"{place}.requires"
            )
        assert isinstance(reply, replies.TasksAccepted)
        records = [TaskRecord(spec.id, spec) for spec in reply.specs]
        return records, reply.replicas

    def _require_writes(self) -> None:
        """Raise StoreFull if writes fail while the tasks are being written."""
        if failure := self._health_checks.write_failure():
            raise StoreFull(
                "the disk takes no writes; the tasks may be accepted later",
                hint="check before you retry it, or send an Idempotency-Key:"
                f" {failure}",
            )

    def _random_suffixes(self, count: int) -> tuple[str, ...]:
        """Return random id suffixes, which distinguish tasks of the same number."""
        digits = self._clock.hex_digits(8 * count) if count else ""
        return tuple([digits[at : at + 8] for at in range(0, len(digits), 8)])

    async def _with_keyed_ids(self, submission: Submission) -> list[TaskDraft]:
        """Return the drafts; those without an id get one derived from the key."""

        def keyed(pair: tuple[int, TaskDraft]) -> TaskDraft:
            draft = pair[1]
            if draft.id is not None:
                return draft
            return structs.replace(draft, id=self._keyed_id(submission, pair[0]))

        return await map_in_batches(list(enumerate(submission.drafts)), keyed)

    async def _logged_ids(self, submission: Submission) -> tuple[TaskId | None, ...]:
        """Return the ids in the log of the tasks that have a chosen id."""
        drafts = submission.drafts
        if not [draft for draft in drafts if draft.id is not None]:
            return (None,) * len(drafts)
        return tuple(
            await map_in_batches(drafts, lambda d: log_id_of(d, submission.submitter))
        )

    async def _find_repeated(
        self,
        drafts: Sequence[TaskDraft],
        ids: Sequence[TaskId],
        after: TaskId | None,
    ) -> dict[TaskId, TaskRecord]:
        """Return the tasks of a repeated request, by chosen id; none if all are free.

        `after` is the id that the key would give to one more task. If it is taken, the
        first request with this key had more tasks.

        A dispatcher that was lost while it replicated a large batch has acknowledged
        no task of it. The standby may have some of them; the repeat adds the others.
        """
        if len(set(ids)) < len(ids):
            raise TaskExists(
                "Duplicate task ID", field="id", hint="the same id occurs twice"
            )
        taken = await self._store.read_ids_by_name([*ids, *([after] if after else [])])
        if not taken:
            return {}
        busy = next(iter(taken))
        records: dict[TaskId, TaskRecord] = {}
        if after is not None:
            records = await self._read_matching([d for d in drafts if d.id in taken])
        is_repeat = after is not None and taken.keys() == records.keys()
        if is_repeat and len(records) < len(drafts):
            streams = await self._store.streams_of_tasks(
                [r.id for r in records.values()]
            )
            is_repeat = self._stream() not in streams
        if not is_repeat:
            field, hint = "id", f"{busy} already exists"
            if after:
                field = "Idempotency-Key"
                hint = f"it was used before with other tasks, such as {busy}"
            raise TaskExists("Duplicate task ID", field=field, hint=hint)
        return records

    async def _read_matching(
        self, drafts: Sequence[TaskDraft]
    ) -> dict[TaskId, TaskRecord]:
        """Return the existing tasks that equal drafts with the same id.

        It ends at the first draft that has none. A few are read at a time, because
        existing tasks may be much larger than the request that names them.
        """
        found: dict[TaskId, TaskRecord] = {}
        for start in range(0, len(drafts), MATCHED_AT_ONCE):
            some = drafts[start : start + MATCHED_AT_ONCE]
            taken = await self._store.read_tasks_by_name([str(d.id) for d in some])
            for draft in some:
                assert draft.id is not None
                record = _find_matching(draft, taken.get(draft.id, ()))
                if record is None:
                    return found
                found[draft.id] = record
        return found

    async def _refuse_member_names(self, drafts: Sequence[TaskDraft]) -> None:
        """Refuse names of array members, including members that have not started."""
        places = {
            draft.id: place
            for draft in drafts
            if draft.id is not None and (place := split_member_name(draft.id))
        }
        if not places:
            return
        arrays = {draft.id: [_array_of(draft)] for draft in drafts}
        known = await self._store.read_tasks_by_name(
            [*{name for name, _ in places.values()}], is_brief=True
        )
        for name, records in known.items():
            specs = [record.spec.array for record in records if record.spec]
            arrays[TaskId(name)] = [*arrays.get(TaskId(name), ()), *specs]
        for task, (name, number) in places.items():
            for array in arrays.get(TaskId(name), ()):
                if array is not None and array.position(number) is not None:
                    hint = f"{task} is a member of the array {name}"
                    raise TaskExists("Duplicate task ID", field="id", hint=hint)

    async def _refuse_arrays_over_tasks(self, drafts: Sequence[TaskDraft]) -> None:
        """Refuse arrays with a member whose name an existing task has."""
        pairs = [(draft.id, _array_of(draft)) for draft in drafts]
        arrays = {name: array for name, array in pairs if name and array}
        task = await self._store.find_name_collision(arrays) if arrays else None
        if task is not None:
            hint = f"{task} already exists and would be a member"
            raise TaskExists("Duplicate task ID", field="id", hint=hint)

    def _keyed_id(self, submission: Submission, index: int) -> TaskId:
        """Return the id for this key, the same on both sides of a partition."""
        assert submission.idempotency_key is not None
        whose = "" if submission.is_key_shared else submission.submitter
        return self._hashed_id(whose, submission.idempotency_key, index)

    def id_of_shared_key(self, key: str) -> TaskId:
        """Return the id of the only task of a key that all submitters share."""
        return self._hashed_id("", key, 0)

    def _hashed_id(self, whose: str, key: str, index: int) -> TaskId:
        text = "\0".join((self._mesh_id or "", whose, key, str(index)))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return TaskId(f"task-{int(digest[:16], 16) % 10**12:012d}-{digest[16:24]}")


def _find_matching(draft: TaskDraft, taken: Iterable[TaskRecord]) -> TaskRecord | None:
    """Return the existing task that equals the draft, or None."""
    for record in taken:
        if record.spec is not None and matches_draft(draft, record.spec):
            return record
    return None


def _require_stdin(drafts: Iterable[TaskDraft]) -> None:
    """Raise StdinFreed if a draft repeats a task whose stdin is gone."""
    for draft in drafts:
        options = draft.options
        if options is not None and is_stdin_freed(options):
            raise StdinFreed(
                "Stdin was deleted",
                hint=f"{options.retry_of} has ended, and the {options.stdin_bytes}"
                " bytes of its stdin are not kept; submit it again",
            )


def _array_of(draft: TaskDraft) -> ArraySpec | None:
    return None if draft.options is None else draft.options.array


def _count_tasks(draft: TaskDraft) -> int:
    """Return the number of tasks in a draft: an array has many."""
    array = _array_of(draft)
    return 1 if array is None else array.count


def _counted_bytes(draft: TaskDraft) -> int:
    """Return the bytes of a draft beyond `UNCOUNTED_BYTES`."""
    options, size = draft.options, len(draft.command)
    if options is not None:
        size += options.chars
    if draft.inputs or draft.outputs:
        size += sum(map(len, draft.inputs + draft.outputs))
    return max(0, size - UNCOUNTED_BYTES)
