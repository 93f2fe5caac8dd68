"""Connections: accepts, refuses and closes links, and chooses the nodes to dial."""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.effects import Disconnect, Effect, LogLine
from octaskly.core.election.claims import ClaimHandlers
from octaskly.core.election.election import Election
from octaskly.core.election.timeouts import Timeouts
from octaskly.core.events import PeerUp
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.membership.address_book import AddressBook, DialScope
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keyring_state import REVOKED_REASON, KeyringChanged
from octaskly.core.model.settings import Settings
from octaskly.core.node.message_checks import MessageValidator
from octaskly.core.protocol.messages import (
    LEFT_REASON,
    PROTOCOL_PREFIX,
    STOPPED_REASONS,
    UNNEEDED_REASON,
    Message,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.not_found_rule import NotFoundRule
from octaskly.core.replication.replication import Replication
from octaskly.core.worker.worker import Worker


class LinkPolicy:
    """Decides which links this node needs, by its role and the size of the mesh."""

    def __init__(
        self,
        settings: Settings,
        peer_table: PeerTable,
        roster_builder: RosterBuilder,
        election: Election,
    ) -> None:
        self._me = settings.node.id
        self._full_mesh_max = settings.limits.full_mesh_peers
        self._peer_table = peer_table
        self._address_book = peer_table.address_book
        self._roster_builder = roster_builder
        self._election = election

    def needed_peers(self) -> frozenset[NodeId]:
        """Return the only nodes to be linked to; empty: all nodes."""
        election = self._election
        if election.attachment is None or election.dispatcher_epoch is not None:
            return frozenset()
        return self._roster_builder.needed_links(
            election.dispatcher, self._me, self._full_mesh_max
        )

    def unneeded_peers(self) -> list[tuple[NodeId, bool]]:
        """Return the peers whose links no takeover in a large mesh needs.

        The bool is True if the peer follows the same dispatcher as this node.
        """
        needed, dispatcher = self.needed_peers(), self._election.dispatcher
        peers = self._peer_table.peers.items() if needed else ()
        return [
            (peer, view.dispatcher == dispatcher)
            for peer, view in peers
            if peer not in needed
            # A lost peer without a dispatcher may need this node as a relay.
            and (view.dispatcher is not None or self._roster_builder.is_present(peer))
        ]

    def is_unneeded(self, peer: NodeId) -> bool:
        """Return True if no takeover in a large mesh needs the new link of a peer.

        The roster may be older than the peer's loss, so it is not asked.
        """
        needed, view = self.needed_peers(), self._peer_table.peers.get(peer)
        follows = view is not None and view.dispatcher is not None
        return bool(needed) and peer not in needed and follows

    def dial_delayed(self, now: Moment) -> list[Effect]:
        """Dial discovered nodes that are due and still needed."""
        if not self._address_book.has_dials:
            return []
        return self._address_book.dial_delayed(self.needed_peers(), now)

    def dial_absent_members(self, now: Moment) -> list[Effect]:
        """Dial the members of the mesh that are not connected.

        If many members saw the dispatcher's process end, they dial too, so dials are
        delayed.
        """
        roster, was_silent = self._roster_builder.roster, self._election.loss.was_silent
        are_dialling = self._election.has_many_successors and not was_silent
        effects: list[Effect] = []
        for member in () if roster is None else roster.members:
            if member.id in self._peer_table.peers:
                continue
            if are_dialling:
                self._address_book.dial_node_later(member.id, member.addresses, now)
            else:
                effects += self._address_book.dial_node(
                    member.id, member.addresses, now
                )
        return effects

    def update_dial_scope(self) -> None:
        """Set the dial scope that fits this node's role."""
        election = self._election
        if election.dispatcher_epoch is not None:
            scope = DialScope.EVERYBODY
        elif election.attachment is not None or election.is_mass_succession:
            scope = DialScope.NOBODY
        else:
            scope = DialScope.FIRST_RANKED
        self._address_book.set_dial_scope(scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLoss:
    """Informs the components of a lost peer."""

    address_book: AddressBook
    roster_builder: RosterBuilder
    election: Election
    timeouts: Timeouts
    anti_entropy: AntiEntropy
    replication: Replication
    not_found_rule: NotFoundRule
    dispatcher: Dispatcher

    def on_peer_lost(
        self, peer: NodeId, view: PeerView, reason: str, now: Moment
    ) -> list[Effect]:
        """Handle the end of a link, after its removal from the peer table."""
        self.forget_peer(peer, is_lost=reason != UNNEEDED_REASON)
        effects: list[Effect] = []
        if reason == LEFT_REASON:  # Its id never comes back.
            effects += self.roster_builder.release_name(peer, "left")
            self.address_book.forget_node(peer)
        dispatcher_epoch = self.election.dispatcher_epoch
        if dispatcher_epoch is not None:
            self.not_found_rule.on_peer_lost(peer, view, reason, now.mono_s)
            if view.followed_epoch == dispatcher_epoch.epoch:
                effects += self._on_follower_lost(peer, view, reason, now)
            self.dispatcher.forget_worker(peer)  # Perhaps it never attached.
        return effects + self.timeouts.on_peer_down(peer, reason, now)

    def forget_peer(self, peer: NodeId, *, is_lost: bool = True) -> None:
        """Await no entries of a peer without a link, and no copies if it is lost."""
        if is_lost:
            self.replication.discount_node(peer)
        self.anti_entropy.drop_peer(peer)

    def _on_follower_lost(
        self, peer: NodeId, view: PeerView, reason: str, now: Moment
    ) -> list[Effect]:
        """Handle the loss of a follower; its attempts may run on other nodes."""
        is_leaving = reason in (*STOPPED_REASONS, UNNEEDED_REASON, REVOKED_REASON)
        self.roster_builder.on_follower_lost(peer, now, is_leaving=is_leaving)
        self.replication.on_follower_lost(peer, now, is_leaving=is_leaving)
        note = LogLine("info", "peer lost", (("peer", peer), ("reason", reason)))
        if not view.is_worker:
            return [note]
        return [note, *self.dispatcher.on_worker_down(peer, now)]


class Connections:
    """The links of one node, from HELLO to their end."""

    def __init__(
        self,
        peer_table: PeerTable,
        message_validator: MessageValidator,
        rotation: KeyRotation,
        claim_handlers: ClaimHandlers,
        peer_loss: PeerLoss,
        link_policy: LinkPolicy,
    ) -> None:
        self._peer_table = peer_table
        self._message_validator = message_validator
        self._rotation = rotation
        self._claim_handlers = claim_handlers
        self._peer_loss = peer_loss
        self._link_policy = link_policy

    def on_peer_up(self, event: PeerUp, term: int, now: Moment) -> list[Effect]:
        """Accept or refuse a new link; it replaces an earlier one.

        Args:
            event: The HELLOs of both sides.
            term: The highest term seen.
            now: Both clocks.
        """
        effects = self.drop_peer(event.peer, "replaced", now)
        refusal = self._rotation.link_refusal(event.peer)
        if refusal is not None:
            return [*effects, Disconnect(event.peer, refusal)]
        code = self._message_validator.validate_message(
            event.peer, event.peer_hello, term
        )
        if code is not None:
            return effects + self._refuse_peer(event.peer, code)
        effects += self._message_validator.check_clock_skew(event)
        effects += self._peer_table.on_peer_up(event, now)
        effects += self._rotation.on_peer_up(event.peer, now)
        effects += self._claim_handlers.on_peer_up(event, now)
        if self._link_policy.is_unneeded(event.peer):
            effects += self.close_link(event.peer, UNNEEDED_REASON, now)
        return effects

    def on_peer_down(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Remove a peer after the end of its link or its Leave."""
        is_revoked = reason == REVOKED_REASON and peer in self._peer_table.peers
        effects = self._rotation.on_own_revocation(peer) if is_revoked else []
        return effects + self.drop_peer(peer, reason, now)

    def drop_peer(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Remove a peer whose link ended."""
        view = self._peer_table.on_peer_down(peer, now)
        if view is None:
            return []
        return self._peer_loss.on_peer_lost(peer, view, reason, now)

    def forget_closed(self) -> None:
        """Await nothing of the peers whose links were closed as they are lost."""
        for peer in self._peer_table.pop_closed():
            self._peer_loss.forget_peer(peer)

    def close_link(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Close a link and remove the peer, as for a broken link."""
        return [Disconnect(peer, reason), *self.drop_peer(peer, reason, now)]

    def close_unneeded_links(self, now: Moment) -> list[Effect]:
        """In a large mesh, close the links that no takeover needs."""
        effects: list[Effect] = []
        for peer, is_follower in self._link_policy.unneeded_peers():
            if not is_follower:  # It may be about to claim.
                effects += self._claim_handlers.reject_stale_dispatcher(peer)
            effects += self.close_link(peer, UNNEEDED_REASON, now)
        return effects

    def reject_invalid(
        self, peer: NodeId, message: Message, term: int, now: Moment
    ) -> list[Effect]:
        """Close the link to a peer that sent an invalid message."""
        code = self._message_validator.validate_message(peer, message, term)
        if code is None:
            return []
        lost = self.drop_peer(peer, f"{PROTOCOL_PREFIX}{code}", now)
        return [*self._refuse_peer(peer, code), *lost]

    def _refuse_peer(self, peer: NodeId, code: str) -> list[Effect]:
        log_lines = self._message_validator.count_refusal(peer, code)
        return [*log_lines, Disconnect(peer, f"{PROTOCOL_PREFIX}{code}")]


class RevocationEnforcer:
    """Excludes revoked nodes: closes links to them, and blocks dials.

    If this node is revoked, it stops all its roles.
    """

    def __init__(
        self,
        rotation: KeyRotation,
        connections: Connections,
        address_book: AddressBook,
        election: Election,
        worker: Worker,
    ) -> None:
        self._rotation = rotation
        self._connections = connections
        self._address_book = address_book
        self._election = election
        self._worker = worker

    def on_keyring_changed(self, event: KeyringChanged, now: Moment) -> list[Effect]:
        """Apply a changed keyring to links, dials and the roles of this node."""
        effects = self._rotation.on_keyring_changed(event, now)
        effects += self.close_unwanted_links(now)
        self._rotation.lift_link_refusal()
        self.block_dials()
        availability = self._worker.availability
        if self._rotation.is_revoked and not availability.is_revoked:
            effects += self._worker.set_availability(availability.with_revoked(), now)
            # The other nodes count these attempts as lost and run them again.
            effects += self._worker.stop_attempts()
            self._election.withdraw()
            effects += self._election.start_discovering("revoked", now)
        return effects

    def on_time(self, now: Moment) -> list[Effect]:
        """Close the links of peers that did not get the new secret in time."""
        effects = self.close_unwanted_links(now)
        self._rotation.set_timer(now)
        return effects

    def close_unwanted_links(self, now: Moment) -> list[Effect]:
        """Close the links of revoked nodes, and of nodes with an ended secret."""
        effects: list[Effect] = []
        for peer, reason in self._rotation.links_to_close(now):
            effects += self._connections.close_link(peer, reason, now)
        return effects

    def block_dials(self) -> None:
        """Block dials to revoked nodes; block all dials if this node is revoked."""
        rotation = self._rotation
        self._address_book.block_nodes(
            rotation.keyring.revoked, blocks_all=rotation.is_revoked
        )
