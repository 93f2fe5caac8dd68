"""Health checks: membership of this node, and space and writes of its disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octaskly.errors import NotAMember, StoreFull


def _no_reason() -> None:
    """Return no reason."""


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """Checks that run at each request."""

    write_failure: Callable[[], str | None]  #: why the log cannot be written, or None
    has_disk_room: Callable[[], bool]  #: True if the disk has room for the log
    lost_membership_reason: Callable[[], str | None] = _no_reason
    """Why this node is no longer a member, and how it can join again; or None."""
    warnings: tuple[str, ...] = ()
    """What is wrong on this node though it can serve; everyone may read it."""

    def failure_reason(self) -> str | None:
        """Return why this node cannot serve, or None if it can."""
        return self.write_failure() or self.lost_membership_reason()

    def require_membership(self) -> None:
        """Raise NotAMember if this node is not in the mesh any more."""
        if why := self.lost_membership_reason():
            raise NotAMember(why)

    def require_disk_room(self) -> None:
        """Raise StoreFull if the disk has no room for the log, or writes fail."""
        if self.has_disk_room():
            return
        self.require_writable_log()
        raise StoreFull(
            "the disk of the dispatcher has no room for the log",
            hint="free some space there; running tasks are not affected",
        )

    def require_writable_log(self) -> None:
        """Raise StoreFull if writes of the log fail."""
        if failure := self.write_failure():
            raise StoreFull("the dispatcher cannot write its log", hint=failure)

    def require_durable(self, done: str) -> None:
        """Raise StoreFull if writes fail, so that the change `done` is not on disk."""
        if failure := self.write_failure():
            raise StoreFull(
                f"{done}, but the disk takes no writes",
                hint=f"retry when it does: {failure}",
            )
