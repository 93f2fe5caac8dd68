"""Connections: accepts, refuses and closes links, and chooses the nodes to dial."""

from __future__ import annotations

from collections.abc import Callable

from octaskly.core.effects import Disconnect, Effect
from octaskly.core.election.claims import ClaimHandlers
from octaskly.core.election.election import Election
from octaskly.core.events import PeerUp
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.membership.address_book import AddressBook, DialScope
from octaskly.core.membership.peer import PeerView
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.keyring_state import KeyringChanged
from octaskly.core.model.settings import Settings
from octaskly.core.node.message_checks import MessageValidator
from octaskly.core.protocol.messages import PROTOCOL_PREFIX, Message

OnPeerLost = Callable[[NodeId, PeerView, str, Moment], list[Effect]]
"""Informs the components of a lost peer; the string is the reason."""


class Connections:
    """The links of one node, from HELLO to their end."""

    def __init__(
        self,
        peer_table: PeerTable,
        message_validator: MessageValidator,
        rotation: KeyRotation,
        claim_handlers: ClaimHandlers,
        on_peer_lost: OnPeerLost,
    ) -> None:
        self._peer_table = peer_table
        self._message_validator = message_validator
        self._rotation = rotation
        self._claim_handlers = claim_handlers
        self._on_peer_lost = on_peer_lost

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
        return effects + self._claim_handlers.on_peer_up(event, now)

    def drop_peer(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Remove a peer whose link ended."""
        view = self._peer_table.on_peer_down(peer, now)
        return [] if view is None else self._on_peer_lost(peer, view, reason, now)

    def close_link(self, peer: NodeId, reason: str, now: Moment) -> list[Effect]:
        """Close a link and remove the peer, as for a broken link."""
        return [Disconnect(peer, reason), *self.drop_peer(peer, reason, now)]

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

    def unneeded_peers(self) -> list[tuple[NodeId, PeerView]]:
        """Return the peers whose links no takeover in a large mesh needs."""
        needed = self.needed_peers()
        peers = self._peer_table.peers.items() if needed else ()
        return [(peer, view) for peer, view in peers if peer not in needed]

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


class RevocationEnforcer:
    """Closes links to nodes that the keyring excludes, and blocks dials to them."""

    def __init__(
        self, rotation: KeyRotation, connections: Connections, address_book: AddressBook
    ) -> None:
        self._rotation = rotation
        self._connections = connections
        self._address_book = address_book

    def on_keyring_changed(self, event: KeyringChanged, now: Moment) -> list[Effect]:
        """Apply a changed keyring to links and dials."""
        effects = self._rotation.on_keyring_changed(event, now)
        effects += self.close_unwanted_links(now)
        self._rotation.lift_link_refusal()
        self.block_dials()
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
