"""The mesh client of an executor: tasks, events, outputs and files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from octaskly.client.drivers.flow_factory import make_request_flow
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed, TooMany
from octaskly.client.flows import files, streams, tasks
from octaskly.client.flows.sse import Event
from octaskly.rest.client_types import Draft, Task

INSUFFICIENT_STORAGE = 507  #: HTTP status: no room for a file or task at the moment


class MeshClient:
    """Sends requests to the mesh through one node; thread-safe.

    Args:
        endpoint: The API of that node.
        retry_timeout_s: How long requests are retried while no node answers.
    """

    def __init__(self, endpoint: Endpoint, retry_timeout_s: float) -> None:
        self._requests = make_request_flow(
            endpoint.label, retry_timeout_s=retry_timeout_s
        )
        self._driver = ThreadDriver(endpoint)
        self._event_driver = ThreadDriver(endpoint)

    def submit(self, drafts: Sequence[Draft]) -> None:
        """Submit tasks, all or none, as soon as the mesh has room for them."""
        key = self._requests.new_key()
        while True:
            flow = tasks.submit_many(
                self._requests,
                drafts,
                key=key,
                durability=None,
                deadline=self._requests.deadline_after(None),
            )
            try:
                self._driver.run(flow)
            except TooMany:
                continue  # The queue is full: retry without a time limit.
            return

    def get_task(self, name: str) -> Task:
        """Return the current state of a task."""
        return self._driver.run(tasks.task(self._requests, name))

    def cancel(self, name: str) -> None:
        """Cancel a task, even if it is running."""
        self._driver.run(tasks.cancel(self._requests, name, force=True))

    def events(self) -> Iterator[Event]:
        """Yield events until `stop_events`; the first one arrives at once."""
        flow = streams.events(
            self._requests,
            types=("task", "node"),  # The first events are about nodes.
            task=None,
            after="",
            deadline=self._requests.deadline_after(None),
        )
        try:
            yield from self._event_driver.iterate(flow)
        except Closed:
            return

    def save_output(self, task: str, path: str, target: IO[bytes]) -> None:
        """Write an output of a task into a file."""
        until = self._requests.deadline_after(None)
        flow = streams.output(self._requests, task, path, deadline=until)
        target.writelines(self._driver.iterate(flow))

    def upload_file(self, sha256: str, data: bytes | memoryview) -> str:
        """Upload a file for tasks; return the id of the node that has it."""
        return self._driver.run(files.upload_file(self._requests, sha256, data)).node

    def release_file(self, sha256: str) -> None:
        """Release a file that no further task needs."""
        self._driver.run(files.release_file(self._requests, sha256))

    def stop_events(self) -> None:
        """End `events`, even while another thread waits in it."""
        self._event_driver.close()

    def close(self) -> None:
        """Close all connections."""
        self._event_driver.close()
        self._driver.close()
