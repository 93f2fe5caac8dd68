"""Signals between components: changes in one that the node delivers to the others.

A component puts a signal into the outbox. At the end of the step, the node
delivers it once, even if it was put several times. It carries no data: its receivers
read the changed state from its sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args


@dataclass(frozen=True, slots=True)
class LinksClosed:
    """From `PeerTable`: this node closed links to peers, which it takes for lost."""


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
    """From `PauseFencing`, `FailureHandler`, `Node`: admission paused, resumed."""


@dataclass(frozen=True, slots=True)
class WorkerAvailabilityChanged:
    """From `Worker`: the availability of this node changed."""


@dataclass(frozen=True, slots=True)
class RelayChanged:
    """From `Election`: another peer relays requests to the dispatcher."""


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """From `Node`: the dispatcher sent a new roster."""


ComponentSignal = (
    LinksClosed
    | RoleChanged
    | MembershipChanged
    | SyncProgressed
    | FloorRaised
    | RecordsAdded
    | AdmissionChanged
    | WorkerAvailabilityChanged
    | RelayChanged
    | RosterChanged
)
"""All signals, in their order of delivery."""
_ORDER = {kind: index for index, kind in enumerate(get_args(ComponentSignal))}


class Outbox:
    """The signals of a step that are not delivered yet."""

    def __init__(self) -> None:
        self._signals: set[ComponentSignal] = set()

    def put(self, signal: ComponentSignal) -> None:
        """Add a signal; the node delivers it at the end of the step."""
        self._signals.add(signal)

    def pop(self) -> ComponentSignal | None:
        """Remove and return the next signal; None if none is left."""
        if not self._signals:
            return None
        first = min(self._signals, key=lambda one: _ORDER[type(one)])
        self._signals.remove(first)
        return first
