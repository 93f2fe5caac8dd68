"""The routes of tokens: issued, listed, taken back."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal, TypedDict

from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.schemas import task_request, task_response
from octaskly.ports import TokenInfo
from octaskly.rest import tasks


class Issued(TypedDict):
    """A new token."""

    token: str
    id: str
    name: str | None
    expires_at: tasks.At


class Shown(TypedDict):
    """What is kept of a token; what is not known of one without a name is null."""

    id: str
    name: str | None
    subject: str | None
    role: Literal["admin", "client", "viewer"] | None
    state: Literal["good", "revoked"]
    issued_at: tasks.At | None
    issued_by: str | None
    expires_at: tasks.At | None
    revoked_at: tasks.At | None
    revoked_by: str | None


class Listed(TypedDict):
    """The tokens that have a name."""

    tokens: list[Shown]
    total: int


async def issue(call: Call) -> web.StreamResponse:
    """Return a new token; nobody can be shown it again."""
    asked = task_request.parse_token(call.body)
    token, info = await call.gateway.tokens.issue(
        role=asked.role,
        expires_s=asked.expires_s,
        subject=asked.subject,
        name=asked.name,
        by=call.who,
    )
    call.seen.target = info.name or info.id
    body = {
        "token": token,
        "id": info.id,
        "name": info.name,
        "expires_at": _at(info.expires_ms),
    }
    return json_response(task_response.encode(body), HTTPStatus.CREATED)


async def index(call: Call) -> web.StreamResponse:
    """Return the tokens that have a name and have not expired, oldest first."""
    shown = [_shown(info) for info in await call.gateway.tokens.listed()]
    body = {"tokens": shown, "total": len(shown)}
    return json_response(task_response.encode(body))


async def revoke(call: Call) -> web.StreamResponse:
    """Take a token back, by its name or id: no node accepts it any more."""
    ref = call.named["token"]
    info = await call.gateway.tokens.revoke(ref, by=call.who.subject)
    return json_response(task_response.encode(_shown(info)))


def _shown(info: TokenInfo) -> dict[str, object]:
    return {
        "id": info.id,
        "name": info.name,
        "subject": info.subject,
        "role": info.role,
        "state": "good" if info.revoked_ms is None else "revoked",
        "issued_at": _at(info.issued_ms),
        "issued_by": info.issued_by,
        "expires_at": _at(info.expires_ms),
        "revoked_at": _at(info.revoked_ms),
        "revoked_by": info.revoked_by,
    }


def _at(wall_ms: int | None) -> str | None:
    return None if wall_ms is None else task_response.at(wall_ms)


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/tokens",
        perform=issue,
        access=Access.ADMIN,
        takes=task_request.TokenIn,
        answers={201: Issued},
        refuses=(409, 507),
    ),
    Route(
        method="GET",
        path="/api/v1/tokens",
        perform=index,
        access=Access.ADMIN,
        answers={200: Listed},
    ),
    Route(
        method="DELETE",
        path="/api/v1/tokens/{token}",
        perform=revoke,
        access=Access.ADMIN,
        answers={200: Shown},
        refuses=(404, 409, 507),
    ),
)
