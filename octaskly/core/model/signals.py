"""What a change in one state machine means for others: values that the node delivers.

A machine puts a value into the outbox; the node delivers it at the end of the step to
those that it concerns, however often it was put in. What changed stands in its sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args


@dataclass(frozen=True, slots=True)
class DispatcherSilent:
    """From `Election`: the dispatcher that was followed says nothing any more."""


@dataclass(frozen=True, slots=True)
class RoleChanged:
    """From `Election`: the phase is another one, or whom the worker serves."""


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """From `PeerTable`: peers came, went, began to follow, or differ in their use."""


@dataclass(frozen=True, slots=True)
class SyncProgressed:
    """From `AntiEntropy` and `Journal`: entries of others came, or are on disk now."""


@dataclass(frozen=True, slots=True)
class FloorRaised:
    """From `Journal`: entries are void that were not."""


@dataclass(frozen=True, slots=True)
class RecordsAdded:
    """From `Journal`: records came into the log, or from the dispatcher."""


@dataclass(frozen=True, slots=True)
class AdmissionChanged:
    """From `SelfFencing`, `DiskFailureHandler`, `Node`: tasks are accepted, or not."""


@dataclass(frozen=True, slots=True)
class WorkerAvailabilityChanged:
    """From `Worker`: this node takes work, or does not."""


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """From `Node`: the dispatcher sent another roster."""


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
"""In the order in which they are delivered."""
_ORDER = {kind: index for index, kind in enumerate(get_args(Consequence))}


class Outbox:
    """The consequences of a step that are still to be delivered."""

    def __init__(self) -> None:
        self._consequences: set[Consequence] = set()

    def put(self, consequence: Consequence) -> None:
        """Have a consequence delivered at the end of the step."""
        self._consequences.add(consequence)

    def pop(self) -> Consequence | None:
        """Return what is to be delivered next; None: nothing is left."""
        if not self._consequences:
            return None
        first = min(self._consequences, key=lambda one: _ORDER[type(one)])
        self._consequences.remove(first)
        return first
