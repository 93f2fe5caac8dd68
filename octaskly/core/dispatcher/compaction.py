"""Compaction: raises the compaction floor, after it rewrites the facts that must stay.

The store finds how far the floor may rise, in bounded steps. Tasks below it that are
not final are carried: all their facts are written again before the floor. The same
holds for records (see `core.log.mesh_records`).

Source: docs/explanation/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec.structs import replace

from octaskly.core.dispatcher.step import DispatchStep
from octaskly.core.effects import Answer, Effect, LogLine, PlanFloor
from octaskly.core.events import FloorPlanned, PurgeRequested
from octaskly.core.log.facts import NO_FLOOR, Floor
from octaskly.core.log.merge import facts_of, join_floors
from octaskly.core.model.hlc import HLC_COUNTER_BITS, hlc_of
from octaskly.core.model.ids import (
    STREAMS_KEPT,
    STREAMS_MAX,
    STREAMS_WARN,
    Moment,
)
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import Timer, TimerHeap
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replies import NotDispatching, TasksPurged

CLOCK_GAIN_MS_MAX = 3_600_000  #: most that a wall clock may plausibly gain in one epoch
FLOOR_STEP_S = 0.1  #: from one step of the floor to the next, while more is old enough
SHORT_INTERVAL_S = 1.0  #: from one look to the next, while there is little room


class Compaction:
    """Raises the compaction floor while this node is dispatcher."""

    def __init__(
        self,
        settings: Settings,
        step: DispatchStep,
        journal: Journal,
        earliest_wall_ms: Callable[[Moment], int],
        is_log_complete: Callable[[float], bool],
        timers: TimerHeap,
    ) -> None:
        self._timers = timers
        self._retention_ms = round(settings.timing.retention_s * 1000)
        self._period_s = settings.timing.floor_interval_s
        self._tasks_max = settings.limits.retained_tasks
        self._step = step
        self._journal = journal
        self._earliest_wall_ms = earliest_wall_ms
        self._is_log_complete = is_log_complete
        self._started_at = Moment(0.0, 0)
        self._written_floor: Floor = NO_FLOOR  #: what the own stream says
        self._due_s = 0.0
        self._is_planning = False
        self._floor_at_plan: Floor = NO_FLOOR  #: when that was
        self._has_warned = False  #: of many streams
        self._purge_hlc = 0  #: somebody asked to forget what ended before
        self._planned_purge_hlc = 0  #: the same when the store was asked
        self._purge_requests: dict[int, int] = {}
        """What was forgotten since somebody asked, by the ticket of the question."""

    def start_retention(self, now: Moment) -> None:
        """Say the floor in the new stream, and look at it again after a while.

        So whatever a stream holds of an id that was used before, the floor that ended
        the earlier task comes first, on whatever way it travels.
        """
        self._written_floor = NO_FLOOR
        self._has_warned = False
        self._started_at = now
        # An agent that crashes again and again never reaches the end of the period.
        has_many_streams = len(self._journal.vector) > STREAMS_KEPT
        self._due_s = now.mono_s + (
            FLOOR_STEP_S if has_many_streams else self._period_s
        )
        self.set_timer(now)

    def on_purge_requested(self, event: PurgeRequested, now: Moment) -> None:
        """Forget what ended so long ago, as soon as the store says how."""
        age = event.older_than_s * 1000 << HLC_COUNTER_BITS
        self._purge_hlc = max(
            self._purge_hlc, self._journal.reserve_timestamps(now) - age
        )
        self._purge_requests[event.ticket] = 0
        self._due_s = now.mono_s
        self.set_timer(now)

    def drop_requests(self) -> list[Effect]:
        """Answer at the end of an epoch that the next dispatcher has to be asked."""
        self._purge_hlc = 0
        tickets, self._purge_requests = list(self._purge_requests), {}
        return [Answer(ticket, NotDispatching()) for ticket in tickets]

    def set_timer(self, now: Moment) -> None:
        """Set the timer for what is to be stated or asked; a floor may have come."""
        if self._journal.floor != self._written_floor:
            due_s = now.mono_s
        else:
            due_s = math.inf if self._is_planning else self._due_s
        self._timers.set(Timer.RETENTION, due_s)

    def on_time(self, now: Moment) -> list[Effect]:
        """State a floor that came from elsewhere; ask the store when it is time."""
        effects = self._plan_when_due(now)
        self.set_timer(now)
        return effects

    def _plan_when_due(self, now: Moment) -> list[Effect]:
        effects: list[Effect] = self._warn_of_many_streams()
        if len(self._journal.vector) > STREAMS_MAX:
            # A floor names all streams, and no other node could read so large a floor.
            self._written_floor = self._journal.floor
            self._due_s = now.mono_s + self._period_s
            return effects
        if self._journal.floor != self._written_floor:
            effects += self._write_floor(self._journal.floor, now)
        if self._is_planning or now.mono_s < self._due_s:
            return effects
        self._is_planning = True
        self._floor_at_plan = self._journal.floor
        self._planned_purge_hlc = self._purge_hlc
        ask = PlanFloor(
            hlc_of(self._reference_wall_ms(now) - self._retention_ms),
            self._tasks_max,
            self._step.stream,
            self._purge_hlc,
            self._reference_wall_ms(now),
            self._is_log_complete(now.mono_s),
        )
        return [*effects, ask]

    def _warn_of_many_streams(self) -> list[Effect]:
        """Log a warning, once in an epoch, long before vectors get too large."""
        count = len(self._journal.vector)
        if count <= STREAMS_WARN or self._has_warned:
            return []
        self._has_warned = True
        fields = (
            ("streams", count),
            ("max", STREAMS_MAX),
            (
                "hint",
                "dispatchers change too often: see their logs, and `octaskly forget`",
            ),
        )
        return [LogLine("warning", "log has many streams", fields)]

    def _reference_wall_ms(self, now: Moment) -> int:
        """Return the wall clock by which age is judged: what is forgotten is gone.

        So neither a clock that is ahead of the others nor one that jumps counts.
        """
        passed_ms = round((now.mono_s - self._started_at.mono_s) * 1000)
        latest_ms = self._started_at.wall_ms + passed_ms + CLOCK_GAIN_MS_MAX
        return min(self._earliest_wall_ms(now), latest_ms)

    def on_floor_planned(
        self, event: FloorPlanned, now: Moment, *, may_write: bool
    ) -> list[Effect]:
        """Carry what is still wanted, then raise the floor."""
        effects = self._go_by_plan(event, now, may_write=may_write)
        self.set_timer(now)
        return effects

    def _go_by_plan(
        self, event: FloorPlanned, now: Moment, *, may_write: bool
    ) -> list[Effect]:
        self._is_planning = False
        self._due_s = now.mono_s + self._next_plan_delay_s(event)
        # By a floor that came meanwhile, what is to be carried may be gone.
        if not may_write or self._floor_at_plan != self._journal.floor:
            if self._purge_requests:
                self._due_s = now.mono_s + FLOOR_STEP_S
            return []
        facts = self._step.facts
        for record in event.carried:
            # The envelope last, as that of an array behind its members: who has
            # forgotten the task gets it back with its end, or not at all.
            facts += reversed(facts_of(record))
        facts += event.records
        if event.floor is None and (event.carried or event.records):
            self._is_planning = True
            return self._step.commit_step(now, self._finish_plan)
        if event.floor is None:
            return [] if event.has_more else self._answer_purges()
        # The next step is planned from what this one has made durable.
        self._is_planning = True
        floor = retire(join_floors(self._journal.floor, event.floor), event.floor)
        for ticket in self._purge_requests:
            self._purge_requests[ticket] += event.purged_count
        finish = self._finish_plan if event.has_more else self._finish_plans
        return self._write_floor(floor, now, finish)

    def _next_plan_delay_s(self, event: FloorPlanned) -> float:
        if event.has_more or self._planned_purge_hlc < self._purge_hlc:
            return FLOOR_STEP_S
        return SHORT_INTERVAL_S if event.is_low_on_space else self._period_s

    def _answer_purges(self) -> list[Effect]:
        """Tell whoever asked that it is done, unless more was asked since."""
        if self._planned_purge_hlc < self._purge_hlc:
            return []
        answers = [
            Answer(t, TasksPurged(tasks)) for t, tasks in self._purge_requests.items()
        ]
        self._purge_requests = {}
        self._purge_hlc = self._planned_purge_hlc = 0
        return list[Effect](answers)

    def _write_floor(
        self, floor: Floor, now: Moment, callback: WhenDurable | None = None
    ) -> list[Effect]:
        self._step.facts.append(self._journal.floor_for_own_stream(floor))
        effects = self._step.commit_step(now, callback)
        self._written_floor = self._journal.floor
        return effects

    def _finish_plans(self, now: Moment) -> list[Effect]:
        return self._finish_plan(now) + self._answer_purges()

    def _finish_plan(self, now: Moment) -> list[Effect]:
        self._is_planning = False
        self.set_timer(now)
        return []


def retire(floor: Floor, planned: Floor) -> Floor:
    """Return a floor that retires the streams of a planned one."""
    gone = {stream for stream, _ in planned.retired}
    left = tuple(mark for mark in floor.stream_floors if mark.stream not in gone)
    return replace(floor, stream_floors=left, retired=planned.retired)
