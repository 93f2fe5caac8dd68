"""The client of an executor, which waits for room and can end its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from octaskly.client.client import Client
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Closed, Conflict, Invalid, NotFound, TooMany
from octaskly.client.flows import tasks
from octaskly.client.flows.files import SendCallbacks
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.sse import Event
from octaskly.client.flows.steps import Flow
from octaskly.errors import OctasklyError
from octaskly.rest.client_types import Draft, Task

if TYPE_CHECKING:
    from octaskly.client.lending import Lender
    from octaskly.files.local_tree import LocalTree

_T = TypeVar("_T")


class MeshClient(Client):
    """Sends requests to the mesh through one node; thread-safe.

    Args:
        settings: The arguments of `Client`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._event_client = Client(**settings)
        self._lenders: list[Lender] = []

    @property
    def endpoint(self) -> Endpoint:
        """The node."""
        return self._endpoint

    def lend(self, tree: LocalTree) -> Lender:
        """Lend a tree to the node until this client is closed.

        Raises:
            OctasklyError: the node refuses.
        """
        # Imported here because most executors send no files.
        from octaskly.client.lending import Lender  # noqa: PLC0415

        patient = SendCallbacks(on_no_room=lambda _refusal: None)
        lender = Lender(self._endpoint, self._requests, tree, patient)
        self._lenders.append(lender)
        lender.open()
        return lender

    def submit_each(self, drafts: Sequence[Draft]) -> Iterator[Task | OctasklyError]:
        """Submit tasks as soon as the mesh has room; yield each, or why it failed.

        The mesh accepts all tasks of a request or none. A refused request is therefore
        halved until only the invalid tasks are left, or until it fits into the queue.
        """
        ends: Sequence[Task | OctasklyError]
        try:
            ends = self._submit_with_patience(drafts)
        except (Invalid, NotFound, Conflict, TooMany) as error:
            if len(drafts) > 1:
                middle = len(drafts) // 2
                yield from self.submit_each(drafts[:middle])
                yield from self.submit_each(drafts[middle:])
                return
            ends = [error]
        except OctasklyError as error:
            ends = [error] * len(drafts)
        yield from ends

    def _submit_with_patience(self, drafts: Sequence[Draft]) -> Sequence[Task]:
        """Submit tasks, all or none, as soon as the mesh has room for them.

        Raises:
            TooMany: it would not have room even if its queue were empty.
        """
        key = self._requests.new_key()
        while True:
            try:
                if len(drafts) > 1:
                    return self.submit_many(drafts, idempotency_key=key)
                # Not as a batch of one, whose errors would name a field of `$[0]`.
                flow = tasks.submit_draft(self._requests, drafts[0], key=key)
                return [self._run(flow)]
            except TooMany as error:
                if error.retry_after_s is None:
                    raise
                # The queue is full: retry without a time limit.
                time.sleep(error.retry_after_s)

    def perform(self, flow: Callable[[RequestFlow], Flow[_T]]) -> _T:
        """Run a flow of requests to the node, and return its result."""
        return self._run(flow(self._requests))

    def events_until_stop(self) -> Iterator[Event]:
        """Yield events until `stop_events`; the first one arrives at once."""
        try:
            # The first events are about nodes.
            yield from self._event_client.events(types=("task", "node"))
        except Closed:
            return

    def stop_events(self) -> None:
        """End `events_until_stop`, even while another thread waits in it."""
        self._event_client.close()

    def close(self) -> None:
        """Close all connections."""
        for lender in self._lenders:
            lender.close()
        self._event_client.close()
        super().close()
