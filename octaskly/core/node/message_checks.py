"""Message validation: refuses messages that no correct peer sends, before handling.

A peer may be slow, deposed or of another version; the handlers answer or ignore its
messages. The messages refused here have another cause: a broken or hostile member sent
them. They are discarded, and the link is closed with the code from `validate_message`.
Thus no number from a peer can block the writer or a claim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from octaskly.core.effects import Effect, LogLine
from octaskly.core.events import PeerUp
from octaskly.core.log.facts import Entry, Floor
from octaskly.core.log.range_rows import is_valid_range_row
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.arrays import are_valid_members, attempt_at
from octaskly.core.model.hlc import hlc_of_latest_remote
from octaskly.core.model.ids import (
    AttemptId,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    VectorItems,
    Writers,
)
from octaskly.core.model.keyring_state import (
    KeyringMessage,
    KeyringStatus,
    KeyringTransfer,
    is_valid_keyring_message,
)
from octaskly.core.model.nodes import NodeInfo, RosterEntry
from octaskly.core.protocol.messages import (
    ITEMS_MAX,
    MEMBER_FACTS_MAX,
    PROTOCOL_PREFIX,
    Assign,
    AssignRanges,
    Claim,
    ClaimOk,
    Entries,
    Heartbeat,
    HeartbeatOk,
    Hello,
    Kill,
    Message,
    Pull,
    RangeResults,
    RangeResultsOk,
    Reattach,
    RecordBatch,
    Redirect,
    Replicate,
    ReplicateOk,
    Results,
    Roster,
    Snapshot,
    Transfer,
)
from octaskly.core.protocol.validity import (
    are_printable,
    is_assignable_range,
    is_valid_attempt,
    is_valid_fact,
    is_valid_node,
    is_valid_pending_fact,
    is_valid_range_report,
    is_valid_report,
    is_valid_row,
    is_valid_vector,
)
from octaskly.core.replication.journal import Journal

TERMS_AHEAD_MAX: Final = 1 << 20  #: terms grow by one, so none is further ahead
SKEW_MS_MAX: Final = 5_000  #: difference of wall clocks that causes a warning
REATTACH_PARTS_MAX: Final = 1024  #: parts of one `Reattach`
LOGGED_MAX: Final = 1024

_DispatcherMessages = (
    Heartbeat
    | Claim
    | Roster
    | Assign
    | AssignRanges
    | Kill
    | Transfer
    | Replicate
    | RecordBatch
)
"""Messages that only a dispatcher sends, in its own epoch."""

_WorkMessage = (
    Results | Assign | Reattach | AssignRanges | RangeResults | RangeResultsOk
)


class MessageValidator:
    """Validates messages and counts refusals."""

    def __init__(self, me: NodeId, journal: Journal, peer_table: PeerTable) -> None:
        self.refused_counts: Counter[str] = Counter()
        """Number of refusals by code."""
        self._me = me
        self._journal = journal
        self._peer_table = peer_table
        self._logged: set[tuple[NodeId, str]] = set()

    def validate_message(  # noqa: PLR0911  # A flat table.
        self, peer: NodeId, message: Message, term: int
    ) -> str | None:
        """Return the code of a peer's invalid message; None: it is valid.

        `term` is the highest term seen.
        """
        epoch: Epoch | None = getattr(message, "epoch", None)
        if epoch is not None and not _is_term_plausible(epoch, term):
            return "term"
        if isinstance(message, _DispatcherMessages) and message.epoch.node != peer:
            return "epoch"
        match message:  # Frequent messages come first, as each case takes time.
            case Heartbeat() | HeartbeatOk():
                return _check_addresses(message)
            case Entries() | Snapshot() | Replicate() | ReplicateOk():
                return self._check_log_message(peer, message, term)
            case (
                Results()
                | Assign()
                | Reattach()
                | AssignRanges()
                | RangeResults()
                | RangeResultsOk()
            ):
                return self._check_work_message(peer, message)
            case Hello() | Pull() | ClaimOk() | Transfer():
                return _check_self_description(message)
            case Claim(epoch, stream, vector):
                code = self._check_writers(((stream, epoch),), term)
                return code or _check_vectors(vector)
            case RecordBatch() | KeyringStatus() | KeyringTransfer():
                return _check_broadcast(message)
            case _:
                return _check_addresses(message)

    def count_refusal(self, peer: NodeId, code: str) -> list[Effect]:
        """Count a refusal; log the first of each peer and code."""
        self.refused_counts[code] += 1
        fields = (("peer", peer), ("reason", f"{PROTOCOL_PREFIX}{code}"))
        return self._log_once(
            peer, code, LogLine("warning", "link to peer refused", fields)
        )

    def check_clock_skew(self, up: PeerUp) -> list[Effect]:
        """Log a warning about a peer whose wall clock differs.

        On busy machines the two HELLOs may be sent far apart, but at most the duration
        of the handshake. The wall clock only affects displayed times and the lifetime
        of tokens.
        """
        peer, theirs_ms = up.peer, up.peer_hello.wall_ms
        skew_ms = theirs_ms - up.own_hello.wall_ms
        if not theirs_ms or abs(skew_ms) <= SKEW_MS_MAX + up.handshake_ms:
            return []
        fields = (
            ("peer", peer),
            ("ahead_s", round(skew_ms / 1000, 1)),
            ("hint", "timedatectl set-ntp true    there, or here"),
        )
        note = LogLine("warning", "clock of a peer differs", fields)
        return self._log_once(peer, note.event, note)

    def check_entry_clocks(
        self, peer: NodeId, entries: Iterable[Entry], now: Moment
    ) -> list[Effect]:
        """Log a warning about entries with timestamps in the future.

        They are stored unchanged, but this node's clock does not follow them.
        """
        latest = max((entry.hlc for entry in entries), default=0)
        if latest <= hlc_of_latest_remote(now.wall_ms):
            return []
        fields = (("peer", peer), ("hint", "a clock here or there is wrong"))
        note = LogLine("warning", "entries with future timestamps", fields)
        return self._log_once(peer, note.event, note)

    def _log_once(self, peer: NodeId, code: str, note: LogLine) -> list[Effect]:
        if (peer, code) in self._logged:
            return []
        if len(self._logged) >= LOGGED_MAX:
            self._logged.clear()
        self._logged.add((peer, code))
        return [note]

    # --- The log.

    def _check_log_message(
        self,
        peer: NodeId,
        message: Entries | Snapshot | Replicate | ReplicateOk,
        term: int,
    ) -> str | None:
        match message:
            case Entries(entries, epochs, _, vector):
                code = self._check_entries(entries, epochs) or _check_vectors(vector)
                return code or self._check_writers(epochs, term)
            case Snapshot():
                return self._check_snapshot(message, term)
            case Replicate(epoch, number, entries, epochs):
                code = self._check_entries(entries, epochs)
                code = code or self._check_writers(epochs, term)
                return code or self._check_append_number(peer, epoch, number)
            case ReplicateOk(epoch, number):
                return self._check_replicate_ok(epoch, number)

    def _check_entries(self, entries: Iterable[Entry], epochs: Writers) -> str | None:
        """Refuse gaps of a stream within one message, and invalid entries.

        A stream may start beyond the entries of this node: the message answers a PULL
        that was sent before this node lost its latest writes. Entries beyond a gap are
        left out and pulled later.
        """
        journal = self._journal
        named = dict(epochs)
        last: dict[StreamId, int] = {}
        members = 0
        for entry in entries:
            stream, seq = entry.stream, entry.seq
            if not seq or seq != last.get(stream, seq - 1) + 1:
                return "gap"
            if stream not in named and stream not in journal.vector:
                return "stream"
            if not is_valid_fact(entry.fact):
                return "fact"
            if isinstance(entry.fact, Floor) and (
                code := self._check_floor(entry.fact)
            ):
                return code
            last[stream] = entry.last_seq
            members += entry.fact.count - 1
        if members > MEMBER_FACTS_MAX:
            return "members"
        return "writer" if self._has_unwritten(last.items()) else None

    def _has_unwritten(self, extent: Iterable[tuple[StreamId, int]]) -> bool:
        """Return True if it has entries of this epoch that this node did not write."""
        journal = self._journal
        return any(s == journal.stream and n > journal.vector[s] for s, n in extent)

    def _check_snapshot(self, message: Snapshot, term: int) -> str | None:
        """Validate rows and records as facts, and the head as a vector with a floor."""
        head = message.head
        retired = Floor(0, (), retired=message.retired)
        if not all(map(is_valid_row, message.rows)):
            return "fact"
        if not all(map(is_valid_range_row, message.ranges)):
            return "fact"
        if sum(len(row.members) for row in message.ranges) > MEMBER_FACTS_MAX:
            return "members"
        if not all(map(is_valid_fact, message.records)):
            return "fact"
        if not all(is_valid_pending_fact(entry.fact) for entry in message.pending):
            return "fact"
        if head is None:
            return self._check_floor(retired)
        if not {stream for stream, _ in head.vector} <= dict(head.epochs).keys():
            return "stream"
        code = "writer" if self._has_unwritten(head.vector) else None
        code = code or _check_vectors(head.vector)
        code = code or self._check_writers(head.epochs, term)
        code = code or self._check_floor(head.floor)
        return code or self._check_floor(retired)

    def _check_floor(self, floor: Floor) -> str | None:
        """Refuse a floor above this node's own stream, or with other writers."""
        journal = self._journal
        if self._has_unwritten(floor.ends):
            return "writer"
        for mark in floor.stream_floors:
            stream = mark.stream
            if journal.epochs.get(stream, mark.epoch) != mark.epoch:
                return "writer"
        return _check_vectors(floor.ends, floor.required_vector)

    def _check_writers(self, epochs: Writers, term: int) -> str | None:
        """Refuse a second writer or epoch of a stream."""
        known = dict(epochs)
        known.update(
            (stream, self._journal.epochs[stream])
            for stream in known
            if stream in self._journal.epochs
        )
        for stream, epoch in epochs:
            if not _is_term_plausible(epoch, term):
                return "term"
            if not stream or known[stream] != epoch:
                return "writer"
        return None

    def _check_append_number(
        self, peer: NodeId, epoch: Epoch, number: int
    ) -> str | None:
        """Refuse append numbers that decrease in an epoch; 0 completes no append."""
        view = self._peer_table.peers.get(peer)
        if view is None or not number:
            return None
        last_epoch, last = view.last_streamed
        if epoch == last_epoch and number < last:
            return "number"
        view.last_streamed = (epoch, number)
        return None

    def _check_replicate_ok(self, epoch: Epoch, number: int) -> str | None:
        """Refuse acknowledgements of numbers that this node has not appended."""
        journal = self._journal
        if epoch.node != self._me:
            return "epoch"
        if journal.stream is None or journal.epochs.get(journal.stream) != epoch:
            return None  # It belongs to an ended epoch and is ignored later.
        return None if 0 < number <= journal.last_number else "number"

    # --- Work.

    def _check_work_message(self, peer: NodeId, message: _WorkMessage) -> str | None:
        if not _is_sane_work(message):
            return "fact"
        own = self._journal.stream
        if own is not None:
            last_seq = self._journal.vector[own]
            for attempt in _reported_attempts(message):
                if attempt.stream == own and attempt.seq > last_seq:
                    return "attempt"  # It was not assigned yet.
        view = self._peer_table.peers.get(peer)
        return (
            "parts" if view and len(view.reattach_parts) >= REATTACH_PARTS_MAX else None
        )


def _is_sane_work(message: _WorkMessage) -> bool:
    """Return True if a correct node could send these attempts or reports."""
    match message:
        case Results(reports):
            return all(map(is_valid_report, reports))
        case Assign(items=items) | Reattach(running=items):
            return all(is_valid_attempt(spec) for _, spec in items)
        case AssignRanges(items=ranges):
            are_valid = all(map(is_assignable_range, ranges))
            return are_valid and sum(each.count for each in ranges) <= ITEMS_MAX
        case RangeResults(items=range_reports):
            return all(map(is_valid_range_report, range_reports))
        case RangeResultsOk(items=members):
            return all(map(are_valid_members, members))


def _reported_attempts(message: _WorkMessage) -> list[AttemptId]:
    """Return the attempts that a worker says it ran or runs; of a range, the last."""
    match message:
        case Results(reports):
            return [report.attempt for report in reports]
        case RangeResults(items):
            ranges = [report.members for report in items]
            return [attempt_at(each.attempt, each.offsets[-1]) for each in ranges]
        case Reattach(running):
            return [attempt for attempt, _ in running]
        case _:
            return []


def _check_addresses(message: Message) -> str | None:
    """Validate the members and addresses in a message."""
    match message:
        case Roster():
            return _check_nodes(message.nodes)
        case HeartbeatOk(addresses=hosts):
            are_sane = are_printable(hosts)
        case Redirect(addresses=places):
            are_sane = are_printable(place.host for place in places)
        case _:
            return None
    return None if are_sane else "node"


def _check_self_description(message: Hello | Pull | ClaimOk | Transfer) -> str | None:
    """Validate a node's description of itself and its vectors."""
    match message:
        case Hello(node=node, vector=vector):
            return _check_vectors(vector) or _check_nodes((node,))
        case _:
            return _check_vectors(message.vector)


def _check_broadcast(message: RecordBatch | KeyringMessage) -> str | None:
    """Validate records and keyring messages, which apply to every node."""
    if isinstance(message, RecordBatch):
        return None if all(map(is_valid_fact, message.items)) else "fact"
    return None if is_valid_keyring_message(message) else "keys"


def _is_term_plausible(epoch: Epoch, term: int) -> bool:
    return epoch.term < term + TERMS_AHEAD_MAX


def _check_vectors(*vectors: VectorItems) -> str | None:
    return None if all(map(is_valid_vector, vectors)) else "vector"


def _check_nodes(nodes: Iterable[NodeInfo | RosterEntry]) -> str | None:
    return None if all(map(is_valid_node, nodes)) else "node"
