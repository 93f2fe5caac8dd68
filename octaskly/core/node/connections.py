"""What it means for this node that the link to a peer came or went.

Owns the consequences only: `membership` knows the peers, `election` the roles.
"""

from __future__ import annotations

from octaskly.core.effects import Disconnect, Effect, LogLine
from octaskly.core.events import PeerUp
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keys import REVOKED_REASON, KeyringChanged, KeyringEvent
from octaskly.core.node.components import Components
from octaskly.core.protocol.messages import (
    PROTOCOL_PREFIX,
    STOPPING_REASON,
    UNNEEDED_REASON,
    Message,
)


class Connections:
    """The links of one node, and who loses what with one of them."""

    def __init__(self, components: Components) -> None:
        self._me = components.settings.node.id
        self._timing = components.settings.timing
        self._limits = components.settings.limits
        self._peer_table = components.peer_table
        self._address_book = components.peer_table.address_book
        self._log_versions = components.log_versions
        self._roster_builder = components.roster_builder
        self._election = components.election
        self._timeouts = components.timeouts
        self._claim_handlers = components.claim_handlers
        self._anti_entropy = components.anti_entropy
        self._replication = components.replication
        self._catch_up = components.catch_up
        self._dispatcher = components.dispatcher
        self._message_validator = components.message_validator
        self._rotation = components.rotation

    def on_peer_up(self, event: PeerUp, now: Moment) -> list[Effect]:
        """A link is connected; it takes the place of any before it."""
        if event.peer == self._me:
            return []
        effects = self.on_peer_down(event.peer, "replaced", now)
        refusal = self._rotation.link_refusal(event.peer)
        if refusal is not None:
            return [*effects, Disconnect(event.peer, refusal)]
        code = self._message_validator.validate_message(
            event.peer, event.peer_hello, self._election.term
        )
        if code is not None:
            return effects + self._refuse_peer(event.peer, code)
        effects += self._message_validator.check_clock_skew(event)
        effects += self._peer_table.on_peer_up(event, now)
        effects += self._log_versions.on_peer_up(event.peer, event.peer_hello)
        effects += self._rotation.on_peer_up(event.peer)
        self._anti_entropy.drop_peer(event.peer)
        effects += self._claim_handlers.on_peer_up(event, now)
        needed = self.needed_peers()
        if needed and event.peer not in needed:
            effects += self.close_link(event.peer, UNNEEDED_REASON, now)
        return effects

    def on_peer_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """A link ended; a follower's attempts and copies are gone with it."""
        is_revoked = reason == REVOKED_REASON and peer in self._peer_table.peers
        effects = self._rotation.on_own_revocation(peer) if is_revoked else []
        return effects + self._drop_peer(peer, reason, now)

    def _drop_peer(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        view = self._peer_table.on_peer_down(peer, now)
        if view is None:
            return []
        if reason != UNNEEDED_REASON:
            self._replication.discount_node(peer)
        effects: list[Effect] = []
        dispatcher_epoch = self._election.dispatcher_epoch
        if dispatcher_epoch is not None:
            self._catch_up.on_peer_lost(peer, view, reason, now.mono_s)
            if view.followed_epoch == dispatcher_epoch.epoch:
                effects = self._on_follower_lost(
                    peer, reason, now, is_worker=view.is_worker
                )
        return effects + self._on_link_lost(peer, reason, now)

    def _on_link_lost(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """What a peer owed will not come; if it was dispatcher, it may be dead."""
        self._anti_entropy.drop_peer(peer)
        return self._timeouts.on_peer_down(peer, reason, now)

    def force_disconnect(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """End the link to a peer that must not be there; what it had is lost."""
        return [Disconnect(peer, reason), *self._drop_peer(peer, reason, now)]

    def close_link(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Close a link, which is then as lost as one that broke."""
        effects = self._peer_table.disconnect(peer, reason, now)
        return effects + self._on_link_lost(peer, reason, now)

    def reject_invalid(
        self, peer: NodeId, message: Message, now: Moment
    ) -> list[Effect]:
        """End the link to a peer that says what cannot be; nothing if all is well."""
        code = self._message_validator.validate_message(
            peer, message, self._election.term
        )
        if code is None:
            return []
        lost = self.on_peer_down(peer, f"{PROTOCOL_PREFIX}{code}", now)
        return [*self._refuse_peer(peer, code), *lost]

    def drop_silent_followers(self, now: Moment) -> list[Effect]:
        """Give up the followers of this reign that are silent for too long."""
        dispatcher_epoch = self._election.dispatcher_epoch
        assert dispatcher_epoch is not None
        lost_s = (
            self._timing.worker_timeout_s
            * self._election.timeout_scaling.timeout_scale(now)
        )
        effects: list[Effect] = []
        for peer, view in tuple(self._peer_table.followers(dispatcher_epoch.epoch)):
            heard_s = self._election.timeout_scaling.silent_since_s(view.last_frame_s)
            if now.mono_s - heard_s >= lost_s:
                effects += self._peer_table.disconnect(peer, "silent", now)
                self._catch_up.on_peer_lost(peer, view, "silent", now.mono_s)
                self._replication.discount_node(peer)
                effects += self._on_follower_lost(
                    peer, "silent", now, is_worker=view.is_worker
                )
        return effects

    def needed_peers(self) -> frozenset[NodeId]:
        """Return the only nodes worth a link; empty: all are."""
        election = self._election
        if election.attachment is None or election.dispatcher_epoch is not None:
            return frozenset()
        full_mesh_max = self._limits.full_mesh_peers
        return self._roster_builder.needed_links(
            election.dispatcher, self._me, full_mesh_max
        )

    def dial_delayed(self, now: Moment) -> list[Effect]:
        """Dial nodes in sight that are due and still worth a link."""
        if not self._address_book.has_dials:
            return []
        return self._address_book.dial_delayed(self.needed_peers(), now)

    def drop_unneeded_links(self, now: Moment) -> list[Effect]:
        """In a large mesh, keep only the links that a takeover needs."""
        needed = self.needed_peers()
        effects: list[Effect] = []
        for peer, view in tuple(self._peer_table.peers.items()) if needed else ():
            if peer in needed:
                continue
            if view.dispatcher != self._election.dispatcher:
                effects += self._claim_handlers.reject_stale_dispatcher(
                    peer
                )  # It may be about to claim.
            effects += self.close_link(peer, UNNEEDED_REASON, now)
        return effects

    def _refuse_peer(self, peer: NodeId, code: str) -> list[Effect]:
        log_lines = self._message_validator.count_refusal(peer, code)
        return [*log_lines, Disconnect(peer, f"{PROTOCOL_PREFIX}{code}")]

    def _on_follower_lost(
        self, peer: NodeId, reason: str, now: Moment, *, is_worker: bool
    ) -> list[Effect]:
        """A follower of this reign is gone; its attempts may run elsewhere."""
        is_leaving = reason in (STOPPING_REASON, UNNEEDED_REASON, REVOKED_REASON)
        self._roster_builder.on_follower_lost(peer, now, is_leaving=is_leaving)
        self._replication.on_follower_lost(peer, now, is_leaving=is_leaving)
        note = LogLine("info", "peer lost", (("peer", peer), ("reason", reason)))
        if not is_worker:
            return [note]
        return [note, *self._dispatcher.on_worker_down(peer, now)]


class RevocationEnforcer:
    """Ends the links of revoked nodes, and the work of this one if it is one."""

    def __init__(self, components: Components, connections: Connections) -> None:
        self._rotation = components.rotation
        self._worker = components.worker
        self._connections = connections
        self._candidacy = components.candidacy
        self._election = components.election
        self._address_book = components.peer_table.address_book
        self._dispatcher, self._record_writer = (
            components.dispatcher,
            components.record_writer,
        )
        self._block_dials()
        if components.rotation.is_revoked:
            self._candidacy.withdraw()

    def on_keyring_event(self, event: KeyringEvent, now: Moment) -> list[Effect]:
        """Renew the secret, or go by the one that is there now."""
        if not isinstance(event, KeyringChanged):
            return self._rotation.on_rotate_requested(event, now)
        effects = self._rotation.on_keyring_changed(event, now)
        effects += self._close_unwanted_links(now)
        self._rotation.lift_link_refusal()
        self._block_dials()
        availability = self._worker.availability
        if self._rotation.is_revoked and not availability.is_revoked:
            effects += self._worker.set_availability(availability.with_revoked(), now)
            # It is lost to the others, who run it again.
            effects += self._worker.stop_attempts()
            self._candidacy.withdraw()
            effects += self._election.start_discovering("revoked", now)
        return effects

    def on_time(self, now: Moment, *, is_dispatching: bool) -> list[Effect]:
        """Take the step of a rotation that is due."""
        effects = self._close_unwanted_links(now)
        if is_dispatching:
            effects += self._rotation.on_time(now)
        if is_dispatching and self._dispatcher.is_accepting:
            effects += self._record_writer.write_drafts(
                self._rotation.unwritten_confirmations(), now
            )
        return effects

    def _block_dials(self) -> None:
        rotation = self._rotation
        self._address_book.block_nodes(
            rotation.keyring.revoked, blocks_all=rotation.is_revoked
        )

    def _close_unwanted_links(self, now: Moment) -> list[Effect]:
        effects: list[Effect] = []
        for peer, reason in self._rotation.links_to_close(now):
            effects += self._connections.force_disconnect(peer, reason, now)
        return effects
