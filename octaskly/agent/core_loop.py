"""The core loop: feeds events to the core and performs its effects in order.

The loop owns the node and never blocks. Store reads run as tasks and return their
results as events. Writes go to the writer thread, and messages to outboxes. A visitor
has no store, so its loop is a plain `StepLoop`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.agent.mesh_secret import MeshSecretHolder
from octaskly.core import effects as ef
from octaskly.core import events as ev
from octaskly.core.log.facts import Assigned
from octaskly.core.log.range_facts import task_entries
from octaskly.core.model.ids import (
    NodeId,
    TaskId,
    is_visitor,
)
from octaskly.core.model.keyring_state import ChangeKeyring, MergeKeyring, SendKeyring
from octaskly.core.model.settings import Limits
from octaskly.core.node.node import Node
from octaskly.core.node.visitor_node import VisitorNode
from octaskly.errors import StoreError
from octaskly.mesh.discovery.discovery import Discovery
from octaskly.mesh.links.transport import Transport
from octaskly.runner.pool.pool import Pool
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.system.log import Logger, LogThrottle, log_line

EVENTS_PER_TURN = 256  #: before asyncio serves sockets and timers again
VISITS_S = 1.0  #: in which tasks that visitors get are one entry of the audit log


N = TypeVar("N", bound=Node | VisitorNode)


class StepLoop(Generic[N]):
    """One node, its inbox and its timer."""

    def __init__(
        self,
        node: N,
        *,
        clock: SystemClock,
        log: Logger,
        on_stopped: Callable[[], None],
    ) -> None:
        self.node = node
        self.is_stopped = False  #: after the transfer and the drain, or after a failure
        self.failure: BaseException | None = None
        self.last_turn_s = 0.0  #: clock at the last step, for the watchdog
        self._clock = clock
        self._log = log
        self._on_stopped = on_stopped
        self._inbox: deque[ev.Event] = deque()
        self._turn_handle: asyncio.Handle | None = None
        self._is_in_turn = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0  #: due time of the timer, on the monotonic clock
        self._performers: dict[type, Callable[[Any], None]] = {}

    def set_notes(
        self, name_nodes: Callable[[ef.LogLine], ef.LogLine] = lambda note: note
    ) -> None:
        """Write lines of the core to the log, with the names of nodes in them."""
        self._notes = LogThrottle(lambda n: log_line(self._log, name_nodes(n)))
        self._performers |= {
            ef.LogLine: self._notes.take,
            ef.Stopped: lambda _: self._stop(),
        }

    def set_performers(self, performers: Mapping[type, Callable[[Any], None]]) -> None:
        """Set what performs each effect; the others are ignored."""
        self._performers |= performers

    def start(self) -> None:
        """Take the first step."""
        self.post(ev.TimerFired(draw=self._clock.draw()))

    def post(self, event: ev.Event) -> None:
        """Queue an event for this or the next turn of the loop."""
        self._inbox.append(event)
        if self._turn_handle is None:
            self._turn_handle = asyncio.get_running_loop().call_soon(self._run_turn)

    def handle(self, event: ev.Event) -> None:
        """Handle an event now, after those already queued; this saves a loop turn.

        Its effects are performed before this returns, unless a turn is under way.
        """
        self._inbox.append(event)
        if not self._is_in_turn:
            self._run_turn()

    def fail(self, error: BaseException) -> None:
        """Stop the node; the process then exits with this error."""
        self.failure = self.failure or error
        self._stop()

    def close(self) -> None:
        """Stop stepping the core and cancel all timers."""
        if self._performers:
            self._notes.close()
        self._performers = {}
        for handle in (self._turn_handle, self._timer):
            if handle is not None:
                handle.cancel()
        self._turn_handle = self._timer = None

    def _run_turn(self) -> None:
        if self._turn_handle is not None:
            self._turn_handle.cancel()
            self._turn_handle = None
        self._is_in_turn = True
        try:
            for _ in range(min(len(self._inbox), EVENTS_PER_TURN)):
                self._step(self._inbox.popleft())
        except Exception as error:  # noqa: BLE001  the boundary: systemd restarts us
            # An invariant is broken, so no further answer could be trusted.
            self.fail(error)
            return
        finally:
            self._is_in_turn = False
        if self._inbox and self._turn_handle is None:
            self._turn_handle = asyncio.get_running_loop().call_soon(self._run_turn)
        self._update_timer()

    def _step(self, event: ev.Event) -> None:
        now = self._clock.now()
        self.last_turn_s = now.mono_s
        for effect in self.node.step(event, now):
            action = self._performers.get(type(effect))
            if action is not None:
                action(effect)

    def _update_timer(self) -> None:
        """Let the timer fire at the node's next deadline, or before it.

        The deadline mostly moves later. The old timer then fires early and is set
        again, which is cheaper on a busy node than a new timer for each step.
        """
        due_s = self.node.deadline()
        if self._timer is not None:
            if self._timer_s <= due_s:
                return
            self._timer.cancel()
        self._timer_s = due_s
        delay_s = max(0.0, due_s - self._clock.now().mono_s)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.node.deadline() > self._clock.now().mono_s:
            self._update_timer()
        else:
            self.handle(ev.TimerFired(draw=self._clock.draw()))

    def _stop(self) -> None:
        self.is_stopped = True
        self._on_stopped()


class CoreLoop(StepLoop[Node]):
    """The node of a member, its inbox and its timer."""

    def __init__(
        self,
        node: Node,
        *,
        clock: SystemClock,
        log: Logger,
        store: Store,
        limits: Limits,
        on_stopped: Callable[[], None],
    ) -> None:
        super().__init__(node, clock=clock, log=log, on_stopped=on_stopped)
        self._store = store
        self._limits = limits
        self._was_size_warned = False  #: True once the log size warning was logged
        self._visits: dict[NodeId, list[TaskId]] = {}
        """Tasks that were given to visitors, which the audit log does not name yet."""
        self._is_noting_visits = False
        self._pulls: dict[NodeId, ef.ServePull] = {}  #: the latest pull of each peer

    def connect(
        self,
        *,
        links: Transport,
        runner: Pool,
        discovery: Discovery,
        gateway: AgentGateway,
        secret_holder: MeshSecretHolder,
        reads: asyncio.TaskGroup,
        on_ended: Callable[[], None],
    ) -> None:
        """Set the components that perform effects. Call this before `start`."""
        store = self._store
        self.set_notes(gateway.view.with_node_names)
        self._links, self._reads, self._on_ended = links, reads, on_ended
        self._performers |= {
            ef.Append: lambda e: self._append_entries(e, gateway),
            ef.StageRows: store.stage_rows,
            ef.MergeRows: store.merge_rows,
            ef.Save: store.save_node_state,
            ef.Send: lambda e: links.send(e.peer, e.messages),
            ef.Dial: lambda e: links.dial(e.node, e.addresses),
            ef.Disconnect: lambda e: links.disconnect(e.peer, e.reason),
            ef.ServePull: self._queue_pull,
            ef.Browse: lambda e: discovery.set_browsing(is_wanted=e.is_wanted),
            ef.Advertise: lambda e: discovery.advertise(
                is_dispatcher=e.is_dispatcher, term=e.term
            ),
            ef.Start: lambda e: runner.start_attempts(e.items, dict(e.holders)),
            ef.Stop: lambda e: runner.stop_attempts(e.items, e.reason),
            ef.ReleaseWaiting: lambda _: runner.release_waiting(),
            ef.Freeze: lambda e: runner.set_frozen(is_frozen=e.is_frozen),
            ef.Spool: lambda e: store.spool_results(e.reports),
            ef.Unspool: lambda e: store.unspool_results(e.items),
            ef.LoadQueued: lambda e: self._read(store.load_queued_tasks(e)),
            ef.LoadLive: lambda e: self._read(store.load_live_tasks(e)),
            ef.LoadTasks: lambda e: self._read(store.load_tasks(e)),
            ef.LoadUnblocked: lambda e: self._read(store.load_unblocked_tasks(e)),
            ef.PlanFloor: lambda e: self._spawn(self._plan_compaction(e)),
            ef.Answer: lambda e: gateway.pending_requests.set_reply(e.ticket, e.reply),
            ef.AnnounceTaskStates: lambda e: self._announce_tasks(e, gateway),
            ef.ApplyRecords: lambda e: gateway.records.on_records(e.records),
            ef.PublishMeshState: lambda e: self._publish_roster(e, gateway),
            ef.SavePeer: lambda e: self._save_peer(e, gateway),
            ef.RenameNode: lambda e: self._rename_node(e, gateway),
            ChangeKeyring: secret_holder.change_keyring,
            SendKeyring: secret_holder.send_keyring,
            MergeKeyring: secret_holder.merge_keyring,
        }

    def _append_entries(self, effect: ef.Append, gateway: AgentGateway) -> None:
        self._store.append_entries(effect.number, effect.entries, effect.epochs)
        gateway.waiters.on_appended(effect.entries, effect.number)
        if gateway.view.has_visitors and gateway.view.is_serving:
            self._note_visits(effect, gateway)

    def _note_visits(self, effect: ef.Append, gateway: AgentGateway) -> None:
        """Have the audit log name the tasks that were given to visitors."""
        for _, fact in task_entries(effect.entries):
            if isinstance(fact, Assigned) and is_visitor(fact.node):
                self._visits.setdefault(fact.node, []).append(fact.task)
        if self._visits and not self._is_noting_visits:
            self._is_noting_visits = True
            self._spawn(self._record_visits(gateway))

    async def _record_visits(self, gateway: AgentGateway) -> None:
        """Write what was given to visitors within a second, together."""
        await asyncio.sleep(VISITS_S)
        visits, self._visits = self._visits, {}
        self._is_noting_visits = False
        for visitor, tasks in visits.items():
            name = gateway.view.name_of(visitor)
            await gateway.audit.record_visit(visitor, name, tasks)

    def _announce_tasks(
        self, effect: ef.AnnounceTaskStates, gateway: AgentGateway
    ) -> None:
        gateway.waiters.on_replicated(effect.tasks)
        self._on_ended()

    def _publish_roster(
        self, effect: ef.PublishMeshState, gateway: AgentGateway
    ) -> None:
        gateway.view.on_published(effect)
        gateway.view.record_epoch_start(self._clock.now(), self.node.last_takeover)
        gateway.waiters.recent.start_epoch(effect.epoch)
        if not gateway.view.is_serving:
            gateway.waiters.end_waits()
        gateway.feed.on_roster_published(effect)
        self._on_ended()

    def _save_peer(self, effect: ef.SavePeer, gateway: AgentGateway) -> None:
        self._store.save_peer(effect.peer, effect.name, effect.addresses)
        if gateway.view.is_serving and effect.peer not in gateway.view.names:
            self._spawn(gateway.audit.record_join(effect.peer, effect.name))
        gateway.view.learn_peer_name(effect.peer, effect.name)

    def _rename_node(self, effect: ef.RenameNode, gateway: AgentGateway) -> None:
        self._store.save_peer(effect.node, effect.name, ())
        gateway.view.rename_node(effect.node, effect.name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._reads.create_task(self._perform(work))

    async def _perform(self, work: Awaitable[None]) -> None:
        """Stop the node if its log cannot be read: the core waits for the answer."""
        try:
            await work
        except StoreError as error:
            self.fail(error)

    def _read(self, answer: Awaitable[ev.Event]) -> None:
        self._spawn(self._post_answer(answer))

    async def _post_answer(self, answer: Awaitable[ev.Event]) -> None:
        """Post the answer of the store to a read."""
        self.post(await answer)

    async def _plan_compaction(self, effect: ef.PlanFloor) -> None:
        planned = await self._store.plan_compaction(effect)
        if planned.is_log_too_large and not self._was_size_warned:
            self._log.warning(
                "log size limit exceeded",
                hint="queued and running tasks are kept; raise --retained-bytes, or"
                " cancel some",
            )
        self._was_size_warned = planned.is_log_too_large
        self.post(planned)

    def _queue_pull(self, pull: ef.ServePull) -> None:
        """Answer a pull request, then only the last of those that arrive meanwhile."""
        is_served = pull.peer in self._pulls
        self._pulls[pull.peer] = pull
        if not is_served:
            self._spawn(self._reply_to_pulls(pull))

    async def _reply_to_pulls(self, pull: ef.ServePull) -> None:
        peer = pull.peer
        try:
            while True:
                packed = await self._store.read_pull_reply(
                    pull, self._limits.pull_bytes
                )
                self._links.send(peer, (packed,))
                if self._pulls[peer] is pull:
                    return
                pull = self._pulls[peer]
        finally:
            del self._pulls[peer]
