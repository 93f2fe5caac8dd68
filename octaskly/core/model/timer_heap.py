"""Timers of one node, and exponential backoff.

Components set and clear timers, `Node` pops those that are due.
"""

from __future__ import annotations

import math
from enum import IntEnum, auto
from heapq import heappop, heappush

HEAP_ENTRIES_MAX = 64  #: outdated entries are removed beyond this many


class Timer(IntEnum):
    """The timers, one per handler; timers due at the same time fire in this order."""

    DIAL = auto()  #: dial a peer, or abandon a dial
    HEARTBEAT = auto()  #: send heartbeats and check the followers
    ELECTION = auto()  #: end a phase of the election
    OUTDATED_LINKS = auto()  #: close links made with an old mesh secret
    BROWSE = auto()  #: send the next mDNS query
    FENCING = auto()  #: lift the fence of a dispatcher without answers
    RETENTION = auto()  #: look for ended tasks to forget
    DEPENDENCIES = auto()  #: query the store for unblocked tasks
    BACKOFF = auto()  #: queue a task after its backoff
    REATTACH = auto()  #: stop waiting for workers or for other logs
    RESULTS = auto()  #: resend unacknowledged results
    GATHERING = auto()  #: write ends, or acknowledge them without another message
    REPLICATION = auto()  #: replace a slow standby, or answer without one
    ROSTER = auto()  #: check if a changed roster may be sent
    VISITORS = auto()  #: send heartbeats to visitors, and check their time
    SHUTDOWN = auto()  #: end the wait of a node that stops
    TRANSFER = auto()  #: ask the next successor while the disk or the API fails


class TimerHeap:
    """The timers that are set, and the time of each in monotonic seconds.

    A timer may be early: its handler checks if something is due, and sets it again.
    """

    def __init__(self) -> None:
        self._due_s: dict[Timer, float] = {}
        self._heap: list[tuple[float, Timer]] = []  #: some entries are outdated

    def set(self, timer: Timer, at_s: float) -> None:
        """Set or replace a timer; infinity clears it."""
        if at_s == math.inf:
            self.clear(timer)
        elif self._due_s.get(timer) != at_s:
            self._due_s[timer] = at_s
            if len(self._heap) >= HEAP_ENTRIES_MAX:
                self._heap = sorted(
                    (due_s, name) for name, due_s in self._due_s.items()
                )
            else:
                heappush(self._heap, (at_s, timer))

    def set_earlier(self, timer: Timer, at_s: float) -> None:
        """Set a timer unless it is set for an earlier time."""
        if at_s < self._due_s.get(timer, math.inf):
            self.set(timer, at_s)

    def clear(self, timer: Timer) -> None:
        """Clear a timer, if it is set."""
        self._due_s.pop(timer, None)

    def next_at(self) -> float:
        """Return when the first timer is due; infinity if none is set."""
        heap = self._heap
        while heap and self._due_s.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def pop_due(self, now_s: float) -> list[Timer]:
        """Clear and return the timers that are due, by time and then as declared."""
        due: list[Timer] = []
        # Most steps find none: an outdated entry is not before one that counts, either.
        while self._heap and self._heap[0][0] <= now_s and self.next_at() <= now_s:
            due.append(heappop(self._heap)[1])
            del self._due_s[due[-1]]
        return due


DOUBLINGS_MAX = 30  #: enough to reach every cap; bounds the power of two


def backoff(failures: int, *, base_s: float, cap_s: float) -> float:
    """Return the seconds to wait after `failures`: doubled each time, up to the cap.

    The result has no jitter. `retry_delay_s` in `core.dispatcher.task_rules` adds it,
    because tasks that failed together would otherwise retry together.

    Args:
        failures: Failures so far, from 1.
        base_s: Wait after the first failure.
        cap_s: Upper bound.

    Raises:
        ValueError: `failures` is below 1.
    """
    if failures < 1:
        raise ValueError(f"failures is {failures}; it counts from 1")
    doublings = min(failures - 1, DOUBLINGS_MAX)
    return float(min(cap_s, base_s * (1 << doublings)))
