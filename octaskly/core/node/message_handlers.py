"""What each message of a peer means, and to which machine it goes.

Messages of nodes without a link, and orders that do not fit the sender's role, are
values to ignore or to answer, never errors: a peer may be slow, deposed or wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from octaskly.core.effects import Effect, Send, Written
from octaskly.core.log.facts import CancelAsked, Entry, Finished, Submitted
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import number_of
from octaskly.core.model.ids import Epoch, Moment, NodeId, TaskId
from octaskly.core.model.keys import KeysGiven, KeysHeld, KeysMessage
from octaskly.core.model.nodes import Role
from octaskly.core.node.announcements import Profile
from octaskly.core.node.components import Machines
from octaskly.core.node.connections import Links
from octaskly.core.protocol.messages import (
    Claim,
    ClaimNo,
    ClaimOk,
    Dispatch,
    Entries,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Kill,
    Leave,
    Message,
    Probe,
    ProbeOk,
    Pull,
    Reattach,
    Records,
    Redirect,
    Repl,
    ReplOk,
    Results,
    ResultsOk,
    Roster,
    Snapshot,
    Transfer,
)


class Inbound:
    """The way in for messages of other nodes and of this one."""

    def __init__(
        self,
        machines: Machines,
        profile: Profile,
        links: Links,
    ) -> None:
        self._machines = machines
        self._me = machines.settings.node.id
        self._profile = profile
        self._links = links

    def on_message(self, peer: NodeId, message: Message, now: Moment) -> list[Effect]:
        """Handle one message of a connected peer, or of this node's other half."""
        match message:
            case Heartbeat():
                return self._on_heartbeat(peer, message, now)
            case Dispatch() | Kill() | ResultsOk():
                return self._on_order(peer, message, now)
            case HeartbeatOk() | Results() | Reattach():
                return self._on_news(peer, message, now)
            case Roster() | Repl() | ReplOk() | Transfer() | Records():
                return self._on_log_message(peer, message, now)
            case Pull() | Entries() | Snapshot():
                return self._on_exchange(peer, message, now)
            case Leave(reason):
                return self._links.on_down(peer, reason, now)
            case Hello() | HelloOk():
                return []  # The link has consumed those; a second one means nothing.
            case _:
                return self._on_mesh_message(peer, message, now)

    def _on_mesh_message(
        self,
        peer: NodeId,
        message: Claim | ClaimOk | ClaimNo | Redirect | Probe | ProbeOk | KeysMessage,
        now: Moment,
    ) -> list[Effect]:
        claims = self._machines.claims
        match message:
            case Claim():
                return claims.on_claim(peer, message, now)
            case ClaimOk():
                return claims.on_claim_ok(peer, message)
            case ClaimNo():
                return claims.on_claim_no(peer, message, now)
            case Redirect():
                return claims.on_redirect(peer, message, now)
            case Probe():
                return [Send(peer, (self._probe_ok(message, now),))]
            case ProbeOk():
                return self._machines.watch.on_probe_ok(message)
            case KeysHeld() | KeysGiven():
                return self._machines.rotation.on_message(peer, message)

    def _probe_ok(self, message: Probe, now: Moment) -> ProbeOk:
        """Say how long ago a frame came from the node."""
        about, machines = message.about, self._machines
        age_s = 0.0 if about == self._me else machines.members.age_s(about, now)
        return ProbeOk(about, message.sent_s, age_s, machines.election.epoch)

    def _on_heartbeat(self, peer: NodeId, beat: Heartbeat, now: Moment) -> list[Effect]:
        election = self._machines.election
        effects = self._machines.claims.on_heartbeat(peer, beat.epoch, now)
        if peer != election.dispatcher or beat.epoch != election.epoch:
            return effects
        self._machines.standby.on_heartbeat(beat, now)
        ok = replace(self._profile.health(now), epoch=beat.epoch, sent_s=beat.sent_s)
        return [*effects, Send(peer, (ok,))]

    def _on_exchange(
        self, peer: NodeId, message: Pull | Entries | Snapshot, now: Moment
    ) -> list[Effect]:
        machines = self._machines
        effects: list[Effect] = []
        match message:
            case Pull():
                effects += machines.claims.on_pull(peer, message, now)
                if not machines.versions.reads_ours(peer):
                    # It asked before it heard that a newer program writes here now.
                    return [self._nothing_new(peer, message), *effects]
                return machines.replication.on_pull(peer, message, now) + effects
            case Entries(entries):
                effects += machines.vetting.look_at_clocks(peer, entries, now)
                effects += machines.exchange.on_entries(peer, message)
                machines.dispatch.raise_sequence(highest_sequence(entries))
            case Snapshot(rows=rows):
                effects += machines.exchange.on_snapshot(peer, message)
                ids = (row.record.id for row in rows)
                machines.dispatch.raise_sequence(highest_number(ids))
        if any(isinstance(effect, Written) for effect in effects):
            if over := _over(message):
                machines.journal.after(partial(machines.dispatch.on_overtaken, over))
            if peer == machines.election.dispatcher:
                machines.standby.fall_behind()  # Else it had been streamed.
            effects += machines.election.tell_holdings(peer)
        return effects + machines.claims.on_absorbed()

    def _nothing_new(self, peer: NodeId, asked: Pull) -> Send:
        """Return an answer that gives a peer nothing, so that none is owed to it."""
        ours = self._machines.journal.vector
        both = ((s, min(seq, ours[s])) for s, seq in asked.vector if s in ours)
        return Send(peer, (Entries((), (), more=False, vector=tuple(both)),))

    def _on_log_message(
        self,
        peer: NodeId,
        message: Roster | Repl | ReplOk | Transfer | Records,
        now: Moment,
    ) -> list[Effect]:
        machines = self._machines
        match message:
            case Repl():
                return self._on_repl(peer, message, now)
            case ReplOk():
                return machines.replication.on_repl_ok(peer, message, now)
            case Transfer():
                return machines.claims.on_transfer(peer, message, now)
            case Roster():
                return self._on_roster(peer, message)
            case Records(epoch):
                if self._is_stale(epoch):
                    return machines.claims.correct(peer)
                # Whoever said it: it is true in every reign.
                return machines.clerk.on_told(message)

    def _on_repl(self, peer: NodeId, message: Repl, now: Moment) -> list[Effect]:
        """Keep what the dispatcher appends, unless it is dispatcher no more."""
        machines = self._machines
        election = machines.election
        if peer != election.dispatcher or message.epoch != election.epoch:
            # It may be all the answer that a PULL gets, which is owed no more then.
            machines.exchange.forget(peer)
            machines.standby.miss(message)
            return machines.claims.correct(peer)
        machines.dispatch.raise_sequence(highest_sequence(message.entries))
        effects = machines.vetting.look_at_clocks(peer, message.entries, now)
        effects += machines.standby.on_repl(peer, message, now)
        return effects + machines.claims.on_absorbed()

    def on_quiet(self, now: Moment) -> list[Effect]:
        """Let the queue be read afresh once all entries of others are on disk."""
        machines = self._machines
        dispatch = machines.dispatch
        if dispatch.is_reigning and machines.journal.is_ahead:
            self._hasten(now)
        if dispatch.adoption.is_behind:
            if machines.completeness.has_read_all:
                dispatch.adoption.catch_up()
                return dispatch.on_absorbed(now)
            if machines.completeness.reads_on(now.mono_s):
                dispatch.adoption.hold_on(now)
        if not machines.exchange.take_news(machines.members.peers):
            return []
        return machines.journal.when_durable(machines.dispatch.on_absorbed, now)

    def _hasten(self, now: Moment) -> None:
        """Let standbys have what rows alone say here, if nobody brings the log.

        Alone this node can wait for that longer: it is most of what it holds, maybe.
        """
        machines = self._machines
        if machines.replication.nodes and machines.completeness.has_read_all:
            machines.dispatch.retention.hasten(now)

    def _on_roster(self, peer: NodeId, roster: Roster) -> list[Effect]:
        machines = self._machines
        election = machines.election
        is_own = peer == election.dispatcher and roster.epoch == election.epoch
        if not is_own or len(roster.members) > machines.settings.limits.peers:
            return []
        machines.registry.learn(roster)
        is_standby = machines.registry.role_of(self._me) is Role.STANDBY
        if not is_standby:
            machines.standby.fall_behind()
        crowd = machines.settings.limits.full_mesh_peers
        is_plain = not is_standby and len(roster.members) > crowd
        election.take_rank(is_plain=is_plain)
        machines.candidacy.take_roster(roster)
        return []

    def _on_order(
        self, peer: NodeId, message: Dispatch | Kill | ResultsOk, now: Moment
    ) -> list[Effect]:
        """Hand a dispatcher's message to the worker, and tell a deposed one so."""
        machines = self._machines
        worker = machines.worker
        if isinstance(message, ResultsOk):
            return worker.on_results_ok(message, now)
        if self._is_stale(message.epoch):
            # Rule I7, from the moment a higher epoch is known: the worker hears of
            # it only once it is on disk.
            return machines.claims.correct(peer)
        if isinstance(message, Dispatch):
            return worker.on_dispatch(peer, message, now)
        return worker.on_kill(message, now)

    def _is_stale(self, epoch: Epoch) -> bool:
        return epoch < self._machines.election.epoch

    def _on_news(
        self, peer: NodeId, message: HeartbeatOk | Results | Reattach, now: Moment
    ) -> list[Effect]:
        """Hand a worker's message to the reign that it confirmed."""
        machines = self._machines
        dispatch, view = machines.dispatch, machines.members.peers.get(peer)
        if not dispatch.is_reigning or machines.election.reign is None:
            return []  # The worker keeps its results until somebody reigns.
        if view is not None and view.follows != machines.election.epoch:
            return []  # Said to an earlier reign; it will be said again.
        if view is not None and message.state is not None:
            view.state = message.state
        match message:
            case HeartbeatOk():
                if view is not None:
                    view.health = message
                effects = machines.members.on_moved(peer, message.addresses, now)
                effects += machines.doubt.on_heartbeat_ok(message, now)
                return effects + dispatch.on_heartbeat_ok(peer, message, now)
            case Results():
                if machines.handover.is_under_way:
                    return []  # The successor must not take up a log that still grows.
                return dispatch.on_results(peer, message, now)
            case Reattach():
                return self._on_reattach(peer, message, now)

    def _on_reattach(
        self, peer: NodeId, message: Reattach, now: Moment
    ) -> list[Effect]:
        """Know what a worker runs, once it has told all of it."""
        machines = self._machines
        view = machines.members.peers.get(peer)
        if view is None:
            info = machines.settings.node
        else:
            message = view.joined(message)
            if message.more:
                return []  # What the next part lists is not lost.
            info = view.info
        name = machines.registry.name_of(peer, info.name)
        effects = machines.dispatch.on_worker_up(replace(info, name=name), now)
        if view is not None:
            view.is_worker = True
        return effects + machines.dispatch.on_reattach(peer, message, now)


def _over(news: Pull | Entries | Snapshot) -> tuple[TaskId, ...]:
    """Return the tasks that are over, or tried in vain, by what came from another node.

    How often they were tried decides whether they are tried again.
    """
    match news:
        case Entries(entries):
            facts = (entry.fact for entry in entries)
            return tuple(f.task for f in facts if isinstance(f, Finished | CancelAsked))
        case Snapshot(rows=rows):
            return tuple(row.record.id for row in rows if _was_tried(row.record))
        case Pull():
            return ()


def _was_tried(record: TaskRecord) -> bool:
    return record.state.is_final or any(a.outcome for a in record.attempts)


def highest_sequence(entries: tuple[Entry, ...]) -> int:
    """Return the highest sequence number in ids of submitted tasks, else 0."""
    facts = (entry.fact for entry in entries)
    return highest_number(fact.task for fact in facts if isinstance(fact, Submitted))


def highest_number(ids: Iterable[TaskId]) -> int:
    """Return the highest sequence number in ids of tasks, else 0."""
    return max(map(number_of, ids), default=0)
