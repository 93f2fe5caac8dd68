"""Lending: sending the files of a tree in the background, as a node asks for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Self

from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed
from octaskly.client.flows.files import (
    NO_CALLBACKS,
    SendCallbacks,
    TreeContents,
    lend_tree,
)
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.tasks import cancel
from octaskly.errors import OctasklyError
from octaskly.files.local_tree import FileChanged, LocalTree

CLOSE_S: Final = 2.0  #: longest wait for the end of a request when a loan ends


class Lender:
    """Lends a tree to a node while a block runs, in a thread of its own.

    A file that is not what it was when it was hashed is read once more: its time may
    have changed, or another program may have been writing it back.

    Args:
        endpoint: The node.
        requests: Requests to the node.
        tree: The tree.
        callbacks: Are told of the progress, in the thread.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        requests: RequestFlow,
        tree: LocalTree,
        callbacks: SendCallbacks = NO_CALLBACKS,
    ) -> None:
        self._driver = ThreadDriver(endpoint)
        self._requests, self._tree = requests, tree
        self._callbacks = callbacks
        self._is_open = threading.Event()
        self._is_over = threading.Event()
        self._changed: set[str] = set()  #: paths of files that are read once more
        self._thread = threading.Thread(target=self._run, name="lender", daemon=True)
        self._lock = threading.Lock()  #: guards the next two
        self._tasks: set[str] = set()  #: to cancel on a failure
        self.failure: OctasklyError | None = None  #: why it cannot be lent any more

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def open(self, deadline: Deadline | None = None) -> None:
        """Begin; return when the node knows of the offer.

        Raises:
            OctasklyError: the node refuses.
            TimedOut: the node did not know of it before the deadline.
        """
        deadline = deadline or self._requests.deadline_after(None)
        self._thread.start()
        while not self._is_open.wait(deadline.cap(threading.TIMEOUT_MAX)):
            deadline.check("the files were not offered")
        if self.failure is not None:
            raise self.failure

    def cancel_on_failure(self, task: str) -> None:
        """Cancel a task if the tree cannot be lent any more, or once that happens."""
        with self._lock:
            self._tasks.add(task)
            has_failed = self.failure is not None
        if has_failed:
            self._cancel(task)

    def on_task_ended(self, task: str) -> None:
        """Note that a task needs no files any more."""
        with self._lock:
            self._tasks.discard(task)

    def finish(self) -> None:
        """End the loan after the task.

        Raises:
            OctasklyError: a file could not be sent; the task was cancelled.
        """
        self.close()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """End the loan; a request that the node does not answer ends with the process.

        Only the first call waits for it.
        """
        if self._is_over.is_set():
            return
        self._is_over.set()
        self._driver.close()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            while True:
                try:
                    self._lend()
                except FileChanged as error:
                    if error.path in self._changed:
                        raise
                    self._changed.add(error.path)
        except Exception as error:  # noqa: BLE001 - no task may wait for its files
            if not self._is_over.is_set():
                failure = (
                    error
                    if isinstance(error, OctasklyError)
                    else OctasklyError(f"the files were not sent: {error!r}")
                )
                with self._lock:
                    self.failure, tasks = failure, list(self._tasks)
                for task in tasks:
                    self._cancel(task)
        finally:
            self._is_open.set()

    def _cancel(self, task: str) -> None:
        with suppress(OctasklyError):  # It may have ended.
            self._driver.run(cancel(self._requests, task, force=True))

    def _lend(self) -> None:
        tree = self._tree
        contents = TreeContents(tree.sha256, tree.sizes(), self._read)
        self._driver.run(
            lend_tree(
                self._requests,
                contents,
                on_open=self._is_open.set,
                callbacks=self._callbacks,
            )
        )

    def _read(self, sha256: str, start: int) -> Iterator[bytes]:
        parts = self._tree.read_content(sha256, start, retried_paths=self._changed)
        for data in parts:
            if self._is_over.is_set():
                raise Closed("the files are no longer lent")
            yield data
