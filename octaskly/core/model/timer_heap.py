"""The timers of one node: state machines set and clear them, the composer pops them."""

from __future__ import annotations

import math
from enum import IntEnum, auto
from heapq import heappop, heappush

HEAP_ENTRIES_MAX = 64  #: outdated entries are removed beyond this many


class Timer(IntEnum):
    """What may become due; of timers due at once, the one declared first goes first."""

    DIAL = auto()  #: a place is dialled, or a dial is given up
    HEARTBEAT = auto()  #: a dispatcher sends heartbeats and judges its followers
    ELECTION = auto()  #: a phase of the election times out
    OUTDATED_LINKS = auto()  #: links made with an old mesh secret end
    BROWSE = auto()  #: mDNS is asked again
    FENCING = auto()  #: a paused dispatcher goes on alone
    RETENTION = auto()  #: ended tasks may be forgotten
    DEPENDENCIES = auto()  #: the store is asked for tasks that wait for nobody now
    BACKOFF = auto()  #: a task has waited before its next attempt
    REATTACH = auto()  #: workers, or the logs of others, are waited for no longer
    RESULTS = auto()  #: a worker repeats results that were not acknowledged
    REPLICATION = auto()  #: a standby is too slow, or an answer leaves without one
    ROSTER = auto()  #: members that have changed may be told
    SHUTDOWN = auto()  #: a node that stops waits no longer
    TRANSFER = auto()  #: a successor is asked while the disk fails


class TimerHeap:
    """Which timers are set, and for when, in monotonic seconds.

    A timer is a hint: its handler looks whether something is due, and sets it again.
    """

    def __init__(self) -> None:
        self._due_s: dict[Timer, float] = {}
        self._heap: list[tuple[float, Timer]] = []  #: some entries are outdated

    def set(self, timer: Timer, at_s: float) -> None:
        """Set a timer, whether it was set or not; infinity clears it."""
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
        """Clear a timer, whether it was set or not."""
        self._due_s.pop(timer, None)

    def next_at(self) -> float:
        """Return when the first timer is due; infinity if none is set."""
        heap = self._heap
        while heap and self._due_s.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def pop_due(self, now_s: float) -> list[Timer]:
        """Clear the timers that are due; return them by time, then as declared."""
        due = []
        while self.next_at() <= now_s:
            due.append(heappop(self._heap)[1])
            del self._due_s[due[-1]]
        return due
