"""The routes by which a page gets its token: `octaskly open` makes a code for it.

The code stands in the fragment of an address, which no server and no Referer sees. It
may be read from a list of processes while a browser starts; so it is good once, for
its maker's own processes alone unless that is asked for otherwise.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final, Literal, TypedDict

import msgspec
from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.http.sockets import loopback_users
from octaskly.api.problems import UNAUTHENTICATED, Problem
from octaskly.api.schemas import task_response
from octaskly.api.schemas.base import Body
from octaskly.api.schemas.task_request import decode
from octaskly.api.security.sessions import CODE_CHARS_MAX, CODE_S
from octaskly.ports import TokenInfo
from octaskly.rest import tasks

PREFIX_CHARS: Final = 8  #: of a node id, which tell where a code is good
NOT_GOOD: Final = (
    "a code is good once, for a minute; open the page again: octaskly open"
)


class CodeIn(Body):
    """A wish to open a page."""

    good_for: Literal["me", "anybody"] = "me"


class SessionIn(Body):
    """A code, to be swapped for a token."""

    code: Annotated[str, msgspec.Meta(max_length=CODE_CHARS_MAX)]


class Code(TypedDict):
    """A code that opens a page, and the page's addresses with it."""

    code: str
    expires_at: tasks.At
    url: str
    lan_url: str | None


class Session(TypedDict):
    """The token of a page."""

    token: str
    expires_at: tasks.At
    subject: str
    role: Literal["admin", "client", "viewer"]


_code = msgspec.json.Decoder(CodeIn)
_session = msgspec.json.Decoder(SessionIn)


async def make(call: Call) -> web.StreamResponse:
    """Return a code that opens a page on this node."""
    asked: CodeIn = decode(_code, CodeIn, call.body)
    now = call.parts.clock.now()
    user = call.who.uid if asked.good_for == "me" else None
    random = call.parts.codes.make(call.who, user=user, now_s=now.mono_s)
    code = f"{call.gateway.node_id[:PREFIX_CHARS]}.{random}"
    described = call.parts.describe()
    lan_url = described.get("lan_url")
    body = {
        "code": code,
        "expires_at": task_response.at(now.wall_ms + int(CODE_S * 1000)),
        "url": f"{described['api_url']}/#code={code}",
        # Who brings it through the network is known to nobody.
        "lan_url": f"{lan_url}/#code={code}" if lan_url and user is None else None,
    }
    return json_response(task_response.encode(body), HTTPStatus.CREATED)


async def begin(call: Call) -> web.StreamResponse:
    """Swap a code for the token of a page."""
    if call.seen.allowance is None:  # Guesses count on loopback, too.
        source = call.request.remote or ""
        call.seen.allowance = call.parts.meter.charge_stranger(source)
    asked: SessionIn = decode(_session, SessionIn, call.body)
    prefix, _, random = asked.code.partition(".")
    if random and prefix != call.gateway.node_id[:PREFIX_CHARS]:
        raise _refused("this code was made on another node; open it where it was made")
    opened = call.parts.codes.take(random, call.parts.clock.now().mono_s)
    if opened is None:
        raise _refused(NOT_GOOD)
    if not opened.is_for(_users(call)):
        raise _refused("this code was made for another user of this machine")
    who, seen = opened.principal, call.seen
    seen.subject, seen.principal, seen.is_noted = who.subject, who, True
    return _answer(
        *call.gateway.tokens.open_page(
            subject=who.subject, role=who.role, node=call.gateway.node_id
        ),
        status=HTTPStatus.CREATED,
    )


async def renew(call: Call) -> web.StreamResponse:
    """Return a later token for a page that shows a good one."""
    return _answer(*call.gateway.tokens.renew_page(call.who))


def _users(call: Call) -> frozenset[int]:
    """Return whose the other end is, of a connection through loopback."""
    transport = call.request.transport
    if transport is None or transport.get_extra_info("ssl_object") is not None:
        return frozenset()
    client, own = (transport.get_extra_info(end) for end in ("peername", "sockname"))
    if not isinstance(client, tuple):  # The local socket, which needs no code.
        return frozenset()
    return loopback_users(client[1], own[1])


def _answer(
    token: str, info: TokenInfo, status: int = HTTPStatus.OK
) -> web.StreamResponse:
    assert info.expires_ms is not None
    body = {
        "token": token,
        "expires_at": task_response.at(info.expires_ms),
        "subject": info.subject,
        "role": info.role,
    }
    return json_response(task_response.encode(body), status)


def _refused(hint: str) -> Problem:
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
        perform=make,
        access=Access.LOCAL,
        is_local=True,
        takes=CodeIn,
        answers={201: Code},
    ),
    Route(
        method="POST",
        path="/api/v1/sessions",
        perform=begin,
        access=Access.OPEN,
        is_local=True,
        takes=SessionIn,
        answers={201: Session},
        refuses=(401,),
    ),
    Route(
        method="POST",
        path="/api/v1/sessions/renew",
        perform=renew,
        access=Access.READ,
        is_local=True,
        answers={200: Session},
    ),
)
