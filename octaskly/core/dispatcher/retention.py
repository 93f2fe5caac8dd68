"""When the dispatcher lets the floor rise, and what it writes again before.

The store finds how far it may rise, a bounded step at a time. Tasks below that are
not final are carried: all that is known of them is written again, before the floor.
So are records, see `core.records`, and what this node knows from rows of a snapshot
alone, because their entries did not follow: whoever gave them may never come back, and
no PULL brings rows to others.

Source: docs/explanation/log.md.
"""

from __future__ import annotations

import math

from octaskly.core.dispatcher.step import Placing
from octaskly.core.effects import Answer, Effect, PlanFloor
from octaskly.core.events import FloorPlanned, ForgetAsked
from octaskly.core.log.facts import NO_FLOOR, Floor
from octaskly.core.log.merge import facts_of, join_floors
from octaskly.core.membership.membership import Membership
from octaskly.core.model.hlc import HLC_COUNTER_BITS, hlc_of
from octaskly.core.model.ids import Moment
from octaskly.core.model.settings import Settings
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replies import Forgot

JUMP_MS = 3_600_000  #: most that a wall clock is believed to gain in one reign
STEP_S = 0.1  #: from one step of the floor to the next, while more is old enough
TIGHT_S = 1.0  #: from one look to the next, while there is little room or rows come


class Retention:
    """The floor of one reign."""

    def __init__(
        self,
        settings: Settings,
        placing: Placing,
        journal: Journal,
        members: Membership,
    ) -> None:
        self._retention_ms = round(settings.timing.retention_s * 1000)
        self._period_s = settings.timing.floor_s
        self._tasks_max = settings.limits.retained_tasks
        self._placing = placing
        self._journal = journal
        self._members = members
        self._began = Moment(0.0, 0)
        self._stated: Floor = NO_FLOOR  #: what the own stream says
        self._due_s = 0.0
        self._is_asked = False
        self._floor: Floor = NO_FLOOR  #: when that was
        self._after = 0  #: key down to which tasks ahead of the log are written again
        self._joined = 0  #: number of the last `Join` at the last look
        self._forget_hlc = 0  #: somebody asked to forget what ended before
        self._planned_hlc = 0  #: the same when the store was asked
        self._waiting: dict[int, int] = {}
        """What was forgotten since somebody asked, by the ticket of the question."""

    def begin(self, now: Moment) -> None:
        """Say the floor in the new stream, and look at it again after a while.

        So whatever a stream holds of an id that was used before, the floor that ended
        the earlier task comes first, on whatever way it travels.
        """
        self._stated = NO_FLOOR
        self._forget_hlc = 0
        self._waiting = {}
        self._began = now
        self._after = 0
        self._joined = self._journal.joined
        self._due_s = now.mono_s + self._period_s

    def on_asked(self, event: ForgetAsked, now: Moment) -> None:
        """Forget what ended so long ago, as soon as the store says how."""
        age = event.older_than_s * 1000 << HLC_COUNTER_BITS
        self._forget_hlc = max(self._forget_hlc, self._journal.tick(now) - age)
        self._waiting[event.ticket] = 0
        self._due_s = now.mono_s

    def hasten(self, now: Moment) -> None:
        """Write again what rows alone say: somebody is here to keep it."""
        self._due_s = min(self._due_s, now.mono_s + STEP_S)

    def deadline(self) -> float:
        """Return when `on_time` has something to state or to ask."""
        if self._journal.floor is not self._stated:
            return -math.inf
        return math.inf if self._is_asked else self._due_s

    def on_time(self, now: Moment) -> list[Effect]:
        """State a floor that came from elsewhere; ask the store when it is time."""
        effects: list[Effect] = []
        if self._journal.floor is not self._stated:
            effects += self._state(self._journal.floor, now)
        if self._is_asked or now.mono_s < self._due_s:
            return effects
        seen, self._joined = self._joined, self._journal.joined
        if seen != self._joined and self._journal.is_ahead:
            # More are coming, and in the end nothing may have to be written again. An
            # array would be now, without its members: they come behind all arrays.
            self._after, self._due_s = 0, now.mono_s + TIGHT_S
            return effects
        self._is_asked = True
        self._floor = self._journal.floor
        self._planned_hlc = self._forget_hlc
        ask = PlanFloor(
            hlc_of(self._today_ms(now) - self._retention_ms),
            self._tasks_max,
            self._placing.stream,
            self._after,
            self._forget_hlc,
            self._today_ms(now),
        )
        return [*effects, ask]

    def _today_ms(self, now: Moment) -> int:
        """Return the wall clock by which age is judged: what is forgotten is gone.

        So neither a clock that is ahead of the others nor one that jumps counts.
        """
        passed_ms = round((now.mono_s - self._began.mono_s) * 1000)
        latest_ms = self._began.wall_ms + passed_ms + JUMP_MS
        return min(self._members.earliest_ms(now), latest_ms)

    def on_planned(
        self, event: FloorPlanned, now: Moment, *, may_write: bool
    ) -> list[Effect]:
        """Carry what is still wanted, then raise the floor."""
        self._is_asked = False
        self._due_s = now.mono_s + self._pause_s(event)
        # By a floor that came meanwhile, what is to be carried may be gone.
        if not may_write or self._floor != self._journal.floor:
            if self._waiting:
                self._due_s = now.mono_s + STEP_S
            return []
        facts = self._placing.facts
        for record in event.carried:
            # The envelope last, as that of an array behind its members: who has
            # forgotten the task gets it back with its end, or not at all.
            facts += reversed(facts_of(record))
        facts += event.records
        if event.ahead:
            return self._catch_up(event, now)
        if event.floor is None and event.records:
            self._is_asked = True
            return self._placing.commit(now, self._release)
        if event.floor is None:
            return [] if event.has_more else self._answers()
        # The next step is planned from what this one has made durable.
        self._is_asked = True
        floor = join_floors(self._journal.floor, event.floor)
        for ticket in self._waiting:
            self._waiting[ticket] += event.forgotten

        def durable(now: Moment) -> list[Effect]:
            return self._release(now) + ([] if event.has_more else self._answers())

        return self._state(floor, now, durable)

    def _pause_s(self, event: FloorPlanned) -> float:
        if event.has_more or self._planned_hlc < self._forget_hlc:
            return STEP_S
        return TIGHT_S if event.is_tight else self._period_s

    def _answers(self) -> list[Effect]:
        """Tell whoever asked that it is done, unless more was asked since."""
        if self._planned_hlc < self._forget_hlc:
            return []
        answers = [Answer(t, Forgot(tasks)) for t, tasks in self._waiting.items()]
        self._waiting = {}
        self._forget_hlc = self._planned_hlc = 0
        return list[Effect](answers)

    def _catch_up(self, event: FloorPlanned, now: Moment) -> list[Effect]:
        """Bring the log up to the rows, then say that this is done."""
        journal = self._journal
        self._is_asked = True
        if event.has_more:
            self._after = event.after
            return self._placing.commit(now, self._release)
        self._after = 0
        # The floor, as after all that is carried: so standbys hear that this is done.
        effects = self._state(journal.floor, now)
        # Rows that came meanwhile may lie behind what was read.
        if self._joined == journal.joined:
            effects.append(journal.save(retold=event.ahead))
        return effects + journal.when_durable(self._release, now)

    def _state(
        self, floor: Floor, now: Moment, then: WhenDurable | None = None
    ) -> list[Effect]:
        self._placing.facts.append(self._journal.stated(floor))
        effects = self._placing.commit(now, then)
        self._stated = self._journal.floor
        return effects

    def _release(self, _: Moment) -> list[Effect]:
        self._is_asked = False
        return []
