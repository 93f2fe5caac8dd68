"""Candidacy: the eligibility and rank of a node, and its delay before a claim.

Owns the reasons that bar this node from the role of dispatcher, and the succession
order from the dispatcher's roster.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, LogLine
from octaskly.core.membership.peer import CandidateRank, PeerView, candidate_rank
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.ids import Address, Moment, NodeId
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Hello, Roster
from octaskly.core.replication.journal import Journal

UNREADABLE_LOG_REASON = "a dispatcher cannot read this log"
"""Reason of a claim by a newer program."""


class LogVersions:
    """The log versions of this node's program, of its log, and of the peers' logs."""

    def __init__(
        self, settings: Settings, journal: Journal, peer_table: PeerTable
    ) -> None:
        self._readable = settings.log_version
        self._journal = journal
        self._peer_table = peer_table
        self._newest_heard = (
            journal.log_version
        )  #: newest log version known in the mesh

    @property
    def is_outdated(self) -> bool:
        """Return True if an electable peer reads newer logs than this node can."""
        return self._newest_heard > self._readable and any(
            view.readable_log_version >= self._newest_heard and view.info.electable
            for view in self._peer_table.peers.values()
        )

    def on_peer_up(self, peer: NodeId, hello: Hello) -> list[Effect]:
        """Record a peer's log versions from HELLO; warn if its program is older."""
        self._newest_heard = max(self._newest_heard, hello.log_version)
        effects = self.raise_log_version(hello.log_version)
        if hello.readable_log_version < self._journal.log_version:
            hint = "update the program there: until then it keeps no copies"
            fields = (("peer", peer), ("version", hello.node.version), ("hint", hint))
            effects.append(LogLine("warning", "peer runs an older version", fields))
        return effects

    def on_dispatcher_followed(self, peer: NodeId) -> list[Effect]:
        """Raise the log version to the one that the dispatcher writes."""
        view = self._peer_table.peers.get(peer)
        if view is None:
            return []
        self._newest_heard = max(self._newest_heard, view.readable_log_version)
        return self.raise_log_version(view.readable_log_version)

    def write_own_version(self) -> list[Effect]:
        """Raise the log version to that of this program."""
        return self.raise_log_version(self._readable)

    def raise_log_version(self, version: int) -> list[Effect]:
        """Raise the version of this node's log, unless this program cannot read it."""
        if not self._journal.log_version < version <= self._readable:
            return []
        self._newest_heard = max(self._newest_heard, version)
        return [self._journal.save(log_version=version)]

    def can_read_our_log(self, peer: NodeId) -> bool:
        """Return True if a peer can read this node's log, or is not connected."""
        view = self._peer_table.peers.get(peer)
        return view is None or view.readable_log_version >= self._journal.log_version

    def is_log_readable(self, peer: NodeId) -> bool:
        """Return True if this node can read the log of a connected peer."""
        return self._peer_table.peers[peer].log_version <= self._readable

    def rank_of(self, view: PeerView, now: Moment) -> CandidateRank:
        """Return the rank of a peer: last, if it cannot read the log of this node."""
        rank = view.rank(now)
        return (
            (True, *rank[1:])
            if view.readable_log_version < self._journal.log_version
            else rank
        )


STAGGERED_CLAIMS_MAX = 12  #: all later successors claim at the same time


class Candidacy:
    """This node as a candidate, compared with the peers that it knows."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        peer_table: PeerTable,
        log_versions: LogVersions,
    ) -> None:
        self.successors: dict[NodeId, tuple[Address, ...]] = {}
        """Addresses of each successor, in the order of the roster: best first."""
        self.is_withdrawn = False  #: this node stops or was revoked
        self.is_disk_failing = False  #: a claim would never become durable
        self.is_api_failing = False  #: other nodes could not forward requests here
        self.log_versions = log_versions
        self._absent: set[NodeId] = set()  #: successors with a failed dial
        self._limits = settings.limits
        self._info = settings.node
        self._timing = settings.timing
        self._journal = journal
        self._peer_table = peer_table
        self._started_s: float | None = None

    @property
    def is_failing(self) -> bool:
        """Return True if this node should not be dispatcher while another can."""
        return self.is_disk_failing or self.is_api_failing

    @property
    def is_eligible(self) -> bool:
        """Return True if this node may be dispatcher."""
        is_barred = self.is_withdrawn or self.is_failing
        return self._info.electable and not is_barred

    @property
    def may_succeed(self) -> bool:
        """Return True if this node may claim after the loss of a dispatcher."""
        return self.is_eligible and not self.log_versions.is_outdated

    def start_uptime(self, now: Moment) -> None:
        """Start the uptime now."""
        self._started_s = now.mono_s

    def withdraw(self) -> None:
        """Never claim again."""
        self.is_withdrawn = True

    def set_successors(self, roster: Roster) -> None:
        """Take the succession order from the dispatcher's roster."""
        self._absent.clear()
        self.successors = {
            member.id: member.addresses
            for member in roster.members
            if member.role is not Role.DISPATCHER and member.state is not NodeState.LOST
        }

    def mark_absent(self, node: NodeId) -> bool:
        """Skip a successor after a failed dial; return True if it was not marked yet.

        The next roster clears the mark.
        """
        is_change = node not in self._absent
        self._absent.add(node)
        return is_change

    @property
    def successor_ratio(self) -> float:
        """The number of successors as a multiple of the full-mesh limit, at least 1."""
        return self._limits.full_mesh_ratio(len(self.successors))

    def nodes_claiming_first(self, lost_dispatcher: NodeId) -> list[NodeId]:
        """Return the successors before this node that are not marked absent."""
        earlier: list[NodeId] = []
        for node in self.successors:
            if node == self._info.id:
                break
            is_absent = node in self._absent and node not in self._peer_table.peers
            if node != lost_dispatcher and not is_absent:
                earlier.append(node)
        return earlier

    def uptime_s(self, now: Moment) -> float:
        """Return the seconds since `start_uptime`, or 0 before it."""
        return 0.0 if self._started_s is None else now.mono_s - self._started_s

    def rank(self, now: Moment) -> CandidateRank:
        """Return this node's own rank."""
        size = self._journal.entry_count
        rank = candidate_rank(self._info, size, self.uptime_s(now))
        is_last = self.is_failing or self.log_versions.is_outdated
        return (True, *rank[1:]) if is_last else rank

    def reads_newer_log_than(self, peer: NodeId) -> bool:
        """Return True if this node is eligible and the peer cannot read its log."""
        return self.is_eligible and not self.log_versions.can_read_our_log(peer)

    def count_better_ranked(self, now: Moment) -> int:
        """Return the number of peers that rank before this node.

        A node that has not answered a dial yet counts if its id is lower.
        """
        own_rank, me = self.rank(now), self._info.id
        views = self._peer_table.peers.values()
        better = sum(self.log_versions.rank_of(view, now) < own_rank for view in views)
        return better + sum(
            node < me for node in self._peer_table.address_book.unanswered_nodes()
        )

    def claim_delay_s(self, lost_dispatcher: NodeId, *, is_proven: bool) -> float:
        """Return the delay in seconds before this node claims after better successors.

        Above the full-mesh limit, this node may have no link to a better successor: its
        links were to standbys that were lost with the dispatcher. If the dispatcher's
        process ended, every connected node saw it at the same time. On hosts that run
        many nodes on few cores, nodes notice it later, so the delay grows with the
        number of successors.

        Args:
            lost_dispatcher: The former dispatcher.
            is_proven: True if its process is known to have ended.
        """
        earlier = self.nodes_claiming_first(lost_dispatcher)
        wait_s = min(len(earlier), STAGGERED_CLAIMS_MAX) * self._timing.claim_stagger_s
        peers, address_book = self._peer_table.peers, self._peer_table.address_book
        exceeds_full_mesh = is_proven and self.successor_ratio > 1.0
        if exceeds_full_mesh and any(
            n in peers or address_book.is_dialling(n) for n in earlier
        ):
            wait_s += self._timing.claim_wait_s * self.successor_ratio
        own_size = self._journal.entry_count
        if any(
            view.entry_count > own_size and view.is_candidate for view in peers.values()
        ):
            wait_s += self._timing.claim_wait_s  # The larger log has priority.
        return wait_s
