"""What no peer of ours would say: found before a message is handled.

A peer may be slow, deposed or of another version; that is met elsewhere, with answers
or by ignoring it. What is refused here cannot come about by any of that: a broken or
hostile member sent it. Nothing of such a message is used, and its link is closed with
the code that `vet` returns. So numbers from outside never stop a writer or a claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from octaskly.core.effects import Effect, Note
from octaskly.core.events import PeerUp
from octaskly.core.log.facts import Entry, Floor
from octaskly.core.membership.membership import Membership
from octaskly.core.model.hlc import HLC_MAX, hlc_ahead
from octaskly.core.model.ids import Epoch, Holdings, Moment, NodeId, StreamId
from octaskly.core.model.keys import KeysGiven, KeysHeld, KeysMessage, is_sane_keyring
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.protocol.bounds import (
    NUMBER_MAX,
    are_sane_hosts,
    is_sane_attempt,
    is_sane_fact,
    is_sane_node,
    is_sane_report,
    is_sane_row,
    is_sane_spec,
    is_sane_vector,
)
from octaskly.core.protocol.messages import (
    PROTOCOL,
    Claim,
    ClaimOk,
    Dispatch,
    Entries,
    Heartbeat,
    HeartbeatOk,
    Hello,
    Kill,
    Message,
    Pull,
    Reattach,
    Records,
    Redirect,
    Repl,
    ReplOk,
    Results,
    Roster,
    RosterLine,
    Snapshot,
    Transfer,
)
from octaskly.core.replication.journal import Journal

TERMS_AHEAD: Final = 1 << 20  #: terms come one by one, so nobody is so far ahead
SKEW_MS_MAX: Final = 5_000  #: between clocks, before people are told
ENTRIES_MAX: Final = 1 << 13  #: of an answer to PULL, which has a few hundred
PARTS_MAX: Final = 1024  #: of what a worker says that it runs
TOLD_MAX: Final = 1024

_Orders = Heartbeat | Claim | Roster | Dispatch | Kill | Transfer | Repl | Records
"""What only a dispatcher says, in its own epoch."""

_Writers = tuple[tuple[StreamId, Epoch], ...]


class Vetting:
    """The judge of messages, and what it has refused so far."""

    def __init__(self, me: NodeId, journal: Journal, members: Membership) -> None:
        self.refused: Counter[str] = Counter()
        """How often, by code."""
        self._me = me
        self._journal = journal
        self._members = members
        self._told: set[tuple[NodeId, str]] = set()

    def vet(self, peer: NodeId, message: Message, term: int) -> str | None:
        """Return why a message of a connected peer cannot be, None if it can.

        `term` is the highest that this node has heard of.
        """
        epoch: Epoch | None = getattr(message, "epoch", None)
        if epoch is not None and not _is_near(epoch, term):
            return "term"
        if isinstance(message, _Orders) and message.epoch.node != peer:
            return "epoch"
        match message:
            case Hello() | Pull() | ClaimOk() | Transfer():
                return _vet_standing(message)
            case Claim(epoch, stream, vector):
                code = self._vet_writers(((stream, epoch),), term)
                return code or _vet_vector(vector)
            case Entries() | Snapshot() | Repl() | ReplOk():
                return self._vet_log(peer, message, term)
            case Results() | Dispatch() | Reattach():
                return self._vet_work(peer, message)
            case Records() | KeysHeld() | KeysGiven():
                return _vet_told(message)
            case _:
                return _vet_places(message)

    def refuse(self, peer: NodeId, code: str) -> list[Effect]:
        """Count a refusal, and tell people of the first of its kind."""
        self.refused[code] += 1
        fields = (("peer", peer), ("reason", f"{PROTOCOL}{code}"))
        return self._tell(peer, code, Note("warning", "peer refused", fields))

    def look_at_skew(self, up: PeerUp) -> list[Effect]:
        """Tell people of a peer whose clock is not ours.

        On busy machines one side may say HELLO long after the other one, though never
        further apart than all of the handshake took. Nothing goes by that clock but
        what is shown and how long tokens live.
        """
        peer, theirs_ms = up.peer, up.hello.wall_ms
        skew_ms = theirs_ms - up.sent.wall_ms
        if not theirs_ms or abs(skew_ms) <= SKEW_MS_MAX + up.took_ms:
            return []
        fields = (
            ("peer", peer),
            ("ahead_s", round(skew_ms / 1000, 1)),
            ("hint", "timedatectl set-ntp true    there, or here"),
        )
        note = Note("warning", "clock of a peer is off", fields)
        return self._tell(peer, note.event, note)

    def look_at_clocks(
        self, peer: NodeId, entries: Iterable[Entry], now: Moment
    ) -> list[Effect]:
        """Tell people of entries that are written in a time still to come.

        They are kept as they are; this node's own clock does not follow them.
        """
        latest = max((entry.hlc for entry in entries), default=0)
        if latest <= hlc_ahead(now.wall_ms):
            return []
        fields = (("peer", peer), ("hint", "a clock here or there is wrong"))
        note = Note("warning", "entries of the future", fields)
        return self._tell(peer, note.event, note)

    def _tell(self, peer: NodeId, code: str, note: Note) -> list[Effect]:
        if (peer, code) in self._told:
            return []
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add((peer, code))
        return [note]

    # --- The log.

    def _vet_log(
        self, peer: NodeId, message: Entries | Snapshot | Repl | ReplOk, term: int
    ) -> str | None:
        match message:
            case Entries(entries, epochs, _, vector):
                if len(entries) > ENTRIES_MAX:
                    return "entries"
                code = self._vet_entries(entries, epochs) or _vet_vector(vector)
                return code or self._vet_writers(epochs, term)
            case Snapshot():
                return self._vet_snapshot(message, term)
            case Repl(epoch, number, entries, epochs):
                code = self._vet_entries(entries, epochs)
                code = code or self._vet_writers(epochs, term)
                return code or self._vet_number(peer, epoch, number)
            case ReplOk(epoch, number):
                return self._vet_ok(epoch, number)

    def _vet_entries(self, entries: Iterable[Entry], epochs: _Writers) -> str | None:
        """No stream has a gap within a message.

        One may begin beyond what this node holds: it answers a question that this node
        asked before it lost its last writes. Such entries are left out, and asked for.
        """
        journal = self._journal
        named = dict(epochs)
        last: dict[StreamId, int] = {}
        for entry in entries:
            stream, seq = entry.stream, entry.seq
            if seq <= 0 or seq != last.get(stream, seq - 1) + 1:
                return "gap"
            if stream not in named and stream not in journal.vector and seq == 1:
                return "stream"
            if not 0 <= entry.hlc < HLC_MAX:
                return "clock"
            if not is_sane_fact(entry.fact):
                return "fact"
            if isinstance(entry.fact, Floor) and (code := self._vet_floor(entry.fact)):
                return code
            last[stream] = seq
        own = journal.stream
        if own is not None and last.get(own, 0) > journal.vector[own]:
            return "writer"
        return None

    def _vet_snapshot(self, message: Snapshot, term: int) -> str | None:
        """Judge rows as facts, and the head as a vector with a floor.

        Series are counted on from the highest that was told.
        """
        head = message.head
        if not 0 <= message.cursor.series < HLC_MAX:
            return "clock"
        for row in message.rows:
            places = (*row.birth, row.changed)
            if not all(0 <= place < NUMBER_MAX * 2 for place in places):
                return "number"
            if not is_sane_row(row):
                return "fact"
        if not all(map(is_sane_fact, message.records)):
            return "fact"
        if head is None:
            return _vet_vector(message.vector)
        if not 0 <= head.hlc < HLC_MAX:
            return "clock"
        if not {stream for stream, _ in head.vector} <= dict(head.epochs).keys():
            return "stream"
        code = _vet_vector(head.vector, message.vector)
        code = code or self._vet_writers(head.epochs, term)
        return code or self._vet_floor(head.floor)

    def _vet_floor(self, floor: Floor) -> str | None:
        """A floor voids nothing that this node has still to write."""
        journal = self._journal
        if not 0 <= floor.horizon < HLC_MAX:
            return "clock"
        for stream, seq, epoch in floor.marks:
            if stream == journal.stream and seq > journal.vector[stream]:
                return "writer"
            if journal.epochs.get(stream, epoch) != epoch:
                return "writer"
        marks = tuple(mark[:2] for mark in floor.marks)
        return _vet_vector(marks, floor.needs)

    def _vet_writers(self, epochs: _Writers, term: int) -> str | None:
        """A stream has one writer, in one epoch, whoever tells of it."""
        known = dict(epochs)
        known.update(
            (stream, self._journal.epochs[stream])
            for stream in known
            if stream in self._journal.epochs
        )
        for stream, epoch in epochs:
            if not _is_near(epoch, term):
                return "term"
            if stream <= 0 or known[stream] != epoch:
                return "writer"
        return None

    def _vet_number(self, peer: NodeId, epoch: Epoch, number: int) -> str | None:
        """Numbers of one reign never go back on one link; 0 completes nothing."""
        view = self._members.peers.get(peer)
        if view is None or not number:
            return None
        last_epoch, last = view.streamed
        if not 0 < number < NUMBER_MAX or (epoch == last_epoch and number < last):
            return "number"
        view.streamed = (epoch, number)
        return None

    def _vet_ok(self, epoch: Epoch, number: int) -> str | None:
        """Only what this reign has appended can be acknowledged to it."""
        journal = self._journal
        if epoch.node != self._me:
            return "epoch"
        if journal.stream is None or journal.epochs.get(journal.stream) != epoch:
            return None  # Of a reign that is over: it is ignored.
        return None if 0 < number <= journal.number else "number"

    # --- Work.

    def _vet_work(
        self, peer: NodeId, message: Results | Dispatch | Reattach
    ) -> str | None:
        if isinstance(message, Results):
            is_sane = all(map(is_sane_report, message.reports))
        else:
            items = message.items if isinstance(message, Dispatch) else message.running
            is_sane = all(
                is_sane_attempt(attempt) and is_sane_spec(spec)
                for attempt, spec in items
            )
        if not is_sane:
            return "fact"
        view = self._members.peers.get(peer)
        return "parts" if view and len(view.told) >= PARTS_MAX else None


def _vet_places(message: Message) -> str | None:
    """Judge what is said of nodes and where they are, if anything is."""
    match message:
        case Roster(members=members):
            return _vet_nodes(members)
        case HeartbeatOk(addresses=hosts):
            are_sane = are_sane_hosts(hosts)
        case Redirect(addresses=places):
            are_sane = are_sane_hosts(tuple(place.host for place in places))
        case _:
            return None
    return None if are_sane else "node"


def _vet_standing(message: Hello | Pull | ClaimOk | Transfer) -> str | None:
    """Judge what a node says of itself, and of what it holds."""
    match message:
        case Hello(node=node, vector=vector):
            return _vet_vector(vector) or _vet_nodes((node,))
        case ClaimOk(vector=vector, ahead=ahead):
            return _vet_vector(vector, ahead)
        case _:
            return _vet_vector(message.vector)


def _vet_told(message: Records | KeysMessage) -> str | None:
    """Judge what every node goes by."""
    if isinstance(message, Records):
        return None if all(map(is_sane_fact, message.items)) else "fact"
    return None if is_sane_keyring(message) else "keys"


def _is_near(epoch: Epoch, term: int) -> bool:
    return 0 <= epoch.term < min(NUMBER_MAX, term + TERMS_AHEAD)


def _vet_vector(*vectors: Holdings) -> str | None:
    return None if all(map(is_sane_vector, vectors)) else "vector"


def _vet_nodes(nodes: Iterable[NodeInfo | RosterLine]) -> str | None:
    return None if all(map(is_sane_node, nodes)) else "node"
