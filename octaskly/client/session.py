"""What a command asks of one node: calls and flows, with the patience of a person."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, Self, TypeVar

from octaskly.client.drivers.thread_driver import Pool
from octaskly.client.endpoint import Target
from octaskly.client.errors import Refused
from octaskly.client.flows import calls
from octaskly.client.flows.calls import Call, Reply
from octaskly.client.flows.request import Asker
from octaskly.client.flows.steps import Emitting, Flow
from octaskly.errors import OctasklyError

PATIENCE_S: Final = 10.0

_T = TypeVar("_T")


class Session:
    """The way to one node; a context manager, which threads may share.

    Args:
        place: The node.
        patience_s: How long a mesh that cannot answer at the moment is asked again.
        on_wait: Told why, once for each request.
    """

    def __init__(
        self,
        place: Target,
        *,
        patience_s: float = PATIENCE_S,
        on_wait: Callable[[Refused], None] | None = None,
    ) -> None:
        self.asker = Asker(
            place.name,
            patience_s=patience_s,
            on_failure=self._failed,
            is_program=False,
        )
        self.lost = 0  #: times that a connection was lost and another one opened
        self._pool = Pool(place)
        self._on_wait = on_wait

    @classmethod
    def at_socket(cls, path: Path | str, *, patience_s: float = PATIENCE_S) -> Self:
        """Return the way to the agent that has this socket."""
        return cls(Target(path=Path(path)), patience_s=patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._pool.close()

    def ask(self, call: Call) -> Reply:
        """Return the answer to a call.

        Raises:
            Refused: the node refused.
            Unreachable: nobody answers there.
            ReplyLost: the connection ended before the answer.
        """
        return self.run(self.asker.ask(call))

    def asked(self, call: Call, kind: type[_T]) -> _T:
        """As `ask`; return what the answer carries."""
        return self.run(self.asker.asked(call, kind))

    def read(self, reply: Reply, kind: type[_T]) -> _T:
        """Return what an answer carries.

        Raises:
            NotOctaskly: it is something else.
        """
        return calls.decoded(reply, kind, self.asker.place)

    def run(self, flow: Flow[_T]) -> _T:
        """Perform a flow; return what it comes to."""
        return self._pool.run(flow)

    def iterate(self, flow: Emitting[_T]) -> Generator[_T]:
        """Perform a flow; yield what it emits."""
        return self._pool.iterate(flow)

    def _failed(self, error: OctasklyError) -> None:
        if not isinstance(error, Refused):
            self.lost += 1
        elif self._on_wait is not None:
            self._on_wait(error)
