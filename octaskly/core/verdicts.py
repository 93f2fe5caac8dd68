"""Why a task is where it is, as values: what the dispatcher answers to who asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from octaskly.core.model import NodeId, NodeState, TaskState

PASSING = frozenset(
    {
        "slots",
        "memory_granted",
        "gpus_granted",
        "reserved",
        "turn",
        "joining",
        "resting",
        "parents",
    }
)
"""Reasons that end by themselves while the node takes work."""


class Why(NamedTuple):
    """One reason why a node does not run a task."""

    code: str
    text: str  #: follows the name of the node

    @property
    def is_lasting(self) -> bool:
        """Whether it stays as long as nobody does something about it."""
        return self.code not in PASSING


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why one node does not run the task."""

    node: NodeId
    name: str
    state: NodeState
    reasons: tuple[Why, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task is where it is."""

    state: TaskState
    summary: str  #: one sentence, without a full stop
    nodes: tuple[Verdict, ...] = ()  #: of a task that waits
    placement: str = ""  #: why it was given to the node that has or had it
