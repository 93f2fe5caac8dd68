"""The route that reads the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TypedDict

from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas import task_response
from octaskly.core.model.ids import NodeId
from octaskly.ports import Deed
from octaskly.rest import tasks as answers


class DeedShown(TypedDict):
    """One request that changed something or was refused, or several that are alike."""

    id: str
    at: answers.At
    until: answers.At | None
    count: int
    subject: str | None
    role: str | None
    action: str
    target: str | None
    source: str
    node: str
    decided_by: str
    allowed: bool
    status: int
    tasks: list[str]
    task_count: int


class DeedPageShown(TypedDict):
    """A part of the audit log, oldest first."""

    entries: list[DeedShown]
    returned: int
    next: str | None


async def index(call: Call) -> web.StreamResponse:
    """Return what was changed and refused: the latest, or from some place on."""
    since_s = call.query.since_s()
    since_ms = None
    if since_s is not None:
        since_ms = call.parts.clock.now().wall_ms - since_s * 1000
    after, limit = call.query.text("after") or None, call.query.limit()
    try:
        page = await call.gateway.audit.page(
            since_ms=since_ms, after=after, limit=limit
        )
    except ValueError as error:
        hint = f"{error}; send `next` of an earlier answer"
        raise Problem(400, INVALID_VALUE, hint=hint, field="after") from None
    names = call.gateway.names()
    shown = [_shown(deed, names) for deed in page.deeds]
    body = {"entries": shown, "returned": len(shown), "next": page.cursor}
    return json_response(task_response.encode(body))


def _shown(deed: Deed, names: Mapping[NodeId, str]) -> dict[str, object]:
    return {
        "id": deed.id,
        "at": task_response.at(deed.at_ms),
        "until": None if deed.until_ms is None else task_response.at(deed.until_ms),
        "count": deed.count,
        "subject": deed.subject,
        "role": deed.role,
        "action": deed.action,
        "target": deed.target,
        "source": deed.source,
        "node": names.get(deed.asked, deed.asked),
        "decided_by": names.get(deed.decided, deed.decided),
        "allowed": deed.status < HTTPStatus.BAD_REQUEST,
        "status": deed.status,
        "tasks": list(deed.tasks),
        "task_count": deed.task_count,
    }


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/audit",
        perform=index,
        access=Access.ADMIN,
        query=("since_s", "after", "limit"),
        answers={200: DeedPageShown},
    ),
)
