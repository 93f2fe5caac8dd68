"""What time alone brings about in one node, and when to look for it next.

Most steps come before anything is due. So the machines are asked when they have
something to do, and to do it only then: none does anything before the time it tells.
A few tell none, as what they wait for moves with each frame: they have their turn when
another one has, and at least each tick.
"""

from __future__ import annotations

import math

from octaskly.core.effects import Effect
from octaskly.core.model.ids import Moment
from octaskly.core.node.announcements import Profile
from octaskly.core.node.availability import DiskCare
from octaskly.core.node.components import Machines
from octaskly.core.node.connections import Custody, Links
from octaskly.core.node.shutdown import Departure

REST_S = 0.02  #: between two looks that only time causes
PASSING_S = 0.1  #: after a look the next event is taken for another, to save a wake


class Timers:
    """The times of all machines of one node."""

    def __init__(
        self,
        machines: Machines,
        profile: Profile,
        links: Links,
        custody: Custody,
        departure: Departure,
        disk: DiskCare,
    ) -> None:
        self._me = machines.settings.node.id
        self._timing = machines.settings.timing
        self._profile = profile
        self._links = links
        self._custody = custody
        self._departure = departure
        self._election = machines.election
        self._watch = machines.watch
        self._hints = machines.members.hints
        self._browsing = machines.browsing
        self._doubt = machines.doubt
        self._dispatch = machines.dispatch
        self._worker = machines.worker
        self._timed = (
            machines.watch,
            machines.members.hints,
            machines.browsing,
            machines.replication,
            machines.doubt,
            machines.dispatch,
            machines.worker,
            departure,
            disk,
        )
        self._looked_s = -math.inf
        self._due_s: float | None = None  #: None: to be found
        self._own_beat_s = 0.0

    def deadline(self) -> float:
        """Return when something is due, or a tick is over, in monotonic seconds."""
        if self._due_s is None:
            self._due_s = self._next_s()
        return self._due_s

    def _next_s(self) -> float:
        looked_s = self._looked_s
        next_s = looked_s + self._timing.tick_s
        for machine in self._timed:
            due_s = machine.deadline()
            if due_s >= next_s:
                continue
            if due_s <= looked_s:
                # What was due at the last look waits for something else than time.
                due_s = min(next_s, looked_s + REST_S)
            next_s = due_s
        return next_s

    def on_time(self, now: Moment) -> list[Effect]:
        """Do what is due; asked at the beginning of each step, before its event."""
        is_due = now.mono_s >= self._looked_s + PASSING_S
        is_due = is_due or now.mono_s >= self.deadline()
        self._due_s = None  # The event may change it.
        if not is_due:
            return []
        self._looked_s = now.mono_s
        return [] if self._departure.is_done else self._look(now)

    def _look(self, now: Moment) -> list[Effect]:
        effects = self._watch.on_time(now)
        is_reigning = self._election.reign is not None
        effects += self._hints.on_time(now)
        effects += self._links.dial_held(now)
        effects += self._custody.on_time(now, is_reigning=is_reigning)
        asked = self._browsing.on_time(
            now, draw=self._election.draw, is_reigning=is_reigning
        )
        if asked:
            effects += asked + self._hints.redial_all(now)
        effects += self._doubt.on_time(now)
        effects += self._dispatch.on_time(now)
        effects += self._worker.on_time(now)
        if self._election.reign is not None:
            effects += self._on_beat(now)
        return effects

    def _on_beat(self, now: Moment) -> list[Effect]:
        """At each heartbeat, judge the followers, this node's own worker included."""
        if now.mono_s < self._own_beat_s or not self._dispatch.is_reigning:
            return []
        self._own_beat_s = now.mono_s + self._timing.heartbeat_s
        health = self._profile.health(now)
        effects = self._dispatch.on_heartbeat_ok(self._me, health, now)
        effects += self._dispatch.on_beat(now)
        return effects + self._links.judge_followers(now)
