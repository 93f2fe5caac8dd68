"""One connected peer as this node knows it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain

from octaskly.core.model.ids import (
    NO_EPOCH,
    Address,
    Epoch,
    Holdings,
    Moment,
    NodeId,
    StreamId,
    log_size,
)
from octaskly.core.model.nodes import NodeInfo, NodeState
from octaskly.core.protocol.messages import HeartbeatOk, Reattach

BOOT_BUCKET_S = 600.0
"""Uptimes within ten minutes count as equal: a restart of all must not be a race."""

Standing = tuple[bool, int, bool, int, str]
"""Sorts the better candidate first."""


def standing(info: NodeInfo, entries: int, uptime_s: float) -> Standing:
    """Return the rank of a node as a key that sorts the best candidate first.

    Nodes that may not be elected come last; then decides the longer log, mains before
    battery, the longer uptime in steps of `BOOT_BUCKET_S`, and the smaller id.
    """
    bucket = int(uptime_s // BOOT_BUCKET_S)
    return (not info.electable, -entries, not info.on_mains, -bucket, info.id)


ADDRESSES_MAX = 16  #: of one peer


@dataclass(slots=True)
class PeerView:
    """What this node knows of one connected peer."""

    info: NodeInfo
    addresses: tuple[Address, ...]  #: best first
    up_s: float  #: when the link came up
    frame_s: float  #: when the last frame came
    uptime_s: float  #: of the peer, when the link came up
    epoch: Epoch  #: highest that it named
    dispatcher: NodeId | None  #: whom it said to follow
    vector: dict[StreamId, int]
    reads: int = 1  #: the newest version of the log that it can read
    log_version: int = 1  #: of its log, when the link came up
    is_reader: bool = True  #: it can read what this node would write
    ahead: Holdings = ()  #: what its rows say beyond that, as it said last
    wall_ahead_ms: int = 0  #: its wall clock against ours, when the link came up
    health: HeartbeatOk | None = None
    state: NodeState = NodeState.READY  #: as it said last
    follows: Epoch | None = None  #: the reign of this node that it confirmed
    has_roster: bool = False  #: it was sent the roster of that reign
    has_records: bool = False  #: it was told the records that all go by
    is_standby: bool = False  #: it keeps copies of this node's reign
    is_worker: bool = False  #: it has told what it runs, so it can be given work
    streamed: tuple[Epoch, int] = (NO_EPOCH, 0)  #: the last number that it streamed
    told: list[Reattach] = field(default_factory=list)  #: parts, until the last

    def move(self, hosts: tuple[str, ...]) -> None:
        """Know it under these addresses, and under that of its link, which lives."""
        self.info = replace(self.info, addresses=hosts)
        told = tuple(Address(host, self.info.peer_port) for host in hosts)
        self.addresses = without_repeats(self.addresses[:1], told)

    @property
    def is_candidate(self) -> bool:
        """Whether it may keep copies and succeed."""
        is_failing = self.health is not None and self.health.is_disk_failing
        return self.info.electable and self.is_reader and not is_failing

    def standing(self, now: Moment) -> Standing:
        """Return the peer's rank as a candidate."""
        uptime_s = self.uptime_s + now.mono_s - self.up_s
        return standing(self.info, log_size(self.vector.items()), uptime_s)

    def joined(self, part: Reattach) -> Reattach:
        """Return the parts of what it runs as one message, once they are complete."""
        if part.more:
            self.told.append(part)
            return part
        parts, self.told = [*self.told, part], []
        return replace(part, running=tuple(chain(*(each.running for each in parts))))


def without_repeats(
    first: tuple[Address, ...], then: tuple[Address, ...]
) -> tuple[Address, ...]:
    """Return all of both once, in this order, as many as are kept of a peer."""
    return tuple(dict.fromkeys(first + then))[:ADDRESSES_MAX]
