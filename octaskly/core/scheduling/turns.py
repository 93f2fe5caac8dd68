"""Turns at equal priority: start-time fair queueing over submitters and their flows.

Each array is a flow, and so are all single tasks of a submitter together. The submitter
with the fewest held slots comes first, and within it the flow with the fewest. Held
slots count, not started tasks: otherwise long tasks would take all slots from short
ones.

Between equals, the lowest start tag decides. A tag grows by the slots of each task that
starts, and the clock of a level is the highest tag so far. Whoever returns after it had
nothing to run starts half a slot behind the clock: before those that were just served,
but not before those that wait already. So a stream of new flows starves no other.

The held slots follow from the live attempts, so a new dispatcher knows them. The tags
start at zero with each epoch.

Source: "Start-time Fair Queueing", P. Goyal, H. Vin and H. Cheng, 1996.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from octaskly.core.model.arrays import array_of
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import TaskSpec

RETURN_TAG = 0.5  #: how far behind the clock a tag starts, in slots
IDLE_MAX = 64  #: shares without tasks beyond which the outdated ones are dropped

FlowKey = tuple[str, TaskId | None]
"""Submitter and array; None instead of the array for all single tasks."""


def flow_of(spec: TaskSpec) -> FlowKey:
    """Return the flow of a task, an array or a member."""
    if spec.array is not None:
        return spec.submitter, spec.id
    return spec.submitter, array_of(spec.id)


@dataclass(slots=True)
class Share:
    """The part of the mesh that one submitter or flow has."""

    held: int = 0  #: slots of its live attempts
    waiting: int = 0  #: number of its flows in lanes
    tag: float = 0.0  #: where its next task starts
    has_left: bool = False  #: its last waiting task started or ended

    def leave(self, *, is_empty: bool) -> None:
        """Count a flow that is in no lane now."""
        self.waiting -= 1
        self.has_left = is_empty and not self.waiting


Shares = tuple[Share, Share]
"""Of a submitter, and of its flow."""

K = TypeVar("K")
S = TypeVar("S", bound=Share)


class _Level(Generic[K, S]):
    """Those that share the slots with each other."""

    def __init__(self, new_share: Callable[[], S]) -> None:
        self.shares: dict[K, S] = {}
        self._new_share = new_share
        self._clock = 0.0
        self._shares_max = IDLE_MAX

    def join(self, key: K) -> S:
        """Return a share to which tasks come."""
        share = self.shares.get(key)
        if share is None:
            if len(self.shares) >= self._shares_max:
                self._drop_outdated()
            share = self.shares[key] = self._new_share()
            share.tag = self._clock - RETURN_TAG
        elif share.has_left and not share.held:
            share.tag = max(share.tag, self._clock - RETURN_TAG)
        share.has_left = False
        return share

    def charge(self, key: K, slots: int) -> S:
        """Count the slots of an attempt that starts."""
        share = self.shares.get(key) or self.join(key)
        share.held += slots
        share.tag += slots
        self._clock = max(self._clock, share.tag)
        return share

    def _drop_outdated(self) -> None:
        """Drop shares that would start no later if they were new."""
        start = self._clock - RETURN_TAG
        self.shares = {
            key: share
            for key, share in self.shares.items()
            if share.held or share.waiting or share.tag > start
        }
        self._shares_max = 2 * len(self.shares) + IDLE_MAX


class Submitter(Share):
    """A submitter with its flows, by array."""

    def __init__(self) -> None:
        super().__init__()
        self.flows: _Level[TaskId | None, Share] = _Level(Share)


class Turns:
    """The slots that submitters and their flows hold, and whose turn is next."""

    def __init__(self) -> None:
        self._submitters: _Level[str, Submitter] = _Level(Submitter)

    def join(self, flow: FlowKey) -> Shares:
        """Return the shares of a submitter and of its flow, to which tasks come."""
        submitter = self._submitters.join(flow[0])
        return submitter, submitter.flows.join(flow[1])

    def charge(self, flow: FlowKey, slots: int) -> Shares:
        """Count the slots of an attempt that was assigned, or found at a worker.

        Returns:
            The shares that hold them, until `release`.
        """
        submitter = self._submitters.charge(flow[0], slots)
        return submitter, submitter.flows.charge(flow[1], slots)


def release(shares: Shares, slots: int) -> None:
    """Give back the slots of an attempt that has ended."""
    of_submitter, of_flow = shares
    of_submitter.held -= slots
    of_flow.held -= slots
