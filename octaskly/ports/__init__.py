"""The seams of the agent: what it needs from its parts, and what the API needs of it.

The parts never know each other; they meet in `octaskly.agent`, through these
protocols. Fakes for tests pass the same contract suites as the real parts.
"""

from __future__ import annotations

from collections.abc import Callable

from octaskly.core.protocol.messages import Hello
from octaskly.ports.admissions import Admissions, Invite, Membership, Request
from octaskly.ports.audit import AuditLog, Deed, DeedPage
from octaskly.ports.files import Files, Intake, NoRoom, WrongBytes
from octaskly.ports.gateway import (
    DispatcherView,
    Gateway,
    Health,
    MeshState,
    MeshStats,
    OutputPlace,
    Point,
)
from octaskly.ports.key_rotation import Rotations, RotationView
from octaskly.ports.store import (
    Clock,
    Log,
    Packer,
    RecordQuery,
    Search,
    StoreStats,
    TaskPage,
    TaskQuery,
    ToNotify,
)
from octaskly.ports.tokens import Principal, TokenDesk, TokenInfo

__all__ = [
    "Admissions",
    "AuditLog",
    "Clock",
    "Deed",
    "DeedPage",
    "DispatcherView",
    "Files",
    "Gateway",
    "Health",
    "HelloSource",
    "Intake",
    "Invite",
    "Log",
    "Membership",
    "MeshState",
    "MeshStats",
    "NoRoom",
    "OutputPlace",
    "Packer",
    "Point",
    "Principal",
    "RecordQuery",
    "Request",
    "RotationView",
    "Rotations",
    "Search",
    "StoreStats",
    "TaskPage",
    "TaskQuery",
    "ToNotify",
    "TokenDesk",
    "TokenInfo",
    "WrongBytes",
]

HelloSource = Callable[[], Hello]
"""Returns what this node says of itself at this moment."""
