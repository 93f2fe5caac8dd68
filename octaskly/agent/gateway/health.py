"""Whether this node can serve the mesh: it is in it, and its disk takes the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octaskly.errors import NotAMember, StoreFull


def _no_reason() -> None:
    """Return no reason."""


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """What is asked of the parts that know it, at each request."""

    write_failure: Callable[[], str | None]  #: why the log cannot be written
    has_disk_room: Callable[[], bool]  #: and whether it can
    lost_membership_reason: Callable[[], str | None] = _no_reason
    """Why this node is in the mesh no more, and how it comes back."""

    def failure_reason(self) -> str | None:
        """Return why this node cannot serve, None if it can."""
        return self.write_failure() or self.lost_membership_reason()

    def require_membership(self) -> None:
        """Raise LeftBehind where no other member hears of this node any more."""
        if why := self.lost_membership_reason():
            raise NotAMember(why)

    def require_disk_room(self) -> None:
        """Raise StoreFull where the log of a dispatcher cannot be written."""
        if self.has_disk_room():
            return
        self.require_writable_log()
        raise StoreFull(
            "the disk of the dispatcher has no room for the log",
            hint="free some space there; running tasks are not affected",
        )

    def require_writable_log(self) -> None:
        """Raise StoreFull where nothing at all can be written, before it is asked."""
        if failure := self.write_failure():
            raise StoreFull("the dispatcher cannot write its log", hint=failure)

    def require_durable(self, done: str) -> None:
        """Raise StoreFull where what is in force, as `done` says, is not written."""
        if failure := self.write_failure():
            raise StoreFull(
                f"{done}, but the disk keeps nothing",
                hint=f"ask again when it does: {failure}",
            )
