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
from octaskly.core.node.announcements import SelfDescription
from octaskly.core.node.availability import DiskFailureHandler
from octaskly.core.node.components import Components
from octaskly.core.node.connections import Connections, RevocationEnforcer
from octaskly.core.node.shutdown import Shutdown

POLL_INTERVAL_S = 0.02  #: between two looks that only time causes
COALESCE_S = 0.1  #: after a look the next event is taken for another, to save a wake


class Timers:
    """The times of all machines of one node."""

    def __init__(
        self,
        components: Components,
        self_description: SelfDescription,
        connections: Connections,
        revocation_enforcer: RevocationEnforcer,
        shutdown: Shutdown,
        disk_failure_handler: DiskFailureHandler,
    ) -> None:
        self._me = components.settings.node.id
        self._timing = components.settings.timing
        self._self_description = self_description
        self._connections = connections
        self._revocation_enforcer = revocation_enforcer
        self._shutdown = shutdown
        self._election = components.election
        self._timeouts = components.timeouts
        self._address_book = components.peer_table.address_book
        self._mdns_schedule = components.mdns_schedule
        self._self_fencing = components.self_fencing
        self._dispatcher = components.dispatcher
        self._worker = components.worker
        self._timed_components = (
            components.timeouts,
            components.peer_table.address_book,
            components.mdns_schedule,
            components.replication,
            components.self_fencing,
            components.dispatcher,
            components.worker,
            shutdown,
            disk_failure_handler,
        )
        self._last_poll_s = -math.inf
        self._next_deadline_s: float | None = None  #: None: to be found
        self._next_own_heartbeat_s = 0.0

    def deadline(self) -> float:
        """Return when something is due, or a tick is over, in monotonic seconds."""
        if self._next_deadline_s is None:
            self._next_deadline_s = self._earliest_deadline_s()
        return self._next_deadline_s

    def _earliest_deadline_s(self) -> float:
        last_poll_s = self._last_poll_s
        next_s = last_poll_s + self._timing.tick_s
        for machine in self._timed_components:
            due_s = machine.deadline()
            if due_s >= next_s:
                continue
            if due_s <= last_poll_s:
                # What was due at the last look waits for something else than time.
                due_s = min(next_s, last_poll_s + POLL_INTERVAL_S)
            next_s = due_s
        return next_s

    def on_time(self, now: Moment) -> list[Effect]:
        """Do what is due; asked at the beginning of each step, before its event."""
        is_due = now.mono_s >= self._last_poll_s + COALESCE_S
        is_due = is_due or now.mono_s >= self.deadline()
        self._next_deadline_s = None  # The event may change it.
        if not is_due:
            return []
        self._last_poll_s = now.mono_s
        return [] if self._shutdown.is_done else self._run_due(now)

    def _run_due(self, now: Moment) -> list[Effect]:
        effects = self._timeouts.on_time(now)
        is_dispatching = self._election.dispatcher_epoch is not None
        effects += self._address_book.on_time(now)
        effects += self._connections.dial_delayed(now)
        effects += self._revocation_enforcer.on_time(now, is_dispatching=is_dispatching)
        browse = self._mdns_schedule.on_time(
            now, draw=self._election.draw, is_dispatching=is_dispatching
        )
        if browse:
            effects += browse + self._address_book.redial_all(now)
        effects += self._self_fencing.on_time(now)
        effects += self._dispatcher.on_time(now)
        effects += self._worker.on_time(now)
        if self._election.dispatcher_epoch is not None:
            effects += self._on_own_heartbeat(now)
        return effects

    def _on_own_heartbeat(self, now: Moment) -> list[Effect]:
        """At each heartbeat, judge the followers, this node's own worker included."""
        if now.mono_s < self._next_own_heartbeat_s or not self._dispatcher.is_active:
            return []
        self._next_own_heartbeat_s = now.mono_s + self._timing.heartbeat_s
        health = self._self_description.heartbeat_ok(now)
        effects = self._dispatcher.on_heartbeat_ok(self._me, health, now)
        effects += self._dispatcher.on_own_heartbeat(now)
        return effects + self._connections.drop_silent_followers(now)
