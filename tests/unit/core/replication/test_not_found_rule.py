"""The answer "not found", which waits for every node that may know the task."""

from __future__ import annotations

import pytest

from octaskly.core.effects import Answer, Effect
from octaskly.core.log.facts import Entry, TaskCancelled
from octaskly.core.membership.roster import LOST_MEMBER_S
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.ids import Epoch, NodeId, StreamId, TaskId
from octaskly.core.model.nodes import LoadSample, NodeState, Role, RosterEntry
from octaskly.core.protocol.messages import (
    STOPPING_REASON,
    Entries,
    HeartbeatOk,
    Roster,
)
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.not_found_rule import REMEMBERED_PEER_S, NotFoundRule
from octaskly.core.replies import CatchUpStatus, NotDispatching
from tests.support.builders import epoch, moment, node_id
from tests.support.replicating_dispatcher import ReplicatingDispatcher

OTHER = StreamId(5)
BEFORE = epoch(1, "z")


class World(ReplicatingDispatcher):
    """Node a is dispatcher, and gets requests for tasks that it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.exchange = AntiEntropy(self.journal, Outbox(), self.members.peers)
        self.completeness = NotFoundRule(
            *(
                self.journal,
                self.members,
                self.exchange,
                self.known.timing.suspicion_timeout_s,
            )
        )
        self.completeness.start_catch_up(self.epoch, None, self.at(0.0))

    @staticmethod
    def at(seconds: float) -> float:
        return moment(seconds).mono_s

    def is_complete(self, seconds: float = 0.0) -> bool:
        return self.completeness.is_complete(self.at(seconds))

    def gone(self, name: str, reason: str, seconds: float = 0.0) -> None:
        """End a peer's link."""
        view = self.members.on_peer_down(NodeId(name), moment(seconds))
        assert view is not None
        self.completeness.on_peer_lost(NodeId(name), view, reason, self.at(seconds))

    def confirm(self, name: str, sent: float, epoch: Epoch | None = None) -> None:
        """Confirm a heartbeat as a follower."""
        beat = HeartbeatOk(
            epoch=epoch or self.epoch,
            sent_s=self.at(sent),
            state=NodeState.READY,
            credit=1,
            load=LoadSample(0.0, 0.0, 0, 0),
        )
        self.members.peers[NodeId(name)].last_heartbeat_ok = beat

    def answers(self, seconds: float) -> list[Effect]:
        """Return the answers at that time."""
        return self.completeness.on_time(self.epoch, moment(seconds))

    def take_over(self, *members: RosterEntry, lost: str | None = None) -> None:
        """Take over; z had sent this roster, and `lost` was dispatcher last."""
        roster = Roster(BEFORE, 1, members)
        lost_dispatcher = None if lost is None else node_id(lost)
        self.completeness.start_catch_up(
            self.epoch, roster, self.at(0.0), lost_dispatcher
        )


def member(name: str, role: Role, state: NodeState = NodeState.READY) -> RosterEntry:
    """Return one line of a roster."""
    return RosterEntry(
        id=node_id(name),
        name=name,
        role=role,
        state=state,
        addresses=(),
        lan_port=1,
        slots=1,
    )


def test_a_lone_node_has_all_tasks() -> None:
    """No other node can have accepted anything."""
    assert World().is_complete()


def test_remembered_peers_are_awaited_for_a_while_after_a_start() -> None:
    """They may have worked on without this node."""
    world = World()
    world.completeness.expect_nodes([node_id("b")], world.at(0.0))

    assert not world.is_complete(REMEMBERED_PEER_S - 1)
    assert world.is_complete(REMEMBERED_PEER_S)


def test_a_dispatcher_that_died_before_it_sent_a_roster_is_awaited() -> None:
    """The roster of the one before it lists it as a worker."""
    world = World()
    world.take_over(member("b", Role.WORKER), lost="b")

    assert not world.is_complete(REMEMBERED_PEER_S - 1)
    assert world.is_complete(REMEMBERED_PEER_S)


def test_a_remembered_peer_that_follows_is_not_awaited() -> None:
    """It has sent the entries that only it held."""
    world = World()
    world.completeness.expect_nodes([node_id("b")], world.at(0.0))
    world.follow("b")

    assert world.is_complete()


def test_own_writes_in_flight_hide_no_task() -> None:
    """Under load there always are some; no answer has promised them yet."""
    world = World()
    world.write()

    assert world.is_complete()


def test_pulled_entries_in_flight_to_the_disk_may_contain_the_task() -> None:
    """They cannot be read before their commit."""
    world = World()
    entries = (Entry(OTHER, 1, 1, TaskCancelled(TaskId("t"), "x")),)
    world.exchange.on_entries(
        node_id("b"), Entries(entries, (), has_more=False, vector=())
    )
    world.exchange.drop_peer(node_id("b"))

    assert not world.is_complete()

    world.commit()

    assert world.is_complete()


def test_an_open_pull_may_bring_the_task() -> None:
    """Its answers end with an empty one."""
    world = World()
    world.exchange.pull_from(node_id("b"))

    assert not world.is_complete()

    world.exchange.on_entries(node_id("b"), Entries((), (), has_more=False, vector=()))

    assert world.is_complete()


def test_a_peer_with_a_longer_log_may_know_the_task() -> None:
    """The answer to its claim arrived a moment ago."""
    world = World()
    world.follow("b", held=((OTHER, 3),))

    assert not world.is_complete()


def test_a_peer_that_does_not_follow_yet_may_have_accepted_the_task() -> None:
    """Its HELLO is outdated as soon as it is dispatcher itself."""
    world = World()
    world.follow("b")
    world.members.peers[node_id("b")].followed_epoch = None

    assert not world.is_complete()

    world.members.confirm_follower(node_id("b"), world.epoch, ())

    assert world.is_complete()


def test_a_disconnected_follower_may_lead_elsewhere() -> None:
    """It is awaited as long as it is listed."""
    world = World()
    world.follow("b")
    world.gone("b", "silent")

    assert not world.is_complete(LOST_MEMBER_S - 1)
    assert world.is_complete(LOST_MEMBER_S)


def test_a_silent_follower_may_have_claimed_already() -> None:
    """Its link ends later than its suspicion timeout."""
    world = World()
    world.follow("b")
    world.follow("c", electable=False)
    silence_s = world.known.timing.suspicion_timeout_s

    assert world.is_complete(silence_s - 0.1)
    assert not world.is_complete(silence_s)

    world.members.record_frame(node_id("b"), moment(silence_s))

    assert world.is_complete(silence_s)


def test_a_follower_with_a_dead_process_accepts_nothing() -> None:
    """This node has all its entries."""
    for reason in ("eof", "reset", STOPPING_REASON):
        world = World()
        world.follow("b")
        world.gone("b", reason)

        assert world.is_complete()


def test_a_peer_that_dies_during_its_merge_takes_tasks_with_it() -> None:
    """An unfinished merge is not complete."""
    world = World()
    world.follow("b", held=((OTHER, 3),))
    world.gone("b", "eof")

    assert not world.is_complete(LOST_MEMBER_S - 1)
    assert world.is_complete(LOST_MEMBER_S)


def test_an_awaited_peer_that_leaves_is_not_missing() -> None:
    """It came, handed over its entries, and left."""
    world = World()
    world.completeness.expect_nodes([node_id("b")], world.at(0.0))
    world.follow("b")
    world.gone("b", STOPPING_REASON)

    assert world.is_complete()


def test_the_previous_dispatcher_is_awaited_for_a_while() -> None:
    """It may have answered without a standby shortly before its end."""
    world = World()
    world.take_over(member("z", Role.DISPATCHER), member("a", Role.STANDBY))

    assert not world.is_complete(REMEMBERED_PEER_S - 1)
    assert world.is_complete(REMEMBERED_PEER_S)


def test_the_previous_dispatcher_is_not_awaited_once_it_follows() -> None:
    """All that it has is here then."""
    world = World()
    world.take_over(member("z", Role.DISPATCHER), member("a", Role.STANDBY))
    world.follow("z")

    assert world.is_complete()


def test_the_other_standby_is_missing_until_it_follows() -> None:
    """It may have acknowledged entries that this one had not."""
    world = World()
    world.take_over(member("a", Role.STANDBY), member("b", Role.STANDBY))

    assert not world.is_complete(LOST_MEMBER_S - 1)

    world.follow("b")

    assert world.is_complete()


def test_workers_are_not_awaited() -> None:
    """Their entries of other epochs were pulled when they followed this mesh."""
    world = World()
    world.take_over(member("b", Role.WORKER))

    assert world.is_complete()


def test_members_that_were_already_lost_are_awaited() -> None:
    """They may have led elsewhere; the previous dispatcher could not know that."""
    world = World()
    world.take_over(member("b", Role.WORKER, NodeState.LOST))

    assert not world.is_complete(LOST_MEMBER_S - 1)
    assert world.is_complete(LOST_MEMBER_S + 1)


def test_a_lookup_waits_for_all_possible_claimants() -> None:
    """A node that confirms a later heartbeat has followed no other node until then."""
    world = World()
    world.follow("b")
    world.follow("c")
    world.follow("d", electable=False)
    world.confirm("b", 0.2)
    world.confirm("c", 0.2)
    world.completeness.add_request(1, moment(0.3))

    assert world.answers(0.3) == []

    world.confirm("b", 0.5)
    assert world.answers(0.6) == []

    world.confirm("c", 0.5)
    assert world.answers(0.6) == [Answer(1, CatchUpStatus(is_complete=True))]
    assert world.answers(0.6) == []


def test_logs_are_compared_once_all_have_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at each heartbeat of each peer: that would be all streams of all peers."""
    world = World()
    names = ("b", "c", "d")
    for name in names:
        world.follow(name)
        world.confirm(name, 0.2)
    compared: list[float] = []
    is_complete = world.completeness.is_complete

    def compare(now_s: float) -> bool:
        compared.append(now_s)
        return is_complete(now_s)

    monkeypatch.setattr(world.completeness, "is_complete", compare)
    world.completeness.add_request(1, moment(0.3))
    assert world.answers(0.3) == []
    answers = []
    for sent_s in (0.25, 0.5):
        for name in names:
            world.confirm(name, sent_s)
            answers += world.completeness.on_heartbeat_ok(
                NodeId(name), world.epoch, moment(0.6)
            )

    assert answers == [Answer(1, CatchUpStatus(is_complete=True))]
    assert len(compared) == 2


def test_confirmations_of_an_earlier_epoch_do_not_count() -> None:
    """Those followers may have left for another dispatcher since."""
    world = World()
    world.follow("b")
    world.confirm("b", 0.5, BEFORE)
    world.completeness.add_request(1, moment(0.3))

    assert world.answers(0.6) == []


def test_a_lookup_is_answered_at_once_while_a_node_is_missing() -> None:
    """Or at the latest when a follower leaves before its confirmation."""
    world = World()
    world.follow("b")
    world.completeness.add_request(1, moment(0.3))
    world.gone("b", "silent", 0.4)

    assert world.answers(0.4) == [Answer(1, CatchUpStatus(is_complete=False))]

    world.completeness.add_request(2, moment(0.5))

    assert world.answers(0.5) == [Answer(2, CatchUpStatus(is_complete=False))]


def test_a_lone_node_answers_at_once() -> None:
    """It has no peer to ask."""
    world = World()
    world.completeness.add_request(1, moment(0.3))

    assert world.answers(0.3) == [Answer(1, CatchUpStatus(is_complete=True))]


@pytest.mark.parametrize("current_epoch", [None, epoch(9, "a")])
def test_a_lookup_ends_with_its_epoch(current_epoch: Epoch | None) -> None:
    """The client must ask the next dispatcher."""
    world = World()
    world.follow("b")
    world.completeness.add_request(1, moment(0.3))

    effects = world.completeness.on_time(current_epoch, moment(0.4))

    assert effects == [Answer(1, NotDispatching())]
    assert not world.completeness.pending_requests
