"""Which peers are kept out for a while, since they broke the protocol.

What breaks it may be costly to find out, and a peer that is cut off dials again at
once. So after each offence it waits twice as long; one that is good in the end, such
as after an upgrade, is let in again.
"""

from __future__ import annotations

from typing import Final

from octaskly.core.model import NodeId
from octaskly.ports import Clock

FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
FORGIVEN_S: Final = 120.0  #: without an offence, from when it was let in again
OFFENDERS_MAX: Final = 1024  #: a member can have any number of ids

GRUDGE: Final = "kept out for a while, after what broke the protocol"


class Grudges:
    """Who broke the protocol, and until when it is kept out."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._out: dict[NodeId, tuple[float, float]] = {}  #: for how long, until when

    def bear(self, peer: NodeId) -> None:
        """Keep a peer out for longer than the last time."""
        now_s = self._clock.now().mono_s
        last_s, until_s = self._out.pop(peer, (0.0, now_s))
        if now_s > until_s + FORGIVEN_S:
            last_s = 0.0
        wait_s = min(max(FIRST_S, 2 * last_s), LONGEST_S)
        if len(self._out) >= OFFENDERS_MAX:
            del self._out[next(iter(self._out))]  # The one that offended first.
        self._out[peer] = (wait_s, now_s + wait_s)

    def is_out(self, peer: NodeId) -> bool:
        """Return whether a peer is kept out now."""
        return peer in self._out and self._clock.now().mono_s < self._out[peer][1]
