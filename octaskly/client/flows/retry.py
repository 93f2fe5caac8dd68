"""Retry policy of requests: backoff, retry timeout and deadline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from octaskly.client.errors import (
    NoAnswer,
    Refused,
    ReplyLost,
    TimedOut,
    Unreachable,
)
from octaskly.errors import OctasklyError

RETRY_TIMEOUT_S: Final = 60.0
FIRST_RETRY_TIMEOUT_S: Final = 2.0  #: until a node has answered: the URL may be wrong
RETRY_DELAY_S_MAX: Final = 2.0
RETRY_DELAY_S_MIN: Final = 0.05
TOO_MANY_STREAMS_ERROR: Final = "Too many event streams"
"""Refusal of a node whose stream limit is reached; it restarts the retry timeout."""

CATCHING_UP_ERROR: Final = "The log is not complete yet"
CATCHING_UP_RETRY_TIMEOUT_S: Final = 60.0
"""Minimum retry timeout during catch-up, which ends soon unless a node is absent."""

Clock = Callable[[], float]


class Deadline:
    """The end of the caller's wait, `seconds` from now; None waits without limit."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._at = math.inf if seconds is None else clock() + seconds

    @property
    def is_over(self) -> bool:
        """Return True if the deadline has passed."""
        return self._clock() >= self._at

    @property
    def left_s(self) -> float:
        """Return the remaining time; 0 once the deadline has passed."""
        return max(self._at - self._clock(), 0.0)

    def cap(self, seconds: float) -> float:
        """Return `seconds` or the remaining time, whichever is shorter."""
        return min(seconds, max(self.left_s, 0.001))

    def check(self, what: str) -> None:
        """Raise `TimedOut` if the deadline has passed."""
        if self.is_over:
            raise TimedOut(
                f"{what} within {self._seconds} s",
                hint="deadline_s=    a longer one, or None to wait as long as it takes",
            )


class RetryState:
    """The consecutive failures of one request.

    Args:
        retry_timeout_s: How long requests are retried after the first failure.
        waits_for_logs: Retry while a missing node may know an unknown task.
        was_reached: True if a node has ever answered this client.
        random: Returns a number in [0, 1), for the jitter.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        retry_timeout_s: float,
        waits_for_logs: bool,
        was_reached: bool,
        random: Callable[[], float],
        clock: Clock,
    ) -> None:
        self._retry_timeout_s = retry_timeout_s
        self._waits_for_logs = waits_for_logs
        self._was_reached = was_reached
        self._random = random
        self._clock = clock
        self.count = 0
        self._first_failure_s = 0.0

    def next_delay_s(self, error: OctasklyError) -> float:
        """Return the delay before the next retry, in seconds.

        Raises:
            OctasklyError: `error` itself, if a retry cannot help or would be too late.
        """
        now = self._clock()
        if self.count == 0 or error.message == TOO_MANY_STREAMS_ERROR:
            self._first_failure_s = now
        self.count += 1
        pause_s = self._delay_s(error)
        timeout_s = self._retry_timeout_s
        if timeout_s and error.message == CATCHING_UP_ERROR:
            at_least_s = max(timeout_s, CATCHING_UP_RETRY_TIMEOUT_S)
            timeout_s = at_least_s if self._waits_for_logs else 0.0
        if not self._was_reached and isinstance(error, ReplyLost):
            timeout_s = min(timeout_s, FIRST_RETRY_TIMEOUT_S)
        if pause_s is None or now + pause_s > self._first_failure_s + timeout_s:
            raise error
        return pause_s

    def _delay_s(self, error: OctasklyError) -> float | None:
        match error:
            case Unreachable() | NoAnswer() if not self._was_reached:
                return None
            case ReplyLost() if self.count == 1:
                return 0.0  # The node probably closed an idle connection.
            case Unreachable() | ReplyLost():
                most_s = min(RETRY_DELAY_S_MAX, RETRY_DELAY_S_MIN * 2.0**self.count)
                return most_s * (0.5 + self._random() / 2)
            case Refused(status=429 | 503, retry_after_s=float(seconds)):
                return seconds
            case _:
                return None
