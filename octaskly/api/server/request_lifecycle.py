"""Request lifecycle: common headers, JSON errors, metrics and access log.

It applies to the responses of handlers, of the pipeline and of aiohttp itself.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from aiohttp import web

from octaskly.api.http import audit_trail
from octaskly.api.http.handler_types import (
    DEFAULT_HEADERS,
    UNCACHED_HEADERS,
    Connection,
    RequestInfo,
    Services,
    json_response,
)
from octaskly.api.http.sse import CONTENT_TYPE
from octaskly.api.problems import Problem, encode_problem, problem_of
from octaskly.api.security import origin_checks
from octaskly.ports.histogram import Histogram
from octaskly.system.clock import loop_time

DURATION_BUCKETS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    10,
)


class RequestMetrics:
    """Counts and durations of responses since the start of the API.

    An action is `METHOD /template`, or empty without a route. It never contains text
    that a client chooses, so the number of actions is bounded.
    """

    def __init__(self) -> None:
        self.response_counts: Counter[tuple[str, int]] = Counter()
        """Responses by action and first digit of the status."""
        self.durations_s: dict[str, Histogram] = {}  #: by action

    def record_response(self, info: RequestInfo, response: web.StreamResponse) -> None:
        """Record the status and duration of an answered request."""
        action = info.action
        self.response_counts[action, response.status // 100] += 1
        # Most responses are a `web.Response`, which is no stream. The check is cheap.
        is_whole = type(response) is web.Response
        if not is_whole and response.content_type == CONTENT_TYPE:
            return  # A stream lasts as long as its client reads.
        tally = self.durations_s.get(action)
        if tally is None:
            tally = self.durations_s[action] = Histogram(DURATION_BUCKETS_S)
        tally.observe(loop_time() - info.started_s)


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogEntry:
    """An answered request, for the access log."""

    request_id: str
    method: str  #: empty when the request could not be parsed
    path: str
    status: int
    duration_ms: float
    subject: str | None
    remote: str | None


OnResponse = Callable[[AccessLogEntry], None]
OnUnexpectedError = Callable[[str, BaseException], None]
"""Receives the request id and an unexpected exception."""


class RequestLifecycle:
    """Follows each request from its header until its response is written."""

    def __init__(
        self,
        services: Services,
        on_response: OnResponse | None,
        on_unexpected_error: OnUnexpectedError | None,
    ) -> None:
        self.request_metrics = RequestMetrics()
        self._id_prefix = secrets.token_hex(4)
        self._request_numbers = itertools.count(1)
        self.auditor = audit_trail.Auditor(services, self._id_prefix)
        self._clock = services.clock
        self._long_polls = services.long_polls
        self._on_response = on_response
        self._on_unexpected_error = on_unexpected_error

    def start_request(
        self, request: web.BaseRequest, connection: Connection
    ) -> RequestInfo:
        """Create the record of a new request."""
        given = request.headers.get("X-Request-ID")
        name = given if given and _REQUEST_ID.fullmatch(given) else self._new_id()
        seen = RequestInfo(name, loop_time())
        connection.request_info = seen
        return seen

    def to_problem(self, error: Exception, info: RequestInfo) -> Problem:
        """Return the problem of an exception; report an unexpected exception."""
        problem = problem_of(error)
        info.is_outcome_unknown = problem.is_outcome_unknown
        is_unexpected = problem.status == HTTPStatus.INTERNAL_SERVER_ERROR
        if is_unexpected and self._on_unexpected_error is not None:
            self._on_unexpected_error(info.id, error)
        return problem

    def problem_response(self, problem: Problem) -> web.Response:
        """Return the HTTP response for a problem."""
        body = encode_problem(problem, self._clock.now().wall_ms)
        response = json_response(body, problem.status)
        response.headers.update(problem.headers)
        if problem.closes_connection:
            response.force_close()
        return response

    def add_headers(self, connection: Connection, response: web.StreamResponse) -> None:
        """Add the common headers to a response, once."""
        headers = response.headers
        if "X-Request-ID" in headers:
            return
        now_s = loop_time()
        seen = connection.request_info or RequestInfo(self._new_id(), now_s)
        if "Server" not in headers:  # Else `json_response` has added the usual ones.
            has_own = "Cache-Control" in headers
            usual = DEFAULT_HEADERS if has_own else UNCACHED_HEADERS
            for name, value in usual.items():
                headers.setdefault(name, value)
        headers.update(
            {
                **origin_checks.cors_headers(seen.origin),
                "X-Request-ID": seen.id,
                "X-Response-Time-ms": f"{(now_s - seen.started_s) * 1000:.3f}",
                **seen.dispatcher_headers,
                **(seen.rate_limit_headers or {}),
            }
        )
        if seen.closes_connection or self._long_polls.is_closing:
            response.force_close()

    def finish_request(
        self,
        connection: Connection,
        request: web.BaseRequest,
        response: web.StreamResponse,
    ) -> None:
        """Record an answered request in audit log, metrics and access log."""
        seen, connection.request_info = connection.request_info, None
        if seen is not None:
            self.auditor.record_request(seen, request.method, response.status)
            self.request_metrics.record_response(seen, response)
        if self._on_response is None:
            return
        now_s = loop_time()
        self._on_response(
            AccessLogEntry(
                request_id=response.headers.get("X-Request-ID", ""),
                method=request.method if seen else "",
                path=ascii(request.path)[1:-1] if seen else "",
                status=response.status,
                duration_ms=(now_s - seen.started_s) * 1000 if seen else 0.0,
                subject=seen.subject if seen else None,
                remote=request.remote,
            )
        )

    def _new_id(self) -> str:
        return f"{self._id_prefix}-{next(self._request_numbers):06x}"


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection of a request."""
    return request.protocol  # type: ignore[return-value]  # made by ApiServer alone
