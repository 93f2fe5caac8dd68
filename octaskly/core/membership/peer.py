"""The view of one connected peer, and the rank of candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from msgspec.structs import replace

from octaskly.core.log.retired_streams import (
    EMPTY_DIGEST,
    NONE_RETIRED,
    RetiredSummary,
)
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
"""Uptimes count in steps of ten minutes, so seconds decide nothing after a restart."""

CandidateRank = tuple[bool, int, bool, int, str]
"""Sorts the better candidate first."""


def candidate_rank(info: NodeInfo, entries: int, uptime_s: float) -> CandidateRank:
    """Return the rank of a node: a key that sorts the best candidate first.

    Nodes that are not electable come last. Then the order is: longer log, mains before
    battery, longer uptime in steps of `UPTIME_BUCKET_S`, smaller id.
    """
    bucket = int(uptime_s // UPTIME_BUCKET_S)
    return (not info.electable, -entries, not info.has_mains_power, -bucket, info.id)


ADDRESSES_MAX = 16  #: of one peer


@dataclass(slots=True)
class PeerView:
    """The data about one connected peer."""

    info: NodeInfo
    addresses: tuple[Address, ...]  #: best first
    connected_s: float  #: when the link came up
    last_frame_s: float  #: when the last frame came
    uptime_s: float  #: uptime of the peer when the link came up
    epoch: Epoch  #: the latest that it named
    dispatcher: NodeId | None  #: the dispatcher that it named with that epoch
    vector: dict[StreamId, int]
    retired: RetiredSummary = NONE_RETIRED  #: streams that `vector` leaves out
    included_digest: int = EMPTY_DIGEST  #: as `included` in its latest PULL
    readable_log_version: int = 1  #: newest log version that it can read
    log_version: int = 1  #: version of its log when the link came up
    can_read_our_log: bool = True  #: it can read the version that this node writes
    wall_ahead_ms: int = 0  #: its wall clock minus this node's, when the link came up
    last_heartbeat_ok: HeartbeatOk | None = None
    state: NodeState = NodeState.READY  #: latest reported state
    followed_epoch: Epoch | None = None  #: the epoch of this node that it confirmed
    has_roster: bool = False  #: it was sent the roster of that epoch
    has_records: bool = False  #: it was sent the records of the mesh
    is_standby: bool = False  #: it is a standby of this node
    is_worker: bool = False  #: it has reported its attempts, so it can get work
    last_streamed: tuple[Epoch, int] = (
        NO_EPOCH,
        0,
    )  #: its latest streamed append
    reattach_parts: list[Reattach] = field(
        default_factory=list
    )  #: parts of an incomplete `Reattach`

    def set_addresses(self, hosts: tuple[str, ...]) -> None:
        """Set the addresses; the address of the link stays first, because it works."""
        self.info = replace(self.info, addresses=hosts)
        told_addresses = tuple(Address(host, self.info.peer_port) for host in hosts)
        self.addresses = merge_addresses(self.addresses[:1], told_addresses)

    @property
    def is_candidate(self) -> bool:
        """Return True if the peer may be a standby and a successor."""
        is_failing = (
            self.last_heartbeat_ok is not None
            and self.last_heartbeat_ok.is_disk_failing
        )
        return self.info.electable and self.can_read_our_log and not is_failing

    @property
    def is_api_failing(self) -> bool:
        """Return True if the peer said that its API does not serve other nodes."""
        health = self.last_heartbeat_ok
        return health is not None and health.is_api_failing

    @property
    def entry_count(self) -> int:
        """Number of entries that the peer holds, void ones included."""
        return count_entries(self.vector.items()) + self.retired.entries

    def set_extent(self, vector: VectorItems, retired: RetiredSummary) -> None:
        """Set what the peer says that it holds."""
        self.vector, self.retired = dict(vector), retired

    def rank(self, now: Moment) -> CandidateRank:
        """Return the rank of the peer as a candidate."""
        uptime_s = self.uptime_s + now.mono_s - self.connected_s
        return candidate_rank(self.info, self.entry_count, uptime_s)

    def join_reattach_parts(self, part: Reattach) -> Reattach:
        """Return one message with all parts once they are complete, else `part`."""
        if part.has_more:
            self.reattach_parts.append(part)
            return part
        parts, self.reattach_parts = [*self.reattach_parts, part], []
        return replace(part, running=tuple(chain(*(each.running for each in parts))))


def merge_addresses(
    first: tuple[Address, ...], then: tuple[Address, ...]
) -> tuple[Address, ...]:
    """Return the distinct addresses in this order, at most `ADDRESSES_MAX`."""
    return tuple(dict.fromkeys(first + then))[:ADDRESSES_MAX]
