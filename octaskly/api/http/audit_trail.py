"""Audit recorder: collects changes and refusals, and sends them to the dispatcher.

The node that decides a request records it. Changes that only an admin or a local user
may make get one entry each. Of other changes, the first ones of a subject and action
within a minute get one entry each; the others are merged into a summary that still
names the subject and every target. Refusals are merged in tables of their own. So
neither a client that submits a thousand times a second nor one that is refused as often
fills the log, and neither can hide a change.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import chain, islice
from typing import Final, TypeVar
from urllib.parse import unquote

import aiohttp
import msgspec
from aiohttp import web

from octaskly.api.http.handler_types import (
    AUDITED_TASKS_MAX,
    Access,
    Request,
    RequestInfo,
    Route,
    Services,
    join_commands,
)
from octaskly.api.http.node_client import HOP_HEADER, RELAY_HEADER, SOURCE_HEADER
from octaskly.api.problems import MALFORMED_JSON, Problem
from octaskly.api.security import route_cost
from octaskly.core.model.ids import NodeId
from octaskly.errors import MeshError, OctasklyError
from octaskly.ports.audit import (
    CLIENT_LEFT,
    COMMAND_BYTES_MAX,
    REFUSED_STATUSES,
    AuditEntry,
)
from octaskly.ports.gateway import DispatcherView
from octaskly.ports.tokens import Principal

PATH: Final = "/internal/v1/audit"
READ_METHODS: Final = ("GET", "HEAD", "OPTIONS", "")
ADMINISTRATIVE: Final = (Access.ADMIN, Access.LOCAL, Access.LOCAL_PAGE)
WINDOW_MS: Final = 60_000
UNMERGED_MAX: Final = 10  #: entries of one group in a minute before merging
UNMERGED_REFUSED_MAX: Final = 1  #: the same for refused requests
GROUPS_MAX: Final = 128  #: groups in a table; the oldest one is sent early
SOURCES_MAX: Final = 16  #: sources of anonymous requests in a minute before merging
QUEUE_MAX: Final = 2000  #: entries that wait for a dispatcher; the oldest are dropped
REFUSED_QUEUE_MAX: Final = 200  #: the same for refused requests
BATCH_MAX: Final = 32  #: entries in a message, below its limit of 1 MiB as JSON
TARGETS_BYTES_MAX: Final = 2048  #: of the targets in one summary
FLUSH_S: Final = 0.2
RETRY_S: Final = 1.0
SEND_S: Final = 5.0
TARGET_CHARS_MAX: Final = 160  #: bounds the size of a batch
MANY: Final = "many"  #: in a summary, in place of values that differ

_GroupKey = tuple[object, ...]
_S = TypeVar("_S", bound=str)


@dataclass(slots=True)
class _Group:
    """Similar requests since `began_ms`."""

    began_ms: int
    count: int = 0
    merged: AuditEntry | None = None  #: the entry of all later requests


class _Table:
    """Entries that wait for the dispatcher, and the groups that merge further ones.

    Args:
        unmerged_max: Entries of one group in a minute before merging.
        queue_max: Waiting entries; the oldest are dropped.
    """

    def __init__(self, *, unmerged_max: int, queue_max: int) -> None:
        self.queue: deque[AuditEntry] = deque(maxlen=queue_max)
        self._unmerged_max = unmerged_max
        self._groups: dict[_GroupKey, _Group] = {}

    @property
    def is_empty(self) -> bool:
        """Return True if no entry waits, not even for the end of its minute."""
        return not self.queue and not self._groups

    def count_groups(self) -> int:
        """Return the number of groups in this minute."""
        return len(self._groups)

    def has_group(self, key: _GroupKey) -> bool:
        """Return True if the group exists in this minute."""
        return key in self._groups

    def add(self, entry: AuditEntry, key: _GroupKey) -> None:
        """Add an entry to its group: by itself, or merged with others of a minute."""
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                self._enqueue_group(next(iter(self._groups)))
            group = self._groups[key] = _Group(entry.at_ms)
        group.count += 1
        if group.count <= self._unmerged_max:
            self.queue.append(entry)
        elif group.merged is None:
            group.merged = replace(entry, last_ms=entry.at_ms)
        elif (merged := _merge_entries(group.merged, entry)) is not None:
            group.merged = merged
        else:
            self.queue.append(group.merged)
            group.merged = replace(entry, last_ms=entry.at_ms)

    def enqueue_expired_groups(self, now_ms: int) -> None:
        """Enqueue the summaries of groups older than a minute."""
        over = [
            key
            for key, group in self._groups.items()
            if not 0 <= now_ms - group.began_ms < WINDOW_MS
        ]
        for key in over:
            self._enqueue_group(key)

    def enqueue_all_groups(self) -> None:
        """Enqueue the summaries of all groups."""
        for key in tuple(self._groups):
            self._enqueue_group(key)

    def _enqueue_group(self, key: _GroupKey) -> None:
        merged = self._groups.pop(key).merged
        if merged is not None:
            self.queue.append(merged)


class Auditor:
    """Entries of one node that wait for the dispatcher; `run` sends them.

    Args:
        services: The gateway, the node client and the clock.
        id_prefix: Prefix of entry ids, unique to this process of this node.
    """

    def __init__(self, services: Services, id_prefix: str) -> None:
        self._gateway = services.gateway
        self._node_client = services.node_client
        self._clock = services.clock
        self._id_prefix = id_prefix
        self._last_number = 0
        self._changes = _Table(unmerged_max=UNMERGED_MAX, queue_max=QUEUE_MAX)
        self._refusals, self._anonymous = (
            _Table(unmerged_max=UNMERGED_REFUSED_MAX, queue_max=REFUSED_QUEUE_MAX)
            for _ in range(2)
        )
        self._tables = self._changes, self._refusals, self._anonymous
        self._queue_changed = asyncio.Event()

    def record_request(self, info: RequestInfo, method: str, status: int) -> None:
        """Record an answered request if it was refused or made an audited change."""
        may_have_changed = status < HTTPStatus.BAD_REQUEST or info.is_outcome_unknown
        is_change = method not in READ_METHODS and may_have_changed
        if status in REFUSED_STATUSES or (is_change and info.is_audited):
            self._record(info, method, status)

    def record_departure(self, info: RequestInfo, method: str) -> None:
        """Record a request whose client left, if it may have made an audited change."""
        if method not in READ_METHODS and info.is_audited:
            self._record(info, method, CLIENT_LEFT)

    def _record(self, info: RequestInfo, method: str, status: int) -> None:
        if info.is_decided_elsewhere or self._gateway.mesh_id is None:
            return
        who, now_ms = info.principal, self._clock.now().wall_ms
        own = self._gateway.node_id
        self._last_number += 1
        entry = AuditEntry(
            id=f"{own}-{self._id_prefix}-{self._last_number:x}",
            at_ms=now_ms,
            subject=None if who is None else who.subject,
            role=None if who is None else who.role,
            action=info.action or method,
            target=info.target,
            source=info.source,
            received_by=info.forwarded_by or own,
            decided_by=own,
            status=status,
            tasks=tuple(info.tasks),
            task_count=info.task_count,
            command=info.command,
            is_administrative=info.is_administrative,
        )
        self._add_entry(entry)

    def _add_entry(self, entry: AuditEntry) -> None:
        for table in self._tables:
            table.enqueue_expired_groups(entry.at_ms)
        if not entry.is_refused:
            if entry.is_administrative:
                self._changes.queue.append(entry)
            else:
                key = entry.subject, entry.role, entry.action, entry.status
                self._changes.add(entry, key)
        elif not entry.is_unauthenticated:
            self._refusals.add(entry, (entry.subject, entry.role, entry.status))
        else:
            self._add_anonymous(entry)
        self._queue_changed.set()

    def _add_anonymous(self, entry: AuditEntry) -> None:
        """Add a refusal by source; merge all sources above a number of them."""
        key: _GroupKey = entry.source, entry.received_by, entry.status
        table = self._anonymous
        if not table.has_group(key) and table.count_groups() >= SOURCES_MAX:
            key, entry = (MANY, entry.status), replace(entry, source=MANY)
        table.add(entry, key)

    async def run(self) -> None:
        """Send entries to the dispatcher until cancelled."""
        while True:
            try:
                # Summaries become due by time, so wake up while there are groups.
                is_idle = all(table.is_empty for table in self._tables)
                async with asyncio.timeout(None if is_idle else RETRY_S):
                    await self._queue_changed.wait()
                await asyncio.sleep(FLUSH_S)
            except TimeoutError:
                now_ms = self._clock.now().wall_ms
                for table in self._tables:
                    table.enqueue_expired_groups(now_ms)
            self._queue_changed.clear()
            while any(table.queue for table in self._tables):
                if not await self._send_batch():
                    await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Send the remaining entries once, before this node stops."""
        for table in self._tables:
            table.enqueue_all_groups()
        while any(table.queue for table in self._tables):
            if not await self._send_batch():
                return

    async def _send_batch(self) -> bool:
        """Send the oldest entries, changes first; return True on success."""
        queues = [table.queue for table in self._tables]
        some = [*islice(chain(*queues), BATCH_MAX)]
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(some)
        except (OctasklyError, aiohttp.ClientError, OSError, TimeoutError):
            return False  # The entries wait for the next dispatcher.
        done = {entry.id for entry in some}
        for queue in queues:  # A full queue may have dropped some already.
            while queue and queue[0].id in done:
                queue.popleft()
        return True

    async def _send(self, entries: Sequence[AuditEntry]) -> None:
        view = self._gateway.dispatcher()
        if view is not None and view.is_self:
            await self._gateway.audit.record_entries(entries)
        elif view is None or not await self._post_to(view, entries):
            raise MeshError("no dispatcher accepted the audit entries")

    async def _post_to(
        self, view: DispatcherView, entries: Sequence[AuditEntry]
    ) -> bool:
        body = msgspec.json.encode(entries)
        headers = {
            HOP_HEADER: self._gateway.node_id,
            "Content-Type": "application/json",
        }
        if view.relay is not None:
            headers[RELAY_HEADER] = "1"
        for url in view.lan_urls:
            request = self._node_client.session().post(
                url + PATH, data=body, headers=headers, allow_redirects=False
            )
            async with request as response:
                return bool(response.status == HTTPStatus.NO_CONTENT)
        return False


def _merge_entries(merged: AuditEntry, entry: AuditEntry) -> AuditEntry | None:
    """Add an entry to a summary; return None if its target does not fit.

    The target of a refusal is left out: a client chooses it and may be anyone.
    """
    target, targets = merged.target, merged.targets
    if target != entry.target:
        target = None
        if not entry.is_refused:
            targets = _merge_targets(merged, entry)
            if sum(len(each.encode()) for each in targets) > TARGETS_BYTES_MAX:
                return None
    # `replace` would be slower, because it looks up each field by name.
    return AuditEntry(
        id=merged.id,
        at_ms=merged.at_ms,
        subject=merged.subject,
        role=merged.role,
        action=_same(merged.action, entry.action) or MANY,
        target=target,
        targets=targets,
        source=_same(merged.source, entry.source) or MANY,
        received_by=_same(merged.received_by, entry.received_by) or NodeId(MANY),
        decided_by=merged.decided_by,
        status=merged.status,
        tasks=(merged.tasks + entry.tasks)[:AUDITED_TASKS_MAX],
        task_count=merged.task_count + entry.task_count,
        command=_merge_commands(merged.command, entry.command),
        is_administrative=merged.is_administrative and entry.is_administrative,
        count=merged.count + 1,
        last_ms=entry.at_ms,
    )


def _same(a: _S, b: _S) -> _S | None:
    return a if a == b else None


def _merge_targets(merged: AuditEntry, entry: AuditEntry) -> tuple[str, ...]:
    known = merged.targets or ((merged.target,) if merged.target else ())
    if entry.target is None or entry.target in known:
        return known
    return (*known, entry.target)


def _merge_commands(merged: str | None, command: str | None) -> str | None:
    if merged is None or command is None:
        return merged or command
    if len(merged) >= COMMAND_BYTES_MAX or f"\n{command}\n" in f"\n{merged}\n":
        return merged
    return join_commands((merged, command))


def record_source(
    info: RequestInfo, request: web.BaseRequest, peer: NodeId | None
) -> None:
    """Record the source of a request, as stated by the node that forwarded it."""
    info.source = request.remote or ""
    if peer is not None and HOP_HEADER in request.headers:
        info.forwarded_by = peer
        info.source = unquote(request.headers.get(SOURCE_HEADER, ""))


def record_route(
    info: RequestInfo, path_params: Mapping[str, str], route: Route
) -> None:
    """Record the route and target of a request."""
    info.action = f"{route.method} {route.path}"
    for target in path_params.values():  # Only the first one is recorded.
        info.target = target[:TARGET_CHARS_MAX]
        break
    info.is_audited = route.access not in (Access.PUBLIC, Access.NODE)
    info.is_administrative = route.access in ADMINISTRATIVE


def record_principal(info: RequestInfo, principal: Principal) -> None:
    """Record the principal of a request."""
    info.principal, info.subject = principal, principal.subject
    if principal.uid is not None:
        info.source = f"uid {principal.uid}"


_entries_decoder = msgspec.json.Decoder(list[AuditEntry])


async def receive_entries(request: Request) -> web.StreamResponse:
    """Write the audit entries of another node."""
    try:
        entries = _entries_decoder.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, MALFORMED_JSON, hint=str(error)) from None
    await request.gateway.audit.record_entries(entries[:BATCH_MAX])
    return web.Response(status=HTTPStatus.NO_CONTENT)


ROUTES = (
    Route(
        method="POST",
        path=PATH,
        handler=receive_entries,
        cost=route_cost.UPLOAD,
        access=Access.NODE,
        body_type=list[AuditEntry],
        responses={204: None},
    ),
)
