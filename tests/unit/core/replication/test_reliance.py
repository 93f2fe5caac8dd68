"""Whether a standby may take over as one that has all that was answered for."""

from __future__ import annotations

import pytest

from octaskly.core.replication.standby_appends import HEARTBEATS_MAX, AckGuarantee

SOLO_S = 2.0
BEAT_S = 0.3


class Link:
    """A dispatcher sends a heartbeat each 0.3 s, and hears answers a while later."""

    def __init__(self, way_s: float = 0.0) -> None:
        self.reliance = AckGuarantee(SOLO_S)
        self.way_s = way_s  #: of a frame, in each direction
        self.received = self.acked = 0
        self._confirmed: list[tuple[float, float]] = []

    def beat(self, number: int) -> float:
        """Let heartbeat `number` come; return when."""
        sent_s = number * BEAT_S
        now_s = sent_s + self.way_s
        heard = [name for name, at_s in self._confirmed if at_s + self.way_s <= sent_s]
        self.reliance.on_heartbeat(
            *(sent_s, heard[-1] if heard else 0.0, now_s),
            received=self.received,
            acked=self.acked,
        )
        self._confirmed.append((sent_s, now_s))
        return now_s

    def beats(self, until: int, first: int = 1) -> float:
        """Let many come; return when the last one did."""
        return [self.beat(number) for number in range(first, until + 1)][-1]


def test_who_was_never_waited_for_does_not_rely_on_it() -> None:
    """It may lack whatever was answered for."""
    assert not Link().reliance.is_guaranteed(0.0)


@pytest.mark.parametrize("way_s", [0.0, 0.05, 0.25])
def test_a_standby_that_keeps_up_relies_on_it_at_any_time(way_s: float) -> None:
    """A dispatcher may die right before its next heartbeat."""
    link = Link(way_s)
    link.beats(6)

    for number in range(7, 20):
        before_s = number * BEAT_S + way_s
        assert link.reliance.is_guaranteed(before_s)
        link.beat(number)


def test_silence_ends_it() -> None:
    """Two seconds behind what was sent last it may have been given up."""
    link = Link()
    last_s = link.beats(10)

    assert not link.reliance.is_guaranteed(last_s + SOLO_S)


def test_frames_that_take_over_a_second_end_it() -> None:
    """What was sent first of all that is under way may be as old as that."""
    link = Link(way_s=1.2)
    last_s = link.beats(20)

    assert not link.reliance.is_guaranteed(last_s)


def test_what_is_not_acknowledged_for_long_ends_it() -> None:
    """Its disk stands still: the dispatcher waits for two seconds, and no longer."""
    link = Link()
    link.beats(10)
    link.received = 1
    came_s = 10 * BEAT_S

    last_s = link.beats(17, first=11)

    assert link.reliance.is_guaranteed(came_s + SOLO_S / 2)
    assert not link.reliance.is_guaranteed(last_s + BEAT_S)


def test_what_is_always_under_way_does_not_end_it() -> None:
    """Each append is acknowledged soon, and then another one is not."""
    link, last = Link(), 40
    for number in range(1, last + 1):
        link.received, link.acked = number, number - 1
        link.beat(number)

    assert link.reliance.is_guaranteed((last + 1) * BEAT_S)


def test_what_is_acknowledged_in_the_end_counts_again() -> None:
    """The dispatcher waits for it once more, and says so."""
    link = Link()
    link.beats(10)
    link.received = 1
    link.beats(20, first=11)
    link.acked = 1

    last_s = link.beats(24, first=21)

    assert link.reliance.is_guaranteed(last_s)


def test_who_is_told_that_it_does_not_count_relies_on_nothing() -> None:
    """Whatever it was told before."""
    link = Link()
    last_s = link.beats(10)
    link.reliance.end_guarantee()

    assert not link.reliance.is_guaranteed(last_s)


def test_an_unknown_name_of_a_heartbeat_says_nothing() -> None:
    """It was confirmed on another link, or never."""
    reliance = AckGuarantee(SOLO_S)
    for number in range(10):
        reliance.on_heartbeat(number, 77.0, number, received=0, acked=0)

    assert not reliance.is_guaranteed(9.0)


def test_memory_is_bounded() -> None:
    """Whoever is followed may send as many heartbeats as it likes, all at once."""
    reliance = AckGuarantee(SOLO_S)
    for number in range(10_000):
        reliance.on_heartbeat(number, 0.0, 0.0, received=0, acked=0)

    assert len(reliance._heartbeats) == HEARTBEATS_MAX
