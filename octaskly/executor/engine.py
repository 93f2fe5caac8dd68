"""Hands the work of one executor to the mesh, and its ends to futures.

Three kinds of threads, which begin with the first work and end with the last: one hands
out, one listens to what happens, and some fetch what has ended.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from octaskly.client import FINAL
from octaskly.client.flows.sse import Event
from octaskly.errors import OctasklyError
from octaskly.executor.errors import MeshLost
from octaskly.executor.large_values import NoRoom
from octaskly.executor.mesh import Mesh
from octaskly.rest.client_types import Draft, Task

FETCHERS: Final = 3
BATCH_MAX: Final = 500  #: tasks in one submission
BATCH_BYTES_MAX: Final = 8 << 20

Errand = Callable[[], None]
"""What is asked of the mesh and has no answer."""


class Work:
    """One future and its task.

    Args:
        id: Of the task.
        size_bytes: What it takes in a submission, roughly.
        make: Returns the task to submit; called once, or until there is room.
        value: Returns what the future gets of the ended task; may raise.
        after: What is to be done once the future has its end, if a task was made.
    """

    __slots__ = (
        *("after", "future", "id", "is_begun", "is_sent", "make", "size_bytes"),
        "value",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - as the API calls it
        size_bytes: int,
        make: Callable[[], Draft],
        value: Callable[[Task], Any],
        after: Errand | None = None,
    ) -> None:
        self.future: Future[Any] = Future()
        self.id = id
        self.size_bytes = size_bytes
        self.make: Callable[[], Draft] | None = make  #: None: it was submitted
        self.value = value
        self.after = after
        self.is_sent = False
        self.is_begun = False  #: the future runs, or was found cancelled

    def begin(self) -> bool:
        """Let the future run, if it does not; return whether it was not cancelled."""
        if not self.is_begun:
            self.is_begun = True
            self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()


class Engine:
    """What works behind an executor, also when that is collected before the end.

    Args:
        mesh: Where tasks go.
        window: How many of them are there at a time.
    """

    def __init__(self, mesh: Mesh, window: int) -> None:
        self._mesh = mesh
        self._window = window
        self._news = threading.Condition()  #: guards what follows
        self._works: dict[str, Work] = {}  #: whose future has no end yet
        self._waiting: deque[Work] = deque()
        self._sent = 0
        self._errands: list[Errand] = []
        self._is_listening = False
        self._is_full = False  #: until something ends
        self._is_closed = False
        self._broken: OctasklyError | None = None
        self._ended: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._fetching = FETCHERS
        self._threads: list[threading.Thread] = []

    def add(self, work: Work) -> None:
        """Take work.

        Raises:
            RuntimeError: it is too late for any.
            MeshLost: the mesh is away.
        """
        with self._news:
            self._refuse()
            self._works[work.id] = work
            self._waiting.append(work)
            if not self._threads:
                self._start()
            self._news.notify_all()
        work.future.add_done_callback(partial(self._on_done, work))

    def check(self) -> None:
        """Raise what `add` would."""
        with self._news:
            self._refuse()

    def close(self, *, cancels: bool = False) -> None:
        """Take no more work; cancel what has not begun, if asked to."""
        with self._news:
            self._is_closed = True
            works = list(self._works.values()) if cancels else []
            self._news.notify_all()
        for work in works:
            work.future.cancel()

    def join(self) -> None:
        """Wait for the end of all work."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _refuse(self) -> None:
        if self._broken is not None:
            raise MeshLost(str(self._broken), hint=self._broken.hint)
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting.is_set():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _start(self) -> None:
        targets = [self._hand_out, self._listen, *[self._fetch] * FETCHERS]
        self._threads = [
            threading.Thread(target=target, name=f"octaskly-executor-{number}")
            for number, target in enumerate(targets)
        ]
        _engines.add(self)
        for thread in self._threads:
            thread.start()

    # -- out -------------------------------------------------------------------------

    def _hand_out(self) -> None:
        while (turn := self._next()) is not None:
            batch, errands = turn
            for errand in errands:
                with suppress(OctasklyError):  # Nobody waits for what comes of it.
                    errand()
            if batch:
                self._submit(batch)
            del turn, batch, errands
        self._mesh.interrupt()
        for _ in range(FETCHERS):
            self._ended.put(None)

    def _next(self) -> tuple[list[Work], list[Errand]] | None:
        """Wait for something to do; None: there will be nothing more."""
        with self._news:
            while True:
                is_ready = self._is_listening and not self._is_full
                batch = self._batch() if is_ready else []
                errands, self._errands = self._errands, []
                if batch or errands:
                    return batch, errands
                if not self._works and (self._is_closed or self._broken):
                    return None
                self._news.wait()

    def _batch(self) -> list[Work]:
        batch: list[Work] = []
        size_bytes = 0
        while self._waiting and self._sent < self._window and len(batch) < BATCH_MAX:
            work = self._waiting[0]
            if work.id in self._works:  # Else it was cancelled meanwhile.
                size_bytes += work.size_bytes
                if batch and size_bytes > BATCH_BYTES_MAX:
                    break
                work.is_sent = True
                self._sent += 1
                batch.append(work)
            self._waiting.popleft()
        return batch

    def _submit(self, batch: Sequence[Work]) -> None:
        drafts: list[Draft] = []
        made: list[Work] = []
        for work in batch:
            assert work.make is not None
            try:
                drafts.append(work.make())
            except NoRoom as error:
                if not self._put_back(work):
                    self._end(work, error)
            except OctasklyError as error:
                self._end(work, error)
            else:
                work.make = None
                made.append(work)
        if not made:
            return
        try:
            self._mesh.submit(drafts)
        except OctasklyError as error:
            for work in made:
                self._end(work, error)

    def _put_back(self, work: Work) -> bool:
        """Try again when something has ended; False: nothing will."""
        with self._news:
            if work.id not in self._works:
                return True
            work.is_sent = False
            self._sent -= 1
            self._is_full = self._sent > 0
            if self._is_full:
                self._waiting.appendleft(work)
            return self._is_full

    # -- back ------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            for event in self._mesh.events():
                self._heed(event)
        except OctasklyError as error:
            self._break(error)

    def _heed(self, event: Event) -> None:
        with self._news:
            if not self._is_listening:
                self._is_listening = True
                self._news.notify_all()
            if event.kind == "reset":
                for sent in self._works.values():
                    if sent.is_sent:
                        self._ended.put(sent.id)
            work = self._works.get(event.data.get("id", ""))
            if event.kind != "task" or work is None:
                return
            if event.data["status"] in FINAL:
                self._ended.put(work.id)
            elif event.data["status"] == "running":
                work.begin()

    def _fetch(self) -> None:
        while (task := self._ended.get()) is not None:
            self._look(task)
        with self._news:
            self._fetching -= 1
            if not self._fetching:
                self._mesh.close()

    def _look(self, name: str) -> None:
        with self._news:
            work = self._works.get(name)
        if work is None:
            return
        try:
            task = self._mesh.task(name)
        except OctasklyError as error:
            self._end(work, error)
            return
        if task.is_final:
            self._end(work, task)
        elif task.status == "running":
            with self._news:
                work.begin()

    def _end(self, work: Work, end: Task | OctasklyError) -> None:
        """Give a future its end, once."""
        if not self._claim(work):
            return
        if isinstance(end, OctasklyError):
            work.future.set_exception(end)
            return
        try:
            value = work.value(end)
        except BaseException as error:  # noqa: BLE001 - that is what the future is for
            work.future.set_exception(error)
        else:
            work.future.set_result(value)

    def _claim(self, work: Work) -> bool:
        """Return whether the caller is the one to end a future."""
        with self._news:
            if self._works.pop(work.id, None) is None:
                return False
            self._sent -= work.is_sent
            self._is_full = False
            if work.after is not None and work.make is None:
                self._errands.append(work.after)
            self._news.notify_all()
            return work.begin()

    def _on_done(self, work: Work, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._news:
            is_sent = work.is_sent
            if not self._claim(work) and is_sent:
                self._errands.append(partial(self._mesh.cancel, work.id))

    def _break(self, error: OctasklyError) -> None:
        with self._news:
            self._broken = error
            works = list(self._works.values())
            self._news.notify_all()
        for work in works:
            broken = MeshLost(str(error), hint=error.hint)
            broken.__cause__ = error
            self._end(work, broken)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_is_exiting = threading.Event()


def _at_exit() -> None:
    """Let all work end before the interpreter does, as the executors of Python do."""
    _is_exiting.set()
    for engine in list(_engines):
        engine.close()
        engine.join()


# What `concurrent.futures` uses itself: `atexit` comes after threads were joined.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined] # noqa: SLF001
