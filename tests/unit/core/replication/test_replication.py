"""Replication: answers that wait for copies, and the choice of standbys."""

from __future__ import annotations

import math

import pytest

from octaskly.core.log.facts import NO_FLOOR
from octaskly.core.model.ids import NodeId, StreamId
from octaskly.core.model.nodes import NodeState, StandbyView
from octaskly.core.model.settings import Limits, Timing
from octaskly.core.protocol.messages import (
    STOPPING_REASON,
    Snapshot,
    SnapshotCursor,
    SnapshotHead,
)
from octaskly.core.replication.replication import UNACKED_BYTES_MAX
from tests.support.builders import STREAM, epoch, moment
from tests.support.effects import note_events
from tests.support.replicating_dispatcher import (
    NEXT_STREAM,
    ReplicatingDispatcher,
    answered_note,
    large_fact,
    messages_to,
    nodes_served,
    streamed_to,
)

OTHER = StreamId(5)
NOTHING = ()  #: of a newly installed node


def test_a_lone_node_answers_with_its_commit_and_reports_one_copy() -> None:
    """A mesh of one node waits for no peer."""
    world = ReplicatingDispatcher()
    world.write()

    assert world.ask("x") == []
    assert world.commit() == [answered_note("x", 1)]


def test_a_durable_entry_is_answered_at_once() -> None:
    """A request about old entries needs no commit."""
    assert ReplicatingDispatcher().ask("x") == [answered_note("x", 1)]


def test_an_answer_waits_for_this_disk_and_a_standby() -> None:
    """Neither alone is enough, whichever comes first."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")

    assert world.commit() == []
    assert world.ack("b") == [answered_note("x", 2)]

    world.write()
    world.ask("y")

    assert world.ack("b") == []
    assert world.commit() == [answered_note("y", 2)]


def test_one_of_two_standbys_is_enough() -> None:
    """The other one may lag; the answer counts the acknowledgements so far."""
    world = ReplicatingDispatcher("bc")
    world.write()
    world.ask("x")
    world.commit()

    assert world.ack("c") == [answered_note("x", 2)]

    world.write()
    world.ask("y")
    world.ack("b")
    world.ack("c")

    assert world.commit() == [answered_note("y", 3)]


def test_an_earlier_acknowledgement_is_not_enough() -> None:
    """It covers only earlier entries."""
    world = ReplicatingDispatcher("b")
    world.write()
    before = world.journal.last_number
    world.write()
    world.ask("x")
    world.commit()

    assert world.ack("b", before) == []
    assert world.ack("b") == [answered_note("x", 2)]


def test_answers_leave_in_the_order_of_the_requests() -> None:
    """One acknowledgement releases all that it covers."""
    world = ReplicatingDispatcher("b")
    for name in "xyz":
        world.write()
        world.ask(name)
    world.commit()

    assert world.ack("b", world.journal.last_number - 1) == [
        answered_note("x", 2),
        answered_note("y", 2),
    ]
    assert world.ack("b") == [answered_note("z", 2)]


def test_an_unresponsive_standby_delays_answers_for_two_seconds() -> None:
    """Afterwards the answer reports one copy."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.commit()

    assert note_events(world.review(1.9)) == ["standby slow"]
    assert world.review(2.0) == [answered_note("x", 1)]


def test_no_answer_waits_after_two_seconds_without_a_standby() -> None:
    """A standby that is in sync again makes answers wait for it."""
    world = ReplicatingDispatcher("b")
    world.lose("b")
    world.write()
    world.ask("x")

    assert world.commit(1.9) == []
    assert world.review(2.0) == [answered_note("x", 1)]

    world.write(at=3.0)
    world.ask("y", 3.0)

    assert world.commit(3.0) == [answered_note("y", 1)]

    world.follow("b", 4.0)
    world.ack("b", at=4.0)
    world.write(at=4.0)
    world.ask("z", 4.0)

    assert world.commit(4.0) == []


def test_an_answer_that_waits_for_a_lost_standby_uses_another() -> None:
    """The loss of one of two changes nothing but the count."""
    world = ReplicatingDispatcher("bc")
    world.write()
    world.ask("x")
    world.commit()
    world.lose("b")

    assert world.ack("c") == [answered_note("x", 2)]


def test_a_new_standby_replaces_a_lost_one_and_releases_answers() -> None:
    """It receives the pending entries, and its acknowledgement counts."""
    world = ReplicatingDispatcher("b")
    world.lose("b")
    world.write()
    world.ask("x")
    world.commit()

    effects = world.follow("c", 0.5, held=((STREAM, 0),))

    assert streamed_to(effects, "c") == [(1, [1])]
    assert world.ack("c", at=0.6)[-1] == answered_note("x", 2)


def test_a_last_standby_that_leaves_on_purpose_is_not_awaited() -> None:
    """It announced that, and no other standby is there."""
    world = ReplicatingDispatcher("b")
    world.lose("b", reason=STOPPING_REASON)
    world.write()
    world.ask("x")

    assert world.commit() == [answered_note("x", 1)]


def test_a_new_epoch_waits_two_seconds_for_expected_members() -> None:
    """They are about to connect; a copy of the first answers is worth the wait."""
    world = ReplicatingDispatcher()
    world.begin(is_expecting=True)
    world.write()
    world.ask("x")

    assert world.commit(1.9) == []
    assert world.review(2.0) == [answered_note("x", 1)]


def test_followers_that_may_not_be_elected_keep_no_copies() -> None:
    """They could not take over, so no answer waits for them."""
    world = ReplicatingDispatcher()
    world.follow("b", electable=False)
    world.write()
    world.ask("x")

    assert world.standbys == []
    assert world.commit() == [answered_note("x", 1)]


def test_two_followers_become_standbys_and_a_third_replaces_a_lost_one() -> None:
    """More than two copies cost more than they protect."""
    world = ReplicatingDispatcher("bcd")

    assert world.standbys == ["b", "c"]

    world.lose("b")

    assert sorted(world.standbys) == ["c", "d"]


def test_followers_with_the_longest_logs_become_standbys() -> None:
    """They catch up fastest."""
    world = ReplicatingDispatcher()
    world.write()
    for name, held in (("b", 0), ("c", 0), ("d", 1)):
        world.follow(name, held=((STREAM, held),))
    world.lose("b")
    world.lose("c")
    world.follow("c", held=((STREAM, 0),))
    world.lose("d")
    world.follow("e", held=((STREAM, 0),))
    world.follow("d", held=((STREAM, 1),))
    world.lose("c")

    assert sorted(world.standbys) == ["d", "e"]


def test_a_draining_follower_is_chosen_last() -> None:
    """It is about to leave."""
    world = ReplicatingDispatcher()
    world.follow("x")
    world.follow("y")
    world.follow("b", state=NodeState.DRAINING)
    world.follow("c")
    world.lose("x")

    assert sorted(world.standbys) == ["c", "y"]


def test_a_level_standby_comes_first_in_the_order_of_succession() -> None:
    """What it holds is all that was promised."""
    world = ReplicatingDispatcher("bc", in_sync=False)
    world.ack("c")

    assert world.standbys == ["c", "b"]
    assert world.in_sync == ["c"]


# --- What standbys lack.


def test_a_standby_that_lacks_only_rows_catches_up_at_once() -> None:
    """An empty answer would end its PULLs, and leave one copy for ten seconds."""
    world = ReplicatingDispatcher("b")

    head = SnapshotHead(vector=(), epochs=(), floor=NO_FLOOR, hlc=1)
    part = Snapshot(rows=(), cursor=SnapshotCursor(1), has_more=False, head=head)
    world.journal.stage_rows(NodeId("c"), 1, head, part)

    merge = world.journal.merge_rows(1, head, (), is_last=True)
    effects = world.replication.on_log_write(merge, moment())

    assert streamed_to(effects, "b") == [(world.journal.last_append, [])]
    assert world.in_sync == []
    world.ack("b", world.journal.last_append)
    assert world.in_sync == ["b"]


# --- Joining.


def test_a_follower_with_the_whole_log_is_streamed_to_at_once() -> None:
    """Its first acknowledgement puts it in sync, not earlier."""
    world = ReplicatingDispatcher()
    effects = world.follow("b")

    assert streamed_to(effects, "b") == [(0, [])]
    assert not world.in_sync
    assert note_events(world.ack("b")) == ["standby in sync"]
    assert world.in_sync == ["b"]


def test_the_tail_completes_a_standby_that_lacks_nothing_else() -> None:
    """Entries in memory need not be read from the disk."""
    world = ReplicatingDispatcher()
    world.write()
    world.write()

    effects = world.follow("b", held=((STREAM, 1),))

    assert streamed_to(effects, "b") == [(2, [2])]
    assert nodes_served(effects) == []


def test_a_standby_beyond_the_tail_pulls_first() -> None:
    """The disk serves it until the tail covers the rest."""
    world = ReplicatingDispatcher(limits=Limits(tail_entries=2))
    for _ in range(4):
        world.write()
    world.commit()

    effects = world.follow("b", held=NOTHING)

    assert nodes_served(effects) == ["b"]
    assert streamed_to(effects, "b") == []
    assert world.replication.standby_views() == (StandbyView(NodeId("b"), False, 4),)
    assert nodes_served(world.pull("b", ((STREAM, 1),))) == ["b"]
    assert streamed_to(world.pull("b", ((STREAM, 2),)), "b") == [(4, [3, 4])]


def test_entries_from_before_the_epoch_are_pulled() -> None:
    """The tail starts with the epoch."""
    world = ReplicatingDispatcher()
    world.write()
    world.commit()
    world.renew()

    assert nodes_served(world.follow("b", held=NOTHING)) == ["b"]


def test_a_streamed_standby_that_pulls_gets_the_rest_again() -> None:
    """A message was lost; until it is in sync again nothing counts on it."""
    world = ReplicatingDispatcher("b")
    world.write()

    effects = world.pull("b", ((STREAM, 0),))

    assert nodes_served(effects) == []
    assert streamed_to(effects, "b") == [(1, [1])]
    assert not world.in_sync


def test_the_pull_of_a_nearly_complete_standby_is_answered_from_memory() -> None:
    """Not from the disk as well."""
    world = ReplicatingDispatcher(limits=Limits(tail_entries=2))
    for _ in range(4):
        world.write()
    world.follow("b", held=NOTHING)
    world.commit()

    assert nodes_served(world.pull("b", ((STREAM, 3),))) == []


def test_a_standby_is_served_once_its_missing_entries_are_on_disk() -> None:
    """An empty answer would end its PULLs too early."""
    world = ReplicatingDispatcher(limits=Limits(tail_entries=2))
    for _ in range(4):
        world.write()

    assert nodes_served(world.follow("b", held=NOTHING)) == []
    assert nodes_served(world.commit()) == ["b"]


def test_other_followers_are_served_from_the_disk() -> None:
    """A dispatcher that steps down pulls, too."""
    world = ReplicatingDispatcher("bcd")

    assert nodes_served(world.pull("d", NOTHING)) == ["d"]


def test_a_joining_standby_that_never_pulls_is_given_up_after_ten_seconds() -> None:
    """Another follower makes better use of its place."""
    world = ReplicatingDispatcher(limits=Limits(tail_entries=1))
    world.write()
    world.write()
    world.commit()
    world.follow("b", held=NOTHING)
    world.pull("b", NOTHING, 5.0)

    assert note_events(world.review(14.9)) == []
    assert note_events(world.review(15.0)) == ["standby slow"]
    assert world.standbys == []


# --- Streaming.


def test_each_append_is_sent_to_both_standbys_as_one_message() -> None:
    """It is packed once."""
    world = ReplicatingDispatcher("bc")
    effects = world.write()

    assert streamed_to(effects, "b") == [(1, [1])]
    assert messages_to(effects, "b")[0] is messages_to(effects, "c")[0]


def test_a_large_append_is_sent_in_parts_and_the_last_completes_it() -> None:
    """A part must not be acknowledged as the whole."""
    world = ReplicatingDispatcher("b", limits=Limits(entries_bytes=1000))
    effects = world.write(*[large_fact(100)] * 4)

    assert streamed_to(effects, "b") == [(0, [1]), (0, [2]), (0, [3]), (1, [4])]


def test_a_standby_with_too_much_in_flight_joins_again() -> None:
    """More would end its link; it pulls the rest at its own pace."""
    world = ReplicatingDispatcher("b")
    fact = large_fact(UNACKED_BYTES_MAX // 4 // 3)
    world.write(fact)
    world.write(fact)

    assert world.in_sync == ["b"]

    effects = world.write(fact)

    assert streamed_to(effects, "b") == []
    assert nodes_served([*effects, *world.commit()]) == ["b"]
    assert world.standbys == ["b"]
    assert streamed_to(world.write(), "b") == []


def test_acknowledgements_of_another_epoch_are_ignored() -> None:
    """The numbers of an earlier epoch belong to other appends."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.commit()

    assert world.ack("b", of=epoch(9)) == []
    assert world.ack("b", of=epoch(1, "c")) == []


def test_an_acknowledgement_of_an_unsent_number_is_ignored() -> None:
    """It would cover all future appends."""
    world = ReplicatingDispatcher("b")
    world.ack("b", 1000)
    world.write()
    world.ask("x")

    assert world.commit() == []


def test_acknowledgements_of_other_nodes_are_ignored() -> None:
    """Only a standby receives appends."""
    world = ReplicatingDispatcher("bcd")
    world.write()
    world.ask("x")
    world.commit()

    assert world.ack("d") == []


def test_the_lag_of_an_in_sync_standby_is_its_unacknowledged_part() -> None:
    """People see whether it keeps up."""
    world = ReplicatingDispatcher("b")
    world.write()
    first = world.journal.last_number
    world.write()
    world.write()

    assert world.replication.standby_views() == (StandbyView(NodeId("b"), True, 3),)

    world.ack("b", first)

    assert world.replication.standby_views() == (StandbyView(NodeId("b"), True, 2),)
    assert not world.replication.has_acked_all(NodeId("b"))

    world.ack("b")

    assert world.replication.has_acked_all(NodeId("b"))


# --- Slow standbys.


def test_a_standby_without_acknowledgements_for_a_second_is_replaced() -> None:
    """Another candidate takes its place at once."""
    world = ReplicatingDispatcher("bcd")
    world.write()
    world.ack("c")

    assert note_events(world.review(0.9)) == []
    assert note_events(world.review(1.0)) == ["standby slow"]
    assert world.standbys == ["c", "d"]


def test_a_slow_standby_is_avoided_for_ten_seconds_if_others_exist() -> None:
    """A node that comes and goes would cost more than it protects."""
    world = ReplicatingDispatcher("bcd")
    world.write()
    world.ack("c")
    world.review(1.1)
    world.ack("d")
    world.follow("e", 5.0)
    world.lose("d", 6.0)

    assert sorted(world.standbys) == ["c", "e"]

    world.lose("e", 11.2)

    assert sorted(world.standbys) == ["b", "c"]


def test_a_slow_standby_is_avoided_for_a_second_if_no_other_exists() -> None:
    """Then it is tried again, but no answer waits for it."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.review(1.1)
    world.review(2.0)

    assert world.standbys == []

    effects = world.review(2.1)

    assert world.standbys == ["b"]
    assert streamed_to(effects, "b") == [(1, [1])]
    assert not world.in_sync


def test_a_standby_in_sync_again_has_a_clean_record() -> None:
    """Its next slowness counts as its first."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.review(1.0)
    world.review(2.0)

    assert note_events(world.ack("b", at=2.1)) == ["standby in sync"]

    world.lose("b", 2.2)
    for name in "bcd":
        world.follow(name, 2.3)

    assert world.standbys == ["b", "c"]


# --- Time.


def test_nothing_is_due_without_pending_answers() -> None:
    """An idle dispatcher sleeps until its next heartbeat."""
    assert ReplicatingDispatcher("b").replication.deadline() == math.inf


def test_the_next_step_is_due_at_the_first_timeout() -> None:
    """A slow standby and a late answer each have one."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.commit()

    assert world.replication.deadline() == pytest.approx(101.0)

    world.review(1.1)

    assert world.replication.deadline() == pytest.approx(102.0)


def test_time_alone_does_not_release_an_answer_that_waits_for_this_disk() -> None:
    """A blocked disk must not make the node step again and again."""
    world = ReplicatingDispatcher()
    world.write()
    world.ask("x")

    assert world.replication.deadline() == math.inf


def test_an_expired_timeout_of_a_slow_node_causes_no_steps() -> None:
    """A time in the past is no reason for the next step."""
    world = ReplicatingDispatcher("bcd")
    world.write()
    world.ack("c")
    world.review(1.1)
    world.ack("d", at=1.2)
    world.review(3.0)

    due_s = world.replication.deadline()

    assert due_s > 103.0


# --- Epochs.


def test_a_pending_answer_outlives_the_epoch_and_reports_one_copy() -> None:
    """It is on this disk; but the standby may lead without it for a moment."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.replication.stop_replicating(moment())

    assert world.commit() == []
    due_s = world.replication.deadline()
    assert due_s == pytest.approx(moment().mono_s + Timing().replication_wait_s)
    assert world.replication.update_standbys(moment(Timing().replication_wait_s)) == [
        answered_note("x", 1)
    ]
    assert world.replication.has_no_pending_acks


def test_an_entry_that_only_the_successor_holds_is_answered_in_time() -> None:
    """The old dispatcher's disk fails; nothing else may wake this node."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.ack("b")
    world.replication.stop_replicating(moment())

    due_s = world.replication.deadline()

    assert due_s == pytest.approx(moment().mono_s + Timing().replication_wait_s)
    assert world.replication.update_standbys(moment(Timing().replication_wait_s)) == [
        answered_note("x", 1)
    ]


def test_an_entry_that_only_a_lost_node_holds_waits_for_this_disk() -> None:
    """That node may never come back, or come back without its disk."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.ack("b")
    world.replication.stop_replicating(moment())
    world.replication.discount_node(NodeId("b"))

    assert world.replication.deadline() == math.inf
    assert world.replication.update_standbys(moment(Timing().replication_wait_s)) == []
    assert world.commit(Timing().replication_wait_s) == [answered_note("x", 1)]


def test_answers_without_a_standby_leave_at_the_end_of_the_epoch() -> None:
    """No standby could lead without them."""
    world = ReplicatingDispatcher()
    world.write()
    world.ask("x")
    world.replication.stop_replicating(moment())

    assert world.commit() == [answered_note("x", 1)]


def test_nothing_is_streamed_without_an_epoch() -> None:
    """A follower's dispatcher spreads the entries that it pulled."""
    world = ReplicatingDispatcher("b")
    world.replication.stop_replicating(moment())

    assert world.write() == []
    assert world.standbys == []


def test_pending_answers_use_a_standby_of_the_renewed_claim() -> None:
    """A node is in sync with an epoch only if it has everything before it."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.renew(0.1)
    world.commit(0.1)

    assert world.ack("b", of=epoch(1), at=0.2) == []

    world.follow("b", 0.3)

    assert world.ack("b", at=0.4)[-1] == answered_note("x", 2)


def test_a_standby_that_missed_the_last_append_pulls_in_the_next_epoch() -> None:
    """Its first acknowledgement must count for the pending answers."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.ask("x")
    world.renew(0.1)
    world.commit(0.1)

    assert nodes_served(world.follow("b", 0.2, held=((STREAM, 0),))) == ["b"]
    assert world.ack("b", at=0.3) == []

    world.pull("b", ((STREAM, 1), (NEXT_STREAM, 0)), 0.4)

    assert world.ack("b", at=0.5)[-1] == answered_note("x", 2)


def test_a_link_that_comes_back_makes_a_fresh_standby() -> None:
    """Messages in flight on the old link may be lost."""
    world = ReplicatingDispatcher("b")
    world.write()
    world.lose("b")

    effects = world.follow("b", 0.1, held=((STREAM, 0),))

    assert streamed_to(effects, "b") == [(1, [1])]
    assert not world.in_sync
