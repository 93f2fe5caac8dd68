"""Route that reads the audit log."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import INVALID_VALUE, Problem, timestamp
from octaskly.api.schemas import task_response
from octaskly.api.security import route_cost
from octaskly.core.model.ids import NodeId
from octaskly.ports.audit import AuditEntry
from octaskly.rest import access as rest


async def list_audit_entries(request: Request) -> web.StreamResponse:
    """Return audit log entries: the latest ones, or those after `after`."""
    since_s = request.query.since_s()
    since_ms = None
    if since_s is not None:
        since_ms = request.services.clock.now().wall_ms - since_s * 1000
    after, limit = request.query.text("after") or None, request.query.limit()
    try:
        page = await request.gateway.audit.read_page(
            since_ms=since_ms, after=after, limit=limit
        )
    except ValueError as error:
        hint = f"{error}; send `next` of an earlier response"
        raise Problem(400, INVALID_VALUE, hint=hint, field="after") from None
    request.info.row_count = len(page.entries)
    names = request.gateway.node_names()
    shown = [_render_entry(entry, names) for entry in page.entries]
    body = rest.AuditPage(entries=shown, returned=len(shown), next=page.cursor)
    return json_response(task_response.encode(body))


def _render_entry(entry: AuditEntry, names: Mapping[NodeId, str]) -> rest.AuditLine:
    return rest.AuditLine(
        id=entry.id,
        at=timestamp(entry.at_ms),
        until=None if entry.last_ms is None else timestamp(entry.last_ms),
        count=entry.count,
        subject=entry.subject,
        role=entry.role,
        action=entry.action,
        target=entry.target,
        targets=list(entry.targets),
        source=entry.source,
        node=names.get(entry.received_by, entry.received_by),
        decided_by=names.get(entry.decided_by, entry.decided_by),
        allowed=not entry.is_refused,
        status=entry.status,
        tasks=list(entry.tasks),
        task_count=entry.task_count,
        command=entry.command,
    )


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/audit",
        handler=list_audit_entries,
        cost=route_cost.LIST,
        access=Access.ADMIN,
        query=("since_s", "after", "limit"),
        responses={200: rest.AuditPage},
    ),
)
