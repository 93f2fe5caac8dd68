"""The threads of an executor: submit work items and set the results of futures.

One thread submits tasks, one reads the event feed, and some fetch ended tasks. They
start with the first work item and stop after the last one.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, Final

from octaskly.client.errors import Refused
from octaskly.client.flows.request_flow import may_have_taken_effect
from octaskly.client.flows.sse import Event
from octaskly.errors import OctasklyError
from octaskly.executor.call_files import NodeFilesFull
from octaskly.executor.errors import MeshLost
from octaskly.executor.mesh import MeshClient
from octaskly.rest.client_types import FINAL, Draft, Task

FETCHERS: Final = 3
BATCH_MAX: Final = 500  #: tasks in one submission
BATCH_BYTES_MAX: Final = 8 << 20

DeferredCall = Callable[[], object]
"""A request to the mesh whose result is ignored."""


class WorkItem:
    """One future and its task.

    Args:
        id: The id of the task.
        size_bytes: The approximate size of the task in a submission.
        make_draft: Returns the task to submit; called again if a node had no room.
        result_of: Returns the result of the future from the ended task; may raise.
        on_end: Called after the future has ended, if `make_draft` succeeded.
    """

    __slots__ = (
        "future",
        "has_ended",
        "id",
        "is_accepted",
        "is_started",
        "is_submitted",
        "make_draft",
        "needs_check",
        "on_end",
        "result_of",
        "size_bytes",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - as the API calls it
        size_bytes: int,
        make_draft: Callable[[], Draft],
        result_of: Callable[[Task], Any],
        on_end: DeferredCall | None = None,
    ) -> None:
        self.future: Future[Any] = Future()
        self.id = id
        self.size_bytes = size_bytes
        #: None after a draft was made.
        self.make_draft: Callable[[], Draft] | None = make_draft
        self.result_of = result_of
        self.on_end = on_end
        self.is_submitted = False
        self.is_accepted = False  #: until then, a task of this id may be another one
        self.needs_check = False  #: the task may have ended before it was accepted
        self.is_started = False  #: the future is running or cancelled
        self.has_ended = False

    def start(self) -> bool:
        """Mark the future as running; return False if it was cancelled."""
        if not self.is_started:
            self.is_started = True
            self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()


class Engine:
    """Runs the work items of an executor, even one that was garbage-collected.

    Args:
        mesh: Receives the tasks.
        tasks_max: The largest number of tasks in the mesh at a time.
    """

    def __init__(self, mesh: MeshClient, tasks_max: int) -> None:
        self._mesh = mesh
        self._tasks_max = tasks_max
        self._changed = threading.Condition()  #: guards the fields below
        #: By id of the task, which several may have: items whose future has not ended.
        self._items: dict[str, list[WorkItem]] = {}
        self._queue: deque[WorkItem] = deque()
        self._submitted_count = 0
        self._deferred_calls: list[DeferredCall] = []
        self._is_listening = False
        self._is_full = False  #: a node had no room; reset when a task ends
        self._is_closed = False
        self._error: OctasklyError | None = None
        #: Items whose task has ended, or may have.
        self._to_check: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self._fetchers_left = FETCHERS
        self._threads: list[threading.Thread] = []

    def add(self, item: WorkItem) -> None:
        """Queue a work item.

        Raises:
            RuntimeError: the engine or the interpreter is shutting down.
            MeshLost: no node answers any more.
        """
        with self._changed:
            self._raise_if_closed()
            self._items.setdefault(item.id, []).append(item)
            self._queue.append(item)
            if not self._threads:
                self._start()
            self._changed.notify_all()
        item.future.add_done_callback(partial(self._on_done, item))

    def check_open(self) -> None:
        """Raise the error that `add` would raise."""
        with self._changed:
            self._raise_if_closed()

    def close(self, *, cancels_pending: bool = False) -> None:
        """Refuse further items; optionally cancel items that have not started."""
        with self._changed:
            self._is_closed = True
            works = list(self._all_items()) if cancels_pending else []
            self._changed.notify_all()
        for work in works:
            work.future.cancel()

    def join(self) -> None:
        """Wait for the end of all work."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _all_items(self) -> Iterator[WorkItem]:
        return chain.from_iterable(self._items.values())

    def _raise_if_closed(self) -> None:
        if self._error is not None:
            raise MeshLost(self._error.message, hint=self._error.hint)
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _start(self) -> None:
        targets = [self._submit_loop, self._listen_loop, *[self._fetch_loop] * FETCHERS]
        self._threads = [
            threading.Thread(target=target, name=f"octaskly-executor-{number}")
            for number, target in enumerate(targets)
        ]
        _engines.add(self)
        for thread in self._threads:
            thread.start()

    # -- submit ----------------------------------------------------------------------

    def _submit_loop(self) -> None:
        while (turn := self._wait_for_batch()) is not None:
            batch, calls = turn
            try:
                for call in calls:
                    with suppress(Exception):  # Nothing uses the result.
                        call()
                if batch:
                    self._submit_batch(batch)
            except Exception as error:  # noqa: BLE001 - no future may wait for ever
                self._fail_all(error)
            del turn, batch, calls
        self._mesh.stop_events()
        for _ in range(FETCHERS):
            self._to_check.put(None)

    def _wait_for_batch(self) -> tuple[list[WorkItem], list[DeferredCall]] | None:
        """Wait for tasks or deferred calls; return None when all work is done."""
        with self._changed:
            while True:
                is_ready = self._is_listening and not self._is_full
                batch = self._take_batch() if is_ready else []
                calls, self._deferred_calls = self._deferred_calls, []
                if batch or calls:
                    return batch, calls
                if not self._items and (self._is_closed or self._error):
                    return None
                self._changed.wait()

    def _take_batch(self) -> list[WorkItem]:
        batch: list[WorkItem] = []
        size_bytes = 0
        while (
            self._queue
            and self._submitted_count < self._tasks_max
            and len(batch) < BATCH_MAX
        ):
            work = self._queue[0]
            if not work.has_ended:  # Otherwise it was cancelled.
                size_bytes += work.size_bytes
                if batch and size_bytes > BATCH_BYTES_MAX:
                    break
                work.is_submitted = True
                self._submitted_count += 1
                batch.append(work)
            self._queue.popleft()
        return batch

    def _make_drafts(self, batch: Sequence[WorkItem]) -> dict[WorkItem, Draft]:
        """Return the drafts of a batch, without those that could not be made."""
        drafts: dict[WorkItem, Draft] = {}
        for work in batch:
            assert work.make_draft is not None
            try:
                drafts[work] = work.make_draft()
            except NodeFilesFull as error:
                if not self._requeue(work):
                    self._end_future(work, error)
            except Exception as error:  # noqa: BLE001 - the future carries it
                self._end_future(work, error)
            else:
                work.make_draft = None
        return drafts

    def _submit_batch(self, batch: Sequence[WorkItem]) -> None:
        drafts = self._make_drafts(batch)
        if not drafts:
            return
        unanswered: list[WorkItem] = []
        ends = self._mesh.submit_each(list(drafts.values()))
        for work, end in zip(drafts, ends, strict=True):
            if isinstance(end, OctasklyError):
                self._end_future(work, end)
                work.is_accepted = may_have_taken_effect(end)
                if work.is_accepted:
                    unanswered.append(work)
            else:
                self._accept(work, end)
        if unanswered:  # Nobody would get their results.
            with self._changed:
                self._deferred_calls.append(partial(self._cancel, unanswered))

    def _accept(self, item: WorkItem, task: Task) -> None:
        """Note that an item has this task, which an earlier request may have made."""
        with self._changed:
            item.is_accepted = True
            if item.needs_check or task.is_final:
                self._to_check.put(item)
            elif task.status == "running":
                item.start()

    def _requeue(self, item: WorkItem) -> bool:
        """Queue an item until a task ends; return False if no other is submitted."""
        with self._changed:
            if item.has_ended:
                return True
            item.is_submitted = False
            self._submitted_count -= 1
            self._is_full = self._submitted_count > 0
            if self._is_full:
                self._queue.appendleft(item)
            return self._is_full

    # -- results ---------------------------------------------------------------------

    def _listen_loop(self) -> None:
        try:
            for event in self._mesh.events_until_stop():
                self._handle_event(event)
        except Exception as error:  # noqa: BLE001 - no future may wait for ever
            self._fail_all(error)

    def _handle_event(self, event: Event) -> None:
        with self._changed:
            if not self._is_listening:
                self._is_listening = True
                self._changed.notify_all()
            if event.kind == "reset":
                self._check(self._all_items())
            if event.kind != "task":
                return
            works = self._items.get(event.data["id"], [])
            if event.data["status"] in FINAL:
                self._check(works)
            elif event.data["status"] == "running":
                for work in works:
                    if work.is_submitted:
                        work.start()

    def _check(self, items: Iterable[WorkItem]) -> None:
        """Fetch the tasks of submitted items, once they are accepted."""
        for item in items:
            if item.is_accepted:
                self._to_check.put(item)
            else:
                item.needs_check = item.is_submitted

    def _fetch_loop(self) -> None:
        while (work := self._to_check.get()) is not None:
            self._check_task(work)
            del work
        with self._changed:
            self._fetchers_left -= 1
            if not self._fetchers_left:
                self._mesh.close()

    def _check_task(self, item: WorkItem) -> None:
        if item.has_ended:
            return
        try:
            task = self._mesh.task(item.id)
        except Exception as error:  # noqa: BLE001 - the future carries it
            self._end_future(item, error)
            return
        if task.is_final:
            self._end_future(item, task)
        elif task.status == "running":
            with self._changed:
                item.start()

    def _end_future(self, item: WorkItem, end: Task | Exception) -> None:
        """Set the result or the exception of a future, once."""
        if not self._remove_item(item):
            return
        if isinstance(end, Exception):
            item.future.set_exception(end)
            return
        try:
            value = item.result_of(end)
        except BaseException as error:  # noqa: BLE001 - the future carries it
            item.future.set_exception(error)
        else:
            item.future.set_result(value)

    def _remove_item(self, item: WorkItem) -> bool:
        """Remove an item; return True if the caller must end its future."""
        with self._changed:
            if item.has_ended:
                return False
            item.has_ended = True
            self._items[item.id].remove(item)
            if not self._items[item.id]:
                del self._items[item.id]
            self._submitted_count -= item.is_submitted
            self._is_full = False
            if item.on_end is not None and item.make_draft is None:
                self._deferred_calls.append(item.on_end)
            self._changed.notify_all()
            return item.start()

    def _on_done(self, item: WorkItem, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._changed:
            is_sent = item.is_submitted
            if not self._remove_item(item) and is_sent:
                self._deferred_calls.append(partial(self._cancel, [item]))

    def _cancel(self, items: Iterable[WorkItem]) -> None:
        """Cancel the tasks of items; one that was refused may be somebody else's.

        If the mesh gives no answer, the others are left: each would wait as long.
        """
        for item in items:
            if item.is_accepted:
                with suppress(Refused):  # It has ended, or is not there.
                    self._mesh.cancel(item.id, force=True)

    def _fail_all(self, cause: Exception) -> None:
        error = cause if isinstance(cause, OctasklyError) else MeshLost(repr(cause))
        with self._changed:
            self._error = error
            works = list(self._all_items())
            self._changed.notify_all()
        for work in works:
            broken = MeshLost(error.message, hint=error.hint)
            broken.__cause__ = cause
            self._end_future(work, broken)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_is_exiting = threading.Event()


def _at_exit() -> None:
    """Wait for all work before the interpreter exits, like Python's executors."""
    _is_exiting.set()
    for engine in list(_engines):
        engine.close()
        engine.join()


# As in `concurrent.futures`: `atexit` callbacks run after threads were joined.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined] # noqa: SLF001
