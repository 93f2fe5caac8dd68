"""Exceptions of the clients.

    OctasklyError
    ├── ConfigError          the URL, CA file or choice of an agent is unusable
    │   └── SeveralAgents    several agents run here, and none was chosen
    ├── PermissionDenied     this user may not use the agent's socket
    ├── MeshError
    │   ├── Unreachable      no connection; the request was not sent
    │   ├── ReplyLost        the connection broke; the node may have acted
    │   │   └── NoAnswer     timeout: the node is stopped or busy
    │   └── NotOctaskly      no Octaskly node, or one with an unknown API version
    ├── Refused              the node refused; `status` is the HTTP status
    │   ├── Invalid          a value is invalid (400, 413, 415, 416, 422)
    │   ├── Unauthorized     the token is missing or not valid (401)
    │   ├── Forbidden        the role of the token does not allow this (403)
    │   ├── NotFound         the task, node or output does not exist (404)
    │   ├── Conflict         the state of the task does not allow this (409)
    │   ├── TooMany          rate limit exceeded, or the queue is full (429)
    │   └── Unavailable      the mesh cannot do this at the moment (503, 507)
    │       └── NoDispatcher no dispatcher is elected at the moment
    ├── TimedOut             `deadline_s` has passed; the task keeps running
    ├── TaskFailed           `run(check=True)`: the task did not complete
    └── Closed               the client was closed, or belongs to another process

`hint` suggests a fix; `field` names the invalid field, parameter or setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from octaskly.errors import ConfigError, MeshError, OctasklyError

if TYPE_CHECKING:
    from octaskly.rest.client_types import Task

NO_DISPATCHER: Final = "No dispatcher is elected"
RETRY_S_MIN: Final = 0.1


class Refused(OctasklyError):
    """The node refused; `status` is the HTTP status, the message is the node's."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        hint: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.status = status
        self.retry_after_s = retry_after_s
        self.task = task  #: that the request named


class Invalid(Refused, ValueError):
    """The value of `field` is invalid; nothing was accepted."""


class Unauthorized(Refused):
    """The token is missing, malformed, expired, revoked or of another mesh."""


class Forbidden(Refused):
    """The token's role does not allow this, or the task belongs to someone else."""


class NotFound(Refused, LookupError):
    """The task, node or output does not exist."""


class Conflict(Refused):
    """The state of the task does not allow this operation."""


class TooMany(Refused):
    """This client exceeded its request rate, or the queue is full."""


class Unavailable(Refused):
    """The mesh cannot do this at the moment."""


class NoDispatcher(Unavailable):
    """No dispatcher is elected at the moment."""


class Unreachable(MeshError):
    """No connection to the node; the request was not sent."""


class ReplyLost(MeshError):
    """The connection ended before the response; the node may have acted."""


class NoAnswer(ReplyLost):
    """No response in time: the node is stopped or busy, and may still act."""


class NotOctaskly(MeshError):
    """The server is not an Octaskly node, or has an incompatible version."""


class TimedOut(OctasklyError, TimeoutError):
    """The caller's deadline has passed; submitted tasks keep running."""


class TaskFailed(OctasklyError):
    """The task did not complete; `task` has its final state."""

    def __init__(self, message: str, *, task: Task, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.task = task


class Closed(OctasklyError, RuntimeError):
    """The client was closed, or opened by another process."""


class SeveralAgents(ConfigError):
    """More than one agent runs on this machine, and none was chosen."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"several agents run on this machine: {', '.join(names)}",
            hint=f"octaskly.Client(node={names[0]!r})",
        )
        self.names = names


_BY_STATUS: Final[Mapping[int, type[Refused]]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    415: Invalid,
    416: Invalid,
    422: Invalid,
    429: TooMany,
    503: Unavailable,
    507: Unavailable,
}


def connect_error(node_label: str, error: OSError) -> OctasklyError:
    """Return the client error for a failed connection attempt."""
    if "certificate verify failed" in str(error).lower():
        return ConfigError(
            f"the certificate of {node_label} is not trusted here",
            hint="octaskly ca > mesh-ca.pem    on a node; name that file here, and "
            "NAME.local or a private address in the URL",
        )
    if "ssl" in type(error).__name__.lower():
        return ConfigError(
            f"{node_label} does not speak TLS",
            hint="http://    for ports of this machine",
        )
    return Unreachable(
        f"no agent answers at {node_label}", hint="octaskly agent    on that machine"
    )


def parse_refusal(
    status: int, headers: Mapping[str, str], body: bytes
) -> Refused | None:
    """Return the error in an error response, None if no node sent the response."""
    try:
        details = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    message = details.get("error") or details.get("message")
    if not isinstance(message, str):
        return None
    kind = _BY_STATUS.get(status, Refused)
    if message == NO_DISPATCHER:
        kind = NoDispatcher
    return kind(
        message,
        status=status,
        hint=details.get("hint"),
        field=details.get("field"),
        retry_after_s=_retry_after_s(headers),
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        return max(RETRY_S_MIN, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
