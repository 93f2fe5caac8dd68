"""What a node says of itself: on a new link, in answer to a heartbeat, in the roster.

Owns the words alone. Whom they are told, and when, is for `inbound` and `herald`.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.machines import Machines
from octaskly.core.messages import HeartbeatOk, Hello, RosterLine
from octaskly.core.model import NO_LOAD, Address, LoadSample, Moment, Role


class Profile:
    """This node, as other nodes are told of it."""

    def __init__(self, machines: Machines) -> None:
        self._info = machines.settings.node
        self._reads = machines.settings.log_version
        self._journal = machines.journal
        self._members = machines.members
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._worker = machines.worker
        self._load = NO_LOAD
        self._moved: tuple[str, ...] = ()  #: its addresses, once they have changed

    def move(self, addresses: tuple[str, ...]) -> None:
        """Name these addresses from now on: the machine has others than before.

        A link may outlive that, over another interface or a link-local address.
        """
        self._moved = addresses
        self._info = replace(self._info, addresses=addresses)

    def take_load(self, load: LoadSample) -> None:
        """Name this load from now on."""
        self._load = load

    def hello(self, now: Moment) -> Hello:
        """Return what is said first on a new link."""
        election = self._election
        followers = 0
        if election.reign is not None:
            followers = sum(1 for _ in self._members.followers(election.epoch))
        return Hello(
            node=self._info,
            epoch=election.epoch,
            dispatcher=election.known_dispatcher,
            followers=followers,
            vector=self._journal.vector_items(),
            uptime_s=self._candidacy.uptime_s(now),
            wall_ms=now.wall_ms,
            reads=self._reads,
            log_version=self._journal.version,
        )

    def health(self, now: Moment) -> HeartbeatOk:
        """Return how this node is: `epoch` and `sent_s` are its own."""
        worker = self._worker
        return HeartbeatOk(
            self._election.epoch,
            now.mono_s,
            worker.stance.state,
            worker.credit_at(now),
            self._load,
            self._candidacy.is_disk_failing,
            worker.stance.strain,
            self._moved,
        )

    def line(self) -> RosterLine:
        """Return this node's line of the roster that it sends as dispatcher."""
        info, worker = self._info, self._worker
        return RosterLine(
            id=info.id,
            name=info.name,
            role=Role.DISPATCHER,
            state=worker.stance.state,
            addresses=tuple(Address(h, info.peer_port) for h in info.addresses),
            lan_port=info.lan_port,
            slots=info.slots,
            running=min(worker.running, info.slots),
            version=info.version,
            load=self._load,
            memory_mb=info.memory_mb,
            labels=info.labels,
            os=info.os,
            arch=info.arch,
            cpus=info.cpus,
            gpus=info.gpus,
            strain=worker.stance.strain,
        )
