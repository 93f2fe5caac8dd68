"""What every answer has: headers, JSON where it is a failure, and a line in the log.

That holds for the answers of handlers, of the gate, and of the library itself.
"""

from __future__ import annotations

import asyncio
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
from octaskly.api.http.request import Connection, Parts, Seen, json_response
from octaskly.api.http.sse import CONTENT_TYPE
from octaskly.api.problems import Problem, encode_problem, problem_of
from octaskly.api.security import origin_checks
from octaskly.ports.histogram import Tally

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Traffic:
    """Since the API was made.

    An action is `METHOD /template`, and empty where there is no route: nothing that a
    client makes up can be one.
    """

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        """By action and first digit of the status."""
        self.took_s: dict[str, Tally] = {}  #: by action

    def note(self, seen: Seen, response: web.StreamResponse) -> None:
        """Count a request that was answered."""
        action = seen.action
        self.answered[action, response.status // 100] += 1
        # Of most answers the class says that they are no stream of events.
        is_whole = type(response) is web.Response
        if not is_whole and response.content_type == CONTENT_TYPE:
            return  # It lasts as long as somebody listens.
        tally = self.took_s.get(action)
        if tally is None:
            tally = self.took_s[action] = Tally(BOUNDS_S)
        tally.add(asyncio.get_running_loop().time() - seen.began_s)


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNCACHED = {
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Expires": "0",
}
_SERVER_NAME = "octaskly"
_USUAL = {
    "Server": _SERVER_NAME,
    # Whatever an answer holds, a browser shows it as what it says that it is, runs
    # nothing of it, tells no other site of it, and lets no page frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request that was answered, for the log."""

    request_id: str
    method: str  #: empty when the request could not be parsed
    path: str
    status: int
    duration_ms: float
    subject: str | None
    remote: str | None


OnServed = Callable[[Served], None]
OnFault = Callable[[str, BaseException], None]
"""Gets the request id and an exception that nobody expected."""


class Answering:
    """Knows each request from its first byte until its answer is written."""

    def __init__(
        self, parts: Parts, on_served: OnServed | None, on_fault: OnFault | None
    ) -> None:
        self.traffic = Traffic()
        self._id_prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self.auditor = audit_trail.Auditor(parts, self._id_prefix)
        self._clock = parts.clock
        self._waits = parts.waits
        self._on_served = on_served
        self._on_fault = on_fault

    def see(self, request: web.BaseRequest, connection: Connection) -> Seen:
        """Note that a request came in."""
        given = request.headers.get("X-Request-ID")
        name = given if given and _REQUEST_ID.fullmatch(given) else self._new_id()
        seen = Seen(name, asyncio.get_running_loop().time())
        connection.seen = seen
        return seen

    def explain(self, error: Exception, seen: Seen) -> Problem:
        """Return what a failure means for the client; tell of one nobody expected."""
        problem = problem_of(error)
        is_unexpected = problem.status == HTTPStatus.INTERNAL_SERVER_ERROR
        if is_unexpected and self._on_fault is not None:
            self._on_fault(seen.id, error)
        return problem

    def refuse(self, problem: Problem) -> web.Response:
        """Return the answer to a request that failed."""
        body = encode_problem(problem, self._clock.now().wall_ms)
        response = json_response(body, problem.status)
        response.headers.update(problem.headers)
        if problem.closes:
            response.force_close()
        return response

    def stamp(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers of every answer, once."""
        headers = response.headers
        if "X-Request-ID" in headers:
            return
        now_s = asyncio.get_running_loop().time()
        seen = connection_of(request).seen or Seen(self._new_id(), now_s)
        usual = {
            **_USUAL,
            **({} if "Cache-Control" in headers else _UNCACHED),
            **origin_checks.cors_headers(seen.origin),
        }
        told = {name: usual[name] for name in usual if name not in headers}
        told["X-Request-ID"] = seen.id
        told["X-Response-Time-ms"] = f"{(now_s - seen.began_s) * 1000:.3f}"
        headers.update({**told, **seen.signature, **(seen.allowance or {})})
        if self._waits.is_closing:
            response.force_close()

    def note(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Tell the log, and forget the request."""
        connection = connection_of(request)
        seen, connection.seen = connection.seen, None
        if seen is not None:
            self.auditor.note(seen, request.method, response.status)
            self.traffic.note(seen, response)
        if self._on_served is None:
            return
        now_s = asyncio.get_running_loop().time()
        self._on_served(
            Served(
                request_id=response.headers.get("X-Request-ID", ""),
                method=request.method if seen else "",
                path=ascii(request.path)[1:-1] if seen else "",
                status=response.status,
                duration_ms=(now_s - seen.began_s) * 1000 if seen else 0.0,
                subject=seen.subject if seen else None,
                remote=request.remote,
            )
        )

    def _new_id(self) -> str:
        return f"{self._id_prefix}-{next(self._numbers):06x}"


def connection_of(request: web.BaseRequest) -> Connection:
    """Return the connection under a request."""
    return request.protocol  # type: ignore[return-value]  # made by ApiServer alone
