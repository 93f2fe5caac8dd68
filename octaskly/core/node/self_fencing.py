"""A dispatcher that stood still may be deposed: it does nothing until it is heard.

After a pause of its own it neither accepts nor places work before a follower has
answered a heartbeat of this reign, sent after the pause. It waits for that as long as
an answer waits for a standby; then it goes on, alone.
"""

from __future__ import annotations

import math

from octaskly.core.dispatcher.dispatcher import Dispatch
from octaskly.core.effects import Effect, Note
from octaskly.core.election.candidacy import Candidacy
from octaskly.core.election.election import Election
from octaskly.core.election.transfer import HandOver
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import Epoch, Moment
from octaskly.core.model.settings import Timing
from octaskly.core.protocol.messages import HeartbeatOk

DOUBT_S = 1.0  #: a pause that others may have taken for death


class Doubt:
    """Whether this node's reign is in doubt, and since when."""

    def __init__(
        self,
        timing: Timing,
        members: Membership,
        candidacy: Candidacy,
        election: Election,
        handover: HandOver,
        dispatch: Dispatch,
    ) -> None:
        self._timing = timing
        self._members = members
        self._candidacy = candidacy
        self._election = election
        self._handover = handover
        self._dispatch = dispatch
        self._epoch: Epoch | None = None  #: the reign that is in doubt
        self._since_s = 0.0

    def on_pause(self, gap_s: float, now: Moment) -> list[Effect]:
        """This node itself stood still for so long."""
        reign = self._election.reign
        if (
            gap_s < DOUBT_S
            or reign is None
            or not any(True for _ in self._members.followers(reign.epoch))
        ):
            return []
        self._epoch, self._since_s = reign.epoch, now.mono_s
        self._dispatch.pause_accepting()
        return [Note("warning", "stood still", (("seconds", round(gap_s, 1)),))]

    def on_heartbeat_ok(self, message: HeartbeatOk, now: Moment) -> list[Effect]:
        """A follower of this reign has answered."""
        if message.epoch != self._epoch or message.sent_s < self._since_s:
            return []
        return self._end(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Go on when nobody is left to ask."""
        if self._epoch is None or now.mono_s < self._since_s + self._timing.solo_s:
            return []
        return self._end(now)

    def deadline(self) -> float:
        """Return when `on_time` has something to do."""
        return math.inf if self._epoch is None else self._since_s + self._timing.solo_s

    def _end(self, now: Moment) -> list[Effect]:
        epoch, self._epoch = self._epoch, None
        reign = self._election.reign
        if reign is None or reign.epoch != epoch:
            return []
        if self._candidacy.is_withdrawn or self._handover.is_under_way:
            return []  # It is paused for more than this.
        return self._dispatch.resume_accepting(now)
