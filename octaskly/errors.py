"""The exceptions of Octaskly.

    OctasklyError
    ├── ConfigError              a setting, file or port is unusable; exit 78
    ├── ProtocolError
    │   ├── LocalProtocolError   we misused the protocol: a bug
    │   └── RemoteProtocolError  a peer sent what it must not
    │       ├── FrameTooLarge
    │       └── VersionMismatch
    ├── TaskError
    │   ├── TaskNotFound
    │   ├── TaskAmbiguous        a short id fits several tasks
    │   ├── TaskExists           a client chose an id that is taken
    │   ├── TaskNotCancellable
    │   ├── TaskNotEnded
    │   ├── NothingToRepeat
    │   ├── ParentNotFound
    │   ├── CyclicTasks
    │   └── OutputNotFound
    ├── MeshError
    │   ├── NoDispatcher         none is elected at this moment
    │   ├── NotDispatcher        this node is not it (any more)
    │   ├── AnswerLost           it stopped before it could say what became of it
    │   ├── NotDurable           no standby keeps a copy, and that was insisted on
    │   ├── CatchingUp           a node that may know the task is missing
    │   ├── LeftBehind           this node is in the mesh no more
    │   ├── RotationRefused      the mesh secret cannot be renewed now
    │   ├── TooManyRecords       the mesh keeps no more tokens or revocations
    │   ├── NodeNotFound
    │   ├── NoSuchRequest        no machine of that name waits to be let in
    │   ├── TooManyInvites
    │   ├── WouldLeave           joining would leave members or tasks behind
    │   └── OnlyCopy             leaving may lose tasks
    ├── TokenNotFound
    ├── TokenExists              a token that is still good has that name
    ├── TrustError               a secret, certificate or token is not acceptable
    │   └── PairingFailed        a machine did not get into a mesh
    ├── PermissionDenied         the principal may not do that
    └── StoreError
        ├── StoreUnusable        another process has the file, or it is read-only
        ├── StoreCorrupt         the file is damaged, or newer than this program
        └── StoreFull            the disk has no room

Every error says what failed on which thing; `hint` says what to do.
"""

from __future__ import annotations


class OctasklyError(Exception):
    """Base of everything that Octaskly raises on purpose.

    `str(error)` names what failed and the offending value; `hint` is one line that
    helps, a command where possible; `field` names the setting or request field.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.field = field


class ConfigError(OctasklyError):
    """A setting, file, folder or port cannot be used; the process exits with 78."""


class ProtocolError(OctasklyError):
    """Base of violations of the mesh protocol."""


class LocalProtocolError(ProtocolError):
    """This node tried to send what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """A peer sent what the protocol forbids; the link is closed."""


class FrameTooLarge(RemoteProtocolError):
    """A peer announced a frame above the limit."""


class VersionMismatch(RemoteProtocolError):
    """A peer speaks no protocol version that this node speaks."""


class TaskError(OctasklyError):
    """Base of errors about one task."""


class TaskNotFound(TaskError):
    """No task has that id."""


class TaskAmbiguous(TaskError):
    """A shortened id fits more than one task."""


class TaskExists(TaskError):
    """The id that a client chose is taken."""


class NoNodeFits(TaskError):
    """No node could ever run a task that shall fail fast; nothing was accepted."""


class QueueFull(TaskError):
    """As many tasks wait as may; nothing was accepted."""


class QueueTooSmall(QueueFull):
    """More tasks at once than may wait at all: to try again does not help."""


class TaskNotCancellable(TaskError):
    """The task runs, and force was not asked for."""


class TaskNotEnded(TaskError):
    """Only what has ended can be tried again."""


class NothingToRetry(TaskError):
    """No member of the array failed, or too many did for one array."""


class ParentNotFound(TaskError):
    """A task shall come after one that does not exist."""


class CyclicTasks(TaskError):
    """Tasks of one request shall each come after the other."""


class OutputNotFound(TaskError):
    """The task has no such output, or it was missing at the end."""


class MeshError(OctasklyError):
    """Base of errors about the mesh as a whole."""


class DispatcherUnknown(MeshError):
    """No dispatcher is elected at this moment; retry shortly."""


class NotDispatcher(MeshError):
    """The request reached a node that is not dispatcher."""


class OutcomeUnknown(MeshError):
    """The node stops; the request may have been carried out, so it is not repeated."""


class NotDurable(MeshError):
    """No standby keeps a copy, and the request or the setting insists on one."""


class RotationRefused(MeshError):
    """The mesh secret cannot be renewed now, or not by this node."""


class CatchingUp(MeshError):
    """The task is unknown here, but a node that may know it is missing."""


class NotAMember(MeshError):
    """This node is in the mesh no more; what it accepted, nobody else would know."""


class TooManyRecords(MeshError):
    """The mesh keeps as many records of a kind as it may; nothing was recorded."""


class NodeNotFound(MeshError):
    """No node has that name or id, or it is gone."""


class JoinRequestNotFound(MeshError):
    """No machine of that name, which shows these words, waits to be let in."""


class TooManyInvites(MeshError):
    """As many invites are open as may be."""


class MeshNotEmpty(MeshError):
    """Joining another mesh would leave members or tasks behind."""


class OnlyCopy(MeshError):
    """This node may have the only copy of tasks, and is to leave."""


class TokenNotFound(OctasklyError):
    """No token has that name."""


class TokenExists(OctasklyError):
    """A token that is still good has that name; none was issued."""


class TrustError(OctasklyError):
    """A secret, certificate or token is malformed, forged, foreign or expired."""


class PairingFailed(TrustError):
    """A machine did not get into a mesh; nothing was changed on it."""

    def __init__(
        self, message: str, *, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        if cause is not None:
            self.__cause__ = TrustError(cause)


class PermissionDenied(OctasklyError):
    """The principal is known, but may not do that."""


class StoreError(OctasklyError):
    """The database cannot do what was asked."""


class StoreUnusable(StoreError, ConfigError):
    """The database cannot be opened, locked or moved; exit 78 at the start."""


class StoreCorrupt(StoreError, ConfigError):
    """The database is damaged, or newer than this program; nothing was written."""


class StoreFull(StoreError):
    """The disk has no room; nothing was accepted."""
