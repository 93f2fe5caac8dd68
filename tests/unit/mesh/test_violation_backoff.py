"""For how long a peer is kept out that broke the protocol."""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.model.ids import Moment, NodeId
from octaskly.mesh.links.limits import (
    FIRST_S,
    FORGIVEN_S,
    LONGEST_S,
    OFFENDERS_MAX,
    Grudges,
)

LIAR = NodeId("liar")


@dataclass
class Hands:
    """A clock that the test moves."""

    now_s: float = 0.0

    def now(self) -> Moment:
        return Moment(self.now_s, 0)

    def draw(self) -> float:
        return 0.0


def out_s(grudges: Grudges, clock: Hands, peer: NodeId = LIAR) -> float:
    """Move the clock on until the peer is let in; return how long that took."""
    begin_s = clock.now_s
    while grudges.is_out(peer):
        clock.now_s += 0.5
    return clock.now_s - begin_s


def test_each_offence_keeps_a_peer_out_twice_as_long_up_to_a_bound() -> None:
    """Nobody who broke nothing is kept out."""
    clock = Hands()
    grudges = Grudges(clock)
    waits_s = []
    for _ in range(8):
        grudges.bear(LIAR)
        assert not grudges.is_out(NodeId("other"))
        waits_s.append(out_s(grudges, clock))

    assert waits_s[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits_s[-1] == LONGEST_S


def test_a_peer_that_was_good_for_long_begins_anew() -> None:
    """So a fault that was mended is not held against it for ever."""
    clock = Hands()
    grudges = Grudges(clock)
    for _ in range(3):
        grudges.bear(LIAR)
    out_s(grudges, clock)
    clock.now_s += FORGIVEN_S + 1
    grudges.bear(LIAR)

    assert out_s(grudges, clock) == FIRST_S


def test_the_offenders_that_are_remembered_are_bounded() -> None:
    """The latest are, since a member can make any number of ids."""
    grudges = Grudges(Hands())
    for number in range(OFFENDERS_MAX + 1):
        grudges.bear(NodeId(str(number)))

    assert not grudges.is_out(NodeId("0"))
    assert grudges.is_out(NodeId("1"))
    assert grudges.is_out(NodeId(str(OFFENDERS_MAX)))
