"""Audit recorder: collects changes and refusals, and sends them to the dispatcher.

The node that decides a request records it. The first requests of a group within a
minute get one entry each; the others are merged into one entry with a count. This
bounds the log when a client submits a thousand times a second, or guesses tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import chain, islice
from typing import Final
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
)
from octaskly.api.http.node_client import HOP_HEADER, SOURCE_HEADER
from octaskly.api.problems import MALFORMED_JSON, Problem
from octaskly.core.model.ids import NodeId
from octaskly.errors import MeshError, OctasklyError
from octaskly.ports import AuditEntry, DispatcherView, Principal

PATH: Final = "/internal/v1/audit"
REFUSED_STATUSES: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
READ_METHODS: Final = ("GET", "HEAD", "OPTIONS", "")
WINDOW_MS: Final = 60_000
UNMERGED_MAX: Final = 10  #: entries of one group in a minute before merging
UNMERGED_REFUSED_MAX: Final = 1  #: the same for refused requests
GROUPS_MAX: Final = 64  #: groups in a minute; the rest is merged into one
ANONYMOUS_GROUPS_MAX: Final = 16  #: the same for unauthenticated requests
QUEUE_MAX: Final = 2000  #: entries that wait for a dispatcher; the oldest are dropped
ANONYMOUS_QUEUE_MAX: Final = 200  #: the same for unauthenticated requests
BATCH_MAX: Final = 100
FLUSH_S: Final = 0.2
RETRY_S: Final = 1.0
SEND_S: Final = 5.0
TARGET_CHARS_MAX: Final = 160  #: bounds the size of a batch
MANY: Final = "many"  #: the source of an entry that merges several groups

_GroupKey = tuple[object, ...]


@dataclass(slots=True)
class _Group:
    """Similar requests since `began_ms`."""

    began_ms: int
    count: int = 0
    merged: AuditEntry | None = None  #: the entry of all later requests


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
        self._groups: dict[_GroupKey, _Group] = {}
        self._queue: deque[AuditEntry] = deque(maxlen=QUEUE_MAX)
        # Separate, so that anonymous requests cannot displace authenticated ones.
        self._anonymous_groups: dict[_GroupKey, _Group] = {}
        self._anonymous_queue: deque[AuditEntry] = deque(maxlen=ANONYMOUS_QUEUE_MAX)
        self._queue_changed = asyncio.Event()

    def record_request(self, info: RequestInfo, method: str, status: int) -> None:
        """Record an answered request if it was refused or made an audited change."""
        is_refused = status in REFUSED_STATUSES
        is_change = method not in READ_METHODS and status < HTTPStatus.BAD_REQUEST
        if not (is_refused or (is_change and info.is_audited)):
            return
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
        )
        self._add_to_group(entry, is_refused=is_refused)

    def _add_to_group(self, entry: AuditEntry, *, is_refused: bool) -> None:
        kind: _GroupKey = (entry.subject, entry.source, entry.received_by, entry.status)
        if not is_refused:
            kind = (*kind, entry.role, entry.action)
        self._enqueue_expired_groups(entry.at_ms)
        is_known = entry.subject is not None
        groups = self._groups if is_known else self._anonymous_groups
        group = groups.get(kind)
        if group is None and len(groups) >= (
            GROUPS_MAX if is_known else ANONYMOUS_GROUPS_MAX
        ):
            kind, entry = (
                (MANY, entry.status),
                replace(entry, source=MANY, subject=None),
            )
            group = groups.get(kind)
        if group is None:
            group = groups[kind] = _Group(entry.at_ms)
        group.count += 1
        if group.count <= (UNMERGED_REFUSED_MAX if is_refused else UNMERGED_MAX):
            self._enqueue(entry)
        elif group.merged is None:
            group.merged = replace(entry, last_ms=entry.at_ms)
        else:
            group.merged = _merge_entries(group.merged, entry)

    def _enqueue_expired_groups(self, now_ms: int) -> None:
        """Enqueue the merged entries of groups older than a minute."""
        for groups in (self._groups, self._anonymous_groups):
            over = [
                kind
                for kind, group in groups.items()
                if not 0 <= now_ms - group.began_ms < WINDOW_MS
            ]
            for kind in over:
                if (held := groups.pop(kind).merged) is not None:
                    self._enqueue(held)

    def _enqueue(self, entry: AuditEntry) -> None:
        is_known = not entry.is_unauthenticated
        (self._queue if is_known else self._anonymous_queue).append(entry)
        self._queue_changed.set()

    async def run(self) -> None:
        """Send entries to the dispatcher until cancelled."""
        while True:
            try:
                # Groups expire by time, so wake up regularly while any exist.
                is_holding = self._groups or self._anonymous_groups
                async with asyncio.timeout(RETRY_S if is_holding else None):
                    await self._queue_changed.wait()
                await asyncio.sleep(FLUSH_S)
            except TimeoutError:
                self._enqueue_expired_groups(self._clock.now().wall_ms)
            self._queue_changed.clear()
            while self._queue or self._anonymous_queue:
                if not await self._send_batch():
                    await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Send the remaining entries once, before this node stops."""
        for groups in (self._groups, self._anonymous_groups):
            for group in groups.values():
                if group.merged is not None:
                    self._enqueue(group.merged)
            groups.clear()
        while self._queue or self._anonymous_queue:
            if not await self._send_batch():
                return

    async def _send_batch(self) -> bool:
        """Send the oldest entries, anonymous ones last; return True on success."""
        queues = self._queue, self._anonymous_queue
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
        for url in view.lan_urls:
            request = self._node_client.session().post(
                url + PATH, data=body, headers=headers, allow_redirects=False
            )
            async with request as response:
                return bool(response.status == HTTPStatus.NO_CONTENT)
        return False


def _merge_entries(merged: AuditEntry, entry: AuditEntry) -> AuditEntry:
    # `replace` would be slower, because it looks up each field by name.
    return AuditEntry(
        id=merged.id,
        at_ms=merged.at_ms,
        subject=merged.subject,
        role=merged.role,
        action=merged.action if merged.action == entry.action else MANY,
        target=merged.target if merged.target == entry.target else None,
        source=merged.source,
        received_by=merged.received_by,
        decided_by=merged.decided_by,
        status=merged.status,
        tasks=(merged.tasks + entry.tasks)[:AUDITED_TASKS_MAX],
        task_count=merged.task_count + entry.task_count,
        count=merged.count + 1,
        last_ms=entry.at_ms,
    )


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
        access=Access.NODE,
        body_type=list[AuditEntry],
        responses={204: None},
    ),
)
