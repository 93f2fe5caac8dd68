"""Phases of one node: actions, peers and order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Dial, Disconnect, Effect, LogLine, Relay, Save, Send
from octaskly.core.election.candidacy import (
    STAGGERED_CLAIMS_MAX,
    Candidacy,
    LogVersions,
)
from octaskly.core.election.claims import ClaimHandlers, wins_over
from octaskly.core.election.election import Election, mint_stream
from octaskly.core.election.heartbeats import Heartbeats
from octaskly.core.election.phases import (
    PHASE_TRANSITIONS,
    Attachment,
    Campaigning,
    Claiming,
    Discovering,
    Dispatching,
    Following,
    Phase,
    SteppingDown,
)
from octaskly.core.election.timeouts import Timeouts
from octaskly.core.events import DialFailed, PeerHint, PeerUp, SavedState
from octaskly.core.log.facts import Entry, TaskCancelled
from octaskly.core.membership.peer import candidate_rank
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import (
    NO_EPOCH,
    Address,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
    covers,
)
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Limits, Settings, Timing
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.protocol.messages import (
    Claim,
    ClaimOk,
    ClaimRejected,
    Heartbeat,
    Hello,
    Message,
    Probe,
    ProbeOk,
    Pull,
    Redirect,
    Transfer,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from tests.support.builders import node_moment
from tests.support.effects import note_events

A, B, C, D = (NodeId(letter * 16) for letter in "abcd")
TIMING = Timing()
PAGE = Path(__file__).parents[4] / "docs" / "explanation" / "election.md"
NAMES: dict[str, type[Phase]] = {
    "discovering": Discovering,
    "following": Following,
    "campaigning": Campaigning,
    "claiming": Claiming,
    "dispatching": Dispatching,
    "stepping down": SteppingDown,
}


def info(node: NodeId, **changes: object) -> NodeInfo:
    base = NodeInfo(
        id=node,
        boot="boot",
        name="pi",
        slots=2,
        version="1.0",
        peer_port=7878,
        lan_port=3443,
    )
    return replace(base, **changes)


class Harness:
    """One election with the components that it reads, and a disk on request."""

    def __init__(self, saved: SavedState | None = None, **changes: object) -> None:
        saved = saved or SavedState()
        settings = Settings(node=info(B, **changes), log_version=saved.log_version)
        self.journal = Journal(saved, Outbox())
        self.timers = timers = TimerHeap()
        self.members = PeerTable(settings, saved, timers, Outbox())
        self.exchange = AntiEntropy(self.journal, Outbox(), self.members.peers)
        versions = LogVersions(settings, self.journal, self.members)
        self.candidacy = Candidacy(settings, self.journal, self.members, versions)
        pulse = Heartbeats(settings, self.journal, self.members, timers)
        self.election = Election(
            settings, saved, self.journal, self.members, self.candidacy, pulse, Outbox()
        )
        self.watch = Timeouts(
            settings, self.members, self.candidacy, self.election, timers
        )
        self.claims = ClaimHandlers(
            *(settings, self.journal, self.members),
            *(self.exchange, self.candidacy, self.election),
        )
        self.election.start_election(node_moment(0.0))
        self.members.address_book.dial_remembered(node_moment(0.0))

    def meet(
        self,
        peer: NodeId,
        now_s: float,
        *,
        epoch: Epoch = NO_EPOCH,
        dispatcher: NodeId | None = None,
        followers: int = 0,
        entries: int = 0,
        sent: Hello | None = None,
        **changes: object,
    ) -> list[Effect]:
        election = self.election
        mine = sent or Hello(
            node=info(B), epoch=election.epoch, dispatcher=election.reachable_dispatcher
        )
        vector = ((StreamId(7), entries),) if entries else ()
        hello = Hello(
            node=info(peer, **changes),
            epoch=epoch,
            dispatcher=dispatcher,
            followers=followers,
            vector=vector,
        )
        address = Address(f"10.0.0.{ord(peer[0])}", 7878)
        event = PeerUp(peer, mine, hello, address)
        self.members.on_peer_up(event, node_moment(now_s))
        return self.claims.on_peer_up(event, node_moment(now_s))

    def persist(self, now_s: float) -> list[Effect]:
        self.journal.on_persisted(self.journal.last_number)
        return self.journal.run_deferred(node_moment(now_s))

    def follow(self, now_s: float, dispatcher: NodeId = A) -> None:
        epoch = Epoch(3, dispatcher)
        self.meet(dispatcher, now_s, epoch=epoch, dispatcher=dispatcher)
        self.persist(now_s)
        self.members.record_frame(dispatcher, node_moment(now_s + 0.001))
        assert self.election.attachment == Attachment(dispatcher, epoch, 1)
        self.candidacy.successors = {B: ()}  # As its roster says.

    def become_dispatcher(self, now_s: float) -> None:
        self.watch.on_time(node_moment(now_s))
        self.persist(now_s)
        assert isinstance(self.election.phase, Dispatching)

    def send_heartbeats(self, now_s: float) -> list[Effect]:
        """Send the heartbeats that are due."""
        become_dispatcher = self.election.dispatcher_epoch
        assert become_dispatcher is not None
        return self.election.heartbeats.on_time(become_dispatcher, node_moment(now_s))


def sent(effects: list[Effect], peer: NodeId) -> list[Message]:
    return [
        m for e in effects if isinstance(e, Send) and e.peer == peer for m in e.messages
    ]


ELSEWHERE = Address("10.0.0.9", 7878)


def refused(node: NodeId) -> DialFailed:
    """Return the event that no process listens at a node's address."""
    return DialFailed(
        node, (Address(f"10.0.0.{ord(node[0])}", 7878),), was_refused=True
    )


def test_the_timings_keep_their_ratios() -> None:
    """One lost heartbeat is no silence; a follower with heartbeats needs no tick."""
    assert TIMING.suspicion_timeout_s >= 3 * TIMING.heartbeat_s
    assert TIMING.worker_timeout_s >= TIMING.suspicion_timeout_s
    assert TIMING.heartbeat_s < TIMING.tick_s < TIMING.suspicion_timeout_s / 3


def test_the_page_lists_exactly_the_legal_transitions() -> None:
    """People read the table there before they read this code."""
    rows = re.findall(
        r"^\| ([a-z ]+) \| .* \| (.*) \|$", PAGE.read_text(), re.MULTILINE
    )
    named = {name: re.findall(r": ([a-z ]+)", leaves) for name, leaves in rows}

    assert list(named) == list(NAMES)
    assert list(PHASE_TRANSITIONS) == list(NAMES.values())
    for name, moves in named.items():
        possible = PHASE_TRANSITIONS[NAMES[name]]
        assert all(NAMES.get(move) in (*possible, None) for move in moves), name
        assert any(move in NAMES for move in moves), name


def test_a_node_without_peers_claims_after_seven_tenths_of_a_second() -> None:
    """§ 3.5: one machine must serve at once."""
    world = Harness()

    assert world.watch.deadline(node_moment(0.0)) == TIMING.discovery_alone_s
    assert world.watch.on_time(node_moment(0.69)) == []
    save, note = world.watch.on_time(node_moment(0.7))

    assert isinstance(save, Save)
    assert (save.term, save.epoch) == (1, Epoch(1, B))
    assert note == LogLine(
        "info", "claiming", (("term", 1), ("reason", "no dispatcher found"))
    )


def test_a_claim_is_sent_only_once_it_is_durable() -> None:
    """§ 3.4: terms are committed before any frame that depends on them."""
    world = Harness()
    world.meet(C, 0.1)

    claiming = world.watch.on_time(node_moment(1.6))
    assert sent(claiming, C) == []
    assert world.election.dispatcher_epoch is None

    crowned = world.persist(1.62)
    (claim,) = sent(crowned, C)
    assert isinstance(claim, Claim)
    assert claim.epoch == Epoch(1, B)
    assert world.election.dispatcher_epoch is not None


def test_the_better_ranked_peer_gets_a_second_to_claim() -> None:
    """The longer log leads; the next node waits `claim_wait_s` for its claim."""
    world = Harness()
    world.meet(C, 0.1, entries=5)

    assert note_events(world.watch.on_time(node_moment(1.9))) == []
    assert note_events(world.watch.on_time(node_moment(2.5))) == ["claiming"]


def test_a_peer_that_does_not_claim_in_its_turn_is_asked_whom_it_follows() -> None:
    """In a ring, it may follow a dispatcher that this node does not hear."""
    world = Harness()
    world.meet(C, 0.1, entries=5)
    world.meet(D, 0.1, entries=5)
    window_s, turn_s = TIMING.discovery_s, TIMING.claim_wait_s
    first_s = window_s + turn_s - TIMING.probe_s

    assert world.watch.deadline(node_moment(0.1)) == first_s
    assert world.watch.on_time(node_moment(first_s - 0.01)) == []
    for asked_s in (first_s, first_s + turn_s):
        assert world.watch.on_time(node_moment(asked_s)) == [
            Send(peer, (Probe(B, asked_s),)) for peer in (C, D)
        ]
        assert world.watch.on_time(node_moment(asked_s + 0.01)) == []

    where = (ELSEWHERE,)
    world.claims.on_redirect(C, Redirect(Epoch(3, A), A, where), node_moment(2.8))
    assert world.watch.on_time(node_moment(window_s + 2 * turn_s)) == []


def test_a_dispatcher_in_hello_is_followed_once_its_epoch_is_durable() -> None:
    """A restart must not bring back a worker that obeys an older epoch."""
    world = Harness()
    epoch = Epoch(4, A)

    effects = world.meet(A, 0.2, epoch=epoch, dispatcher=A)
    assert [e for e in effects if isinstance(e, Save)] == [
        Save(number=1, term=4, epoch=epoch)
    ]
    assert world.election.attachment is None

    effects = world.persist(0.21)
    assert sent(effects, A) == [ClaimOk(epoch, ())]
    assert world.election.attachment == Attachment(A, epoch, 1)


def test_a_stale_claim_is_answered_and_never_followed() -> None:
    """§ 3.5: the answer shows a deposed dispatcher the newer epoch."""
    world = Harness(SavedState(term=9, epoch=Epoch(9, C)))
    world.meet(A, 0.2)

    effects = world.claims.on_claim(
        A, Claim(Epoch(5, A), StreamId(1), ()), node_moment(0.3)
    )

    assert effects == [Send(A, (ClaimRejected(Epoch(9, C)),))]
    assert world.election.dispatcher is None


def test_a_follower_names_its_dispatcher_to_a_stale_one() -> None:
    """Two dispatchers learn of each other through a worker, too."""
    world = Harness()
    world.follow(0.1)

    effects = world.meet(C, 0.5, epoch=Epoch(2, C), dispatcher=C)

    assert sent(effects, C) == [
        Redirect(Epoch(3, A), A, (Address(f"10.0.0.{ord('a')}", 7878),))
    ]


def test_a_refused_dial_after_eof_lets_the_first_successor_claim_at_once() -> None:
    """The refusal proves the death; a killed process is replaced in milliseconds."""
    world = Harness()
    world.follow(0.1)
    world.candidacy.successors = dict.fromkeys((B, C, D), ())
    where = (Address("10.0.0.3", 7878),)
    world.members.address_book.on_peers_discovered(
        (PeerHint(C, where),), node_moment(1.0)
    )
    world.members.on_peer_down(A, node_moment(5.0))

    effects = world.watch.on_peer_down(A, "eof", node_moment(5.0))
    # D's address is unknown, so no dial can prove that it is gone.
    assert [e.node for e in effects if isinstance(e, Dial)] == [A, C]
    assert world.election.attachment is None

    effects = world.watch.on_dial_failed(refused(A), node_moment(5.001))
    assert note_events(effects) == ["dispatcher lost", "claiming"]


def test_a_dispatcher_that_closes_its_link_is_dialled_once_more() -> None:
    """A process that ends may close its links before its listening socket."""
    world = Harness()
    world.follow(0.1)
    world.members.on_peer_down(A, node_moment(5.0))
    world.watch.on_peer_down(A, "eof", node_moment(5.0))
    hung_up = replace(refused(A), was_refused=False)

    (again,) = world.watch.on_dial_failed(hung_up, node_moment(5.01))
    assert isinstance(again, Dial)
    assert again.node == A
    assert world.watch.on_dial_failed(hung_up, node_moment(5.02)) == []
    effects = world.watch.on_dial_failed(refused(A), node_moment(5.03))
    assert note_events(effects) == ["dispatcher lost", "claiming"]


def test_a_node_without_a_roster_looks_for_others_before_it_claims() -> None:
    """It just joined, so it may have no link to those that are to succeed."""
    world = Harness()
    world.follow(0.1)
    world.candidacy.successors = {}
    world.members.on_peer_down(A, node_moment(0.2))
    world.watch.on_peer_down(A, "eof", node_moment(0.2))

    effects = world.watch.on_dial_failed(refused(A), node_moment(0.2))

    assert note_events(effects) == ["discovering"]


def test_later_successors_wait_their_turn() -> None:
    """Claims are staggered by position in the roster."""
    world = Harness()
    world.follow(0.1)
    world.candidacy.successors = dict.fromkeys((C, D, B), ())
    world.members.on_peer_down(A, node_moment(5.0))
    world.watch.on_peer_down(A, "eof", node_moment(5.0))

    assert note_events(world.watch.on_dial_failed(refused(A), node_moment(5.0))) == [
        "dispatcher lost"
    ]
    assert world.watch.on_time(node_moment(5.0)) == []
    assert world.watch.deadline(node_moment(0.0)) == 5.0 + 2 * TIMING.claim_stagger_s
    assert note_events(world.watch.on_time(node_moment(5.5))) == ["claiming"]


def test_a_successor_does_not_wait_for_nodes_that_refused_a_dial() -> None:
    """All the standbys may have died with the dispatcher."""
    world = Harness()
    world.follow(0.1)
    line = {C: (ELSEWHERE,), D: (ELSEWHERE,), B: ()}
    world.candidacy.successors = line
    world.members.on_peer_down(A, node_moment(5.0))
    world.watch.on_peer_down(A, "eof", node_moment(5.0))
    world.watch.on_dial_failed(refused(A), node_moment(5.0))

    assert world.watch.on_dial_failed(refused(C), node_moment(5.0)) == []
    assert world.watch.deadline(node_moment(0.0)) == 5.0 + TIMING.claim_stagger_s
    assert note_events(world.watch.on_dial_failed(refused(D), node_moment(5.01))) == [
        "claiming"
    ]


def test_a_node_in_a_large_mesh_dials_down_the_roster_until_one_answers() -> None:
    """Without a link to any of them it would not hear their claims."""
    world = Harness()
    world.follow(0.1)
    line = [NodeId(f"{letter}" * 16) for letter in "fghijklmnopqrstuvwxyz"]
    world.candidacy.successors = {**dict.fromkeys(line, (ELSEWHERE,)), B: ()}
    world.members.on_peer_down(A, node_moment(5.0))

    effects = world.watch.on_peer_down(A, "eof", node_moment(5.0))
    dialled = [effect.node for effect in effects if isinstance(effect, Dial)]
    world.watch.on_dial_failed(refused(A), node_moment(5.0))
    for node in line[:4]:
        world.members.address_book.on_dial_failed(refused(node), node_moment(5.0))
        effects = world.watch.on_dial_failed(refused(node), node_moment(5.0))
        dialled += [effect.node for effect in effects if isinstance(effect, Dial)]
    assert dialled == [A, *line[:7]]

    world.meet(line[5], 5.1)
    alone_s = 5.0 + STAGGERED_CLAIMS_MAX * TIMING.claim_stagger_s
    world.members.address_book.on_dial_failed(refused(line[6]), node_moment(5.1))
    assert world.watch.on_dial_failed(refused(line[6]), node_moment(5.1)) == []
    # It has to notice the death first, as all others have.
    crowding = 22 / Limits().full_mesh_peers
    assert (
        world.watch.deadline(node_moment(0.0))
        == alone_s + crowding * TIMING.claim_wait_s
    )


def test_unreachable_hosts_are_skipped_in_time() -> None:
    """They refuse nothing: each quarter of a second one more is dialled."""
    world = Harness()
    world.follow(0.1)
    line = [NodeId(f"{letter}" * 16) for letter in "fghijklmnopqrstuvwxyz"]
    world.candidacy.successors = {**dict.fromkeys(line, (ELSEWHERE,)), B: ()}
    world.watch.on_time(node_moment(5.0))
    world.watch.on_time(node_moment(5.5))
    assert isinstance(world.election.phase, Campaigning)
    world.watch.on_time(node_moment(5.5))

    for node in line[3:6]:
        due_s = world.watch.deadline(node_moment(0.0))
        assert world.watch.on_time(node_moment(due_s - 0.01)) == []
        assert world.watch.on_time(node_moment(due_s)) == [Dial(node, (ELSEWHERE,))]
        assert world.watch.deadline(node_moment(0.0)) == due_s + TIMING.claim_stagger_s


def test_a_silent_dispatcher_is_probed_by_a_new_link_and_through_others() -> None:
    """A link may look alive when its host is gone."""
    world = Harness()
    world.follow(0.1)
    world.meet(C, 0.2, epoch=Epoch(3, A), dispatcher=A)

    assert world.watch.on_time(node_moment(1.2)) == []
    effects = world.watch.on_time(node_moment(1.35))

    assert Disconnect(A, "silent") in effects
    assert sent(effects, C) == [Probe(A, 1.35)]
    assert [e.node for e in effects if isinstance(e, Dial)] == [A]


def test_no_node_claims_while_another_hears_the_dispatcher() -> None:
    """F11: A and C cannot talk, B hears both; nothing must change."""
    world = Harness()
    world.follow(0.1)
    world.meet(C, 0.2, epoch=Epoch(3, A), dispatcher=A)
    world.watch.on_time(node_moment(1.35))
    world.watch.on_probe_ok(C, ProbeOk(A, 1.35, 0.2, Epoch(3, A)))

    assert world.watch.on_time(node_moment(1.66)) == []
    assert world.watch.on_time(node_moment(2.2)) == []
    again = world.watch.on_time(node_moment(2.27))
    assert sent(again, C) == [Probe(A, 2.27)]

    assert note_events(world.watch.on_time(node_moment(2.6))) == [
        "dispatcher lost",
        "claiming",
    ]


def test_peer_that_hears_the_dispatcher_is_a_relay_as_long_as_it_does() -> None:
    """F11: requests reach the dispatcher through it."""
    world = Harness()
    world.follow(0.1)
    world.meet(C, 0.2, epoch=Epoch(3, A), dispatcher=A)
    world.watch.on_time(node_moment(1.35))
    seen = [world.election.relay]

    world.watch.on_probe_ok(C, ProbeOk(A, 1.35, 0.2, Epoch(3, A)))
    for at_s in (1.4, 1.66, 2.27, 2.6):  # Nothing answers the probe of 2.27.
        world.watch.on_time(node_moment(at_s))
        seen.append(world.election.relay)

    view = world.members.peers[C]
    relay = Relay(C, A, view.addresses, view.info.lan_port)
    assert seen == [None, relay, relay, relay, None]


def test_follower_of_another_dispatcher_names_it_to_a_prober() -> None:
    """The prober cannot hear that dispatcher, so it would claim above its epoch."""
    world = Harness()
    world.follow(0.1)
    world.meet(C, 0.2)

    about_own = world.watch.on_probe(C, Probe(A, 0.5), node_moment(0.5))
    about_other = world.watch.on_probe(C, Probe(D, 0.6), node_moment(0.6))

    age_s = 0.5 - 0.101
    assert about_own == [Send(C, (ProbeOk(A, 0.5, age_s, Epoch(3, A)),))]
    where = world.members.addresses_of(A)
    assert about_other == [
        Send(C, (ProbeOk(D, 0.6, None, Epoch(3, A)),)),
        Send(C, (Redirect(Epoch(3, A), A, where),)),
    ]


def test_node_does_not_vouch_for_a_peer_that_it_does_not_follow() -> None:
    """A former dispatcher still sends frames, but no requests can be relayed to it."""
    world = Harness()
    world.meet(A, 0.1)
    world.meet(C, 0.2)

    effects = world.watch.on_probe(C, Probe(A, 0.5), node_moment(0.5))

    assert effects == [Send(C, (ProbeOk(A, 0.5, None, NO_EPOCH),))]


def test_new_relay_gets_the_vector_of_a_node_without_a_dispatcher() -> None:
    """The node may have been dispatcher, and nobody else can read its log."""
    world = Harness()
    world.become_dispatcher(0.7)
    own = world.election.dispatcher_epoch
    assert own is not None
    world.journal.open_stream(own.stream)
    world.journal.append([TaskCancelled(TaskId("t"), "me")], node_moment(1.0))
    world.persist(1.0)
    world.meet(C, 1.1)
    redirect = Redirect(Epoch(3, A), A, (ELSEWHERE,))
    world.claims.on_redirect(C, redirect, node_moment(1.2))
    lost_s = 1.2 + TIMING.step_down_s
    world.watch.on_time(node_moment(lost_s))
    failed = DialFailed(A, (ELSEWHERE,), was_refused=False)
    world.members.address_book.on_dial_failed(failed, node_moment(lost_s))
    world.watch.on_time(node_moment(lost_s))
    assert world.election.state_log_to_relay(node_moment(lost_s)) == []

    world.watch.on_probe_ok(C, ProbeOk(A, lost_s, 0.1, Epoch(3, A)))

    effects = world.election.state_log_to_relay(node_moment(lost_s))
    assert effects == [Send(C, (ClaimOk(Epoch(1, B), ((own.stream, 1),)),))]


def test_relay_pulls_the_log_that_its_dispatcher_cannot_read() -> None:
    """Afterwards the dispatcher pulls from the relay."""
    world = Harness()
    world.follow(0.1)
    world.meet(C, 0.2)
    stated = ClaimOk(Epoch(2, C), ((StreamId(5), 1),))

    effects = world.claims.on_claim_ok(C, stated)

    assert [m for m in sent(effects, C) if isinstance(m, Pull)] == [Pull(())]


def test_relay_does_not_pull_what_it_holds() -> None:
    """A node that was never dispatcher has nothing to pass on."""
    world = Harness()
    world.follow(0.1)
    world.meet(C, 0.2)

    effects = world.claims.on_claim_ok(C, ClaimOk(Epoch(2, C), ()))

    assert not [m for m in sent(effects, C) if isinstance(m, Pull)]


def test_dispatcher_that_no_dial_reaches_is_probed_at_once() -> None:
    """A node out of its reach finds a relay long before its turn to claim."""
    world = Harness()
    world.meet(C, 0.2)
    where = (Address("10.0.0.1", 7878),)
    world.claims.on_redirect(C, Redirect(Epoch(3, A), A, where), node_moment(0.3))
    assert world.watch.on_time(node_moment(0.4)) == []
    failed = DialFailed(A, where, was_refused=False)
    world.members.address_book.on_dial_failed(failed, node_moment(0.5))

    assert world.watch.deadline(node_moment(0.5)) == 0.0
    effects = world.watch.on_time(node_moment(0.5))

    assert sent(effects, C) == [Probe(A, 0.5)]
    world.watch.on_probe_ok(C, ProbeOk(A, 0.5, 0.2, Epoch(3, A)))
    assert world.election.relay is not None


@pytest.mark.parametrize("second_teller", [A, C])
def test_each_dispatcher_that_peers_name_is_probed_early(
    second_teller: NodeId,
) -> None:
    """The first one may have stepped down meanwhile, or lost to one in another part."""
    world = Harness()
    world.meet(C, 0.2)
    world.meet(A, 0.2)
    one, two = NodeId("e" * 16), NodeId("f" * 16)
    probed = []
    named = ((C, Epoch(3, one), 0.3), (second_teller, Epoch(4, two), 0.8))
    for teller, epoch, at_s in named:
        suspect = epoch.node
        redirect = Redirect(epoch, suspect, (ELSEWHERE,))
        world.claims.on_redirect(teller, redirect, node_moment(at_s))
        failed = DialFailed(suspect, (ELSEWHERE,), was_refused=False)
        world.members.address_book.on_dial_failed(failed, node_moment(at_s))
        effects = world.watch.on_time(node_moment(at_s))
        probed += [m.suspect for m in sent(effects, A) if isinstance(m, Probe)]

    assert probed == [one, two]


def test_probes_before_the_turn_to_claim_do_not_declare_a_dispatcher_dead() -> None:
    """While many nodes start, answers are late; at its turn, the node asks again."""
    world = Harness()
    world.meet(C, 0.2, epoch=Epoch(3, A), dispatcher=A)
    world.watch.on_time(node_moment(0.3))

    assert world.watch.on_time(node_moment(0.7)) == []
    assert world.members.peers[C].dispatcher == A
    turn_s = TIMING.discovery_s + TIMING.dial_wait_s + TIMING.discovery_jitter_s + 0.1
    assert sent(world.watch.on_time(node_moment(turn_s)), C) == [Probe(A, turn_s)]
    assert note_events(world.watch.on_time(node_moment(turn_s + 0.4))) == ["claiming"]


def test_a_dispatcher_that_has_not_answered_yet_gets_more_time() -> None:
    """With many followers at once it needs time for each before its heartbeats."""
    world = Harness()
    world.meet(A, 0.1, epoch=Epoch(3, A), dispatcher=A)
    world.persist(0.1)
    bound_s = 0.1 + TIMING.suspicion_timeout_s + TIMING.dial_wait_s

    assert world.watch.on_time(node_moment(bound_s - 0.01)) == []
    assert note_events(world.watch.on_time(node_moment(bound_s))) == [
        "dispatcher silent"
    ]


def test_a_late_follower_is_redirected() -> None:
    """A node that has stepped down sends no heartbeats, but is not dead."""
    world = Harness()
    world.become_dispatcher(0.7)
    mine = Epoch(1, B)
    world.meet(C, 1.0)
    world.meet(A, 1.1, epoch=Epoch(3, A), dispatcher=A)
    assert not isinstance(world.election.phase, Dispatching)

    effects = world.claims.on_claim_ok(C, ClaimOk(mine, ()))

    (redirect,) = sent(effects, C)
    assert isinstance(redirect, Redirect)
    assert redirect.dispatcher == A


def test_a_message_of_an_earlier_epoch_does_not_detach_a_follower() -> None:
    """It was sent before the claim in force, so it says nothing about it."""
    world = Harness()
    world.follow(0.1)
    where = (Address("10.0.0.3", 7878),)

    assert (
        world.claims.on_redirect(A, Redirect(Epoch(2, C), C, where), node_moment(0.3))
        == []
    )
    assert world.election.attachment is not None
    assert world.members.peers[A].dispatcher == A

    followed = Redirect(Epoch(3, A), C, where)
    assert note_events(world.claims.on_redirect(A, followed, node_moment(0.4))) == [
        "discovering"
    ]


def test_no_claim_during_a_dial_to_a_dispatcher_named_by_a_peer() -> None:
    """It may be too busy for a handshake, which has a time limit."""
    world = Harness()
    world.meet(C, 0.2)
    where = (Address("10.0.0.1", 7878),)
    redirect = Redirect(Epoch(3, A), A, where)
    assert world.claims.on_redirect(C, redirect, node_moment(0.3)) == [Dial(A, where)]

    assert world.watch.on_time(node_moment(TIMING.discovery_s)) == []

    failed = DialFailed(A, where, was_refused=False)
    world.members.address_book.on_dial_failed(failed, node_moment(1.5))
    assert world.watch.on_time(node_moment(1.6)) == [
        Send(C, (Probe(A, 1.6),)),
        Dial(A, where),
    ]


def test_better_nodes_in_sight_get_their_second_before_they_are_met() -> None:
    """On a busy machine handshakes are slow; those of dead nodes fail before."""
    where = (Address("10.0.0.1", 7878),)
    for failed in (True, False):
        world = Harness()
        world.members.address_book.on_peers_discovered(
            (PeerHint(A, where),), node_moment(0.0)
        )
        world.members.address_book.dial_delayed(frozenset(), node_moment(0.3))
        world.meet(C, 0.5)
        if failed:
            event = DialFailed(A, where, was_refused=False)
            world.members.address_book.on_dial_failed(event, node_moment(0.9))

        effects = world.watch.on_time(node_moment(TIMING.discovery_s))

        assert note_events(effects) == (["claiming"] if failed else [])
        effects = world.watch.on_time(
            node_moment(TIMING.discovery_s + TIMING.claim_wait_s)
        )
        assert note_events(effects) == ([] if failed else ["claiming"])


def test_own_slowness_gives_the_dispatcher_its_time_again() -> None:
    """Lifeguard: a node that was stopped must not suspect others of silence."""
    world = Harness()
    world.follow(0.1)

    world.watch.on_pause(1.0, node_moment(1.4))

    assert world.watch.on_time(node_moment(1.4)) == []
    assert world.watch.on_time(node_moment(2.5)) == []
    assert "dispatcher silent" in note_events(world.watch.on_time(node_moment(2.61)))


def test_own_slowness_does_not_shorten_the_search() -> None:
    """A node that was stopped has not searched meanwhile."""
    world = Harness()

    world.watch.on_pause(0.5, node_moment(0.6))

    assert world.watch.on_time(node_moment(1.19)) == []
    assert note_events(world.watch.on_time(node_moment(1.2))) == ["claiming"]


def test_no_claim_during_the_handshake_with_the_first_node_in_sight() -> None:
    """On a busy machine a handshake takes longer than the search; it has a limit."""
    where = (Address("10.0.0.3", 7878),)
    head = PeerHint(C, where, is_dispatcher=True, term=1)
    for failed in (True, False):
        world = Harness()
        world.members.address_book.on_peers_discovered((head,), node_moment(0.1))
        assert world.watch.on_time(node_moment(1.5)) == []
        if failed:
            event = DialFailed(C, where, was_refused=False)
            world.members.address_book.on_dial_failed(event, node_moment(1.5))
            assert note_events(world.watch.on_time(node_moment(1.6))) == ["claiming"]
        else:
            bound_s = TIMING.discovery_s + TIMING.dial_wait_s
            assert world.watch.on_time(node_moment(bound_s - 0.01)) == []
            assert note_events(world.watch.on_time(node_moment(bound_s))) == [
                "claiming"
            ]


def test_a_dispatcher_that_restarted_is_not_awaited() -> None:
    """An epoch never resumes, so its successors claim."""
    world = Harness()
    world.follow(0.1)
    world.members.on_peer_down(A, node_moment(5.0))
    world.watch.on_peer_down(A, "eof", node_moment(5.0))

    effects = world.meet(A, 5.1, epoch=Epoch(3, A))

    assert note_events(effects)[0] == "dispatcher lost"


def test_of_two_dispatchers_the_one_with_fewer_followers_yields() -> None:
    """Both compare the same two HELLOs."""
    world = Harness()
    world.become_dispatcher(0.7)
    mine = Hello(node=info(B), epoch=Epoch(1, B), dispatcher=B, followers=1)

    effects = world.meet(
        C, 9.0, epoch=Epoch(1, C), dispatcher=C, followers=2, sent=mine
    )

    assert note_events(effects) == ["stepping down"]
    assert isinstance(world.election.phase, SteppingDown)
    assert world.election.dispatcher_epoch is None


def test_of_two_dispatchers_the_one_that_reads_both_logs_stays() -> None:
    """Followers do not count: the other one could not take over its tasks."""
    here, there = info(B), info(C)
    older = Hello(node=here, epoch=Epoch(9, B), dispatcher=B, followers=5)
    newer = Hello(
        node=there,
        epoch=Epoch(1, C),
        dispatcher=C,
        readable_log_version=2,
        log_version=2,
    )

    assert wins_over(newer, older)
    assert not wins_over(older, newer)
    assert wins_over(older, replace(newer, log_version=1))


def test_a_newer_program_claims_once_it_may_lead_again() -> None:
    """Its full disk made it follow a node that cannot read the tasks in its log."""
    world = Harness(SavedState(log_version=2))
    world.candidacy.is_disk_failing = True
    world.follow(0.1)
    assert world.watch.on_dispatcher_heard(node_moment(0.2)) == []

    world.candidacy.is_disk_failing = False
    effects = world.watch.on_dispatcher_heard(node_moment(0.3))

    assert [e.epoch for e in effects if isinstance(e, Save)] == [Epoch(4, B)]
    world.members.record_frame(A, node_moment(0.4))
    assert world.claims.on_heartbeat(A, Epoch(3, A), node_moment(0.4)) == []
    assert note_events(world.persist(0.5)) == ["dispatcher elected"]


def test_the_winner_claims_again_above_both() -> None:
    """So every worker of either side accepts its epoch."""
    world = Harness()
    world.become_dispatcher(0.7)
    mine = Hello(node=info(B), epoch=Epoch(1, B), dispatcher=B, followers=3)

    effects = world.meet(
        C, 9.0, epoch=Epoch(6, C), dispatcher=C, followers=2, sent=mine
    )
    assert [e.epoch for e in effects if isinstance(e, Save)] == [Epoch(7, B)]

    (claim,) = sent(world.persist(9.01), C)
    assert isinstance(claim, Claim)
    assert claim.epoch == Epoch(7, B)


def yielding() -> tuple[Harness, StreamId]:
    """Return a dispatcher that meets one with more followers at 9 s, and its stream."""
    world = Harness()
    world.become_dispatcher(0.7)
    become_dispatcher = world.election.dispatcher_epoch
    assert become_dispatcher is not None
    world.journal.open_stream(become_dispatcher.stream)
    world.journal.append([TaskCancelled(TaskId("t"), "me")], node_moment(1.0))
    mine = Hello(node=info(B), epoch=Epoch(1, B), dispatcher=B)
    world.meet(C, 9.0, epoch=Epoch(1, C), dispatcher=C, followers=2, sent=mine)
    return world, become_dispatcher.stream


def test_a_loser_follows_when_the_winner_holds_its_log() -> None:
    """No accepted task is left behind (G2); the worker waits for that long."""
    world, stream = yielding()

    world.claims.on_claim(C, Claim(Epoch(2, C), StreamId(5), ()), node_moment(9.1))
    effects = world.persist(9.11)
    assert sent(effects, C) == [ClaimOk(Epoch(2, C), ((stream, 1),))]
    assert world.election.attachment is None

    world.claims.on_pull(C, Pull(((stream, 1),)), node_moment(9.2))
    assert world.election.attachment == Attachment(C, Epoch(2, C), 2)


def test_a_loser_reports_its_deadline_for_the_winner() -> None:
    """A winner that speaks is not suspected before the worker's deadline."""
    world, _ = yielding()
    assert world.watch.deadline(node_moment(0.0)) == 9.0 + TIMING.step_down_s

    world.claims.on_claim(C, Claim(Epoch(2, C), StreamId(5), ()), node_moment(9.5))
    assert world.watch.deadline(node_moment(0.0)) == 9.0 + TIMING.step_down_s
    world.members.record_frame(C, node_moment(10.5))
    assert world.watch.deadline(node_moment(0.0)) == 10.5 + TIMING.step_down_s
    world.members.record_frame(C, node_moment(13.5))
    assert world.watch.deadline(node_moment(0.0)) == 9.5 + TIMING.reattach_s

    assert world.watch.on_time(node_moment(14.4)) == []
    assert note_events(world.watch.on_time(node_moment(14.5))) == ["stepped down"]


def test_a_loser_whose_winner_vanishes_searches_again() -> None:
    """All steps are idempotent: the meeting may happen once more."""
    world = Harness()
    world.become_dispatcher(0.7)
    mine = Hello(node=info(B), epoch=Epoch(1, B), dispatcher=B)
    world.meet(C, 9.0, epoch=Epoch(1, C), dispatcher=C, followers=2, sent=mine)

    assert world.watch.on_time(node_moment(10.9)) == []
    assert note_events(world.watch.on_time(node_moment(11.0))) == ["discovering"]


def test_a_dispatcher_claims_above_an_epoch_whose_owner_is_gone() -> None:
    """A node that remembers a higher epoch could follow no other node."""
    world = Harness()
    world.become_dispatcher(0.7)

    effects = world.meet(C, 2.0, epoch=Epoch(8, D))

    assert [e.epoch for e in effects if isinstance(e, Save)] == [Epoch(9, B)]
    assert world.election.dispatcher_epoch is not None


def test_a_dispatcher_yields_to_a_higher_epoch_at_once() -> None:
    """G5: before its next frame."""
    world = Harness()
    world.become_dispatcher(0.7)
    world.meet(C, 2.0, epoch=Epoch(1, B), dispatcher=B)
    world.claims.on_claim_ok(C, ClaimOk(Epoch(1, B), ()))

    where = (Address("10.0.0.9", 7878),)
    effects = world.claims.on_redirect(
        C, Redirect(Epoch(4, D), D, where), node_moment(2.1)
    )

    assert world.election.dispatcher_epoch is None
    assert sent(effects, C) == [Redirect(Epoch(1, B), D, where)]
    assert effects[-1] == Dial(D, where)


def test_a_dispatcher_does_not_wait_for_a_winner_that_it_cannot_dial() -> None:
    """In a ring, the winner may be out of its reach, but a peer may be a relay."""
    world = Harness()
    world.become_dispatcher(0.7)
    world.meet(C, 2.0, epoch=Epoch(1, B), dispatcher=B)
    where = (ELSEWHERE,)
    world.claims.on_redirect(C, Redirect(Epoch(4, D), D, where), node_moment(2.1))
    other = DialFailed(A, (Address("10.0.0.8", 7878),), was_refused=False)
    assert world.watch.on_dial_failed(other, node_moment(2.2)) == []

    failed = DialFailed(D, where, was_refused=False)
    effects = world.watch.on_dial_failed(failed, node_moment(2.3))

    assert note_events(effects) == ["discovering"]


def test_a_successor_claims_when_it_holds_the_log_handed_over() -> None:
    """A graceful stop loses nothing and waits for nothing else."""
    world = Harness()
    world.follow(0.1)
    stream = StreamId(9)

    pulling = world.claims.on_transfer(
        A, Transfer(Epoch(3, A), ((stream, 1),)), node_moment(1.0)
    )
    assert sent(pulling, A) == [Pull(())]

    entry = Entry(stream, 1, 1, TaskCancelled(TaskId("t"), "me"))
    world.journal.append_remote([entry], [(stream, Epoch(3, A))])
    assert note_events(world.claims.continue_transfer()) == ["claiming"]


def test_late_messages_of_the_old_dispatcher_do_not_undo_the_claim() -> None:
    """Its last heartbeat may arrive while the successor's claim is being flushed."""
    world = Harness()
    world.follow(0.1)
    become_dispatcher = Epoch(3, A)
    assert note_events(
        world.claims.on_transfer(A, Transfer(become_dispatcher, ()), node_moment(1.0))
    ) == ["claiming"]

    assert world.claims.on_heartbeat(A, become_dispatcher, node_moment(1.1)) == []
    assert (
        world.claims.on_claim(
            A, Claim(become_dispatcher, StreamId(9), ()), node_moment(1.1)
        )
        == []
    )
    assert note_events(world.persist(1.2)) == ["dispatcher elected"]


def test_a_stopping_node_never_claims() -> None:
    """It would have to hand over at once."""
    world = Harness()
    world.candidacy.withdraw()

    assert world.watch.on_time(node_moment(60.0)) == []


def test_heartbeats_go_to_followers_and_claims_to_the_others() -> None:
    """A peer that missed the claim receives it again each second."""
    world = Harness()
    world.become_dispatcher(0.7)
    world.meet(A, 0.8)
    world.meet(C, 0.8)
    world.claims.on_claim_ok(C, ClaimOk(Epoch(1, B), ()))

    effects = world.send_heartbeats(2.0)

    assert sent(effects, C) == [Heartbeat(Epoch(1, B), 2.0)]
    assert [type(message) for message in sent(effects, A)] == [Claim]


def test_a_node_that_may_not_be_elected_comes_last() -> None:
    """Phones hold no log for others while any other node is there."""
    phone = candidate_rank(info(A, electable=False), 1000, 0.0)
    plain = candidate_rank(info(C), 0, 0.0)

    assert plain < phone


def test_rank_compares_log_then_mains_then_age_then_id() -> None:
    """§ 3.5, in this order."""
    ranked = [
        candidate_rank(info(D), 9, 0.0),
        candidate_rank(info(C), 5, 0.0),
        candidate_rank(info(D), 0, 1300.0),
        candidate_rank(info(A), 0, 10.0),
        candidate_rank(info(B), 0, 500.0),
        candidate_rank(info(A, has_mains_power=False), 0, 9000.0),
    ]

    assert ranked == sorted(ranked)


def test_two_dispatchers_always_agree_on_the_winner() -> None:
    """The comparison is strict and the same from both sides."""
    one = Hello(node=info(A), epoch=Epoch(2, A), dispatcher=A, followers=1)
    two = Hello(node=info(B), epoch=Epoch(2, B), dispatcher=B, followers=1)

    assert wins_over(two, one)
    assert not wins_over(one, two)


def test_streams_of_two_claims_differ() -> None:
    """A stream is never resumed, so no two claims may share an id."""
    streams = {
        mint_stream(info(A), 1, 0.5),
        mint_stream(info(A), 2, 0.5),
        mint_stream(info(B), 1, 0.5),
        mint_stream(info(A, boot="other"), 1, 0.5),
        mint_stream(info(A), 1, 0.25),
    }

    assert len(streams) == 5
    assert all(0 < stream < 1 << 63 for stream in streams)


def test_a_vector_covers_another_only_in_every_stream() -> None:
    """An unknown stream counts as empty."""
    mine = {StreamId(1): 5}

    assert covers(mine, [(StreamId(1), 5), (StreamId(2), 0)])
    assert not covers(mine, [(StreamId(1), 5), (StreamId(2), 1)])


def test_a_claim_is_repeated_later_in_a_large_mesh() -> None:
    """A node that already follows would answer again."""
    for size, again_s in ((16, 1.0), (32, 2.0)):
        world = Harness()
        nodes = [NodeId(f"c{number:015d}") for number in range(size)]
        for node in nodes:
            world.meet(node, 0.1)
        world.become_dispatcher(3.0)

        early = world.send_heartbeats(3.0 + again_s - 0.01)
        late = world.send_heartbeats(3.0 + again_s + TIMING.heartbeat_s)

        assert not any(isinstance(m, Claim) for m in sent(early, nodes[0]))
        assert any(isinstance(m, Claim) for m in sent(late, nodes[0]))


def test_plain_workers_of_a_large_mesh_get_each_third_heartbeat() -> None:
    """Only standbys need to notice at once that a dispatcher is gone."""
    world = Harness()
    world.become_dispatcher(0.7)
    become_dispatcher = world.election.dispatcher_epoch
    assert become_dispatcher is not None
    nodes = [NodeId(f"1{number:015d}") for number in range(20)]
    for node in nodes:
        world.meet(node, 1.0)
        world.members.confirm_follower(node, become_dispatcher.epoch, ())
    world.members.set_standby(nodes[3], is_standby=True)

    beaten = [
        world.election.heartbeats.next_recipients(become_dispatcher) for _ in range(3)
    ]

    assert sorted(map(len, beaten)) == [1, 1, 20]
