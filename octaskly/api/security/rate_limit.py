"""Rate limits: units per minute of one client, and the response headers.

A request counts one unit, or more where its route declares a higher cost, or where its
response is large.

The node that answers a request counts it. The dispatcher answers most requests, so a
client gains nothing by asking many nodes. If another node answers a request by itself,
`api.http.mesh_rate_limit` counts the request at the dispatcher.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from math import ceil, floor
from typing import Final

from octaskly.api.problems import TOO_MANY_REQUESTS, Problem
from octaskly.api.security.route_cost import BYTES_PER_UNIT, ROWS_PER_UNIT
from octaskly.core.model.ids import NodeId
from octaskly.ports.store import Clock
from octaskly.ports.tokens import Principal

WINDOW_S: Final = 60
SLOT_S: Final = 1
_SLOTS: Final = WINDOW_S // SLOT_S + 1


class SlidingWindow:
    """Units of one client within the last minute."""

    __slots__ = ("_slots", "total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        """Slot number and units of each used slot, oldest first."""
        self.total = 0  #: units within the window

    def count_request(self, now_s: float, limit: int, units: int = 1) -> bool:
        """Return True if there is room for a request, and count it.

        Args:
            now_s: Monotonic time; it never decreases between calls.
            limit: Units allowed within any window.
            units: Units of the request, at most `limit`.
        """
        slot = floor(now_s / SLOT_S)
        slots = self._slots
        while slots and slots[0][0] <= slot - _SLOTS:
            self.total -= slots.popleft()[1]
        if self.total + units > limit:
            return False
        self._add_to_slot(slot, units)
        return True

    def add(self, now_s: float, units: int) -> None:
        """Count units, even beyond the limit."""
        self._add_to_slot(floor(now_s / SLOT_S), units)

    def _add_to_slot(self, slot: int, units: int) -> None:
        slots = self._slots
        if not slots or slots[-1][0] != slot:
            slots.append([slot, 0])
        slots[-1][1] += units
        self.total += units

    def give_back(self, units: int) -> None:
        """Uncount the latest units."""
        for slot in reversed(self._slots):
            part = min(units, slot[1])
            slot[1] -= part
            self.total -= part
            units -= part

    def seconds_until_free(self, now_s: float, units: int = 1) -> int:
        """Return the whole seconds until so many units have left the window."""
        for slot, count in self._slots:
            units -= count
            if units <= 0:
                return ceil((slot + _SLOTS) * SLOT_S - now_s)
        return WINDOW_S


RATE_LIMIT_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
CLIENTS_MAX = 1024
"""Above this number, the limiter forgets the client with the oldest last request.

A forgotten client starts with an empty window. A large number of clients must not be a
reason to refuse one of them.
"""


ANONYMOUS = "stranger"  #: the role of a client without a token
VISITOR_PER_MINUTE = 6000
"""Requests of one visitor: each of its tasks with files takes a few."""


class RateLimiter:
    """Counts the requests of every client of this node.

    Args:
        limits_per_minute: Requests allowed within a minute, by role; 0 means no limit.
        clock: The source of monotonic time.
    """

    def __init__(self, limits_per_minute: Mapping[str, int], clock: Clock) -> None:
        self._limits_per_minute = limits_per_minute
        self._clock = clock
        self._by_principal: OrderedDict[str, SlidingWindow] = OrderedDict()
        self._by_source: OrderedDict[str, SlidingWindow] = OrderedDict()
        self.refused_count = 0  #: requests, since the start

    def charge(self, principal: Principal, units: int = 1) -> Mapping[str, str]:
        """Count a request; return the rate limit headers.

        A request of more units than the limit counts as the limit.

        Raises:
            Problem: 429, the limit is reached.
        """
        key = client_key(principal)
        limit = self._limits_per_minute.get(principal.role, 0)
        return self._charge(self._by_principal, key, limit, units)

    def correct_charge(
        self, principal: Principal, charged: int, used: int
    ) -> Mapping[str, str]:
        """Count what a request used, instead of what it was charged for.

        A response that is larger than expected counts even beyond the limit. So the
        client waits until it may send the next request.

        Returns:
            The rate limit headers.
        """
        limit = self._limits_per_minute.get(principal.role, 0)
        window = self._by_principal.get(client_key(principal))
        if not limit or window is None:
            return {}
        now_s = self._clock.now().mono_s
        more = min(used, limit) - min(charged, limit)
        if more > 0:
            window.add(now_s, more)
        else:
            window.give_back(-more)
        return _headers(window, limit, now_s)

    def charge_anonymous(self, source: str) -> Mapping[str, str]:
        """Count a request without authentication by its source; see `charge`.

        Args:
            source: The user of this machine or the LAN address that sent it.
        """
        limit = self._limits_per_minute.get(ANONYMOUS, 0)
        return self._charge(self._by_source, source, limit)

    def charge_visitor(self, visitor: NodeId) -> Mapping[str, str]:
        """Count a request of a visitor; see `charge`."""
        return self._charge(self._by_source, visitor, VISITOR_PER_MINUTE)

    def _charge(
        self,
        windows: OrderedDict[str, SlidingWindow],
        name: str,
        limit: int,
        units: int = 1,
    ) -> Mapping[str, str]:
        if not limit:
            return {}
        window = windows.pop(name, None) or SlidingWindow()
        windows[name] = window
        if len(windows) > CLIENTS_MAX:
            windows.popitem(last=False)
        now_s = self._clock.now().mono_s
        units = min(units, limit)
        is_counted = window.count_request(now_s, limit, units)
        if is_counted:
            return _headers(window, limit, now_s)
        self.refused_count += 1
        raise too_many_requests(
            _headers(window, limit, now_s, units - (limit - window.total))
        )


def _headers(
    window: SlidingWindow, limit: int, now_s: float, needed: int = 1
) -> Mapping[str, str]:
    left = max(0, limit - window.total)
    values = (limit, left, window.seconds_until_free(now_s, needed))
    return dict(zip(RATE_LIMIT_HEADERS, map(str, values), strict=True))


def client_key(principal: Principal) -> str:
    """Return the text that identifies a client: a token, or a user by name."""
    return principal.token or f"{principal.role} {principal.subject}"


def too_many_requests(headers: Mapping[str, str]) -> Problem:
    """Return the 429 response with these rate limit headers."""
    limit, _, wait_s = (headers[name] for name in RATE_LIMIT_HEADERS)
    return Problem(
        429,
        TOO_MANY_REQUESTS,
        hint=f"a client may send {limit} requests per minute; a list counts as "
        f"one request per {ROWS_PER_UNIT} rows, a long response as one per "
        f"{BYTES_PER_UNIT >> 10} KiB; try again in {wait_s} s",
        headers={**headers, "Retry-After": wait_s},
        is_delayed=True,
    )
