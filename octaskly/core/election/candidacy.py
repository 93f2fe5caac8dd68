"""Whether a node may reign, how it ranks, and how long others go before it.

Owns what keeps a node from reigning, and the line of succession that its dispatcher
gave out.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from octaskly.core.effects import Effect, Note
from octaskly.core.membership.membership import Membership
from octaskly.core.membership.peer import PeerView, Standing, standing
from octaskly.core.model.ids import Address, Moment, NodeId, log_size
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Hello, Roster
from octaskly.core.replication.journal import Journal

UNREADABLE = "a dispatcher cannot read this log"  #: why a newer program claims


class Versions:
    """What this node can read, what it holds, and what it has heard of."""

    def __init__(
        self, settings: Settings, journal: Journal, members: Membership
    ) -> None:
        self._reads = settings.log_version
        self._journal = journal
        self._members = members
        self._newest = journal.version  #: of the logs of the mesh, as far as heard

    @property
    def is_outdated(self) -> bool:
        """Whether a peer could reign that reads what this node cannot."""
        return self._newest > self._reads and any(
            view.reads >= self._newest and view.info.electable
            for view in self._members.peers.values()
        )

    def on_up(self, peer: NodeId, hello: Hello) -> list[Effect]:
        """Take in what a peer says of its program and its log."""
        self._newest = max(self._newest, hello.log_version)
        effects = self.hold(hello.log_version)
        if hello.reads < self._journal.version:
            hint = "update the program there: until then it keeps no copies"
            fields = (("peer", peer), ("version", hello.node.version), ("hint", hint))
            effects.append(Note("warning", "program of a peer is older", fields))
        return effects

    def on_followed(self, peer: NodeId) -> list[Effect]:
        """Expect the log to be of the version that its dispatcher writes."""
        view = self._members.peers.get(peer)
        if view is None:
            return []
        self._newest = max(self._newest, view.reads)
        return self.hold(view.reads)

    def on_claim(self) -> list[Effect]:
        """Write in the version of this program from now on."""
        return self.hold(self._reads)

    def hold(self, version: int) -> list[Effect]:
        """Entries of a version may come here, if this program can read them."""
        if not self._journal.version < version <= self._reads:
            return []
        self._newest = max(self._newest, version)
        return [self._journal.save(log_version=version)]

    def reads_ours(self, peer: NodeId) -> bool:
        """Whether a peer can read the log of this node, as far as is known."""
        view = self._members.peers.get(peer)
        return view is None or view.reads >= self._journal.version

    def is_readable(self, peer: NodeId) -> bool:
        """Whether this node can read the log of a connected peer."""
        return self._members.peers[peer].log_version <= self._reads

    def rank(self, view: PeerView, now: Moment) -> Standing:
        """Return the rank of a peer: last, if it cannot read the log of this node."""
        rank = view.standing(now)
        return (True, *rank[1:]) if view.reads < self._journal.version else rank


STAGGER_MAX = 12  #: successors beyond this many claim at the same time


class Candidacy:
    """One node as a candidate, beside the others that it knows."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        members: Membership,
        versions: Versions,
    ) -> None:
        self.successors: dict[NodeId, tuple[Address, ...]] = {}
        """From the roster, best first, with where to dial them."""
        self.is_withdrawn = False  #: it stops, or was revoked: it claims no more
        self.is_disk_failing = False  #: so a claim would never be durable
        self.versions = versions
        self._absent: set[NodeId] = set()  #: successors that a dial did not find
        self._limits = settings.limits
        self._info = settings.node
        self._timing = settings.timing
        self._journal = journal
        self._members = members
        self._born_s: float | None = None

    @property
    def is_fit(self) -> bool:
        """Whether this node may reign at all."""
        is_barred = self.is_withdrawn or self.is_disk_failing
        return self._info.electable and not is_barred

    @property
    def may_succeed(self) -> bool:
        """Whether this node may claim in place of a dispatcher that is gone."""
        return self.is_fit and not self.versions.is_outdated

    def start(self, now: Moment) -> None:
        """Count the uptime from now on."""
        self._born_s = now.mono_s

    def withdraw(self) -> None:
        """Claim no more, for good."""
        self.is_withdrawn = True

    def take_disk(self, *, is_failing: bool) -> bool:
        """Note how the disk is; return whether that is news."""
        is_news = is_failing != self.is_disk_failing
        self.is_disk_failing = is_failing
        return is_news

    def take_roster(self, roster: Roster) -> None:
        """Know who would succeed the dispatcher whose roster this is."""
        self._absent.clear()
        self.successors = {
            member.id: member.addresses
            for member in roster.members
            if member.role is not Role.DISPATCHER and member.state is not NodeState.LOST
        }

    def miss(self, node: NodeId) -> bool:
        """A dial found nobody there, who goes before nobody then; return if it is news.

        It is no more once the next roster came.
        """
        is_news = node not in self._absent
        self._absent.add(node)
        return is_news

    @property
    def crowding_in_line(self) -> float:
        """How crowded the line of succession is, whoever of it is met."""
        return self._limits.crowding(len(self.successors))

    def before(self, gone: NodeId) -> list[NodeId]:
        """Return who may claim before this node, as far as nobody proved absent."""
        found: list[NodeId] = []
        for node in self.successors:
            if node == self._info.id:
                break
            is_absent = node in self._absent and node not in self._members.peers
            if node != gone and not is_absent:
                found.append(node)
        return found

    def uptime_s(self, now: Moment) -> float:
        """Return the seconds since the first step."""
        return 0.0 if self._born_s is None else now.mono_s - self._born_s

    def standing(self, now: Moment) -> Standing:
        """Return this node's own rank."""
        size = log_size(self._journal.vector.items())
        rank = standing(self._info, size, self.uptime_s(now))
        is_last = self.is_disk_failing or self.versions.is_outdated
        return (True, *rank[1:]) if is_last else rank

    def outreads(self, peer: NodeId) -> bool:
        """Whether this node may reign, and that peer cannot read its log."""
        return self.is_fit and not self.versions.reads_ours(peer)

    def count_better(self, now: Moment) -> int:
        """Return how many peers rank before this node, or may once they are met."""
        mine, me = self.standing(now), self._info.id
        views = self._members.peers.values()
        better = sum(self.versions.rank(view, now) < mine for view in views)
        return better + sum(node < me for node in self._members.hints.awaited())

    def wait_s(self, gone: NodeId, *, is_proven: bool) -> float:
        """Return how long others may claim before this node, as the roster has them.

        In a crowd this node may have a link to none of them, as those that it had were
        to standbys that died with the dispatcher. Whom it meets then, or is about to,
        saw the same at the same time, if a process ended; where many share few cores
        it is slow to notice, and gets more time, the more there are.

        Args:
            gone: The dispatcher that was.
            is_proven: Its process ended.
        """
        before = self.before(gone)
        wait_s = min(len(before), STAGGER_MAX) * self._timing.stagger_s
        peers, hints = self._members.peers, self._members.hints
        is_crowd = is_proven and self.crowding_in_line > 1.0
        if is_crowd and any(n in peers or hints.is_dialling(n) for n in before):
            wait_s += self._timing.claim_wait_s * self.crowding_in_line
        mine = log_size(self._journal.vector.items())
        if any(
            log_size(view.vector.items()) > mine and view.is_candidate
            for view in peers.values()
        ):
            wait_s += self._timing.claim_wait_s  # A fuller log goes first.
        return wait_s
