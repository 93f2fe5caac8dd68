"""Authentication by token, local user or forwarding node, and checks of permissions.

A node certificate authenticates only the hop. It lets the sender state a principal and
fetch outputs; it grants no other permission.

`RequestPipeline._authenticate` in `api.server.pipeline` decides which method applies to
a connection. The agent supplies the function that verifies tokens
(`agent.gateway.tokens`).
"""

from __future__ import annotations

import grp
import os
import re
import socket
from collections.abc import Callable
from urllib.parse import quote, unquote

from octaskly.api.http.handler_types import Access, Route
from octaskly.api.http.local_socket import peer_credentials
from octaskly.api.problems import ACCESS_DENIED, FORBIDDEN, UNAUTHENTICATED, Problem
from octaskly.config.defaults import SOCKET_GROUP
from octaskly.config.users import user_name
from octaskly.core.model.field_types import SUBJECT_CHARS_MAX
from octaskly.core.model.ids import NodeId
from octaskly.errors import TrustError
from octaskly.ports.tokens import Principal
from octaskly.trust.tokens import PERMISSIONS, TOKEN_BYTES_MAX

PRINCIPAL_HEADER = "Octaskly-Principal"

VerifyToken = Callable[[str], Principal]
"""Returns the principal of a token; raises TrustError."""

_GENERATION = re.compile(r"[1-9][0-9]{0,9}")
_RENEWAL = "`octaskly token create --role client` on a node prints a new one"
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def authenticate_bearer(header: str | None, verify: VerifyToken) -> Principal:
    """Return the principal of an Authorization header; raise `Problem` (401)."""
    if header is None:
        raise _unauthenticated(
            "missing bearer token; send `Authorization: Bearer <TOKEN>`; "
            "`octaskly token create --role client` on a node prints one"
        )
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("the header is not `Authorization: Bearer <TOKEN>`")
    if len(token) > TOKEN_BYTES_MAX:
        raise _unauthenticated(f"the token is longer than {TOKEN_BYTES_MAX} bytes")
    try:
        return verify(token)
    except TrustError as error:
        hint = error.hint or f"{error.message}; {_RENEWAL}"
        raise _unauthenticated(hint) from None


def authenticate_local_user(connection: socket.socket, node_name: str) -> Principal:
    """Return the principal of the process at the other end of a UNIX socket."""
    uid, gid = peer_credentials(connection)
    user = user_name(uid)
    if uid not in (0, os.geteuid()) and not _is_in_group(user, gid):
        raise Problem(
            403,
            ACCESS_DENIED,
            hint=f"user {user} is not in group {SOCKET_GROUP}; `sudo usermod -aG "
            f"{SOCKET_GROUP} {user}` adds the user, or send a token over HTTP",
        )
    return Principal(subject=f"local:{user}@{node_name}", role="admin", uid=uid)


def parse_principal_header(header: str, forwarded_by: NodeId) -> Principal:
    """Return the principal that a forwarding node states; raise `Problem` (401)."""
    role, quoted, token, generation = [*header.split(" "), "", "", ""][:4]
    subject = unquote(quoted)
    if role not in PERMISSIONS or not 0 < len(subject) <= SUBJECT_CHARS_MAX:
        raise _unauthenticated(f"unusable {PRINCIPAL_HEADER}")
    return Principal(
        subject=subject,
        role=role,
        node=forwarded_by,
        token=unquote(token) or None,
        generation=int(generation) if _GENERATION.fullmatch(generation) else None,
    )


def format_principal_header(principal: Principal) -> str:
    """Return the header value that `parse_principal_header` reads."""
    words = (
        principal.role,
        principal.subject,
        principal.token or "",
        str(principal.generation or ""),
    )
    return " ".join(quote(word, safe="") for word in words).strip()


def check_rights(principal: Principal, route: Route, *, is_local: bool) -> None:
    """Raise `Problem` (403) unless a principal may use a route.

    Args:
        principal: The principal of the request.
        route: The requested route.
        is_local: True if the route counts the client as a user of the local socket.
    """
    access = route.access
    if access is Access.SUBMIT and not principal.may_submit:
        hint = "the token lacks the permission tasks:write, to submit and cancel tasks"
        raise Problem(403, FORBIDDEN, hint=hint)
    if access is Access.LOCAL and not is_local:
        hint = "a token is not enough: run the command on that machine itself"
        raise Problem(403, FORBIDDEN, hint=hint)
    if access is Access.LOCAL_PAGE and not is_local:
        hint = "a token is not enough: run the command on that machine itself, or "
        raise Problem(403, FORBIDDEN, hint=hint + "open a page there: octaskly open")
    is_reading = access in (Access.READ, Access.READ_OR_LOCAL, Access.SUBMIT)
    if not is_reading and not principal.is_admin:
        raise Problem(403, FORBIDDEN, hint="this needs the role admin")


def token_ended_problem() -> Problem:
    """Return the 401 response for a token that was revoked or has expired."""
    problem = _unauthenticated(f"the token was revoked, or has expired; {_RENEWAL}")
    problem.closes_connection = True  # There may be an unread body.
    return problem


def _unauthenticated(hint: str) -> Problem:
    return Problem(401, UNAUTHENTICATED, hint=hint, headers=_CHALLENGE)


def _is_in_group(user: str, gid: int) -> bool:
    try:
        group = grp.getgrnam(SOCKET_GROUP)
    except KeyError:
        return False
    return gid == group.gr_gid or user in group.gr_mem
