"""Routes of dashboard sessions: `octaskly open` creates a code, the page redeems it.

The code is in the fragment of a URL, which browsers send to no server and in no
Referer. Other users may read it from the process list while a browser starts. So a code
works once, and only for processes of its creator unless the request says otherwise.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final, Literal

import msgspec
from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import UNAUTHENTICATED, Problem, timestamp
from octaskly.api.schemas import task_response
from octaskly.api.schemas.base import RequestBody
from octaskly.api.schemas.request_bodies import decode_body
from octaskly.api.security import route_cost
from octaskly.api.security.one_time_codes import CODE_CHARS_MAX, CODE_TTL_S
from octaskly.ports.tokens import TokenInfo
from octaskly.rest.access import PageSession, SessionCode
from octaskly.system.tcp_table import tcp_client_uid

PREFIX_CHARS: Final = 8  #: of the node id, at the start of its codes
INVALID_CODE_HINT: Final = (
    "a code is valid once, for one minute; open the page again: octaskly open"
)


class CodeIn(RequestBody):
    """A request for a code."""

    good_for: Literal["me", "anybody"] = "me"


class SessionIn(RequestBody):
    """A code to redeem for a token."""

    code: Annotated[str, msgspec.Meta(max_length=CODE_CHARS_MAX)]


async def create_code(request: Request) -> web.StreamResponse:
    """Create a code that opens a page on this node."""
    asked = decode_body(CodeIn, request.body)
    now = request.services.clock.now()
    user = request.authenticated_principal.uid if asked.good_for == "me" else None
    random = request.services.one_time_codes.create(
        request.authenticated_principal, uid=user, now_s=now.mono_s
    )
    code = f"{request.gateway.node_id[:PREFIX_CHARS]}.{random}"
    described = request.services.describe_agent()
    local_url, lan_url = described.api_url, described.lan_url
    body = SessionCode(
        code=code,
        expires_at=timestamp(now.wall_ms + int(CODE_TTL_S * 1000)),
        url=f"{local_url}/#code={code}" if local_url else None,
        # The user of a LAN client is unknown.
        lan_url=f"{lan_url}/#code={code}" if lan_url and user is None else None,
    )
    return json_response(task_response.encode(body), HTTPStatus.CREATED)


async def create_session(request: Request) -> web.StreamResponse:
    """Redeem a code for the token of a page."""
    uid = _loopback_uid(request)
    if request.info.rate_limit_headers is None:  # Limit guesses on loopback, too.
        # All users there have the same addresses, so each user has a limit.
        source = request.http_request.remote or "" if uid is None else f"user {uid}"
        request.info.rate_limit_headers = (
            request.services.rate_limiter.charge_anonymous(source)
        )
    asked = decode_body(SessionIn, request.body)
    prefix, _, random = asked.code.partition(".")
    if random and prefix != request.gateway.node_id[:PREFIX_CHARS]:
        raise _invalid_code_problem(
            "this code was made on another node; open it on that node"
        )
    opened = request.services.one_time_codes.redeem(
        random, request.services.clock.now().mono_s
    )
    if opened is None:
        raise _invalid_code_problem(INVALID_CODE_HINT)
    if not opened.may_be_redeemed_by(uid):
        raise _invalid_code_problem(
            "this code was made for another user of this machine"
        )
    who, seen = opened.principal, request.info
    seen.subject, seen.principal, seen.is_audited = who.subject, who, True
    seen.is_administrative = True  # It issues a token.
    return _session_response(
        *request.gateway.tokens.issue_session_token(
            subject=who.subject, role=who.role, node=request.gateway.node_id
        ),
        status=HTTPStatus.CREATED,
    )


async def renew_session(request: Request) -> web.StreamResponse:
    """Renew the token of a page: return one that expires later."""
    return _session_response(
        *request.gateway.tokens.renew_session_token(request.authenticated_principal)
    )


def _loopback_uid(request: Request) -> int | None:
    """Return the user of the client of a loopback connection; None if it is unknown."""
    transport = request.http_request.transport
    if transport is None or transport.get_extra_info("ssl_object") is not None:
        return None
    client, own = (transport.get_extra_info(end) for end in ("peername", "sockname"))
    if not isinstance(client, tuple):  # A UNIX socket needs no code.
        return None
    return tcp_client_uid(client, own)


def _session_response(
    token: str, info: TokenInfo, status: int = HTTPStatus.OK
) -> web.StreamResponse:
    assert info.expires_ms is not None
    assert info.role is not None
    assert info.subject is not None
    body = PageSession(
        token=token,
        expires_at=timestamp(info.expires_ms),
        subject=info.subject,
        role=info.role,
    )
    return json_response(task_response.encode(body), status)


def _invalid_code_problem(hint: str) -> Problem:
    return Problem(
        HTTPStatus.UNAUTHORIZED,
        UNAUTHENTICATED,
        hint=hint,
        headers={"WWW-Authenticate": "Bearer"},
    )


ROUTES = (
    Route(
        method="POST",
        path="/api/v1/sessions/codes",
        handler=create_code,
        cost=route_cost.CHEAP,
        access=Access.LOCAL,
        is_local=True,
        body_type=CodeIn,
        responses={201: SessionCode},
    ),
    Route(
        method="POST",
        path="/api/v1/sessions",
        handler=create_session,
        cost=route_cost.CHEAP,
        access=Access.PUBLIC,
        is_local=True,
        body_type=SessionIn,
        responses={201: PageSession},
        error_statuses=(401,),
    ),
    Route(
        method="POST",
        path="/api/v1/sessions/renew",
        handler=renew_session,
        cost=route_cost.CHEAP,
        access=Access.READ,
        is_local=True,
        responses={200: PageSession},
    ),
)
