"""The routes by which machines get into a mesh; for users of this machine alone."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final, TypedDict

import msgspec
from aiohttp import web

from octaskly.api.http.request import Access, Call, Route, json_response
from octaskly.api.problems import FORBIDDEN, Problem
from octaskly.api.schemas import task_response
from octaskly.api.schemas.base import Body
from octaskly.api.schemas.task_request import decode
from octaskly.ports import Admissions
from octaskly.rest.tasks import At

TTL_S_MIN: Final = 10
TTL_S_MAX: Final = 3600
TTL_S: Final = 300
KEYRING_MAX: Final = 1 << 15
SEEDS_MAX: Final = 16
WORDS_MAX: Final = 64


class InviteIn(Body):
    """A wish to let a machine in."""

    ttl_s: Annotated[int, msgspec.Meta(ge=TTL_S_MIN, le=TTL_S_MAX)] = TTL_S


class EnterIn(Body):
    """What it takes to be a member of another mesh."""

    keyring: Annotated[str, msgspec.Meta(max_length=KEYRING_MAX)]
    seeds: Annotated[tuple[str, ...], msgspec.Meta(max_length=SEEDS_MAX)] = ()
    force: bool = False


class LeaveIn(Body):
    """A wish to be in no mesh any more."""

    force: bool = False


class WordsIn(Body):
    """The words of the machine that is answered."""

    fingerprint: Annotated[str, msgspec.Meta(max_length=WORDS_MAX)]


class Membership(TypedDict):
    """Where a node stands: what it belongs to, and what it would leave behind."""

    name: str
    node_id: str
    node_key: str
    mesh: str | None
    interfaces: list[str]
    members: list[str]
    tasks: int


class Invite(TypedDict):
    """One machine may come in, once, soon."""

    code: str
    expires_at: At
    places: list[str]


class Entering(TypedDict):
    """A node that begins anew in another mesh, or ends in none."""

    name: str
    node_id: str


class Request(TypedDict):
    """A machine that waits to be let in; nothing of it is proven but the words."""

    name: str
    node_id: str
    fingerprint: str
    address: str


class Requests(TypedDict):
    """All machines that wait to be let in."""

    requests: list[Request]
    total: int


_words = msgspec.json.Decoder(WordsIn)
_leave = msgspec.json.Decoder(LeaveIn)
_invite = msgspec.json.Decoder(InviteIn)
_enter = msgspec.json.Decoder(EnterIn)


async def membership(call: Call) -> web.StreamResponse:
    """Return where this node stands, and what it would leave behind."""
    found = await _admissions(call).membership()
    body = msgspec.to_builtins(found) | {"node_key": found.node_key.hex()}
    return json_response(task_response.encode(body))


async def enter(call: Call) -> web.StreamResponse:
    """Make this node a member of another mesh; it begins anew there."""
    asked: EnterIn = decode(_enter, EnterIn, call.body)
    admissions = _admissions(call)
    found = await admissions.membership()
    await admissions.enter(
        asked.keyring, asked.seeds, force=asked.force, principal=call.who
    )
    body = {"name": found.name, "node_id": found.node_id}
    return json_response(task_response.encode(body), HTTPStatus.ACCEPTED)


async def leave(call: Call) -> web.StreamResponse:
    """Let this node leave its mesh for good; it stops, and forgets all of it."""
    asked: LeaveIn = decode(_leave, LeaveIn, call.body)
    admissions = _admissions(call)
    found = await admissions.membership()
    await admissions.leave(force=asked.force, principal=call.who)
    body = {"name": found.name, "node_id": found.node_id}
    return json_response(task_response.encode(body), HTTPStatus.ACCEPTED)


async def invite(call: Call) -> web.StreamResponse:
    """Open an invite and return its code."""
    asked: InviteIn = decode(_invite, InviteIn, call.body)
    opened = await _admissions(call).invite(asked.ttl_s, principal=call.who)
    body = {
        "code": opened.code,
        "expires_at": task_response.at(opened.expires_ms),
        "places": opened.places,
    }
    return json_response(task_response.encode(body), HTTPStatus.CREATED)


async def requests(call: Call) -> web.StreamResponse:
    """Look for machines that want in, and return those that wait."""
    waiting = await _admissions(call).requests()
    body = {"requests": waiting, "total": len(waiting)}
    return json_response(task_response.encode(body))


async def approve(call: Call) -> web.StreamResponse:
    """Let a machine in, by name or node id, and by the words that it shows."""
    asked: WordsIn = decode(_words, WordsIn, call.body)
    name = call.named["name"]
    request = await _admissions(call).approve(
        name, asked.fingerprint, principal=call.who
    )
    return json_response(task_response.encode(request))


async def refuse(call: Call) -> web.StreamResponse:
    """Send a machine away, by name or node id, and by the words that belong to it."""
    asked: WordsIn = decode(_words, WordsIn, call.body)
    name = call.named["name"]
    request = await _admissions(call).refuse(
        name, asked.fingerprint, principal=call.who
    )
    return json_response(task_response.encode(request))


def _admissions(call: Call) -> Admissions:
    if call.parts.admissions is None:
        raise Problem(403, FORBIDDEN, hint="this node lets nobody in")
    return call.parts.admissions


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/membership",
        perform=membership,
        access=Access.LOCAL,
        is_local=True,
        is_for_unpaired=True,
        answers={200: Membership},
    ),
    Route(
        method="POST",
        path="/api/v1/membership",
        perform=enter,
        access=Access.LOCAL,
        is_local=True,
        is_for_unpaired=True,
        takes=EnterIn,
        answers={202: Entering},
        refuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/membership/leave",
        perform=leave,
        access=Access.LOCAL,
        is_local=True,
        is_for_unpaired=True,
        takes=LeaveIn,
        answers={202: Entering},
        refuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/invites",
        perform=invite,
        access=Access.LOCAL,
        is_local=True,
        takes=InviteIn,
        answers={201: Invite},
        refuses=(409,),
    ),
    Route(
        method="GET",
        path="/api/v1/requests",
        perform=requests,
        access=Access.OPENED,
        is_local=True,
        answers={200: Requests},
    ),
    Route(
        method="POST",
        path="/api/v1/requests/{name}/approve",
        perform=approve,
        access=Access.OPENED,
        is_local=True,
        takes=WordsIn,
        answers={200: Request},
    ),
    Route(
        method="POST",
        path="/api/v1/requests/{name}/refuse",
        perform=refuse,
        access=Access.OPENED,
        is_local=True,
        takes=WordsIn,
        answers={200: Request},
    ),
)
