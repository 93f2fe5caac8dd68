"""Backoff of peers that broke the protocol."""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.model.ids import Moment, NodeId
from octaskly.mesh.links.handshake_limits import (
    REFUSED_MAX,
    REFUSED_S,
    ViolationBackoff,
)

DEPENDENCY_FAILED_PREFIX = NodeId("broken")


@dataclass
class Hands:
    """A clock that the test moves."""

    now_s: float = 0.0

    def now(self) -> Moment:
        return Moment(self.now_s, 0)

    def draw(self) -> float:
        return 0.0


def test_a_peer_that_broke_the_protocol_is_refused_for_a_while() -> None:
    """Other peers are not refused."""
    clock = Hands()
    backoff = ViolationBackoff(clock)
    backoff.add(DEPENDENCY_FAILED_PREFIX)

    clock.now_s += REFUSED_S - 0.1
    assert backoff.is_refused(DEPENDENCY_FAILED_PREFIX)
    assert not backoff.is_refused(NodeId("other"))
    clock.now_s += 0.2
    assert not backoff.is_refused(DEPENDENCY_FAILED_PREFIX)


def test_a_second_violation_restarts_the_backoff() -> None:
    """A peer that never stops is refused for nearly all of the time."""
    clock = Hands()
    backoff = ViolationBackoff(clock)
    backoff.add(DEPENDENCY_FAILED_PREFIX)
    clock.now_s += REFUSED_S
    backoff.add(DEPENDENCY_FAILED_PREFIX)

    clock.now_s += REFUSED_S - 0.1
    assert backoff.is_refused(DEPENDENCY_FAILED_PREFIX)


def test_the_peer_with_the_oldest_violation_is_forgotten_first() -> None:
    """A hostile member that makes many ids cannot fill the memory."""
    backoff = ViolationBackoff(Hands())
    backoff.add(DEPENDENCY_FAILED_PREFIX)
    for number in range(REFUSED_MAX - 1):
        backoff.add(NodeId(str(number)))
    backoff.add(DEPENDENCY_FAILED_PREFIX)
    backoff.add(NodeId("one more"))

    assert backoff.is_refused(DEPENDENCY_FAILED_PREFIX)
    assert not backoff.is_refused(NodeId("0"))
    assert backoff.is_refused(NodeId("1"))
