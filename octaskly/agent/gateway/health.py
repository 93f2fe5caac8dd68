"""Whether this node can serve the mesh: it is in it, and its disk takes the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octaskly.errors import LeftBehind, StoreFull


def _never() -> None:
    """Return no reason."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """What is asked of the parts that know it, at each request."""

    failure: Callable[[], str | None]  #: why the log cannot be written
    is_room: Callable[[], bool]  #: and whether it can
    left: Callable[[], str | None] = _never
    """Why this node is in the mesh no more, and how it comes back."""

    def trouble(self) -> str | None:
        """Return why this node cannot serve, None if it can."""
        return self.failure() or self.left()

    def require_membership(self) -> None:
        """Raise LeftBehind where no other member hears of this node any more."""
        if why := self.left():
            raise LeftBehind(why)

    def require_room(self) -> None:
        """Raise StoreFull where the log of a dispatcher cannot be written."""
        if self.is_room():
            return
        self.require_log()
        raise StoreFull(
            "the disk of the dispatcher has no room for the log",
            hint="free some space there; running tasks are not affected",
        )

    def require_log(self) -> None:
        """Raise StoreFull where nothing at all can be written, before it is asked."""
        if failure := self.failure():
            raise StoreFull("the dispatcher cannot write its log", hint=failure)

    def require_writes(self, done: str) -> None:
        """Raise StoreFull where what is in force, as `done` says, is not written."""
        if failure := self.failure():
            raise StoreFull(
                f"{done}, but the disk keeps nothing",
                hint=f"ask again when it does: {failure}",
            )
