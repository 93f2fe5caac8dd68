"""One connected peer as this node knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from msgspec.structs import replace

from octaskly.core.model.ids import (
    NO_EPOCH,
    Address,
    Epoch,
    Moment,
    NodeId,
    StreamId,
    VectorItems,
    count_entries,
)
from octaskly.core.model.nodes import NodeInfo, NodeState
from octaskly.core.protocol.messages import HeartbeatOk, Reattach

UPTIME_BUCKET_S = 600.0
"""Uptimes within ten minutes count as equal: a restart of all must not be a race."""

CandidateRank = tuple[bool, int, bool, int, str]
"""Sorts the better candidate first."""


def candidate_rank(info: NodeInfo, entries: int, uptime_s: float) -> CandidateRank:
    """Return the rank of a node as a key that sorts the best candidate first.

    Nodes that may not be elected come last; then decides the longer log, mains before
    battery, the longer uptime in steps of `UPTIME_BUCKET_S`, and the smaller id.
    """
    bucket = int(uptime_s // UPTIME_BUCKET_S)
    return (not info.electable, -entries, not info.has_mains_power, -bucket, info.id)


ADDRESSES_MAX = 16  #: of one peer


@dataclass(slots=True)
class PeerView:
    """What this node knows of one connected peer."""

    info: NodeInfo
    addresses: tuple[Address, ...]  #: best first
    connected_s: float  #: when the link came up
    last_frame_s: float  #: when the last frame came
    uptime_s: float  #: of the peer, when the link came up
    epoch: Epoch  #: highest that it named
    dispatcher: NodeId | None  #: whom it said to follow
    vector: dict[StreamId, int]
    readable_log_version: int = 1  #: the newest version of the log that it can read
    log_version: int = 1  #: of its log, when the link came up
    can_read_our_log: bool = True  #: it can read what this node would write
    rows_ahead: VectorItems = ()  #: what its rows say beyond that, as it said last
    wall_ahead_ms: int = 0  #: its wall clock against ours, when the link came up
    last_heartbeat_ok: HeartbeatOk | None = None
    state: NodeState = NodeState.READY  #: as it said last
    followed_epoch: Epoch | None = None  #: the reign of this node that it confirmed
    has_roster: bool = False  #: it was sent the roster of that reign
    has_records: bool = False  #: it was told the records that all go by
    is_standby: bool = False  #: it keeps copies of this node's reign
    is_worker: bool = False  #: it has told what it runs, so it can be given work
    last_streamed: tuple[Epoch, int] = (
        NO_EPOCH,
        0,
    )  #: the last number that it streamed
    reattach_parts: list[Reattach] = field(
        default_factory=list
    )  #: parts, until the last

    def set_addresses(self, hosts: tuple[str, ...]) -> None:
        """Know it under these addresses, and under that of its link, which lives."""
        self.info = replace(self.info, addresses=hosts)
        told_addresses = tuple(Address(host, self.info.peer_port) for host in hosts)
        self.addresses = merge_addresses(self.addresses[:1], told_addresses)

    @property
    def is_candidate(self) -> bool:
        """Whether it may keep copies and succeed."""
        is_failing = (
            self.last_heartbeat_ok is not None
            and self.last_heartbeat_ok.is_disk_failing
        )
        return self.info.electable and self.can_read_our_log and not is_failing

    def rank(self, now: Moment) -> CandidateRank:
        """Return the peer's rank as a candidate."""
        uptime_s = self.uptime_s + now.mono_s - self.connected_s
        return candidate_rank(self.info, count_entries(self.vector.items()), uptime_s)

    def join_reattach_parts(self, part: Reattach) -> Reattach:
        """Return the parts of what it runs as one message, once they are complete."""
        if part.has_more:
            self.reattach_parts.append(part)
            return part
        parts, self.reattach_parts = [*self.reattach_parts, part], []
        return replace(part, running=tuple(chain(*(each.running for each in parts))))


def merge_addresses(
    first: tuple[Address, ...], then: tuple[Address, ...]
) -> tuple[Address, ...]:
    """Return all of both once, in this order, as many as are kept of a peer."""
    return tuple(dict.fromkeys(first + then))[:ADDRESSES_MAX]
