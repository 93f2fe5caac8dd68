"""Errors of calls that return no value."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

from octaskly.errors import OctasklyError


class BrokenCall(BrokenExecutor, OctasklyError):
    """The process of a call ended without a result, or never started.

    Other calls of the executor continue. `task` is the id of the task, and `node` the
    name of the node that ran it last. `exit_code` and `signal` are those of the
    process.
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
    """The interpreter on the node cannot load pickles of this interpreter."""


class ResultLost(BrokenCall):
    """The call ran, but its result cannot be retrieved."""


class MeshLost(BrokenExecutor, OctasklyError):
    """No node answers or accepts calls any more, so the executor is unusable."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        OctasklyError.__init__(self, message, hint=hint)


class RemoteTraceback(Exception):
    """The remote traceback of a call as text: the cause of its exception."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return self.tb


class RemoteError(Exception):
    """The text of a call's exception that cannot be unpickled here."""
