"""Audit log: requests with their subject, source and status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from octaskly.core.model.ids import NodeId

COMMAND_BYTES_MAX: Final = 4096  #: of the commands in one entry


REFUSED_STATUSES: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
CLIENT_LEFT: Final = 499
"""In place of the status, if the client left before the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A request that changed something or was refused, or a summary of equal ones."""

    id: str  #: unique in the mesh, so that a repeated delivery is harmless
    at_ms: int  #: wall clock of the node that decided
    subject: str | None  #: None: unauthenticated
    role: str | None
    action: str  #: method and path of the route, or a word for other actions
    target: str | None  #: the task, node or token that the path names
    targets: tuple[str, ...] = ()  #: those of a summary, if there are several
    source: str  #: an address, or `uid N` on the local socket; `many` in a summary
    received_by: NodeId  #: the node that the client asked; `many` in a summary
    decided_by: NodeId  #: the node that carried it out or refused it
    status: int  #: HTTP status of the reply
    tasks: tuple[str, ...] = ()  #: the first tasks that the request created
    task_count: int = 0
    command: str | None = None
    """The distinct commands of these tasks, one per line, cut at COMMAND_BYTES_MAX."""
    is_administrative: bool = False  #: only admins and local users may do this
    count: int = 1  #: number of requests
    last_ms: int | None = None  #: time of the last of several requests

    @property
    def is_unauthenticated(self) -> bool:
        """Return True if the request had no valid credentials."""
        return self.subject is None

    @property
    def is_refused(self) -> bool:
        """Return True if the request was refused, and so changed nothing."""
        return self.status in REFUSED_STATUSES


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A part of the audit log, oldest first."""

    entries: tuple[AuditEntry, ...]
    cursor: str | None  #: position after the last entry; None if the page is empty


class AuditLog(Protocol):
    """The audit log. Only old or surplus entries are deleted."""

    async def record_entries(self, entries: Sequence[AuditEntry]) -> None:
        """Write entries, and return when they are durable.

        Raises:
            NotDispatcher: Another node is dispatcher. Nothing was written.
            NotDurable: Two copies are needed, and no standby acknowledges.
        """

    async def join_times(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        """Return the wall-clock time, in ms, when nodes joined, if it was recorded."""

    async def read_page(
        self, *, since_ms: int | None, after: str | None, limit: int
    ) -> AuditPage:
        """Read entries since a time or after a cursor; by default the latest ones.

        Raises:
            ValueError: `after` is not a cursor.
            NotDispatcher: Another node is dispatcher.
        """
