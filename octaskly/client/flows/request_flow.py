"""The flow of one request with retries, on which all other flows are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from octaskly import __version__
from octaskly.client.errors import (
    NoAnswer,
    NotOctaskly,
    Refused,
    ReplyLost,
    TimedOut,
    Unauthorized,
    Unreachable,
    parse_refusal,
)
from octaskly.client.flows.rest_calls import Call, Response, decode_body
from octaskly.client.flows.retry import RETRY_TIMEOUT_S, Clock, Deadline, RetryState
from octaskly.client.flows.steps import Flow, SendRequest, Sleep
from octaskly.errors import OctasklyError

RESPONSE_S_MAX: Final = 30.0  #: a node holds a request for at most 5 s
FIRST_RESPONSE_S_MAX: Final = 10.0  #: for small requests until a node has answered
SMALL_BYTES: Final = 65_536  #: body size whose transfer time is negligible
RESPONSE_GRACE_S: Final = 1.0  #: transfer time of a response sent at the deadline
ERROR_STATUS_MIN: Final = 400
VERSION_GAP_ERRORS: Final = ("Not found", "Unknown field", "Method not allowed")
"""Refusals that may come from a node of another version than the client."""
UNKNOWN_OUTCOME_ERRORS: Final = (
    "Connection to the dispatcher was lost",
    "No standby keeps a copy",
)
"""Refusals after which the request may have taken effect."""
_WRONG_PORT: Final = "check the port; the LAN API is at https://NODE:3443"
_STOPPED: Final = "fg    in the terminal of that agent, if Ctrl-Z has stopped it"

_T = TypeVar("_T")


class RequestFlow:
    """Sends requests to one node, with retries.

    Args:
        node_label: Name of the node in error messages.
        retry_timeout_s: How long a failed request is retried.
        waits_for_logs: Retry while a missing node may know an unknown task.
        clock: Returns monotonic seconds.
        random: Returns a number in [0, 1), for the jitter of retries.
        new_key: Returns a new idempotency key.
        on_failure: Called with the first of several consecutive failures, if a retry
            follows.
        is_program: Hints address the author of a program, not the user of a command.
    """

    def __init__(
        self,
        node_label: str,
        *,
        clock: Clock,
        random: Callable[[], float],
        new_key: Callable[[], str],
        retry_timeout_s: float = RETRY_TIMEOUT_S,
        waits_for_logs: bool = True,
        on_failure: Callable[[OctasklyError], None] | None = None,
        is_program: bool = True,
    ) -> None:
        self.node_label = node_label
        self._retry_timeout_s = retry_timeout_s
        self._waits_for_logs = waits_for_logs
        self._clock = clock
        self._random = random
        self.new_key = new_key
        self._on_failure = on_failure
        self._is_program = is_program
        self._was_reached = False

    def send(self, call: Call, until: Deadline | None = None) -> Flow[Response]:
        """Send a request, with retries; return its successful response."""
        until = until or self.deadline_after(None)
        failures = self.new_retry_state()
        while True:
            try:
                reply: Response = yield SendRequest(
                    call, self.response_timeout_s(call, until)
                )
                return self.check_response(call, reply)
            except OctasklyError as error:
                if call.is_unrepeatable and may_have_taken_effect(error):
                    raise
                if isinstance(error, NoAnswer):
                    until.check(f"{self.node_label} did not answer")
                pause_s = yield from self.retry_delay_s(failures, error)
            until.check(f"{self.node_label} did not answer")
            yield Sleep(until.cap(pause_s))

    def send_and_decode(
        self, call: Call, kind: type[_T], until: Deadline | None = None
    ) -> Flow[_T]:
        """Send a request, with retries; return the decoded body of the response."""
        reply = yield from self.send(call, until)
        try:
            return decode_body(reply, kind, self.node_label)
        except NotOctaskly as error:
            raise (yield from self._with_hint(error)) from error

    def check_response(self, call: Call, reply: Response) -> Response:
        """Return a successful response to a call; raise the error of any other."""
        if reply.status < ERROR_STATUS_MIN:
            self._was_reached = True
            return reply
        error = parse_refusal(reply.status, reply.headers, reply.body)
        if error is None:
            raise NotOctaskly(
                f"{self.node_label} answered {reply.status}, but is not an Octaskly "
                "node",
                hint="octaskly nodes    on a machine of the mesh; the ports are 3000 "
                "and 3443",
            )
        self._was_reached = True
        error.task = call.task
        raise error

    def response_timeout_s(self, call: Call, deadline: Deadline) -> float:
        """Return the response timeout of a call, in seconds.

        A stopped process (Ctrl-Z) accepts connections and never responds. The timeout
        is therefore short until the node has answered once, except for large bodies
        and for calls that cannot be repeated.
        """
        is_quick = len(call.body or b"") <= SMALL_BYTES and not call.is_unrepeatable
        may_be_stopped = is_quick and not self._was_reached
        reply_s = FIRST_RESPONSE_S_MAX if may_be_stopped else RESPONSE_S_MAX
        return deadline.cap(reply_s + call.extra_wait_s) + RESPONSE_GRACE_S

    def new_retry_state(self) -> RetryState:
        """Return a retry state without failures."""
        return RetryState(
            retry_timeout_s=self._retry_timeout_s,
            waits_for_logs=self._waits_for_logs,
            was_reached=self._was_reached,
            random=self._random,
            clock=self._clock,
        )

    def deadline_after(self, seconds: float | None) -> Deadline:
        """Return the deadline `seconds` from now."""
        return Deadline(seconds, self._clock)

    def retry_delay_s(
        self, retry_state: RetryState, error: OctasklyError
    ) -> Flow[float]:
        """Return the delay before the next retry; raise `error` if it is final."""
        try:
            pause_s = retry_state.next_delay_s(error)
        except OctasklyError:
            raise (yield from self._with_hint(error)) from error.__cause__
        if retry_state.count == 1 and self._on_failure is not None:
            self._on_failure(error)
        return pause_s

    def _with_hint(self, error: OctasklyError) -> Flow[OctasklyError]:
        """Return the error with a hint about its likely cause."""
        match error:
            case Unauthorized() if self._is_program:
                hint = "token=    from `octaskly token create --role client` on a node"
            case ReplyLost() if not self._was_reached:
                hint = _WRONG_PORT if "://" in self.node_label else _STOPPED
            case NotOctaskly() | Refused() if self._may_be_version_gap(error):
                hint = (yield from self._version_gap()) or ""
            case _:
                hint = ""
        error.hint = "\n".join(part for part in (error.hint, hint) if part) or None
        return error

    @staticmethod
    def _may_be_version_gap(error: OctasklyError) -> bool:
        return isinstance(error, NotOctaskly) or error.message in VERSION_GAP_ERRORS

    def _version_gap(self) -> Flow[str | None]:
        """Return a hint if the node has another version than this client."""
        try:
            reply = yield SendRequest(Call("GET", "/health"), RESPONSE_S_MAX)
            there = decode_body(reply, dict[str, Any], self.node_label).get("version")
        except (Unreachable, ReplyLost, NotOctaskly):
            return None
        if not isinstance(there, str) or there == __version__:
            return None
        return f"this client is Octaskly {__version__}, the node {there:.40}"


def may_have_taken_effect(error: BaseException) -> bool:
    """Return True if a request that ended with `error` may still take effect."""
    return (
        not isinstance(error, OctasklyError)  # Ctrl-C, or a cancelled coroutine.
        or isinstance(error, ReplyLost | TimedOut)
        or error.message in UNKNOWN_OUTCOME_ERRORS
    )
