"""A stand-in for the check that this node is dispatcher."""

from __future__ import annotations

from octaskly.errors import NotDispatcher


class DispatcherRole:
    """A flag that this node is dispatcher; a test may clear it."""

    def __init__(self) -> None:
        self.is_over = False

    def require(self) -> None:
        if self.is_over:
            raise NotDispatcher("this node is not the dispatcher")
