"""The client of the commands: sends calls to one node, with a short retry timeout."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, Self, TypeVar

from octaskly.client.drivers.flow_factory import make_request_flow
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Refused
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.flows.steps import EmittingFlow, Flow
from octaskly.errors import OctasklyError

RETRY_TIMEOUT_S: Final = 10.0

_T = TypeVar("_T")


class Session:
    """A client of one node; a context manager that threads may share.

    Args:
        endpoint: The node.
        retry_timeout_s: How long a failed request is retried.
        waits_for_logs: Retry while a missing node may know an unknown task.
        on_wait: Called with the refusal before the first retry of a request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        waits_for_logs: bool = True,
        on_wait: Callable[[Refused], None] | None = None,
    ) -> None:
        self.requests = make_request_flow(
            endpoint.label,
            retry_timeout_s=retry_timeout_s,
            waits_for_logs=waits_for_logs,
            on_failure=self._count_failure,
            is_program=False,
        )
        self.reconnect_count = 0  #: number of lost connections that were retried
        self.endpoint = endpoint
        self._driver = ThreadDriver(endpoint)
        self._on_wait = on_wait

    @classmethod
    def at_socket(
        cls, path: Path | str, *, retry_timeout_s: float = RETRY_TIMEOUT_S
    ) -> Self:
        """Return a session with the agent at this socket."""
        return cls(Endpoint(path=Path(path)), retry_timeout_s=retry_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._driver.close()

    def send(self, call: Call) -> Response:
        """Send a call and return the response.

        Raises:
            Refused: the node refused.
            Unreachable: no agent answers.
            ReplyLost: the connection ended before the response.
        """
        return self.run(self.requests.send(call))

    def send_and_decode(self, call: Call, kind: type[_T]) -> _T:
        """Send a call and return the decoded body of the response."""
        return self.run(self.requests.send_and_decode(call, kind))

    def decode(self, reply: Response, kind: type[_T]) -> _T:
        """Return the decoded body of a response.

        Raises:
            NotOctaskly: the body is not of this type.
        """
        return rest_calls.decode_body(reply, kind, self.requests.node_label)

    def run(self, flow: Flow[_T]) -> _T:
        """Run a flow and return its result."""
        return self._driver.run(flow)

    def iterate(self, flow: EmittingFlow[_T]) -> Generator[_T]:
        """Run a flow and yield its items."""
        return self._driver.iterate(flow)

    def _count_failure(self, error: OctasklyError) -> None:
        if not isinstance(error, Refused):
            self.reconnect_count += 1
        elif self._on_wait is not None:
            self._on_wait(error)
