"""This node's reign as dispatcher: it accepts tasks and records how they end.

Owns the flow between clients, workers and the log: what is answered, to whom, and
what has to be durable before. Who reigns is decided elsewhere, and how a step becomes
effects in `placing`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from octaskly.core.dispatcher.admission import Acceptance
from octaskly.core.dispatcher.cancellation import Cancelling
from octaskly.core.dispatcher.dependencies import Parents, is_late
from octaskly.core.dispatcher.explain import Explaining
from octaskly.core.dispatcher.outcomes import Recording
from octaskly.core.dispatcher.reconciliation import Adoption
from octaskly.core.dispatcher.records import Clerk
from octaskly.core.dispatcher.retention import Retention
from octaskly.core.dispatcher.step import Placing
from octaskly.core.effects import Announce, Answer, Effect, Send
from octaskly.core.events import (
    CancelRequested,
    FloorPlanned,
    LiveLoaded,
    Loaded,
    RipeLoaded,
    TasksNotified,
    TasksSubmitted,
)
from octaskly.core.log.facts import Notified, Submitted
from octaskly.core.model.ids import Epoch, Moment, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import (
    HeartbeatOk,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.replication.journal import Journal, WhenDurable
from octaskly.core.replication.pending_acks import WhenSafe
from octaskly.core.replication.replication import Replication
from octaskly.core.replies import Accepted, Hopeless, Named, NotDurable, NotHere


class Dispatch:
    """The dispatcher's half of a node; idle while another node reigns.

    Every `Loaded` and `LiveLoaded` must come here, reigning or not: answers to reads
    of an earlier reign are counted off.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        replication: Replication,
        sequence: int,
    ) -> None:
        self._journal = journal
        self._replication = replication
        self._is_strict = settings.is_strict
        self.is_reigning = False
        self.is_accepting = False
        self._placing = Placing(settings.limits, journal, replication)
        self.adoption = Adoption(self._placing, settings.timing.adopt_s)
        self.retention = Retention(
            settings, self._placing, journal, replication.members
        )
        self._queue, self._pool = self._placing.queue, self._placing.pool
        self.ended = self._queue.ended
        self._resting = self._placing.resting
        self._recording = Recording(self._placing, self.adoption)
        self.explaining = Explaining(self._placing)
        self._parents = Parents(self._placing, journal, settings.timing)
        self._acceptance = Acceptance(journal, self._queue, sequence)
        self._cancelling = Cancelling(
            self._placing,
            journal,
            replication,
            self._commit,
            is_strict=self._is_strict,
        )
        self.clerk = Clerk(self._placing, journal, replication, settings)

    # --- The reign.

    def begin(self, epoch: Epoch, stream: StreamId, now: Moment) -> list[Effect]:
        """Reign; the journal's own stream is open."""
        self.is_reigning = self.is_accepting = True
        self.adoption.begin(now)
        self.retention.begin(now)
        self._parents.begin(now)
        return self._placing.begin(epoch, stream) + self._parents.ask(now)

    def end(self) -> None:
        """Reign no more: forget all. What was appended is still acknowledged."""
        self.is_reigning = self.is_accepting = False
        self.adoption.end()
        self._resting.forget()
        self._recording.forget()
        self._placing.end()

    def pause_accepting(self) -> None:
        """Accept and place nothing more, before the reign is handed over."""
        self.is_accepting = self._placing.is_placing = False

    def resume_accepting(self, now: Moment) -> list[Effect]:
        """Accept and place again: nobody took the reign over."""
        if not self.is_reigning:
            return []
        self.is_accepting = self._placing.is_placing = True
        return self._commit(now)

    def raise_sequence(self, sequence: int) -> None:
        """Number new tasks above `sequence`, which another node has used."""
        self._acceptance.raise_sequence(sequence)

    def outstanding(self, node: NodeId) -> int:
        """Return how many attempts the node holds, as far as is known."""
        return self._queue.outstanding(node)

    def deadline(self) -> float:
        """Return when `on_time` has something to do."""
        if not self.is_reigning:
            return math.inf
        return min(
            self.adoption.deadline(),
            self._resting.deadline(),
            self._parents.deadline(),
            self.retention.deadline() if self.is_accepting else math.inf,
        )

    # --- Clients.

    def named(self, suffixes: Iterable[str]) -> Named:
        """Return ids for tasks that may be handed in."""
        return Named(tuple(map(self._acceptance.name, suffixes)))

    def on_submitted(self, event: TasksSubmitted, now: Moment) -> list[Effect]:
        """Accept a batch; the answer waits for its commit, here and at a standby."""
        is_strict = event.is_strict or self._is_strict
        refusal = self._refusal(event, is_strict=is_strict)
        if refusal is not None:
            return [Answer(event.ticket, refusal)]
        specs, fresh = self._acceptance.specs(event, now)
        self._placing.facts += [Submitted(spec) for spec in fresh]
        for spec in fresh if self._placing.forced else ():
            self._placing.forced.pop(spec.id, None)  # Its name may be of one before.
        prompt = [spec for spec in fresh if not is_late(spec)]
        if len(prompt) < len(fresh):
            self._parents.stir()
        is_alone = len(fresh) == len(prompt) == 1 and fresh[0].array is None
        # A worker may have told of it already, if it was handed in to another reign.
        is_alone = is_alone and fresh[0].id not in self._queue.tasks
        if is_alone and not is_strict and self._queue.lanes.is_idle(fresh[0]):
            # It starts while it is committed: that is all the time that an idle mesh
            # takes. See docs/decisions/0014-start-while-committing.md.
            self._placing.touch(self._queue.put(fresh[0]))
        epoch = self._placing.epoch
        # Asked about what is known already, which may be so from rows alone.
        is_sole = not event.drafts and self._journal.is_ahead

        def durable(now: Moment) -> list[Effect]:
            self._acceptance.forget(fresh)
            if not self.is_reigning:
                return []
            if self._placing.epoch == epoch:
                self._queue.admit(prompt)
            else:
                self._queue.reread()
            return self._commit(now)

        def answer(_: Moment, replicas: int) -> list[Effect]:
            replicas = 1 if is_sole else replicas
            if is_strict and replicas == 1:
                return [Answer(event.ticket, NotDurable())]
            return [Answer(event.ticket, Accepted(tuple(specs), replicas))]

        return self._commit(now, durable, answer)

    def _refusal(
        self, event: TasksSubmitted, *, is_strict: bool
    ) -> NotHere | NotDurable | Hopeless | None:
        """Return why a batch is not accepted."""
        if not self.is_accepting:
            return NotHere()
        if is_strict and not self._replication.is_level:
            return NotDurable()
        return self.explaining.hopeless(event.drafts)

    def on_cancel(self, event: CancelRequested, now: Moment) -> list[Effect]:
        """Cancel a task or an array."""
        if not self.is_reigning:
            return [Answer(event.ticket, NotHere())]
        return self._cancelling.on_asked(event, now)

    def on_notified(self, event: TasksNotified, now: Moment) -> list[Effect]:
        """Write who was told, so that a later dispatcher does not do it again."""
        if not self.is_reigning:
            return []
        self._placing.facts += [Notified(task) for task in event.tasks]
        return self._commit(now)

    # --- Workers.

    def on_worker_up(self, info: NodeInfo, now: Moment) -> list[Effect]:
        """Know a follower; it gets work once it has said what it runs."""
        self._pool.add(info)
        self._queue.lanes.new_workers()
        return self._commit(now)

    def on_worker_down(self, node: NodeId, now: Moment) -> list[Effect]:
        """Run elsewhere what the worker held, at once or after the adopt window."""
        were_lost = self.is_reigning and self.adoption.on_down(node, now)
        self._pool.remove(node)
        return self._judge_inputs(now) if were_lost else []

    def on_heartbeat_ok(
        self, node: NodeId, message: HeartbeatOk, now: Moment
    ) -> list[Effect]:
        """Learn how much a worker takes and how busy it is."""
        self._pool.set_load(node, message.load.cpu_percent)
        self._pool.set_credit(node, message.credit)
        # Nearly all say what is known.
        return self._commit(now) if self._pool.freed else []

    def on_beat(self, now: Moment) -> list[Effect]:
        """Place what has waited long enough to have a worker kept for it."""
        return self._commit(now)

    def on_reattach(self, node: NodeId, message: Reattach, now: Moment) -> list[Effect]:
        """Adopt what a worker runs, kill what is void, run again what it lost."""
        if not self.is_reigning:
            return []
        self.adoption.on_reattach(node, message, now)
        self._pool.set_credit(node, message.credit)
        self._pool.attach(node, self.outstanding(node), self._queue.granted(node))
        return self._judge_inputs(now)

    def on_results(self, node: NodeId, message: Results, now: Moment) -> list[Effect]:
        """Record how attempts ended; acknowledge and announce when that is safe."""
        if not self.is_reigning:
            return []  # The worker keeps them and tells the next dispatcher.
        self._pool.set_credit(node, message.credit)
        recording = self._recording
        reports = [r for r in message.reports if not recording.put_off(node, r)]
        when_safe = self._record(node, reports, now)
        return self._commit(now, when_safe=when_safe if reports else None)

    def _record(self, node: NodeId, reports: Sequence[Report], now: Moment) -> WhenSafe:
        """Record how attempts of one worker ended; return what is done when safe."""
        ended = tuple(r.task for r in reports if self._recording.record(node, r, now))
        self._pool.hold(node, self.outstanding(node), self._queue.granted(node))
        if ended:
            self._placing.note_end()
        items = tuple((report.task, report.attempt) for report in reports)
        news: list[Effect] = [Announce(ended)] if ended else []
        ok = Send(node, (ResultsOk(items),))

        def acknowledge(_: Moment, replicas: int) -> list[Effect]:
            # The worker keeps what only this disk holds, if that shall not do, or if
            # there is a successor to tell.
            may_be_alone = self.is_reigning and not self._is_strict
            if replicas == 1 and not may_be_alone:
                return news
            self._recording.acknowledged(items)
            return [ok, *news]

        return acknowledge

    # --- The store and time.

    def on_read(
        self, event: Loaded | LiveLoaded | RipeLoaded | FloorPlanned, now: Moment
    ) -> list[Effect]:
        """Go on with what the store was asked."""
        match event:
            case Loaded():
                return self.on_loaded(event, now)
            case LiveLoaded():
                return self.on_live_loaded(event, now)
            case RipeLoaded():
                return self._parents.on_loaded(event, now) if self.is_reigning else []
            case FloorPlanned():
                may_write = self.is_accepting
                return self.retention.on_planned(event, now, may_write=may_write)

    def on_loaded(self, event: Loaded, now: Moment) -> list[Effect]:
        """Take more of the queue into the window."""
        if not self._queue.loaded(event):
            return []
        self.adoption.overtake_again()
        return self._judge_inputs(now)

    def on_live_loaded(self, event: LiveLoaded, now: Moment) -> list[Effect]:
        """Believe the log about what runs, until the workers are heard."""
        if not self._queue.live_read():
            return []
        self._queue.add_arrays(event.records)  # They count the failures among these:
        # Before its attempts are taken for lost, as their workers list them no more.
        ready = self._recording.take_up(event.records)
        told = [self._record(node, reports, now) for node, reports in ready.items()]
        self._placing.give_up(event.records)
        self.adoption.let_go(event.records)
        for record in event.records:
            self._placing.recall_forced(record)
        for record in event.records:
            if record.spec is not None and record.progress is None:
                self.adoption.believe(record, now)
        self.adoption.overtake_again()

        def acknowledge(now: Moment, replicas: int) -> list[Effect]:
            return [effect for one in told for effect in one(now, replicas)]

        return self._commit(now, when_safe=acknowledge if told else None)

    def on_overtaken(self, over: tuple[TaskId, ...], now: Moment) -> list[Effect]:
        """Begin none of these, and tell who waits: their ends came from elsewhere."""
        if not self.is_reigning:
            return []
        self.adoption.overtake(over)
        self._recording.overtake(over)
        return [Announce(over), *self._commit(now)]

    def on_absorbed(self, now: Moment) -> list[Effect]:
        """Read queue and live tasks again: another node's entries are durable."""
        if not self.is_reigning:
            return []
        self._queue.reread()
        self._queue.seek_waiting()
        self._parents.stir()
        return self._commit(now)

    def on_time(self, now: Moment) -> list[Effect]:
        """Give up the attempts of workers that did not come back in time."""
        if not self.is_reigning:
            return []
        effects = self.retention.on_time(now) if self.is_accepting else []
        effects += self._parents.ask(now)
        if self._resting.deadline() <= now.mono_s:
            self._placing.wake(now)
            effects += self._commit(now)
        if self.adoption.deadline() > now.mono_s:
            return effects
        self.adoption.expire(now)
        return effects + self._judge_inputs(now)

    def _commit(
        self,
        now: Moment,
        when_durable: WhenDurable | None = None,
        when_safe: WhenSafe | None = None,
    ) -> list[Effect]:
        """End the step; then ask for whom its ends were the last to wait for."""
        effects = self._placing.commit(now, when_durable, when_safe)
        return effects + self._parents.ask(now)

    def _judge_inputs(self, now: Moment) -> list[Effect]:
        """Fail the tasks of which every worker lacks an input, and commit."""
        if not self.adoption.is_open:
            self._placing.fail_lacking()
        return self._commit(now)
