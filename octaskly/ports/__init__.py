"""Interfaces between the agent, its components and the API.

Components do not import each other. `octaskly.agent` connects them through these
protocols. Test fakes pass the same contract suites as the real components.
"""

from __future__ import annotations

from collections.abc import Callable

from octaskly.core.protocol.messages import Hello
from octaskly.ports.audit import AuditEntry, AuditLog, AuditPage
from octaskly.ports.files import (
    COPY_RETENTION_S,
    KEPT_OUTPUTS_MAX,
    RETENTION_S,
    WANTED_PIECES_MAX,
    AttemptOutputs,
    ContentMismatch,
    DiskFull,
    FileExceedsQuota,
    FileQuotaExceeded,
    InputSources,
    KeptOutput,
    OpenPiece,
    StorageUsage,
    StoredItem,
    TreeKeeper,
    UploadInProgress,
    VisitorAccess,
    WrongOffset,
)
from octaskly.ports.gateway import (
    DispatcherView,
    Gateway,
    Health,
    MeshStats,
    OutputHolder,
    OutputLocation,
    QueueSample,
    ReplicationState,
)
from octaskly.ports.join_service import (
    IssuedInvite,
    JoinService,
    JoinStatus,
    VisitorInvite,
    WaitingMachine,
)
from octaskly.ports.key_rotation import KeyRotationControl, RotationProgress
from octaskly.ports.store import (
    LISTED_COMMAND_CHARS,
    Clock,
    DisplayFacts,
    MemberFailure,
    NeededFiles,
    Packer,
    PendingNotifications,
    RecordQuery,
    StoreStats,
    TaskListPage,
    TaskParts,
    TaskQuery,
    TaskSearch,
)
from octaskly.ports.tokens import Principal, TokenInfo, TokenRegistry

__all__ = [
    "COPY_RETENTION_S",
    "KEPT_OUTPUTS_MAX",
    "LISTED_COMMAND_CHARS",
    "RETENTION_S",
    "WANTED_PIECES_MAX",
    "AttemptOutputs",
    "AuditEntry",
    "AuditLog",
    "AuditPage",
    "Clock",
    "ContentMismatch",
    "DiskFull",
    "DispatcherView",
    "DisplayFacts",
    "FileExceedsQuota",
    "FileQuotaExceeded",
    "Gateway",
    "Health",
    "HelloSource",
    "InputSources",
    "IssuedInvite",
    "JoinService",
    "JoinStatus",
    "KeptOutput",
    "KeyRotationControl",
    "MemberFailure",
    "MeshStats",
    "NeededFiles",
    "OpenPiece",
    "OutputHolder",
    "OutputLocation",
    "Packer",
    "PendingNotifications",
    "Principal",
    "QueueSample",
    "RecordQuery",
    "ReplicationState",
    "RotationProgress",
    "StorageUsage",
    "StoreStats",
    "StoredItem",
    "TaskListPage",
    "TaskParts",
    "TaskQuery",
    "TaskSearch",
    "TokenInfo",
    "TokenRegistry",
    "TreeKeeper",
    "UploadInProgress",
    "VisitorAccess",
    "VisitorInvite",
    "WaitingMachine",
    "WrongOffset",
]

HelloSource = Callable[[], Hello]
"""Returns the current `Hello` of this node."""
