"""The hub of labs: what its rules do to frames, and hosts that talk through it."""

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.hub import Hub
from tests.mesh.hub_process import (
    CUT,
    FRAMES_WAITING_MAX,
    HEADER_BYTES,
    LATE_S,
    PERFECT,
    Direction,
    Rule,
    Switch,
)
from tests.mesh.test_lab import (
    listen,
    multicast_socket,
    reaches,
    send_multicast,
    until_reached,
)

MACS = [bytes([2, 0, 0, 0, 0, number]) for number in range(3)]
GROUP = bytes.fromhex("01005e0000fb")
BETWEEN: Direction = (0, 1)


def switch(rule: Rule = PERFECT) -> Switch:
    """Return a switch with a rule for frames from port 0 to port 1."""
    made = Switch(MACS, seed="1")
    made.rules = {BETWEEN: rule}
    return made


def frame(target: bytes = MACS[1], data: bytes = b"") -> bytes:
    return target + MACS[0] + b"\x08\x00" + data


def numbers(arrived: list[tuple[int, bytes]]) -> list[int]:
    """Return the last bytes of frames."""
    return [data[-1] for _, data in arrived]


def test_frame_reaches_only_the_port_of_its_address() -> None:
    """A switch that knows its hosts."""
    hub = switch()

    hub.receive(0, frame(), now_s=0.0)

    assert hub.due(0.0) == [(1, frame())]


@pytest.mark.parametrize("target", [GROUP, b"\xff" * 6, bytes(6)])
def test_frame_to_a_group_or_an_unknown_address_is_flooded(target: bytes) -> None:
    """Discovery and the search for neighbours need it."""
    hub = switch()

    hub.receive(0, frame(target), now_s=0.0)

    assert hub.due(0.0) == [(1, frame(target)), (2, frame(target))]


def test_cut_drops_frames_in_one_direction_only() -> None:
    """Also those of a group; the way back and other ports are free."""
    hub = switch(CUT)

    for source, target in ((0, MACS[1]), (0, GROUP), (1, MACS[0])):
        hub.receive(source, frame(target), now_s=0.0)

    assert [port for port, _ in hub.due(0.0)] == [2, 0]
    assert hub.counts["lost"] == 2


def test_delayed_frames_keep_their_order() -> None:
    """Jitter alone lets no frame overtake another."""
    hub = switch(Rule(delay_s=0.1, jitter_s=0.5))
    for number in range(20):
        hub.receive(0, frame(data=bytes([number])), now_s=number / 100)

    assert hub.due(0.09) == []
    assert 0.1 <= (hub.wait_s(0.0) or 0.0) <= 0.6
    assert numbers(hub.due(1.0)) == list(range(20))
    assert hub.wait_s(1.0) is None


def test_overtaken_frames_arrive_after_later_ones() -> None:
    """Each frame arrives once."""
    hub = switch(Rule(overtaken=0.5))
    for number in range(20):
        hub.receive(0, frame(data=bytes([number])), now_s=0.0)

    arrived = [*numbers(hub.due(0.0)), *numbers(hub.due(LATE_S))]

    assert sorted(arrived) == list(range(20))
    assert arrived != sorted(arrived)


def test_duplicated_frames_arrive_twice() -> None:
    """One after the other."""
    hub = switch(Rule(duplicated=1.0))

    hub.receive(0, frame(), now_s=0.0)

    assert hub.due(0.0) == [(1, frame()), (1, frame())]


def test_loss_drops_a_share_of_the_frames_and_a_seed_repeats_it() -> None:
    """Another seed drops others."""
    lost = []
    for seed in ("1", "1", "2"):
        hub = Switch(MACS, seed)
        hub.rules = {BETWEEN: Rule(loss=0.3)}
        for number in range(200):
            hub.receive(0, frame(data=bytes([number])), now_s=0.0)
        lost.append(set(range(200)) - set(numbers(hub.due(0.0))))

    assert lost[0] == lost[1] != lost[2]
    assert 30 < len(lost[0]) < 90


def test_mtu_hole_drops_only_frames_with_longer_packets() -> None:
    """Small frames pass, as in a tunnel whose routers send no errors."""
    hub = switch(Rule(mtu_bytes=1000))
    fits = frame(data=bytes(1000))
    assert len(fits) == 1000 + HEADER_BYTES

    hub.receive(0, fits, now_s=0.0)
    hub.receive(0, fits + b"x", now_s=0.0)

    assert hub.due(0.0) == [(1, fits)]


def test_full_queue_of_one_direction_drops_only_its_own_frames() -> None:
    """The memory of the hub is bounded, and its other directions are unaffected."""
    hub = switch(Rule(delay_s=1.0))
    for _ in range(FRAMES_WAITING_MAX + 5):
        hub.receive(0, frame(), now_s=0.0)
    hub.receive(1, frame(MACS[0]), now_s=0.0)

    assert hub.due(0.0) == [(0, frame(MACS[0]))]
    assert len(hub.due(1.0)) == FRAMES_WAITING_MAX
    assert hub.counts["queue full"] == 5


@pytest.mark.netns
def test_hosts_talk_through_the_hub_as_its_rules_allow(make_lab: MakeLab) -> None:
    """Multicast too; a one-way cut ends connections, not what still arrives."""
    lab = make_lab(3)
    hub = Hub(lab)
    first, second, third = lab.hosts
    with listen(second), multicast_socket(second) as heard:
        until_reached(first, second)
        send_multicast(first, b"all")
        assert heard.recv(16) == b"all"

        hub.cut([second], [first])
        assert not reaches(first, second)
        send_multicast(first, b"one way")
        assert heard.recv(16) == b"one way"
        until_reached(third, second)

        assert hub.clear()["lost"] > 0
        until_reached(first, second)


@pytest.mark.netns
def test_in_a_ring_only_neighbours_reach_each_other(make_lab: MakeLab) -> None:
    """Each host has two neighbours."""
    lab = make_lab(4)
    hub = Hub(lab)
    hub.make_ring()
    first, second, third, fourth = lab.hosts
    with listen(first):
        until_reached(second, first)
        until_reached(fourth, first)
        assert not reaches(third, first)
