"""HTTP error responses: the table from exceptions to statuses and texts.

`error` has the text of the API reference; details are in `hint` and `field`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec

from octaskly import errors
from octaskly.rest.base import ErrorBody

INVALID_COMMAND = "Invalid command format"
INVALID_VALUE = "Invalid parameter value"
MALFORMED_JSON = "Malformed JSON"
MISSING_FIELD = "Missing required field"
UNKNOWN_FIELD = "Unknown field"
UNAUTHENTICATED = "Missing or invalid authentication token"
FORBIDDEN = "Insufficient permissions"
ACCESS_DENIED = "Access denied"
TASK_NOT_FOUND = "Task not found"
WORKER_NOT_FOUND = "Worker not found"
CONNECTION_LOST = "Connection to the dispatcher was lost"
NO_DISPATCHER = "No dispatcher is elected"
NOT_DURABLE = "No standby keeps a copy"
DISK_FULL = "The node cannot write to its disk"
FILE_EXCEEDS_QUOTA = "File larger than the quota"
NO_ROOM_FOR_FILE = "Not enough space for the file"
PIECE_OUT_OF_ORDER = "Piece out of order"
UPLOAD_IN_PROGRESS = "Upload in progress"
CATCHING_UP = "The log is not complete yet"
TOO_MANY_CONNECTIONS = "Too many connections"
TOO_MANY_REQUESTS = "Too many requests"
NOT_A_MEMBER = "This node is no longer in the mesh"
UNPAIRED = "This node is not in a mesh yet"

REFUSED_HEADER = "Octaskly-Refused"
"""Marks the response of a node that took no action because it is not dispatcher."""


class Problem(Exception):
    """An HTTP error response, raised by a handler or the pipeline."""

    def __init__(
        self,
        status: int,
        error: str,
        *,
        hint: str | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        closes_connection: bool = False,
        is_delayed: bool = False,
        is_outcome_unknown: bool = False,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.field = field
        self.headers = dict(headers or {})
        self.closes_connection = closes_connection
        #: Otherwise a client that ignores `Retry-After` keeps the node busy.
        self.is_delayed = is_delayed
        self.is_outcome_unknown = is_outcome_unknown  #: the change may have been made


# The lookup follows the class hierarchy, so a subclass needs no row of its own.
_TABLE: dict[type[Exception], tuple[int, str]] = {
    errors.TaskNotFound: (404, TASK_NOT_FOUND),
    errors.TaskAmbiguous: (409, "Task ID is ambiguous"),
    errors.TaskExists: (409, "Duplicate task ID"),
    errors.TaskNotCancellable: (409, "Cannot cancel running task"),
    errors.ParentNotFound: (400, "Parent task not found"),
    errors.CyclicTasks: (400, "Circular dependency between tasks"),
    errors.ParentTooLarge: (400, INVALID_VALUE),
    errors.InputsCollide: (400, "Two inputs have the same path"),
    errors.NoNodeFits: (422, "No node can run the task"),
    errors.QueueFull: (429, "Queue is full"),
    errors.TaskNotEnded: (409, "Task has not ended"),
    errors.TaskNotWaiting: (409, "Cannot change the priority of this task"),
    errors.NothingToRetry: (409, "Nothing to retry"),
    errors.StdinFreed: (409, "Stdin was deleted"),
    errors.OutputNotFound: (404, "Output not found"),
    errors.DispatcherUnknown: (503, NO_DISPATCHER),
    errors.NotDispatcher: (503, NO_DISPATCHER),
    errors.OutcomeUnknown: (503, CONNECTION_LOST),
    errors.NotDurable: (503, NOT_DURABLE),
    errors.CatchingUp: (503, CATCHING_UP),
    errors.NotAMember: (503, NOT_A_MEMBER),
    errors.RotationRefused: (409, "Mesh secret cannot be rotated now"),
    errors.NodeNotFound: (404, WORKER_NOT_FOUND),
    errors.JoinRequestNotFound: (404, "Join request not found"),
    errors.TooManyRecords: (409, "Too many records"),
    errors.TokenNotFound: (404, "Token not found"),
    errors.TokenExists: (409, "Duplicate token name"),
    errors.TooManyInvites: (409, "Too many open invites"),
    errors.MeshNotEmpty: (409, "Members or tasks would be abandoned"),
    errors.OnlyCopy: (409, "Tasks may be lost"),
    errors.TrustError: (401, UNAUTHENTICATED),
    errors.PermissionDenied: (403, FORBIDDEN),
    errors.StoreFull: (507, "System resource exhausted"),
    errors.StoreError: (500, "Database connection failure"),
    errors.ConfigError: (400, INVALID_VALUE),
}
_UNKNOWN_OUTCOMES = (errors.OutcomeUnknown, errors.NotDurable)
_RETRY_AFTER_S: dict[int, int] = {
    HTTPStatus.SERVICE_UNAVAILABLE: 1,
    HTTPStatus.TOO_MANY_REQUESTS: 5,
}
_INTERNAL = (500, "Internal server error")
_TEXTS = {
    400: "Bad request",
    401: UNAUTHENTICATED,
    403: ACCESS_DENIED,
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Request body too large",
    415: "Unsupported media type",
    417: "Expectation failed",
    500: _INTERNAL[1],
    503: "Service unavailable",
    505: "Unsupported HTTP version",
}


def problem_of(error: Exception) -> Problem:
    """Return the error response for an exception."""
    if isinstance(error, Problem):
        return error
    for kind in type(error).__mro__:
        row = _TABLE.get(kind)
        if row is None:
            continue
        status, text = row
        # A retry would fail, too: the node is not a member, or the queue is too small.
        is_for_good = isinstance(error, errors.NotAMember | errors.QueueTooSmall)
        wait_s = None if is_for_good else _RETRY_AFTER_S.get(status)
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        # Some errors already contain the text of the reference; do not repeat it.
        details = (getattr(error, "message", str(error)), getattr(error, "hint", None))
        return Problem(
            status,
            text,
            hint="; ".join(part for part in details if part and part != text) or None,
            field=getattr(error, "field", None),
            headers=headers,
            is_outcome_unknown=(
                status == HTTPStatus.INTERNAL_SERVER_ERROR
                or isinstance(error, _UNKNOWN_OUTCOMES)
            ),
        )
    return Problem(*_INTERNAL, hint="see the log of this node", is_outcome_unknown=True)


def status_problem(status: int, hint: str | None = None) -> Problem:
    """Return the problem for a status that aiohttp chose."""
    phrase = HTTPStatus(status).phrase
    return Problem(status, _TEXTS.get(status, phrase), hint=hint)


def timestamp(wall_ms: int) -> str:
    """Return a wall-clock time in the API's format: UTC, whole seconds, `Z`."""
    moment = datetime.fromtimestamp(wall_ms // 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def encode_problem(problem: Problem, wall_ms: int) -> bytes:
    """Return the JSON body of an error response."""
    body = ErrorBody(
        error=problem.error,
        status=problem.status,
        timestamp=timestamp(wall_ms),
        hint=_printable(problem.hint),
        field=_printable(problem.field),
    )
    return msgspec.json.encode(body)


def _printable(text: str | None) -> str | msgspec.UnsetType:
    """Return `text` without lone surrogates, which JSON encoders refuse, or UNSET."""
    return text.encode("utf-8", "replace").decode("utf-8") if text else msgspec.UNSET


def too_many_connections() -> Problem:
    """Return the 503 response for a connection above the limit."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        TOO_MANY_CONNECTIONS,
        hint="reuse connections, and close those that are idle",
        headers={"Retry-After": "1"},
        closes_connection=True,
    )


def too_many_connections_of(owner: str, connections_max: int) -> Problem:
    """Return the 429 response for one owner with too many connections."""
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        TOO_MANY_CONNECTIONS,
        hint=f"{owner} may have {connections_max} connections at a time; reuse "
        "them, and close those that are idle",
        headers={"Retry-After": "1"},
        closes_connection=True,
        is_delayed=True,
    )
