"""Membership: peers, hints, redials, names and the roster."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from msgspec.structs import replace

from octaskly.core.effects import (
    Browse,
    Dial,
    Disconnect,
    Effect,
    RenameNode,
    SavePeer,
)
from octaskly.core.events import DialFailed, PeerHint, PeerUp, SavedState
from octaskly.core.membership.address_book import (
    DIAL_DELAY_S,
    DIAL_WAIT_SCALE_MAX,
    DISCOVERY_PEERS,
    REDIAL_MAX_S,
    REDIAL_S,
    DialScope,
)
from octaskly.core.membership.mdns_schedule import BROWSE_INTERVAL_S, MdnsSchedule
from octaskly.core.membership.peer import ADDRESSES_MAX
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.field_types import (
    HOST_CHARS_MAX,
    TITLE_CHARS_MAX,
    WORD_CHARS_MAX,
)
from octaskly.core.model.ids import NO_EPOCH, Address, Epoch, Moment, NodeId
from octaskly.core.model.nodes import (
    GPUS_MAX,
    LABELS_MAX,
    Availability,
    LoadSample,
    NodeInfo,
    NodeState,
    Role,
    RosterEntry,
)
from octaskly.core.model.settings import Limits, Settings
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import Hello, Roster
from octaskly.mesh import wire

ME, PEER, OTHER = NodeId("m" * 16), NodeId("p" * 16), NodeId("o" * 16)
WHERE = Address("10.0.0.2", 7878)
ELSEWHERE = Address("10.0.0.3", 7878)
ALL = frozenset[NodeId]()
EPOCH = Epoch(1, ME)


def info(node: NodeId, name: str = "pi") -> NodeInfo:
    return NodeInfo(
        id=node,
        boot="boot",
        name=name,
        slots=2,
        version="1.0",
        peer_port=7878,
        lan_port=3443,
        addresses=("10.0.0.2", "192.168.1.2"),
    )


def at(seconds: float) -> Moment:
    return Moment(seconds, 0)


def members(saved: SavedState | None = None, peers: int = 1024) -> PeerTable:
    settings = Settings(node=info(ME), limits=Limits(peers=peers))
    return PeerTable(settings, saved or SavedState(), TimerHeap(), Outbox())


def up(peer: NodeId, name: str = "pi", address: Address = WHERE) -> PeerUp:
    mine = Hello(node=info(ME), epoch=NO_EPOCH, dispatcher=None)
    theirs = Hello(node=info(peer, name), epoch=NO_EPOCH, dispatcher=None)
    return PeerUp(peer, mine, theirs, address)


def test_remembered_peers_are_dialled_at_the_start() -> None:
    """Discovery may be slow or blocked; a known peer is tried at once."""
    here = members(SavedState(peers=(PeerHint(PEER, (WHERE,)),)))

    assert not here.address_book.knows_no_peer
    assert here.address_book.dial_remembered(at(0.0)) == [Dial(PEER, (WHERE,))]


def test_a_peer_that_was_met_is_remembered_with_all_its_addresses() -> None:
    """The address that worked comes first."""
    here = members()

    effects = here.on_peer_up(up(PEER), at(0.0))

    addresses = (WHERE, Address("192.168.1.2", 7878))
    assert effects == [SavePeer(PEER, "pi", addresses)]
    assert here.addresses_of(PEER) == addresses


def test_a_hint_to_a_connected_peer_or_to_oneself_is_not_dialled() -> None:
    """A fresh browser replays all adverts."""
    here = members()
    here.on_peer_up(up(PEER), at(0.0))

    adverts = (
        PeerHint(PEER, (WHERE,)),
        PeerHint(ME, (WHERE,)),
        PeerHint(None, (WHERE,)),
    )

    assert here.address_book.on_peers_discovered(adverts, at(1.0)) == []


def test_an_absent_peer_is_dialled_with_growing_pauses() -> None:
    """§ 2.1: this is what heals a partition."""
    here = members(SavedState(peers=(PeerHint(PEER, (WHERE,)),)))
    here.address_book.dial_remembered(at(0.0))
    dials = []
    now_s = 0.0
    while now_s < 9000.0:
        now_s = here.address_book._timers.next_at()
        assert here.address_book.on_time(at(now_s)) == [Dial(PEER, (WHERE,))]
        here.address_book.on_dial_failed(
            DialFailed(PEER, (WHERE,), was_refused=False), at(now_s)
        )
        dials.append(now_s)

    gaps = [b - a for a, b in pairwise(dials)]
    assert set(gaps[:10]) == {REDIAL_S}
    assert max(gaps) == REDIAL_MAX_S
    assert gaps == sorted(gaps)


def test_an_attached_node_leaves_redialling_to_the_dispatcher() -> None:
    """A hundred followers must not all dial an absent machine."""
    here = members()
    here.address_book.on_peers_discovered((PeerHint(PEER, (WHERE,)),), at(0.0))
    here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))
    here.address_book.set_dial_scope(DialScope.NOBODY)
    failed = DialFailed(PEER, (WHERE,), was_refused=False)
    here.address_book.on_dial_failed(failed, at(1.0))

    assert here.address_book._timers.next_at() == math.inf
    assert here.address_book.on_time(at(60.0)) == []


def test_a_dispatcher_in_sight_is_dialled_before_the_others() -> None:
    """Of fifty nodes that start at once, each needs one link, not fifty."""
    here = members()
    head = PeerHint(OTHER, (ELSEWHERE,), is_dispatcher=True, term=1)

    assert here.address_book.on_peers_discovered(
        (PeerHint(PEER, (WHERE,)), head), at(0.0)
    ) == [Dial(OTHER, (ELSEWHERE,))]
    assert here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S)) == []
    assert here.address_book.redial_all(at(1.0)) == []

    here.address_book.on_dial_failed(
        DialFailed(OTHER, (ELSEWHERE,), was_refused=False), at(1.1)
    )
    due_s = here.address_book._timers.next_at()
    assert due_s == 2 * DIAL_DELAY_S
    dials = here.address_book.dial_delayed(ALL, at(1.1))
    assert dials == [Dial(PEER, (WHERE,))]


def test_a_follower_does_not_dial_the_peers_of_a_large_mesh() -> None:
    """It needs only its dispatcher; in a small mesh it links to every peer."""
    for most, dials in ((2, 0), (3, 3)):
        settings = Settings(node=info(ME), limits=Limits(full_mesh_peers=most))
        here = PeerTable(settings, SavedState(), TimerHeap(), Outbox())
        crowd = [NodeId(letter * 16) for letter in "xyz"]
        here.address_book.on_peers_discovered(
            [PeerHint(node, (ELSEWHERE,)) for node in crowd], at(0.0)
        )

        here.address_book.set_dial_scope(DialScope.NOBODY)

        done = here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))

        assert len(done) == dials
        assert here.address_book.dial_delayed(ALL, at(1.0)) == []


def crowd(size: int) -> list[PeerHint]:
    return [
        PeerHint(NodeId(f"{index:016d}"), (Address(f"10.0.1.{index}", 7878),))
        for index in range(size)
    ]


def test_a_searching_node_in_a_large_mesh_dials_the_best_ranked() -> None:
    """Fifty nodes that start on two cores have no time for all links."""
    here = members()
    adverts = crowd(20)
    here.address_book.on_peers_discovered(adverts[::-1], at(0.0))

    dials = here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))
    assert [dial.node for dial in dials if isinstance(dial, Dial)] == [
        advert.node for advert in adverts[:DISCOVERY_PEERS]
    ]
    assert here.address_book.dial_delayed(ALL, at(2 * DIAL_DELAY_S)) == []

    first = adverts[0]
    event = DialFailed(first.node, first.addresses, was_refused=True)
    here.address_book.on_dial_failed(event, at(0.7))
    (dial,) = here.address_book.dial_delayed(ALL, at(3 * DIAL_DELAY_S))
    assert dial == Dial(
        adverts[DISCOVERY_PEERS].node, adverts[DISCOVERY_PEERS].addresses
    )


def test_a_dispatcher_dials_every_peer() -> None:
    """Nodes that wait for a dispatcher need not look for it."""
    here = members()
    here.address_book.on_peers_discovered(crowd(20), at(0.0))
    here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))

    here.address_book.set_dial_scope(DialScope.EVERYBODY)

    assert (
        len(here.address_book.dial_delayed(ALL, at(2 * DIAL_DELAY_S)))
        == 20 - DISCOVERY_PEERS
    )
    assert len(here.address_book.redial_all(at(1.0))) == 20


def test_a_searching_node_in_a_large_mesh_dials_more_seldom() -> None:
    """The next look must not repeat what is too much at once."""
    for size, pause_s in ((16, REDIAL_S), (32, 2 * REDIAL_S)):
        here = members()
        here.address_book.on_peers_discovered(crowd(size), at(0.0))
        here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))

        assert len(here.address_book.redial_all(at(1.0))) == (
            DISCOVERY_PEERS if size == 16 else 0
        )
        assert here.address_book.on_time(at(pause_s - 0.1)) == []
        assert len(here.address_book.on_time(at(pause_s + 1.0))) == DISCOVERY_PEERS


def test_forged_adverts_do_not_delay_a_node_for_minutes() -> None:
    """A thousand adverts are forged easily; no LAN has so many agents."""
    here = members()
    here.address_book.on_peers_discovered(crowd(1000), at(0.0))

    assert here.address_book.dial_wait_s == 3.0 * DIAL_WAIT_SCALE_MAX


def test_dialled_peers_of_a_large_mesh_get_more_time() -> None:
    """Each of them has as much to do."""
    for size in (16, 32):
        here = members()
        here.address_book.on_peers_discovered(crowd(size), at(0.0))
        here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))

        assert here.address_book.dial_wait_s == 3.0 * size / 16
        here.address_book.dial_delayed(
            ALL, at(DIAL_DELAY_S + here.address_book.dial_wait_s - 0.01)
        )
        assert len(here.address_book.unanswered_nodes()) == DISCOVERY_PEERS
        here.address_book.dial_delayed(
            frozenset({ME}), at(DIAL_DELAY_S + here.address_book.dial_wait_s)
        )
        assert here.address_book.unanswered_nodes() == []


def test_a_redirected_node_dials_only_the_dispatcher() -> None:
    """Until that fails, or takes too long."""
    here = members()
    here.address_book.on_peers_discovered((PeerHint(PEER, (WHERE,)),), at(0.0))
    here.address_book.dial_node(OTHER, (ELSEWHERE,), at(0.1), is_dispatcher=True)

    assert here.address_book.dial_delayed(ALL, at(1.0)) == []
    assert here.address_book.on_time(at(2.9)) == []
    assert here.address_book.dial_delayed(ALL, at(3.2)) == [Dial(PEER, (WHERE,))]


def test_a_node_without_an_address_is_not_dialled() -> None:
    """An empty dial would look as if all addresses had refused."""
    here = members()

    assert here.address_book.dial_node(PEER, (), at(0.0)) == []
    assert here.address_book.on_time(at(5.0)) == []


def test_a_lost_peer_is_redialled_after_a_while() -> None:
    """The link may come back without an mDNS event."""
    here = members()
    here.on_peer_up(up(PEER), at(0.0))
    assert here.address_book._timers.next_at() == float("inf")

    here.on_peer_down(PEER, at(100.0))

    assert here.address_book._timers.next_at() == 100.0 + REDIAL_S
    assert [type(e) for e in here.address_book.on_time(at(105.0))] == [Dial]


def test_a_peer_is_forgotten_after_a_week() -> None:
    """Laptops that left for good must not cost dials for ever."""
    here = members()
    here.address_book.on_peers_discovered((PeerHint(PEER, (WHERE,)),), at(0.0))

    assert here.address_book.on_time(at(8 * 86_400.0)) == []
    assert here.addresses_of(PEER) == ()


def test_hints_are_bounded() -> None:
    """A flood of mDNS adverts must not fill the memory."""
    here = members(peers=3)

    for index in range(50):
        advert = PeerHint(NodeId(f"node{index}"), (Address(f"10.0.1.{index}", 7878),))
        here.address_book.on_peers_discovered((advert,), at(0.0))

    assert len(here.address_book.redial_all(at(1.0))) == 3


def test_a_flood_of_adverts_makes_no_peer_forgotten() -> None:
    """Where mDNS finds no peer any more, remembered addresses are the only way back."""
    here = members(SavedState(peers=(PeerHint(PEER, (WHERE,)),)), peers=3)
    here.address_book.dial_remembered(at(0.0))

    for index in range(50):
        advert = PeerHint(NodeId(f"node{index}"), (Address(f"10.0.1.{index}", 7878),))
        here.address_book.on_peers_discovered((advert,), at(0.0))

    assert here.addresses_of(PEER) == (WHERE,)


def test_an_address_from_an_advert_is_not_dialled_for_long() -> None:
    """A forger can advertise a thousand; a real peer answers queries again."""
    here = members()
    adverts = (PeerHint(PEER, (WHERE,)), PeerHint(OTHER, (ELSEWHERE,)))
    here.address_book.on_peers_discovered(adverts, at(0.0))
    here.address_book.dial_delayed(ALL, at(DIAL_DELAY_S))
    here.address_book.on_peers_discovered(adverts[:1], at(50.0))

    dials = here.address_book.on_time(at(70.0))

    assert dials == [Dial(PEER, (WHERE,))]
    assert here.addresses_of(OTHER) == ()


def test_many_forged_dispatchers_delay_a_node_only_briefly() -> None:
    """Any host can claim the role; a few are awaited, the others count as nodes."""
    here = members()
    here.address_book.on_peers_discovered((PeerHint(PEER, (WHERE,)),), at(0.0))
    dials: list[Effect] = []
    for index in range(20):
        now = at(0.5 * index)
        false = Address(f"10.0.1.{index}", 7878)
        advert = PeerHint(NodeId(f"zzz{index}"), (false,), is_dispatcher=True, term=9)
        here.address_book.on_peers_discovered((advert,), now)
        dials += here.address_book.dial_delayed(ALL, now)

    assert dials[:1] == [Dial(PEER, (WHERE,))]


def test_frames_of_a_closed_link_are_ignored() -> None:
    """They may still be in flight when this node has given up the peer."""
    here = members()
    here.on_peer_up(up(PEER), at(0.0))

    assert here.disconnect(PEER, "silent", at(1.0)) == [Disconnect(PEER, "silent")]
    assert not here.record_frame(PEER, at(1.1))
    assert here.disconnect(PEER, "silent", at(1.2)) == []


def test_only_wanted_nodes_are_dialled_in_a_large_mesh() -> None:
    """Followers keep the links that a takeover needs."""
    here = members()
    adverts = (PeerHint(PEER, (WHERE,)), PeerHint(OTHER, (Address("10.0.0.3", 7878),)))

    effects = here.address_book.on_peers_discovered(
        adverts, at(0.0), frozenset({OTHER})
    )

    assert effects == [Dial(OTHER, (Address("10.0.0.3", 7878),))]


def test_a_detached_node_queries_at_one_two_four_eight_sixteen_seconds() -> None:
    """Then every twenty seconds."""
    timers = TimerHeap()
    browsing = MdnsSchedule(timers)
    assert browsing.start(at(0.0)) == [Browse(is_wanted=True)]
    asked = []
    for _ in range(7):
        due_s = timers.next_at()
        asked.append(due_s)
        assert browsing.on_time(at(due_s), draw=0.5, is_dispatching=False)

    assert asked == [1.0, 2.0, 4.0, 8.0, 16.0, 36.0, 56.0]


def test_a_dispatcher_spreads_its_queries_and_a_follower_stops() -> None:
    """Two sides of a healed split must not query in step for ever."""
    timers = TimerHeap()
    browsing = MdnsSchedule(timers)
    browsing.start(at(0.0))

    browsing.on_time(at(1.0), draw=0.0, is_dispatching=True)
    assert timers.next_at() == 1.0 + 0.75 * BROWSE_INTERVAL_S

    assert browsing.stop() == [Browse(is_wanted=False)]
    assert browsing.stop() == []


def own_line() -> RosterEntry:
    return RosterEntry(
        id=ME,
        name="pi",
        role=Role.DISPATCHER,
        state=NodeState.READY,
        addresses=(),
        lan_port=3443,
        slots=2,
    )


def test_a_taken_name_gets_the_first_four_characters_of_the_id() -> None:
    """The new name stays; five machines called `raspberrypi` are common."""
    registry = RosterBuilder([], members())

    assert registry.assign_name(ME, "pi") == "pi"
    assert registry.assign_name(PEER, "pi") == "pi-pppp"
    assert registry.assign_name(PEER, "pi") == "pi-pppp"
    assert registry.assign_name(NodeId("pppp" + "q" * 12), "pi") == "pi-ppppq"


def test_a_renamed_node_gets_its_new_name() -> None:
    """`--name` must work in a mesh that knows the node by another name."""
    registry = RosterBuilder([(PEER, "old")], members())

    assert registry.assign_name(PEER, "new") == "new"
    assert registry.assign_name(OTHER, "old") == "old"


def test_a_machine_that_left_gets_its_name_back_under_a_new_id() -> None:
    """What it ran before is shown under another name, also by late rosters."""
    registry = RosterBuilder([], members())
    registry.assign_name(PEER, "pi")

    released = registry.release_name(PEER, "left")
    again = registry.release_name(PEER, "left")
    registry.set_roster(Roster(EPOCH, 1, (replace(own_line(), id=PEER),)), at(0.0))

    assert (released, again) == ([RenameNode(PEER, "pi (left)")], [])
    assert registry.assign_name(OTHER, "pi") == "pi"
    assert registry.given_name(PEER) == "pi (left)"
    assert registry.release_name(NodeId("unknown"), "left") == []


def test_the_roster_lists_members_in_the_order_of_succession() -> None:
    """The dispatcher comes first, then its standbys in their order."""
    here = members()
    nodes = [NodeId(letter * 16) for letter in "cab"]
    for index, node in enumerate(nodes):
        here.on_peer_up(up(node, node[0], Address(f"10.0.0.{index}", 1)), at(0.0))
        here.confirm_follower(node, EPOCH, ())

    standbys = (nodes[0], nodes[2])
    roster = RosterBuilder([], here).build_roster(
        EPOCH, own_line, Availability(), standbys, lambda _: 9, at(1.0)
    )

    assert roster is not None
    assert [m.name for m in roster.members] == ["pi", "c", "b", "a"]
    assert [m.role for m in roster.members] == [
        Role.DISPATCHER,
        Role.STANDBY,
        Role.STANDBY,
        Role.WORKER,
    ]
    assert [m.running for m in roster.members] == [0, 2, 2, 2]


def test_a_roster_follows_member_changes_at_once_and_loads_each_second() -> None:
    """Idle nodes must stay quiet."""
    here = members()
    registry = RosterBuilder([], here)
    busy = partial(replace, own_line(), load=LoadSample(90.0, 2.0, 0, 0))

    def build(own: Callable[[], RosterEntry], now: Moment) -> Roster | None:
        return registry.build_roster(EPOCH, own, Availability(), (), lambda _: 0, now)

    assert build(own_line, at(1.0)) is not None
    assert build(busy, at(1.5)) is None
    assert build(busy, at(2.0)) is not None
    assert build(busy, at(9.0)) is None

    here.on_peer_up(up(PEER), at(9.0))
    here.confirm_follower(PEER, EPOCH, ())
    roster = build(busy, at(9.1))
    assert roster is not None
    assert (roster.version, len(roster.members)) == (3, 2)


def registry_of(size: int) -> RosterBuilder:
    """Return a dispatcher's registry of so many followers."""
    here = members()
    registry = RosterBuilder([], here)
    for advert in crowd(size)[1:]:
        assert advert.node is not None
        here.on_peer_up(up(advert.node, f"pi-{advert.node}"), at(0.0))
        here.confirm_follower(advert.node, EPOCH, ())
    return registry


def test_roster_traffic_of_a_follower_does_not_grow_with_the_mesh() -> None:
    """Rosters list all nodes, so larger meshes send them more seldom."""
    for size in (16, 64):
        registry = registry_of(size)
        listed = 0
        for tenth in range(600):
            line = partial(replace, own_line(), load=LoadSample(tenth, tenth, 0, 0))
            roster = registry.build_roster(
                EPOCH, line, Availability(), (), lambda _: 0, at(tenth / 10)
            )
            listed += 0 if roster is None else len(roster.members)

        assert 0.9 * 16 * 60 <= listed <= 1.1 * 16 * 60 + size


def test_members_of_a_large_mesh_are_checked_more_seldom() -> None:
    """Changes are reported; a full check takes longer with each member."""
    looks = []
    for size in (16, 64):
        registry = registry_of(size)
        registry.build_roster(EPOCH, own_line, Availability(), (), lambda _: 0, at(1.0))
        steps = [at(2.0 + hundredth / 100) for hundredth in range(1000)]
        looks.append(0)
        for now in steps:
            looks[-1] += registry.is_build_due(EPOCH, Availability(), now)
            registry.build_roster(EPOCH, own_line, Availability(), (), lambda _: 0, now)

    assert looks[0] == pytest.approx(100, abs=10)
    assert looks[1] == pytest.approx(25, abs=3)


def test_a_roster_with_the_longest_entries_fits_into_a_frame() -> None:
    """Each node may fill its own bounds, and all are listed."""
    here = members()
    registry = RosterBuilder([], here)
    wide = "\N{GRINNING FACE}"
    for index in range(1024):
        node = NodeId(f"{index:064d}")
        said = replace(
            info(node, wide * WORD_CHARS_MAX),
            version=wide * TITLE_CHARS_MAX,
            labels=((wide * WORD_CHARS_MAX, wide * WORD_CHARS_MAX),) * LABELS_MAX,
            gpus=(wide * WORD_CHARS_MAX,) * GPUS_MAX,
            os=wide * WORD_CHARS_MAX,
            arch=wide * WORD_CHARS_MAX,
        )
        event = up(node)
        hello = replace(event.peer_hello, node=said)
        assert wire.Decoder(Limits()).receive_data(wire.encode([hello])) == [hello]
        here.on_peer_up(replace(event, peer_hello=hello), at(0.0))
        view = here.peers[node]
        hosts = (f"{n:0{HOST_CHARS_MAX}d}" for n in range(ADDRESSES_MAX))
        view.addresses = tuple(Address(host, 65_535) for host in hosts)
        here.confirm_follower(node, EPOCH, ())

    roster = registry.build_roster(
        EPOCH, own_line, Availability(), (), lambda _: 0, at(1.0)
    )

    assert roster is not None
    assert len(roster.members) == here.members_max
    assert roster.members[1].labels
    assert len(wire.pack_parts(roster, Limits().frame_bytes)) == 1


def test_constant_joins_and_leaves_do_not_push_members_off_the_roster() -> None:
    """A member could rename itself each time; no peer reads a longer roster."""
    here = members(peers=4)
    registry = RosterBuilder([], here)
    for index in range(9):
        node = NodeId(f"{index:016d}")
        here.on_peer_up(up(node, f"pi-{index}"), at(index))
        here.confirm_follower(node, EPOCH, ())
        registry.build_roster(
            EPOCH, own_line, Availability(), (), lambda _: 0, at(index + 0.2)
        )
        if index < 8:
            here.on_peer_down(node, at(index + 0.4))
            registry.on_follower_lost(node, at(index + 0.4), is_leaving=False)

    roster = registry.build_roster(
        EPOCH, own_line, Availability(), (), lambda _: 0, at(9.0)
    )

    roster = roster or registry.roster
    assert roster is not None
    assert [m.name for m in roster.members] == ["pi", "pi-8", "pi-6", "pi-7"]


def test_a_lost_member_stays_listed_after_a_failover() -> None:
    """Two machines that lose power are both missing, also if one was dispatcher."""
    registry = RosterBuilder([], members())
    here, peer, other = (replace(own_line(), id=n, name=n) for n in (ME, PEER, OTHER))
    lost = replace(other, state=NodeState.LOST)
    registry.set_roster(Roster(Epoch(0, PEER), 1, (peer, here, lost)), at(5.0))
    registry.set_roster(Roster(Epoch(0, PEER), 2, (peer, here, lost)), at(6.0))

    registry.mark_members_lost(at(20.0))

    def listed(seconds: float) -> list[NodeId]:
        build = (EPOCH, own_line, Availability(), (), lambda _: 0, at(seconds))
        roster = registry.build_roster(*build)
        assert roster is not None
        return [m.id for m in roster.members if m.state is NodeState.LOST]

    assert listed(21.0) == [OTHER, PEER]
    assert registry.lost_since_s(OTHER) == at(5.0).mono_s
    assert listed(610.0) == [PEER]


def test_a_member_that_came_back_under_another_dispatcher_is_not_lost() -> None:
    """Only the latest roster says who is missing."""
    registry = RosterBuilder([], members())
    line = replace(own_line(), id=OTHER)
    lost = replace(line, state=NodeState.LOST)
    registry.set_roster(Roster(Epoch(0, PEER), 1, (lost,)), at(1.0))

    registry.set_roster(Roster(Epoch(0, PEER), 2, (line,)), at(2.0))

    assert registry.lost_since_s(OTHER) is None


def test_a_lost_member_stays_listed_for_ten_minutes_unlike_one_that_left() -> None:
    """People look for the machine that is missing."""
    here = members()
    registry = RosterBuilder([], here)
    for index, node in enumerate((PEER, OTHER)):
        here.on_peer_up(up(node, node[0], Address(f"10.0.0.{index}", 1)), at(0.0))
        here.confirm_follower(node, EPOCH, ())
    registry.build_roster(EPOCH, own_line, Availability(), (), lambda _: 0, at(1.0))

    for node, is_leaving in ((PEER, False), (OTHER, True)):
        here.on_peer_down(node, at(2.0))
        registry.on_follower_lost(node, at(2.0), is_leaving=is_leaving)
    roster = registry.build_roster(
        EPOCH, own_line, Availability(), (), lambda _: 0, at(3.0)
    )
    assert roster is not None
    assert [(m.id, m.state) for m in roster.members] == [
        (ME, NodeState.READY),
        (PEER, NodeState.LOST),
    ]

    roster = registry.build_roster(
        EPOCH, own_line, Availability(), (), lambda _: 0, at(700.0)
    )
    assert roster is not None
    assert len(roster.members) == 1
