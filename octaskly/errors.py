"""Exceptions of Octaskly.

Every error message states what failed and on which object; `hint` says what to do.
"""

from __future__ import annotations


class OctasklyError(Exception):
    """Base of all exceptions that Octaskly raises on purpose.

    `message` states the failure and the offending value. `hint` says what to do, as a
    command where possible. `field` is the name of the setting or request field.
    `str(error)` has all three.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.field = field

    @property
    def message(self) -> str:
        """What failed, without field and hint."""
        return str(self.args[0])

    def __str__(self) -> str:
        text = self.message
        # The field of a single task is a name, and not a path.
        name = (self.field or "").removeprefix("$.")
        if name not in text:
            text += f"; field: {name}"
        hint = "; or ".join((self.hint or "").splitlines())
        if hint not in text:
            text += f"; hint: {hint}"
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(OctasklyError):
    """A setting, file, folder or port cannot be used; the process exits with 78."""


class ProtocolError(OctasklyError):
    """Base of violations of the mesh protocol."""


class LocalProtocolError(ProtocolError):
    """This node tried to send a message that the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """A peer sent bytes that the protocol forbids; the link is closed."""


class FrameTooLarge(RemoteProtocolError):
    """A peer announced a frame above the limit."""


class VersionMismatch(RemoteProtocolError):
    """A peer speaks no protocol version that this node speaks."""


class TaskError(OctasklyError):
    """Base of errors about one task."""


class TaskNotFound(TaskError):
    """No task has that id."""


class TaskAmbiguous(TaskError):
    """A shortened id matches more than one task."""


class TaskExists(TaskError):
    """The id that a client chose is taken."""


class NoNodeFits(TaskError):
    """No node can ever run a task that must fail fast; nothing was accepted."""


class QueueFull(TaskError):
    """The queue is full; nothing was accepted."""


class QueueTooSmall(QueueFull):
    """One request has more tasks than the queue can hold; do not retry it."""


class TaskNotCancellable(TaskError):
    """The task is running, and `force` was not set."""


class TaskNotEnded(TaskError):
    """The task has not ended, so it cannot be retried."""


class TaskNotWaiting(TaskError):
    """The task runs or has ended, or is a member, so its priority is fixed."""


class NothingToRetry(TaskError):
    """No member of the array failed, or more failed than one array may have."""


class StdinFreed(TaskError):
    """The stdin of the ended task is gone, so the task cannot be retried."""


class ParentNotFound(TaskError):
    """A task depends on a task that does not exist."""


class CyclicTasks(TaskError):
    """The dependencies between the tasks of one request form a cycle."""


class ParentTooLarge(TaskError):
    """A task is to get the outputs of an array that has too many members."""


class InputsCollide(TaskError):
    """A file that is sent with a task and an output of a parent have the same path."""


class OutputNotFound(TaskError):
    """The task has no such output, or it was missing at the end."""


class MeshError(OctasklyError):
    """Base of errors about the mesh as a whole."""


class DispatcherUnknown(MeshError):
    """No dispatcher is elected now; retry shortly."""


class NotDispatcher(MeshError):
    """The request reached a node that is not the dispatcher."""


class OutcomeUnknown(MeshError):
    """The node is stopping; the request may have been executed, so do not repeat it."""


class NotDurable(MeshError):
    """No standby has a copy, and the request or a setting requires one."""


class RotationRefused(MeshError):
    """The mesh secret cannot be renewed now, or not by this node."""


class CatchingUp(MeshError):
    """The task is unknown here, but a node that may know it is missing."""


class NotAMember(MeshError):
    """This node has left the mesh; no other node would know a task it accepted."""


class TooManyRecords(MeshError):
    """The mesh has its maximum number of records of a kind; nothing was recorded."""


class NodeNotFound(MeshError):
    """No node has that name or id, or it has left."""


class JoinRequestNotFound(MeshError):
    """No machine with that name and those words waits for approval."""


class TooManyInvites(MeshError):
    """The maximum number of invites is open."""


class MeshNotEmpty(MeshError):
    """Joining another mesh would abandon members or tasks of this one."""


class OnlyCopy(MeshError):
    """This node cannot leave, because it may have the only copy of tasks."""


class TokenNotFound(OctasklyError):
    """No token has that name."""


class TokenExists(OctasklyError):
    """A valid token has that name; none was issued."""


class TrustError(OctasklyError):
    """A secret, certificate or token is malformed, forged, foreign or expired."""


class PairingFailed(TrustError):
    """A machine could not join a mesh; nothing was changed on it."""

    def __init__(
        self, message: str, *, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        if cause is not None:
            self.__cause__ = TrustError(cause)


class PermissionDenied(OctasklyError):
    """The principal is authenticated, but lacks the permission."""


class StoreError(OctasklyError):
    """A database operation failed."""


class StoreUnusable(StoreError, ConfigError):
    """The database cannot be opened, locked or moved; at start, exit 78."""


class StoreCorrupt(StoreError, ConfigError):
    """The database is damaged, or newer than this program; nothing was written."""


class StoreFull(StoreError):
    """The disk is full; nothing was accepted."""
