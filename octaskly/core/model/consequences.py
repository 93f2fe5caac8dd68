"""Consequences: changes in one component that the node delivers to the others.

A component puts a consequence into the outbox. At the end of the step, the node
delivers it once, even if it was put several times. It carries no data: its receivers
read the changed state from its sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args


@dataclass(frozen=True, slots=True)
class DispatcherSilent:
    """From `Election`: the followed dispatcher is silent."""


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """From `Election`: the phase changed, or the dispatcher that the worker serves."""


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """From `PeerTable`: peers connected or left, or their roles changed."""


@dataclass(frozen=True, slots=True)
class SyncProgressed:
    """From `AntiEntropy` and `Journal`: a peer's entries arrived or became durable."""


@dataclass(frozen=True, slots=True)
class FloorRaised:
    """From `Journal`: the compaction floor rose, so more entries are void."""


@dataclass(frozen=True, slots=True)
class RecordsAdded:
    """From `Journal`: records arrived in the log or from the dispatcher."""


@dataclass(frozen=True, slots=True)
class AdmissionChanged:
    """From `PauseFencing`, `DiskFailureHandler`, `Node`: admission paused, resumed."""


@dataclass(frozen=True, slots=True)
class WorkerAvailabilityChanged:
    """From `Worker`: the availability of this node changed."""


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """From `Node`: the dispatcher sent a new roster."""


Consequence = (
    DispatcherSilent
    | RoleChanged
    | MembershipChanged
    | SyncProgressed
    | FloorRaised
    | RecordsAdded
    | AdmissionChanged
    | WorkerAvailabilityChanged
    | RosterChanged
)
"""All consequences, in their order of delivery."""
_ORDER = {kind: index for index, kind in enumerate(get_args(Consequence))}


class Outbox:
    """The consequences of a step that are not delivered yet."""

    def __init__(self) -> None:
        self._consequences: set[Consequence] = set()

    def put(self, consequence: Consequence) -> None:
        """Add a consequence; the node delivers it at the end of the step."""
        self._consequences.add(consequence)

    def pop(self) -> Consequence | None:
        """Remove and return the next consequence; None if none is left."""
        if not self._consequences:
            return None
        first = min(self._consequences, key=lambda one: _ORDER[type(one)])
        self._consequences.remove(first)
        return first
