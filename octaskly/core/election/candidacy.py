"""Whether a node may reign, how it ranks, and how long others go before it.

Owns what keeps a node from reigning, and the line of succession that its dispatcher
gave out.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, LogLine
from octaskly.core.membership.membership import PeerTable
from octaskly.core.membership.peer import CandidateRank, PeerView, candidate_rank
from octaskly.core.model.ids import Address, Moment, NodeId, count_entries
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Hello, Roster
from octaskly.core.replication.journal import Journal

UNREADABLE_LOG_REASON = (
    "a dispatcher cannot read this log"  #: why a newer program claims
)


class LogVersions:
    """What this node can read, what it holds, and what it has heard of."""

    def __init__(
        self, settings: Settings, journal: Journal, peer_table: PeerTable
    ) -> None:
        self._readable = settings.log_version
        self._journal = journal
        self._peer_table = peer_table
        self._newest_heard = (
            journal.log_version
        )  #: of the logs of the mesh, as far as heard

    @property
    def is_outdated(self) -> bool:
        """Whether a peer could reign that reads what this node cannot."""
        return self._newest_heard > self._readable and any(
            view.readable_log_version >= self._newest_heard and view.info.electable
            for view in self._peer_table.peers.values()
        )

    def on_peer_up(self, peer: NodeId, hello: Hello) -> list[Effect]:
        """Take in what a peer says of its program and its log."""
        self._newest_heard = max(self._newest_heard, hello.log_version)
        effects = self.raise_log_version(hello.log_version)
        if hello.readable_log_version < self._journal.log_version:
            hint = "update the program there: until then it keeps no copies"
            fields = (("peer", peer), ("version", hello.node.version), ("hint", hint))
            effects.append(LogLine("warning", "program of a peer is older", fields))
        return effects

    def on_dispatcher_followed(self, peer: NodeId) -> list[Effect]:
        """Expect the log to be of the version that its dispatcher writes."""
        view = self._peer_table.peers.get(peer)
        if view is None:
            return []
        self._newest_heard = max(self._newest_heard, view.readable_log_version)
        return self.raise_log_version(view.readable_log_version)

    def write_own_version(self) -> list[Effect]:
        """Write in the version of this program from now on."""
        return self.raise_log_version(self._readable)

    def raise_log_version(self, version: int) -> list[Effect]:
        """Entries of a version may come here, if this program can read them."""
        if not self._journal.log_version < version <= self._readable:
            return []
        self._newest_heard = max(self._newest_heard, version)
        return [self._journal.save(log_version=version)]

    def can_read_our_log(self, peer: NodeId) -> bool:
        """Whether a peer can read the log of this node, as far as is known."""
        view = self._peer_table.peers.get(peer)
        return view is None or view.readable_log_version >= self._journal.log_version

    def is_log_readable(self, peer: NodeId) -> bool:
        """Whether this node can read the log of a connected peer."""
        return self._peer_table.peers[peer].log_version <= self._readable

    def rank_of(self, view: PeerView, now: Moment) -> CandidateRank:
        """Return the rank of a peer: last, if it cannot read the log of this node."""
        rank = view.rank(now)
        return (
            (True, *rank[1:])
            if view.readable_log_version < self._journal.log_version
            else rank
        )


STAGGERED_CLAIMS_MAX = 12  #: successors beyond this many claim at the same time


class Candidacy:
    """One node as a candidate, beside the others that it knows."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        peer_table: PeerTable,
        log_versions: LogVersions,
    ) -> None:
        self.successors: dict[NodeId, tuple[Address, ...]] = {}
        """From the roster, best first, with where to dial them."""
        self.is_withdrawn = False  #: it stops, or was revoked: it claims no more
        self.is_disk_failing = False  #: so a claim would never be durable
        self.log_versions = log_versions
        self._absent: set[NodeId] = set()  #: successors that a dial did not find
        self._limits = settings.limits
        self._info = settings.node
        self._timing = settings.timing
        self._journal = journal
        self._peer_table = peer_table
        self._started_s: float | None = None

    @property
    def is_eligible(self) -> bool:
        """Whether this node may reign at all."""
        is_barred = self.is_withdrawn or self.is_disk_failing
        return self._info.electable and not is_barred

    @property
    def may_succeed(self) -> bool:
        """Whether this node may claim in place of a dispatcher that is gone."""
        return self.is_eligible and not self.log_versions.is_outdated

    def start_uptime(self, now: Moment) -> None:
        """Count the uptime from now on."""
        self._started_s = now.mono_s

    def withdraw(self) -> None:
        """Claim no more, for good."""
        self.is_withdrawn = True

    def set_disk_failing(self, *, is_failing: bool) -> bool:
        """Note how the disk is; return whether that is news."""
        is_change = is_failing != self.is_disk_failing
        self.is_disk_failing = is_failing
        return is_change

    def set_successors(self, roster: Roster) -> None:
        """Know who would succeed the dispatcher whose roster this is."""
        self._absent.clear()
        self.successors = {
            member.id: member.addresses
            for member in roster.members
            if member.role is not Role.DISPATCHER and member.state is not NodeState.LOST
        }

    def mark_absent(self, node: NodeId) -> bool:
        """A dial found nobody there, who goes before nobody then; return if it is news.

        It is no more once the next roster came.
        """
        is_change = node not in self._absent
        self._absent.add(node)
        return is_change

    @property
    def successor_ratio(self) -> float:
        """How crowded the line of succession is, whoever of it is met."""
        return self._limits.full_mesh_ratio(len(self.successors))

    def nodes_claiming_first(self, lost_dispatcher: NodeId) -> list[NodeId]:
        """Return who may claim before this node, as far as nobody proved absent."""
        earlier: list[NodeId] = []
        for node in self.successors:
            if node == self._info.id:
                break
            is_absent = node in self._absent and node not in self._peer_table.peers
            if node != lost_dispatcher and not is_absent:
                earlier.append(node)
        return earlier

    def uptime_s(self, now: Moment) -> float:
        """Return the seconds since the first step."""
        return 0.0 if self._started_s is None else now.mono_s - self._started_s

    def rank(self, now: Moment) -> CandidateRank:
        """Return this node's own rank."""
        size = count_entries(self._journal.vector.items())
        rank = candidate_rank(self._info, size, self.uptime_s(now))
        is_last = self.is_disk_failing or self.log_versions.is_outdated
        return (True, *rank[1:]) if is_last else rank

    def reads_newer_log_than(self, peer: NodeId) -> bool:
        """Whether this node may reign, and that peer cannot read its log."""
        return self.is_eligible and not self.log_versions.can_read_our_log(peer)

    def count_better_ranked(self, now: Moment) -> int:
        """Return how many peers rank before this node, or may once they are met."""
        own_rank, me = self.rank(now), self._info.id
        views = self._peer_table.peers.values()
        better = sum(self.log_versions.rank_of(view, now) < own_rank for view in views)
        return better + sum(
            node < me for node in self._peer_table.address_book.unanswered_nodes()
        )

    def claim_delay_s(self, lost_dispatcher: NodeId, *, is_proven: bool) -> float:
        """Return how long others may claim before this node, as the roster has them.

        In a crowd this node may have a link to none of them, as those that it had were
        to standbys that died with the dispatcher. Whom it meets then, or is about to,
        saw the same at the same time, if a process ended; where many share few cores
        it is slow to notice, and gets more time, the more there are.

        Args:
            lost_dispatcher: The dispatcher that was.
            is_proven: Its process ended.
        """
        earlier = self.nodes_claiming_first(lost_dispatcher)
        wait_s = min(len(earlier), STAGGERED_CLAIMS_MAX) * self._timing.claim_stagger_s
        peers, address_book = self._peer_table.peers, self._peer_table.address_book
        exceeds_full_mesh = is_proven and self.successor_ratio > 1.0
        if exceeds_full_mesh and any(
            n in peers or address_book.is_dialling(n) for n in earlier
        ):
            wait_s += self._timing.claim_wait_s * self.successor_ratio
        own_size = count_entries(self._journal.vector.items())
        if any(
            count_entries(view.vector.items()) > own_size and view.is_candidate
            for view in peers.values()
        ):
            wait_s += self._timing.claim_wait_s  # A fuller log goes first.
        return wait_s
