"""What a command asks of one node: calls and flows, with the patience of a person."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, Self, TypeVar

from octaskly.client.drivers.flow_factory import make_request_flow
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import Refused
from octaskly.client.flows import api_calls
from octaskly.client.flows.api_calls import Call, Response
from octaskly.client.flows.steps import EmittingFlow, Flow
from octaskly.errors import OctasklyError

RETRY_TIMEOUT_S: Final = 10.0

_T = TypeVar("_T")


class Session:
    """The way to one node; a context manager, which threads may share.

    Args:
        place: The node.
        retry_timeout_s: How long a mesh that cannot answer at the moment is asked again.
        on_wait: Told why, once for each request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        on_wait: Callable[[Refused], None] | None = None,
    ) -> None:
        self.requests = make_request_flow(
            endpoint.label,
            retry_timeout_s=retry_timeout_s,
            on_failure=self._count_failure,
            is_program=False,
        )
        self.reconnect_count = (
            0  #: times that a connection was lost and another one opened
        )
        self._driver = ThreadDriver(endpoint)
        self._on_wait = on_wait

    @classmethod
    def at_socket(
        cls, path: Path | str, *, retry_timeout_s: float = RETRY_TIMEOUT_S
    ) -> Self:
        """Return the way to the agent that has this socket."""
        return cls(Endpoint(path=Path(path)), retry_timeout_s=retry_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._driver.close()

    def send(self, call: Call) -> Response:
        """Return the answer to a call.

        Raises:
            Refused: the node refused.
            Unreachable: nobody answers there.
            ReplyLost: the connection ended before the answer.
        """
        return self.run(self.requests.send(call))

    def send_and_decode(self, call: Call, kind: type[_T]) -> _T:
        """As `send`; return what the answer carries."""
        return self.run(self.requests.send_and_decode(call, kind))

    def decode(self, reply: Response, kind: type[_T]) -> _T:
        """Return what an answer carries.

        Raises:
            NotOctaskly: it is something else.
        """
        return api_calls.decode_body(reply, kind, self.requests.node_label)

    def run(self, flow: Flow[_T]) -> _T:
        """Perform a flow; return what it comes to."""
        return self._driver.run(flow)

    def iterate(self, flow: EmittingFlow[_T]) -> Generator[_T]:
        """Perform a flow; yield what it emits."""
        return self._driver.iterate(flow)

    def _count_failure(self, error: OctasklyError) -> None:
        if not isinstance(error, Refused):
            self.reconnect_count += 1
        elif self._on_wait is not None:
            self._on_wait(error)
