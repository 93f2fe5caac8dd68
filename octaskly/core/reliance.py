"""Until when answers of the dispatcher wait for this standby, as far as it can know.

A dispatcher answers without a standby that leaves something unacknowledged for `solo_s`
(`promises`), and tells it that it counts no more. Where the link is slow the dispatcher
may die before that arrives, and who takes over must know whether it has all that was
answered for. So heartbeats name the last one that the standby confirmed. From that it
knows a time of its own clock after which all was sent that the dispatcher may lack an
acknowledgement of; until `solo_s` later no answer left without it.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

LONG_AGO = float("-inf")  #: nothing later is known
BEATS_MAX = 150
"""Heartbeats that are remembered: of over 4 s, as often as they come at most."""


class _Beat(NamedTuple):
    """A heartbeat that was confirmed."""

    sent_s: float  #: sender's clock, its name
    at_s: float  #: when it was confirmed
    after_s: float  #: it was sent after that
    received: int  #: the last append that had come by then
    acked: int  #: and the last that was acknowledged by then


class Reliance:
    """What the heartbeats of one reign say of that.

    Args:
        solo_s: How long an answer waits for a standby, in seconds.
    """

    def __init__(self, solo_s: float) -> None:
        self._solo_s = solo_s
        self._beats: deque[_Beat] = deque(maxlen=BEATS_MAX)
        self._since_s = LONG_AGO
        """What the dispatcher may lack an acknowledgement of was sent after that."""

    def end(self) -> None:
        """No answer waits for this node from now on."""
        self._beats.clear()
        self._since_s = LONG_AGO

    def holds(self, now_s: float) -> bool:
        """Whether no answer can have left without this node yet."""
        return now_s < self._since_s + self._solo_s

    def on_heartbeat(
        self, sent_s: float, heard_s: float, now_s: float, *, received: int, acked: int
    ) -> None:
        """Take in a heartbeat that this node confirms now.

        Args:
            sent_s: What it is told by.
            heard_s: The one whose confirmation the sender had heard last.
            now_s: This node's clock.
            received: Number of the last append that has come.
            acked: Number of the last append that was acknowledged.
        """
        beats = self._beats
        heard = next((beat for beat in beats if beat.sent_s == heard_s), None)
        after_s = LONG_AGO
        if heard is not None:
            after_s = heard.at_s
            while beats[0] is not heard and beats[1].received <= heard.acked:
                beats.popleft()
            if beats[0].received <= heard.acked:
                # All that came before it was acknowledged, and that was heard.
                self._since_s = max(self._since_s, beats[0].after_s)
        beats.append(_Beat(sent_s, now_s, after_s, received, acked))
