"""Routes that issue, list and revoke tokens."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import timestamp
from octaskly.api.schemas import request_bodies, task_response
from octaskly.api.security import route_cost
from octaskly.ports.tokens import TokenInfo
from octaskly.rest.access import IssuedToken, TokenLine, TokenList


async def issue_token(request: Request) -> web.StreamResponse:
    """Issue a token; it cannot be shown again."""
    asked = request_bodies.parse_token(request.body)
    token, info = await request.gateway.tokens.issue(
        role=asked.role,
        expires_s=asked.expires_s,
        subject=asked.subject,
        name=asked.name,
        by=request.authenticated_principal,
    )
    request.info.target = info.name or info.id
    assert info.expires_ms is not None
    body = IssuedToken(
        token=token,
        id=info.id,
        name=info.name,
        expires_at=timestamp(info.expires_ms),
    )
    return json_response(task_response.encode(body), HTTPStatus.CREATED)


async def list_tokens(request: Request) -> web.StreamResponse:
    """Return the tokens that have a name and have not expired, oldest first."""
    shown = [_render_token(info) for info in await request.gateway.tokens.list_tokens()]
    body = TokenList(tokens=shown, total=len(shown))
    return json_response(task_response.encode(body))


async def revoke_token(request: Request) -> web.StreamResponse:
    """Revoke a token by name or id; every node refuses it from then on."""
    ref = request.path_params["token"]
    info = await request.gateway.tokens.revoke(
        ref, by=request.authenticated_principal.subject
    )
    return json_response(task_response.encode(_render_token(info)))


def _render_token(info: TokenInfo) -> TokenLine:
    return TokenLine(
        id=info.id,
        name=info.name,
        subject=info.subject,
        role=info.role,
        state="good" if info.revoked_ms is None else "revoked",
        issued_at=_at(info.issued_ms),
        issued_by=info.issued_by,
        expires_at=_at(info.expires_ms),
        revoked_at=_at(info.revoked_ms),
        revoked_by=info.revoked_by,
    )


def _at(wall_ms: int | None) -> str | None:
    return None if wall_ms is None else timestamp(wall_ms)


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/tokens",
        handler=issue_token,
        cost=route_cost.CHEAP,
        access=Access.ADMIN,
        body_type=request_bodies.TokenIn,
        responses={201: IssuedToken},
        error_statuses=(409, 507),
    ),
    Route(
        method="GET",
        path="/api/v1/tokens",
        handler=list_tokens,
        cost=route_cost.EXPENSIVE,
        access=Access.ADMIN,
        responses={200: TokenList},
    ),
    Route(
        method="DELETE",
        path="/api/v1/tokens/{token}",
        handler=revoke_token,
        cost=route_cost.CHEAP,
        access=Access.ADMIN,
        responses={200: TokenLine},
        error_statuses=(404, 409, 507),
    ),
)
