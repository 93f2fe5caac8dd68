"""Routes for joining and leaving a mesh, only for users of this machine."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import FORBIDDEN, INVALID_VALUE, Problem, timestamp
from octaskly.api.schemas import task_response
from octaskly.api.schemas.base import RequestBody
from octaskly.api.schemas.request_bodies import decode_body
from octaskly.api.security import route_cost
from octaskly.core.model.keyring_state import KEYRING_CHARS_MAX
from octaskly.core.protocol.visitor_rules import STAY_S_MAX
from octaskly.joining.qr_code import qr_rows
from octaskly.ports.join_service import JoinService, WaitingMachine
from octaskly.rest import access as rest

TTL_S_MIN: Final = 10
TTL_S_MAX: Final = 3600
TTL_S: Final = 300
VISITOR_TTL_S_MAX: Final = 7 * 86_400
INVITE_SCHEME: Final = "octaskly://"
SLOT_DIGITS_MAX: Final = 3
STAY_S_MIN: Final = 60
STAY_S: Final = 8 * 3600
SEEDS_MAX: Final = 16
FINGERPRINT_CHARS_MAX: Final = 64


class VisitIn(RequestBody):
    """Seconds from the join of a visitor to the end of its certificate."""

    stay_s: Annotated[int, msgspec.Meta(ge=STAY_S_MIN, le=STAY_S_MAX)] = STAY_S


class InviteIn(RequestBody):
    """A request for an invite; only that of a visitor may be valid for over an hour."""

    ttl_s: Annotated[int, msgspec.Meta(ge=TTL_S_MIN, le=VISITOR_TTL_S_MAX)] = TTL_S
    visitor: VisitIn | None = None


class JoinIn(RequestBody):
    """A request to join another mesh."""

    keyring: Annotated[str, msgspec.Meta(max_length=KEYRING_CHARS_MAX)]
    seeds: Annotated[tuple[str, ...], msgspec.Meta(max_length=SEEDS_MAX)] = ()
    force: bool = False


class LeaveIn(RequestBody):
    """A request to leave the mesh."""

    force: bool = False


class FingerprintIn(RequestBody):
    """The fingerprint of the machine to approve or refuse."""

    fingerprint: Annotated[str, msgspec.Meta(max_length=FINGERPRINT_CHARS_MAX)]


async def show_membership(request: Request) -> web.StreamResponse:
    """Return this node's mesh, and the members and tasks that remain if it leaves."""
    found = await _admissions(request).join_status()
    body = rest.Membership(
        name=found.name,
        node_id=found.node_id,
        node_key=found.node_key.hex(),
        mesh=found.mesh,
        interfaces=list(found.interfaces),
        members=list(found.members),
        tasks=found.tasks,
    )
    return json_response(task_response.encode(body))


async def join_mesh(request: Request) -> web.StreamResponse:
    """Join another mesh; the node starts there with empty state."""
    asked = decode_body(JoinIn, request.body)
    admissions = _admissions(request)
    found = await admissions.join_status()
    await admissions.join_mesh(
        asked.keyring,
        asked.seeds,
        force=asked.force,
        principal=request.authenticated_principal,
    )
    body = rest.MembershipChange(name=found.name, node_id=found.node_id)
    return json_response(task_response.encode(body), HTTPStatus.ACCEPTED)


async def leave_mesh(request: Request) -> web.StreamResponse:
    """Leave the mesh permanently; the node stops and deletes its state of the mesh."""
    asked = decode_body(LeaveIn, request.body)
    admissions = _admissions(request)
    found = await admissions.join_status()
    await admissions.leave_mesh(
        force=asked.force, principal=request.authenticated_principal
    )
    body = rest.MembershipChange(name=found.name, node_id=found.node_id)
    return json_response(task_response.encode(body), HTTPStatus.ACCEPTED)


def parse_invite(body: bytes) -> InviteIn:
    """Return a request for an invite; raise `Problem` if it is invalid."""
    asked = decode_body(InviteIn, body)
    if asked.visitor is None and asked.ttl_s > TTL_S_MAX:
        hint = f"expected an integer from {TTL_S_MIN} to {TTL_S_MAX} (seconds)"
        raise Problem(400, INVALID_VALUE, hint=hint, field="ttl_s")
    return asked


async def create_invite(request: Request) -> web.StreamResponse:
    """Open an invite, and return its code."""
    asked = parse_invite(request.body)
    opened = await _admissions(request).open_invite(
        asked.ttl_s,
        None if asked.visitor is None else asked.visitor.stay_s,
        principal=request.authenticated_principal,
    )
    url = None
    if asked.visitor is not None and opened.endpoints:
        url = f"{INVITE_SCHEME}{','.join(opened.endpoints)}/{opened.code}"
    body = rest.Invite(
        id=opened.code.partition("-")[0],
        code=opened.code,
        url=url,
        qr=[] if url is None else qr_rows(url),
        expires_at=timestamp(opened.expires_ms),
        places=list(opened.endpoints),
    )
    return json_response(task_response.encode(body), HTTPStatus.CREATED)


async def list_invites(request: Request) -> web.StreamResponse:
    """Return the latest invites of this node for visitors, with who came by them."""
    shown = [
        rest.VisitorInvite(
            id=str(each.slot),
            state=each.state,
            node=each.node,
            expires_at=timestamp(each.expires_ms),
        )
        for each in _admissions(request).list_visitor_invites()
    ]
    body = rest.VisitorInvites(invites=shown, total=len(shown))
    return json_response(task_response.encode(body))


async def revoke_invite(request: Request) -> web.StreamResponse:
    """End an invite of this node for a visitor; the visitors that came stay."""
    slot = request.path_params["id"]
    if slot.isascii() and slot.isdecimal() and len(slot) <= SLOT_DIGITS_MAX:
        _admissions(request).revoke_invite(int(slot))
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def list_join_requests(request: Request) -> web.StreamResponse:
    """Search for machines that ask to join, and return those that wait for approval."""
    waiting = [
        _render_request(each)
        for each in await _admissions(request).list_join_requests()
    ]
    body = rest.JoinRequests(requests=waiting, total=len(waiting))
    return json_response(task_response.encode(body))


async def approve_join_request(call: Request) -> web.StreamResponse:
    """Approve a machine, by name or node id and by the fingerprint that it shows."""
    asked = decode_body(FingerprintIn, call.body)
    name = call.path_params["name"]
    request = await _admissions(call).approve_join(
        name, asked.fingerprint, principal=call.authenticated_principal
    )
    return json_response(task_response.encode(_render_request(request)))


async def refuse_join_request(call: Request) -> web.StreamResponse:
    """Refuse a machine, by name or node id and by its fingerprint."""
    asked = decode_body(FingerprintIn, call.body)
    name = call.path_params["name"]
    request = await _admissions(call).refuse_join(
        name, asked.fingerprint, principal=call.authenticated_principal
    )
    return json_response(task_response.encode(_render_request(request)))


def _render_request(request: WaitingMachine) -> rest.JoinRequest:
    return rest.JoinRequest(
        name=request.name,
        node_id=request.node_id,
        fingerprint=request.fingerprint,
        address=request.address,
    )


def _admissions(request: Request) -> JoinService:
    if request.services.admissions is None:
        raise Problem(403, FORBIDDEN, hint="this node does not admit machines")
    return request.services.admissions


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/membership",
        handler=show_membership,
        cost=route_cost.CHEAP,
        access=Access.LOCAL,
        is_local=True,
        is_for_unpaired=True,
        responses={200: rest.Membership},
    ),
    Route(
        method="POST",
        path="/api/v1/membership",
        handler=join_mesh,
        cost=route_cost.CHEAP,
        access=Access.LOCAL,
        is_local=True,
        is_for_unpaired=True,
        body_type=JoinIn,
        responses={202: rest.MembershipChange},
        error_statuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/membership/leave",
        handler=leave_mesh,
        cost=route_cost.CHEAP,
        access=Access.LOCAL,
        is_local=True,
        is_for_unpaired=True,
        body_type=LeaveIn,
        responses={202: rest.MembershipChange},
        error_statuses=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/invites",
        handler=create_invite,
        cost=route_cost.CHEAP,
        access=Access.LOCAL_PAGE,
        is_local=True,
        body_type=InviteIn,
        responses={201: rest.Invite},
        error_statuses=(409,),
    ),
    Route(
        method="GET",
        path="/api/v1/invites",
        handler=list_invites,
        cost=route_cost.CHEAP,
        access=Access.LOCAL_PAGE,
        is_local=True,
        responses={200: rest.VisitorInvites},
    ),
    Route(
        method="DELETE",
        path="/api/v1/invites/{id}",
        handler=revoke_invite,
        cost=route_cost.CHEAP,
        access=Access.LOCAL_PAGE,
        is_local=True,
        responses={204: None},
    ),
    Route(
        method="GET",
        path="/api/v1/requests",
        handler=list_join_requests,
        cost=route_cost.CHEAP,
        access=Access.LOCAL_PAGE,
        is_local=True,
        responses={200: rest.JoinRequests},
    ),
    Route(
        method="POST",
        path="/api/v1/requests/{name}/approve",
        handler=approve_join_request,
        cost=route_cost.CHEAP,
        access=Access.LOCAL_PAGE,
        is_local=True,
        body_type=FingerprintIn,
        responses={200: rest.JoinRequest},
    ),
    Route(
        method="POST",
        path="/api/v1/requests/{name}/refuse",
        handler=refuse_join_request,
        cost=route_cost.CHEAP,
        access=Access.LOCAL_PAGE,
        is_local=True,
        body_type=FingerprintIn,
        responses={200: rest.JoinRequest},
    ),
)
