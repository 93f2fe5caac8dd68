"""What can go wrong between a client and a mesh.

    OctasklyError
    ├── ConfigError          the URL, the CA or the choice of an agent is unusable
    │   └── SeveralAgents    more than one runs here, and none was chosen
    ├── PermissionDenied     the agent's socket is not for this user
    ├── MeshError
    │   ├── Unreachable      nobody answers there; nothing was sent
    │   ├── ReplyLost        the answer did not come; the node may have acted
    │   │   └── NoAnswer     nor did the connection end: it is stopped, or busy
    │   └── NotOctaskly      who answers there is no node, or none of a known version
    ├── Refused              the node said no; `status` is the HTTP status
    │   ├── Invalid          a value that is not taken (400, 413, 415, 416, 422)
    │   ├── Unauthorized     no token, or one that is not good any more (401)
    │   ├── Forbidden        the role of the token may not do that (403)
    │   ├── NotFound         no such task, node or output (404)
    │   ├── Conflict         not in the state that it is in (409)
    │   ├── TooMany          more requests than may be, or the queue is full (429)
    │   └── Unavailable      not now (503, 507)
    │       └── NoDispatcher none is elected at this moment
    ├── TimedOut             the caller's `deadline_s` is over; the task goes on
    ├── TaskFailed           `run(check=True)`: the task did not complete
    └── Closed               the client was closed, or belongs to another process

`hint` says what helps, `field` which field, parameter or setting is meant.
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
    """The node refused; `status` is the HTTP status, the text is the node's own."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        hint: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.status = status
        self.retry_after_s = retry_after_s


class Invalid(Refused, ValueError):
    """A value is not taken; `field` names it. Nothing was accepted."""


class Unauthorized(Refused):
    """There is no token, or it is malformed, foreign, expired or revoked."""


class Forbidden(Refused):
    """The role of the token may not do that, or the task is somebody else's."""


class NotFound(Refused, LookupError):
    """There is no such task, node or output."""


class Conflict(Refused):
    """What was asked for does not go with the state of the task."""


class TooMany(Refused):
    """More requests than this client may make, or more tasks than may wait."""


class Unavailable(Refused):
    """The mesh cannot do that at the moment."""


class NoDispatcher(Unavailable):
    """No dispatcher is elected at this moment."""


class Unreachable(MeshError):
    """Nobody answers there; the request was not sent."""


class ReplyLost(MeshError):
    """The connection ended before the answer; the node may have acted on it."""


class NoAnswer(ReplyLost):
    """Nothing came in time: the node is stopped, or busy; it may act yet."""


class NotOctaskly(MeshError):
    """Something else than a node answers there, or one of another age."""


class TimedOut(OctasklyError, TimeoutError):
    """The time that the caller gave is over; what was submitted goes on."""


class TaskFailed(OctasklyError):
    """The task did not complete; `task` tells how it ended."""

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
    """Return what it means that no connection came about."""
    if "certificate verify failed" in str(error).lower():
        return ConfigError(
            f"{node_label} has no certificate of a mesh that is trusted here",
            hint="octaskly ca > mesh-ca.pem    on a node; then name that file here",
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
    """Return the error that a refusing answer means; None: no node says so."""
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
