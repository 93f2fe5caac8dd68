"""What an executor asks of the mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from octaskly.client.drivers.thread_driver import Pool
from octaskly.client.endpoint import Target
from octaskly.client.errors import Closed, TooMany
from octaskly.client.flows import files, streams, tasks
from octaskly.client.flows.request import Asker
from octaskly.client.flows.sse import Event
from octaskly.rest.client_types import Draft, Task

NO_ROOM = 507  #: status where a node cannot take a file, or a task, at the moment


class Mesh:
    """The way into the mesh, through one node; any thread may use it.

    Args:
        place: That node.
        patience_s: How long a mesh that does not answer is asked again.
    """

    def __init__(self, place: Target, patience_s: float) -> None:
        self._asker = Asker(place.name, patience_s=patience_s)
        self._pool = Pool(place)
        self._ear = Pool(place)

    def submit(self, drafts: Sequence[Draft]) -> None:
        """Submit tasks, all or none, as soon as the mesh has room for them."""
        key = self._asker.new_key()
        while True:
            flow = tasks.submit_many(
                self._asker,
                drafts,
                key=key,
                durability=None,
                until=self._asker.until(None),
            )
            try:
                self._pool.run(flow)
            except TooMany:
                continue  # It was asked patiently, and there is no hurry.
            return

    def task(self, name: str) -> Task:
        """Return a task as it is now."""
        return self._pool.run(tasks.task(self._asker, name))

    def cancel(self, name: str) -> None:
        """Cancel a task, be it that it runs."""
        self._pool.run(tasks.cancel(self._asker, name, force=True))

    def events(self) -> Iterator[Event]:
        """Yield what happens, the first event at once, until `interrupt`."""
        flow = streams.events(
            self._asker,
            types=("task", "node"),  # Nodes are told of first.
            task=None,
            after="",
            until=self._asker.until(None),
        )
        try:
            yield from self._ear.iterate(flow)
        except Closed:
            return

    def save_output(self, task: str, path: str, target: IO[bytes]) -> None:
        """Write an output of a task into a file."""
        until = self._asker.until(None)
        flow = streams.output(self._asker, task, path, until=until)
        target.writelines(self._pool.iterate(flow))

    def leave(self, sha256: str, data: bytes | memoryview) -> str:
        """Leave a file for tasks; return the id of the node that has it."""
        return self._pool.run(files.leave(self._asker, sha256, data)).node

    def let_go(self, sha256: str) -> None:
        """Say that no task will name a file any more."""
        self._pool.run(files.let_go(self._asker, sha256))

    def interrupt(self) -> None:
        """Have `events` end, in whatever thread it waits."""
        self._ear.close()

    def close(self) -> None:
        """Close all connections; nothing more is asked."""
        self._ear.close()
        self._pool.close()
