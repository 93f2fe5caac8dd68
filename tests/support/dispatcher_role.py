"""A stand-in for the check that this node is dispatcher."""

from __future__ import annotations

from octaskly.errors import NotDispatcher


class DispatcherRole:
    """Whether this node is dispatcher; a test may end that."""

    def __init__(self) -> None:
        self.is_over = False

    def require(self) -> None:
        if self.is_over:
            raise NotDispatcher("this node is not dispatcher")
