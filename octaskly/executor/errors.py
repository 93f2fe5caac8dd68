"""How calls end that return nothing."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from octaskly.errors import OctasklyError


class BrokenCall(BrokenExecutor, OctasklyError):
    """The process of a call ended, or never began, without an answer.

    Other calls of the executor go on. `task` is the id of its task, `node` the name of
    the node where it ran last; `exit_code` and `signal` are those of its process.
    """

    def __init__(
        self,
        message: str,
        *,
        task: str = "",
        node: str | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        hint: str | None = None,
    ) -> None:
        OctasklyError.__init__(self, message, hint=hint)
        self.task = task
        self.node = node
        self.exit_code = exit_code
        self.signal = signal


class InterpreterMismatch(BrokenCall):
    """The interpreter on that node cannot take what this one pickles."""


class ResultLost(BrokenCall):
    """The call was performed, and its result cannot be had."""


class MeshLost(BrokenExecutor, OctasklyError):
    """No node answers any more, or none takes calls: the executor is of no use."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        OctasklyError.__init__(self, message, hint=hint)


class RemoteTraceback(Exception):
    """The cause of an exception that a call raised: where, as text."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return self.tb


class RemoteError(Exception):
    """A call raised an exception that cannot be had here; this is its text."""
