"""One node from the outside: events in, effects out."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.dispatcher.reconciliation import CATCH_UP_S
from octaskly.core.effects import (
    Advertise,
    AnnounceTaskStates,
    Answer,
    Append,
    Browse,
    Dial,
    Disconnect,
    Effect,
    LoadLive,
    LoadQueued,
    LoadTasks,
    PublishMeshState,
    RenameNode,
    Save,
    SavePeer,
    Send,
    ServePull,
    Start,
    Stop,
    Stopped,
)
from octaskly.core.events import (
    AddressesChanged,
    AttemptsEnded,
    AvailabilityRequested,
    CancelRequested,
    CopiesRequested,
    DialFailed,
    Event,
    LiveLoaded,
    LoadSampled,
    PeerDown,
    PeerHint,
    PeersDiscovered,
    PeerUp,
    Persisted,
    QueuedLoaded,
    Received,
    SavedState,
    StopRequested,
    TasksLoaded,
    TasksSubmitted,
    TimerFired,
)
from octaskly.core.log.facts import (
    Assigned,
    Entry,
    Fact,
    Finished,
    Floor,
    Submitted,
)
from octaskly.core.log.merge import TaskRecord, attempt_of
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import (
    NO_EPOCH,
    Address,
    AttemptId,
    Epoch,
    NodeId,
    StreamId,
    TaskId,
)
from octaskly.core.model.nodes import (
    AvailabilityCommand,
    LoadSample,
    NodeInfo,
    NodeState,
    OperatorHold,
    Role,
    RosterEntry,
)
from octaskly.core.model.settings import Limits, Settings, Timing
from octaskly.core.model.task_options import Requirements, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
    TaskState,
)
from octaskly.core.node.gathering import GATHER_S, REPORT_WAIT_S
from octaskly.core.node.log_receiver import highest_submitted_sequence
from octaskly.core.node.node import Node
from octaskly.core.node.shutdown import PROCESS_EXIT_S
from octaskly.core.protocol.messages import (
    LEFT_REASON,
    STOPPING_REASON,
    Assign,
    Claim,
    ClaimOk,
    ClaimRejected,
    Entries,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Kill,
    Leave,
    Message,
    Pull,
    Reattach,
    Redirect,
    Replicate,
    ReplicateOk,
    Report,
    Results,
    ResultsOk,
    Roster,
)
from octaskly.core.replies import (
    AvailabilityChanged,
    Copied,
    NotDispatching,
    TasksAccepted,
    Unplaceable,
)
from tests.support.builders import node_moment

ME, PEER, OTHER = NodeId("m" * 16), NodeId("p" * 16), NodeId("o" * 16)
EPOCH = Epoch(1, ME)
THEIRS = Epoch(5, PEER)


def info(node: NodeId) -> NodeInfo:
    return NodeInfo(
        id=node,
        boot="boot",
        name="pi",
        slots=2,
        version="1.0",
        peer_port=7878,
        lan_port=3443,
        addresses=("10.0.0.1",),
    )


class Shell:
    """A node with a disk that answers at once, and a record of its effects."""

    def __init__(
        self,
        saved: SavedState | None = None,
        limits: Limits | None = None,
        timing: Timing | None = None,
    ) -> None:
        settings = Settings(
            node=info(ME), limits=limits or Limits(), timing=timing or Timing()
        )
        self.node = Node(settings, saved or SavedState())
        self.now_s = 100.0
        self.has_disk = True
        self.log: list[Effect] = []  #: all that happened

    def feed(self, event: Event, now_s: float | None = None) -> list[Effect]:
        """Step, and let the disk and its reads answer."""
        self.now_s = self.now_s if now_s is None else now_s
        effects = self.node.step(event, node_moment(self.now_s))
        self.log += effects
        done = list(effects)
        for effect in effects if self.has_disk else ():
            if isinstance(effect, Append | Save):
                done += self.feed(Persisted(effect.number))
        return done

    def run(self, until_s: float) -> list[Effect]:
        """Advance time, and step the node at its deadlines."""
        effects = []
        while self.now_s < until_s:
            due_s = max(self.node.deadline(), self.now_s + 0.001)
            effects += self.feed(TimerFired(0.5), min(due_s, until_s))
        return effects

    def serve(self) -> list[Effect]:
        """Make the node a dispatcher without followers."""
        effects = self.feed(TimerFired(0.5)) + self.run(100.75)
        then = self.feed(LiveLoaded(1, ())) + self.feed(
            QueuedLoaded(1, (), has_more=False)
        )
        published = [e for e in effects + then if isinstance(e, PublishMeshState)]
        assert published[-1].is_serving
        return effects

    def meet(self, peer: NodeId = PEER, epoch: Epoch = NO_EPOCH) -> list[Effect]:
        """Connect a peer; with an epoch of its own it is a dispatcher."""
        dispatcher = epoch.node or None
        hello = Hello(node=info(peer), epoch=epoch, dispatcher=dispatcher)
        sent = self.node.hello(node_moment(self.now_s))
        return self.feed(PeerUp(peer, sent, hello, Address("10.0.0.2", 7878)))

    def hear(self, *messages: Message, peer: NodeId = PEER) -> list[Effect]:
        """Receive messages of a peer."""
        return self.feed(Received(peer, messages))


def submitted(ticket: int = 1) -> TasksSubmitted:
    drafts = (TaskDraft(command="true"),)
    return TasksSubmitted(ticket, drafts, "me", ("0badcafe",), (None,))


def followed(limits: Limits | None = None, timing: Timing | None = None) -> Shell:
    """Return a dispatcher with one follower."""
    shell = Shell(limits=limits, timing=timing)
    shell.serve()
    shell.meet()
    shell.hear(HelloOk())
    shell.hear(ClaimOk(EPOCH, ()))
    return shell


def of(kind: type, effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: list[Effect], peer: NodeId = PEER) -> list[Message]:
    return [
        message
        for effect in effects
        if isinstance(effect, Send) and effect.peer == peer
        for message in effect.messages
    ]


def test_a_lone_node_serves_within_three_quarters_of_a_second() -> None:
    """The first command after the install must work."""
    shell = Shell()

    effects = shell.serve()

    assert shell.now_s <= 100.75
    assert shell.node.epoch == EPOCH
    assert of(Advertise, effects) == [Advertise(is_dispatcher=True, term=1)]
    last = of(PublishMeshState, effects)[-1]
    assert isinstance(last, PublishMeshState)
    assert (last.dispatcher, last.is_serving) == (ME, True)
    assert last.roster is not None
    assert [m.id for m in last.roster.members] == [ME]


def test_a_node_steps_at_least_each_tick_and_never_spins() -> None:
    """Otherwise it would take its own pauses for a suspend."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet(NodeId("a" * 16))

    for _ in range(200):
        assert shell.node.deadline() - shell.now_s <= Timing().tick_s
        shell.feed(TimerFired(), shell.node.deadline())
    assert shell.now_s > 110.0


def test_a_node_sleeps_while_a_better_ranked_one_may_claim() -> None:
    """When all nodes start at once, no core is idle."""
    shell = Shell()
    shell.feed(TimerFired(0.5))
    shell.meet(NodeId("a" * 16))
    steps = 0
    while not shell.node.is_dispatcher:
        shell.feed(TimerFired(0.5), shell.node.deadline())
        steps += 1

    waited_s = shell.now_s - 100.0
    assert 2.0 < waited_s < 2.5
    assert steps <= waited_s / Timing().tick_s + 3


def test_an_early_submission_is_refused_as_not_here() -> None:
    """The API holds the request and looks for the dispatcher."""
    shell = Shell()
    shell.feed(TimerFired())

    cancel = CancelRequested(2, TaskId("t"), TaskState.QUEUED, False, "me")

    assert shell.feed(submitted(1)) == [Answer(1, NotDispatching())]
    assert shell.feed(cancel) == [Answer(2, NotDispatching())]


def test_a_task_runs_on_the_dispatcher_itself_without_a_network() -> None:
    """The dispatcher is its own worker: nothing is sent to a peer."""
    shell = Shell()
    shell.serve()

    effects = shell.feed(submitted())

    (answer,) = of(Answer, effects)
    (start,) = of(Start, effects)
    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, TasksAccepted)
    assert isinstance(start, Start)
    assert [spec for _, spec in start.items] == list(answer.reply.specs)
    assert of(Send, effects) == []

    ok = Outcome(state=AttemptState.OK, reason=EndReason.EXIT, exit_code=0)
    report = Report(task=start.items[0][1].id, attempt=start.items[0][0], outcome=ok)
    assert of(Append, shell.feed(AttemptsEnded((report,))))


def ended(start: Start) -> AttemptsEnded:
    """Return the end of the first attempt of a start."""
    ((attempt, spec), *_) = start.items
    ok = Outcome(state=AttemptState.OK, reason=EndReason.EXIT, exit_code=0)
    return AttemptsEnded((Report(task=spec.id, attempt=attempt, outcome=ok),))


def test_while_many_tasks_end_the_next_starts_before_an_end_is_written() -> None:
    """No slot is free for longer because ends wait for each other."""
    shell = Shell(limits=Limits(many_reports=1))
    shell.serve()
    first, second = [of(Start, shell.feed(submitted(n)))[0] for n in range(2)]
    shell.feed(submitted(2))  # Both slots are taken.
    assert isinstance(first, Start)
    assert isinstance(second, Start)

    assert shell.feed(ended(first)) == shell.feed(ended(second)) == []
    freed = shell.run(shell.now_s + REPORT_WAIT_S)
    later = shell.run(shell.now_s + GATHER_S)

    assert (len(of(Start, freed)), of(Append, freed)) == (1, [])
    (written,) = of(Append, later)
    assert isinstance(written, Append)
    facts = [type(entry.fact) for entry in written.entries]
    assert facts == [Finished, Finished, Assigned]
    announced = [e for e in later if isinstance(e, AnnounceTaskStates)]
    assert len([task for each in announced for task in each.tasks]) == 2


def test_a_reported_end_counts_even_if_its_worker_leaves_at_once() -> None:
    """Reports that wait come before what follows, so the task does not run again."""
    shell = followed(Limits(many_reports=1))
    shell.hear(Reattach((), 2, NodeState.READY))
    for ticket in range(3):  # The dispatcher itself has two slots.
        shell.feed(submitted(ticket))
    ((attempt, spec), *_) = next(
        m for m in sent(shell.log) if isinstance(m, Assign)
    ).items
    ok = Outcome(state=AttemptState.OK, reason=EndReason.EXIT)
    end = Report(task=spec.id, attempt=attempt, outcome=ok)

    assert shell.hear(Results((end,), 2)) == []
    effects = shell.feed(PeerDown(PEER, "eof"))
    effects += shell.run(shell.now_s + GATHER_S)

    writes = [effect for effect in effects if isinstance(effect, Append)]
    facts = [entry.fact for write in writes for entry in write.entries]
    assert [f.outcome for f in facts if isinstance(f, Finished)] == [ok]


def test_a_submission_takes_along_the_ends_that_wait() -> None:
    """Its client waits, and writes keep their order."""
    shell = Shell(limits=Limits(many_reports=1))
    shell.serve()
    (start,) = of(Start, shell.feed(submitted()))
    assert isinstance(start, Start)
    shell.feed(ended(start))
    assert of(Append, shell.run(shell.now_s + REPORT_WAIT_S)) == []

    effects = shell.feed(submitted(2))

    writes = [effect for effect in effects if isinstance(effect, Append)]
    facts = [[type(e.fact) for e in write.entries] for write in writes]
    assert facts == [[Finished], [Submitted, Assigned]]
    assert [write.number for write in writes] == sorted(w.number for w in writes)
    assert of(AnnounceTaskStates, effects) != []


def test_nothing_is_accepted_before_it_is_durable() -> None:
    """G1: the commit releases the answer."""
    shell = Shell()
    shell.serve()
    shell.has_disk = False

    effects = shell.feed(submitted())
    assert of(Answer, effects) == []

    number = max(e.number for e in effects if isinstance(e, Append))
    assert len(of(Answer, shell.feed(Persisted(number)))) == 1


@pytest.mark.parametrize("is_disk_first", [True, False])
def test_a_result_is_acknowledged_when_this_disk_and_a_standby_have_it(
    *, is_disk_first: bool
) -> None:
    """Both get it in one step; until both have it, its worker keeps it."""
    shell = followed()
    shell.hear(Reattach((), 2, NodeState.READY))
    for ticket in range(3):  # The dispatcher itself has two slots.
        shell.feed(submitted(ticket))
    said = sent(shell.log)
    number = max(message.number for message in said if isinstance(message, Replicate))
    said += sent(shell.hear(ReplicateOk(EPOCH, number)))
    ((attempt, spec), *_) = next(m for m in said if isinstance(m, Assign)).items
    end = Report(
        task=spec.id,
        attempt=attempt,
        outcome=Outcome(state=AttemptState.OK, reason=EndReason.EXIT),
    )
    shell.has_disk = False

    result_effects = shell.hear(Results((end,), 2))
    written = [effect for effect in result_effects if isinstance(effect, Append)]
    (copy,) = [
        message for message in sent(result_effects) if isinstance(message, Replicate)
    ]
    answers: list[Event] = [
        Persisted(written[-1].number),
        Received(PEER, (ReplicateOk(EPOCH, copy.number),)),
    ]
    first, second = answers if is_disk_first else reversed(answers)

    assert not of_kind(ResultsOk, result_effects)
    assert not of_kind(ResultsOk, shell.feed(first))
    assert of_kind(ResultsOk, shell.feed(second)) == [ResultsOk(((spec.id, attempt),))]


def test_what_a_client_was_shown_is_at_a_standby_first() -> None:
    """Otherwise it would be a state that a failover may take back."""
    shell = followed()
    (*_, copy) = of_kind(Replicate, shell.log)
    assert isinstance(copy, Replicate)
    shell.hear(ReplicateOk(EPOCH, copy.number))
    effects = shell.feed(submitted(1))
    (*_, copy) = of_kind(Replicate, effects)
    assert isinstance(copy, Replicate)

    assert not shell.node.has_copies_of_all(node_moment(shell.now_s))
    assert of(Answer, effects + shell.feed(CopiesRequested(2))) == []
    effects = shell.hear(ReplicateOk(EPOCH, copy.number))
    assert of(Answer, effects)[1:] == [Answer(2, Copied(2))]
    assert shell.node.has_copies_of_all(node_moment(shell.now_s))
    assert of(Answer, shell.feed(CopiesRequested(3))) == [Answer(3, Copied(2))]


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_copy_at_a_silent_successor_is_no_reason_to_answer(
    *, is_silent: bool
) -> None:
    """Its machine may be lost; the disk of this node does not have the task."""
    shell = followed(timing=Timing(suspicion_timeout_s=0.5))
    (*_, first) = of_kind(Replicate, shell.log)
    assert isinstance(first, Replicate)
    shell.hear(ReplicateOk(EPOCH, first.number))
    shell.has_disk = False
    effects = shell.feed(submitted(1))
    (*_, copy) = of_kind(Replicate, effects)
    assert isinstance(copy, Replicate)
    claim = Claim(Epoch(2, PEER), StreamId(9), ())
    last = copy.entries[-1]
    shell.hear(ReplicateOk(EPOCH, copy.number), claim)
    shell.hear(Pull(((last.stream, last.seq),)))
    assert shell.node.dispatcher == PEER

    until_s = shell.now_s + Timing().replication_wait_s
    while shell.now_s < until_s:
        shell.run(shell.now_s + 0.3)
        if not is_silent or shell.now_s < until_s - 1.5:
            shell.hear(Heartbeat(Epoch(2, PEER), 1.0))

    answered = [e for e in shell.log if isinstance(e, Answer) and e.ticket == 1]
    assert len(answered) == (not is_silent)


def of_kind(kind: type, effects: list[Effect]) -> list[Message]:
    return [message for message in sent(effects) if isinstance(message, kind)]


def test_a_follower_reattaches_and_answers_heartbeats() -> None:
    """The complete path of a node that joins a mesh."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.feed(LoadSampled(LoadSample(50.0, 1.0, 100, 10)))

    effects = shell.meet(epoch=THEIRS)

    assert sent(effects) == [ClaimOk(THEIRS, ()), Reattach((), 2, NodeState.READY)]
    assert of(Browse, effects) == [Browse(is_wanted=False)]
    assert shell.node.dispatcher == PEER
    assert not shell.node.is_dispatcher

    assert sent(shell.hear(Heartbeat(THEIRS, 7.0))) == [
        HeartbeatOk(THEIRS, 7.0, NodeState.READY, 2, LoadSample(50.0, 1.0, 100, 10))
    ]


def test_a_heartbeat_is_answered_with_the_current_credit() -> None:
    """No short task should be sent behind one that has run for long by now."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet(epoch=THEIRS)
    brief, long = (AttemptId(5, StreamId(1), n, n) for n in (1, 2))
    shell.hear(Assign(THEIRS, ((brief, TaskSpec(id=TaskId("t"), command="true")),)))
    ok = Outcome(AttemptState.OK, EndReason.EXIT, exit_code=0, duration_ms=2)
    shell.feed(AttemptsEnded((Report(TaskId("t"), brief, ok),)))
    spec = TaskSpec(id=TaskId("u"), command="sleep 1")
    shell.hear(Assign(THEIRS, ((long, spec),)))

    def credit() -> int:
        (answer,) = sent(shell.hear(Heartbeat(THEIRS, shell.now_s)))
        assert isinstance(answer, HeartbeatOk)
        return answer.credit

    assert credit() > 2
    shell.now_s += 0.06  # Too early for the next check of the timers.
    assert credit() == 2


def test_assignments_of_an_older_epoch_start_nothing() -> None:
    """I7: the answer shows the deposed dispatcher the newer epoch."""
    shell = Shell(SavedState(term=9, epoch=Epoch(9, OTHER)))
    shell.feed(TimerFired())
    shell.meet()
    item = (AttemptId(5, StreamId(1), 1, 1), TaskSpec(id=TaskId("t"), command="true"))

    effects = shell.hear(
        Assign(THEIRS, (item,)), Kill(THEIRS, ((TaskId("t"), item[0]),))
    )

    assert of(Start, effects) == []
    assert sent(effects) == [ClaimRejected(Epoch(9, OTHER))] * 2


def test_a_follower_becomes_a_worker_with_its_report() -> None:
    """Between its confirmation and its report, nothing is sent to it."""
    shell = Shell()
    shell.serve()
    effects = shell.meet()
    shell.run(101.0)
    shell.feed(LiveLoaded(1, ()))
    shell.hear(ClaimOk(shell.node.epoch, ()))
    shell.feed(submitted(1))
    shell.feed(submitted(2))

    assert not [m for m in sent(shell.feed(submitted(3))) if isinstance(m, Assign)]
    effects = shell.hear(Reattach((), 2, NodeState.READY))
    assert len([m for m in sent(effects) if isinstance(m, Assign)]) == 1


def test_no_attempt_is_lost_while_the_log_of_its_worker_arrives() -> None:
    """The worker was dispatcher, so the end may be in its own log."""
    shell, there = Shell(), StreamId(9)
    spec = TaskSpec(id=TaskId("t"), command="true")
    attempt = Attempt(AttemptId(1, there, 1, 1), PEER)
    live = LiveLoaded(1, (TaskRecord(spec.id, spec, attempts=(attempt,)),))
    shell.feed(TimerFired(0.5))
    shell.run(100.75)
    shell.feed(QueuedLoaded(1, (), has_more=False))
    shell.meet()
    assert of(Append, shell.feed(live)) == []

    shell.hear(ClaimOk(EPOCH, ((there, 2),)))
    effects = shell.hear(Reattach((), 2, NodeState.READY))
    assert of(Append, effects + shell.run(shell.now_s + 1)) == []

    ok = Outcome(AttemptState.OK, EndReason.EXIT, exit_code=0)
    end = Finished(spec.id, attempt.id, PEER, ok, 1)
    facts: tuple[Fact, ...] = (Assigned(spec.id, attempt.id, PEER), end)
    entries = tuple(Entry(there, n, n, fact) for n, fact in enumerate(facts, 1))
    writers = ((there, Epoch(1, PEER)),)
    shell.hear(Entries(entries, writers, False, ((there, 2),)))
    effects = shell.hear(Entries((), (), False, ((there, 2),)))
    assert of(LoadTasks, effects) == [LoadTasks(1, (spec.id,))]
    assert of(LoadLive, effects) == [LoadLive(1, 0, 1000)]
    record = TaskRecord(spec.id, spec, attempts=(attempt_of(end),))
    effects = shell.feed(TasksLoaded(1, (spec.id,), (record,)))

    assert of(Append, effects + shell.feed(LiveLoaded(1, ()))) == []


def test_a_follower_on_a_slow_link_has_time_to_send_its_log() -> None:
    """Its confirmation came late, so its answer to the PULL does, too."""
    shell, there = Shell(), StreamId(9)
    shell.feed(TimerFired(0.5))
    shell.meet()
    while not shell.node.is_dispatcher:
        shell.run(shell.now_s + 0.1)

    def run_with_frames(seconds: float) -> None:
        """Let time pass with a frame in each half second."""
        until_s = shell.now_s + seconds
        while shell.now_s < until_s:
            shell.hear(HelloOk())
            shell.run(shell.now_s + 0.5)

    run_with_frames(2.5)
    effects = shell.hear(ClaimOk(shell.node.epoch, ((there, 1),)))
    assert len(of_kind(Pull, effects)) == 1
    run_with_frames(2.5)
    assert of(LoadQueued, shell.log) == []

    spec = TaskSpec(id=TaskId("t"), command="true")
    entry = Entry(there, 1, 1, Submitted(spec))
    writers = ((there, Epoch(1, PEER)),)
    shell.hear(Entries((entry,), writers, False, ((there, 1),)))
    assert of(LoadQueued, shell.hear(Entries((), (), False, ((there, 1),))))


def test_a_node_that_was_heard_is_awaited_whatever_timer_is_due_first() -> None:
    """Another timer of the dispatcher is due when a wait without progress ends."""
    shell = Shell(timing=Timing(floor_interval_s=CATCH_UP_S))
    shell.feed(TimerFired(0.5))
    shell.meet()
    while not shell.node.is_dispatcher:
        shell.run(shell.now_s + 0.1)

    shell.hear(HelloOk())
    shell.run(shell.now_s + CATCH_UP_S)

    assert of(LoadQueued, shell.log) == []
    assert of(LoadLive, shell.log) == []


def test_a_new_follower_gets_the_roster_and_later_only_changes() -> None:
    """It needs the order of succession from the first moment."""
    shell = Shell()
    shell.serve()
    shell.meet()

    effects = shell.hear(ClaimOk(EPOCH, ()))
    (repl,) = [m for m in sent(effects) if isinstance(m, Replicate)]
    effects += shell.hear(ReplicateOk(EPOCH, repl.number)) + shell.run(101.5)
    rosters = [m for m in sent(effects) if isinstance(m, Roster)]
    assert [m.id for m in rosters[-1].members] == [ME, PEER]
    assert [m.name for m in rosters[-1].members] == ["pi", "pi-pppp"]

    shell.hear(HeartbeatOk(EPOCH, 1.0, NodeState.READY, 2, LoadSample(0, 0, 0, 0)))
    assert not [m for m in sent(shell.run(104.0)) if isinstance(m, Roster)]


def test_a_silent_worker_is_lost_after_three_seconds() -> None:
    """Its link may look alive for minutes."""
    shell = Shell()
    shell.serve()
    shell.meet()
    shell.hear(ClaimOk(EPOCH, ()), Reattach((), 2, NodeState.READY))

    met_s = shell.now_s
    assert of(Disconnect, shell.run(met_s + 2.9)) == []
    assert of(Disconnect, shell.run(met_s + 3.4)) == [Disconnect(PEER, "silent")]


def test_a_pull_is_served_and_a_second_hello_is_ignored() -> None:
    """Any node serves its entries; the link consumed the first HELLO."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet()

    assert shell.hear(Pull(()), HelloOk()) == [ServePull(PEER, ())]


def test_messages_after_a_leave_in_the_same_batch_are_ignored() -> None:
    """Leave ends the link, whatever follows it."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet()

    assert of(ServePull, shell.hear(Leave("stopping"), Pull(()))) == []
    assert shell.feed(PeerDown(PEER, "stopping")) == []


def test_messages_without_a_link_are_ignored() -> None:
    """They were in flight when the link was closed."""
    shell = Shell()
    shell.feed(TimerFired())

    assert shell.hear(Claim(THEIRS, StreamId(1), ())) == []


def test_after_a_suspend_a_dispatcher_has_no_role_and_no_links() -> None:
    """A resumed laptop must not act as dispatcher (§ 3.10)."""
    shell = Shell()
    shell.serve()
    shell.meet()

    effects = shell.feed(TimerFired(0.5), shell.now_s + 30.0)

    assert of(Disconnect, effects) == [Disconnect(PEER, "woke")]
    assert of(Advertise, effects) == [Advertise(is_dispatcher=False, term=0)]
    assert of(Browse, effects) == [Browse(is_wanted=True)]
    assert not shell.node.is_dispatcher


def test_a_lone_node_stops_as_soon_as_it_is_idle() -> None:
    """No successor exists; the queue waits on the disk."""
    shell = Shell()
    shell.serve()

    effects = shell.feed(StopRequested(30.0))

    assert Stopped() in effects
    assert shell.feed(submitted())[0] == Answer(1, NotDispatching())


def test_a_stopped_node_accepts_no_link_and_dials_no_peer() -> None:
    """Its process takes a moment to end; a peer would lose it a second time."""
    shell = Shell()
    shell.serve()
    shell.meet()
    assert Stopped() in shell.feed(StopRequested(30.0))

    assert shell.meet() == [Disconnect(PEER, STOPPING_REASON)]
    assert shell.run(shell.now_s + 10.0) == []


def test_a_node_that_leaves_for_good_says_so_to_its_peers() -> None:
    """Else its name would be taken when the machine comes back with a new id."""
    leaving, staying = followed(), followed()
    staying.run(staying.now_s + 1.0)  # Its roster names the peer.

    leaving.feed(StopRequested(30.0, is_leaving=True))
    effects = leaving.feed(StopRequested(30.0))  # It ends at once.
    heard = staying.hear(Leave(LEFT_REASON))

    assert of(Disconnect, effects) == [Disconnect(PEER, LEFT_REASON)]
    assert of(RenameNode, heard) == [RenameNode(PEER, "pi-pppp (left)")]
    assert of(RenameNode, staying.hear(Leave(LEFT_REASON))) == []
    assert of(Dial, staying.run(staying.now_s + 3600.0)) == []


def test_a_stopping_node_finishes_its_tasks_unless_asked_twice() -> None:
    """Running attempts get `drain_s`; an impatient operator wins."""
    shell = Shell()
    shell.serve()
    shell.feed(submitted())

    assert of(Stopped, shell.feed(StopRequested(30.0))) == []
    assert of(Stopped, shell.run(110.0)) == []
    assert of(Stopped, shell.feed(StopRequested(30.0))) == [Stopped()]


def test_a_stopping_node_kills_its_tasks_after_the_drain_time() -> None:
    """It leaves once the ends are reported, so that no task runs twice at once."""
    shell = Shell()
    shell.serve()
    (started,) = of(Start, shell.feed(submitted()))
    assert isinstance(started, Start)
    ((attempt, spec),) = started.items
    shell.feed(StopRequested(5.0))
    start_s = shell.now_s

    assert of(Stop, shell.run(start_s + 4.9)) == []
    (stop,) = of(Stop, shell.run(start_s + 5.1))
    assert stop == Stop(((spec.id, attempt),), EndReason.DRAINING)
    assert of(Stopped, shell.run(start_s + 9.0)) == []

    outcome = Outcome(state=AttemptState.RELEASED, reason=EndReason.DRAINING)
    report = Report(task=spec.id, attempt=attempt, outcome=outcome)
    effects = shell.feed(AttemptsEnded((report,))) + shell.run(start_s + 9.1)
    assert of(Stopped, effects) == [Stopped()]


def test_a_stopping_node_waits_a_bounded_time_for_killed_tasks() -> None:
    """The service manager would kill it anyway."""
    shell = Shell()
    shell.serve()
    shell.feed(submitted())
    shell.feed(StopRequested(5.0))
    end_s = shell.now_s + 5.0 + Timing().kill_grace_s + PROCESS_EXIT_S

    assert of(Stopped, shell.run(end_s - 0.1)) == []
    assert of(Stopped, shell.run(end_s + 0.1)) == [Stopped()]


def test_draining_is_reported_and_can_be_undone() -> None:
    """The operator may want the machine for a while."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet(epoch=THEIRS)

    shell.feed(AvailabilityRequested(7, AvailabilityCommand.DRAIN, "ana"))
    (ok,) = sent(shell.hear(Heartbeat(THEIRS, 1.0)))
    assert isinstance(ok, HeartbeatOk)
    assert (ok.state, ok.credit) == (NodeState.DRAINING, 0)

    shell.feed(AvailabilityRequested(8, AvailabilityCommand.RESUME, "ana"))
    (ok,) = sent(shell.hear(Heartbeat(THEIRS, 1.0)))
    assert isinstance(ok, HeartbeatOk)
    assert ok.state is NodeState.READY


def test_an_operator_order_is_answered_once_it_is_durable() -> None:
    """A machine that was drained for a repair stays so through its restarts."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.has_disk = False

    (save,) = of(
        Save, shell.feed(AvailabilityRequested(7, AvailabilityCommand.DRAIN, "ana"))
    )
    assert isinstance(save, Save)
    assert save.hold == OperatorHold(is_drained=True)
    assert of(Answer, shell.log) == []

    shell.feed(Persisted(save.number))
    assert of(Answer, shell.log) == [
        Answer(7, AvailabilityChanged(NodeState.DRAINING, 0))
    ]


def test_an_order_without_effect_is_answered_and_not_written() -> None:
    """A repeated order is idempotent."""
    shell = Shell(SavedState(hold=OperatorHold(is_paused=True)))
    shell.feed(TimerFired())

    effects = shell.feed(AvailabilityRequested(7, AvailabilityCommand.PAUSE, "ana"))

    assert effects == [Answer(7, AvailabilityChanged(NodeState.PAUSED, 0))]


def test_the_dispatcher_lists_a_worker_as_it_reported_itself() -> None:
    """In a large mesh the next heartbeat may be late."""
    shell = followed()
    shell.hear(Results((), 0, NodeState.PAUSED))
    shell.run(shell.now_s + 1.0)

    roster = shell.node.roster
    assert roster is not None
    assert {m.id: m.state for m in roster.members}[PEER] is NodeState.PAUSED


def test_a_paused_node_leaves_without_waiting_for_frozen_tasks() -> None:
    """They would never end."""
    shell = Shell()
    shell.serve()
    shell.feed(submitted())
    shell.feed(AvailabilityRequested(7, AvailabilityCommand.PAUSE, "ana"))

    assert len(of(Stop, shell.feed(StopRequested(30.0)))) == 1


def test_a_dispatcher_with_a_new_address_tells_its_followers() -> None:
    """They forward requests to the address in the roster."""
    shell = followed()
    shell.run(shell.now_s + 2.0)

    effects = shell.feed(AddressesChanged(("10.0.0.9",))) + shell.run(shell.now_s + 2.0)

    rosters = [each for each in sent(effects) if isinstance(each, Roster)]
    (own,) = [member for member in rosters[-1].members if member.id == ME]
    assert own.addresses == (Address("10.0.0.9", 7878),)
    assert shell.node.hello(node_moment(shell.now_s)).node.addresses == ("10.0.0.9",)


def test_a_follower_with_a_new_address_tells_its_dispatcher() -> None:
    """Its link may outlive the change, so no other HELLO reports it."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet(epoch=THEIRS)

    shell.feed(AddressesChanged(("10.0.0.9",)))

    (ok,) = sent(shell.hear(Heartbeat(THEIRS, 1.0)))
    assert isinstance(ok, HeartbeatOk)
    assert ok.addresses == ("10.0.0.9",)


def test_a_follower_is_listed_under_its_new_address() -> None:
    """The address of its live link stays listed.

    Both are remembered for the next start.
    """
    shell = followed()
    shell.run(shell.now_s + 2.0)
    load = LoadSample(0, 0, 0, 0)
    ok = HeartbeatOk(
        EPOCH, 1.0, NodeState.READY, 2, load, addresses=("10.0.0.9", "10.1.0.9")
    )

    effects = shell.hear(ok) + shell.run(shell.now_s + 2.0)

    rosters = [each for each in sent(effects) if isinstance(each, Roster)]
    (line,) = [member for member in rosters[-1].members if member.id == PEER]
    assert [address.host for address in line.addresses][-2:] == ["10.0.0.9", "10.1.0.9"]
    assert SavePeer(PEER, "pi", line.addresses) in of(SavePeer, effects)
    assert not of(SavePeer, shell.hear(ok))


def roster_of(*nodes: NodeId) -> Roster:
    return Roster(
        THEIRS,
        1,
        tuple(
            RosterEntry(
                id=node,
                name=f"pi-{node[:4]}",
                role=Role.DISPATCHER if node == PEER else Role.WORKER,
                state=NodeState.READY,
                addresses=(),
                lan_port=3443,
                slots=2,
            )
            for node in nodes
        ),
    )


def test_a_dispatcher_that_falls_silent_after_its_first_frame_is_suspected() -> None:
    """Before it a slow handshake gets more time; a roster ends that, too."""
    shell = Shell()
    shell.feed(TimerFired(0.5))
    shell.meet(epoch=THEIRS)
    shell.feed(TimerFired(0.5), shell.now_s + 0.1)
    shell.hear(roster_of(PEER, ME))

    effects = shell.run(shell.now_s + Timing().suspicion_timeout_s + Timing().tick_s)

    assert Disconnect(PEER, "silent") in effects


def test_a_name_assigned_by_the_mesh_is_kept() -> None:
    """Tasks and people must find the node under it after a restart."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet(epoch=THEIRS)

    effects = shell.hear(roster_of(PEER, ME))

    assert [e.name for e in effects if isinstance(e, Save)] == ["pi-mmmm"]
    assert shell.hear(roster_of(PEER, ME)) == []


def test_a_roster_from_another_node_than_the_dispatcher_is_ignored() -> None:
    """Only the dispatcher writes the roster."""
    shell = Shell()
    shell.feed(TimerFired())
    shell.meet()

    assert shell.hear(roster_of(PEER, ME)) == []
    assert shell.node.roster is None


def test_in_a_large_mesh_followers_keep_the_links_that_matter() -> None:
    """Above `full_mesh_peers`, N² links would cost more than they give."""
    shell = Shell(limits=Limits(full_mesh_peers=2))
    shell.feed(TimerFired())
    shell.meet(epoch=THEIRS)
    shell.hear(roster_of(PEER, ME, OTHER))

    effects = shell.meet(OTHER, Epoch(THEIRS.term, PEER))
    assert of(Disconnect, effects) == [Disconnect(OTHER, "attached")]

    advert = PeerHint(OTHER, (Address("10.0.0.3", 7878),))
    assert shell.feed(PeersDiscovered((advert,))) == []


def test_a_node_of_a_large_mesh_that_follows_nobody_keeps_its_links() -> None:
    """It may not reach the dispatcher, and would claim if it heard from no node."""
    shell = Shell(limits=Limits(full_mesh_peers=2))
    shell.feed(TimerFired())
    shell.meet(epoch=THEIRS)
    shell.hear(roster_of(PEER, ME, OTHER))

    assert of(Disconnect, shell.meet(OTHER)) == []
    gone = roster_of(PEER, ME, OTHER)
    lost = replace(gone.members[-1], state=NodeState.LOST)
    gone = replace(gone, version=2, members=(*gone.members[:-1], lost))
    assert of(Disconnect, shell.hear(gone)) == []

    back = replace(roster_of(PEER, ME, OTHER), version=3)
    assert of(Disconnect, shell.hear(back)) == [Disconnect(OTHER, "attached")]


def test_an_unneeded_peer_of_a_large_mesh_is_redirected_to_the_dispatcher() -> None:
    """It was met before the election, and would claim otherwise."""
    shell = Shell(limits=Limits(full_mesh_peers=2))
    shell.feed(TimerFired())
    shell.meet(OTHER)
    shell.meet(epoch=THEIRS)

    effects = shell.hear(roster_of(PEER, ME, OTHER))

    (redirect,) = sent(effects, OTHER)
    assert isinstance(redirect, Redirect)
    assert redirect.dispatcher == PEER
    assert of(Disconnect, effects) == [Disconnect(OTHER, "attached")]


def test_a_failed_dial_changes_nothing_without_a_suspicion() -> None:
    """The node dials again later."""
    shell = Shell()
    shell.feed(TimerFired())

    where = (Address("10.0.0.9", 7878),)
    assert shell.feed(DialFailed(OTHER, where, was_refused=True)) == []
    assert shell.meet(ME) == []


@pytest.mark.parametrize(
    ("task", "sequence"),
    [
        ("task-041-0badcafe", 41),
        ("task-123456789012-0badcafe", 0),
        ("my-own-7", 0),
        ("task-x-1", 0),
    ],
)
def test_sequence_numbers_of_other_nodes_are_not_reused(
    task: str, sequence: int
) -> None:
    """Ids from idempotency keys have twelve digits and do not count."""
    spec = TaskSpec(id=TaskId(task), command="true")
    entry = Entry(StreamId(1), 1, 1, Submitted(spec))

    assert highest_submitted_sequence((entry,)) == sequence


def test_a_deposed_dispatcher_that_replicates_is_not_awaited() -> None:
    """It took this node for its standby; the log would never be read again."""
    shell = Shell()
    shell.serve()
    late, deposed = NodeId("a" * 16), Epoch(1, NodeId("a" * 16))
    for peer in (late, OTHER):
        shell.meet(peer)
        asked = shell.hear(ClaimOk(EPOCH, ((StreamId(9), 1),)), peer=peer)
        assert of(Send, asked)
    fact = Submitted(TaskSpec(id=TaskId("t"), command="true"))
    said = (Entry(StreamId(9), 1, 1, fact),)
    entries = Entries(said, ((StreamId(9), deposed),), has_more=False, vector=())

    shell.hear(Replicate(deposed, 1, (), ()), peer=late)
    shell.hear(entries, peer=OTHER)
    nothing = Entries((), (), has_more=False, vector=())
    effects = shell.hear(nothing, peer=OTHER)

    assert of(LoadLive, effects) == [LoadLive(1, 0, 1000)]


def test_waiting_clients_get_an_end_recorded_by_another_node() -> None:
    """Two halves of a split met; no worker will report the end here."""
    shell = Shell()
    shell.serve()
    shell.meet()
    task, done = TaskId("t"), AttemptId(1, StreamId(9), 1, 1)
    spec, outcome = TaskSpec(task, "true"), Outcome(AttemptState.OK, EndReason.EXIT)
    end = Finished(task, done, OTHER, outcome, decided_term=1)
    said: tuple[Fact, ...] = (Submitted(spec), end)
    entries = tuple(Entry(StreamId(9), at, at, fact) for at, fact in enumerate(said, 1))
    writers = ((StreamId(9), Epoch(1, OTHER)),)

    effects = shell.hear(Entries(entries, writers, has_more=False, vector=()))
    (asked,) = of(LoadTasks, effects)
    assert isinstance(asked, LoadTasks)
    record = TaskRecord(task, spec, attempts=(attempt_of(end),))
    effects = shell.feed(TasksLoaded(asked.term, asked.tasks, (record,)))

    assert of(AnnounceTaskStates, effects) == [AnnounceTaskStates((task,))]


def test_a_standby_acknowledges_nothing_after_a_dropped_entry() -> None:
    """It left its dispatcher for a moment, and follows it again."""
    shell = Shell()
    shell.feed(TimerFired(0.5))
    shell.meet(epoch=THEIRS)
    fact = Submitted(TaskSpec(id=TaskId("t"), command="true"))
    theirs, known = StreamId(1), StreamId(9)
    writers = ((theirs, THEIRS), (known, Epoch(1, OTHER)))
    shell.hear(Replicate(THEIRS, 1, (Entry(known, 1, 1, fact),), writers))

    shell.hear(Redirect(THEIRS, OTHER, ()))
    missed = shell.hear(Replicate(THEIRS, 2, (Entry(theirs, 1, 1, fact),), writers))
    shell.hear(Heartbeat(THEIRS, shell.now_s))
    effects = shell.hear(Replicate(THEIRS, 3, (Entry(known, 1, 1, fact),), writers))

    assert not of(Append, missed)
    assert [type(message) for message in sent(effects)] == [Pull]


def heartbeats(shell: Shell) -> list[Heartbeat]:
    """Return the heartbeats of the next half second."""
    said = sent(shell.run(shell.now_s + 0.5))
    return [message for message in said if isinstance(message, Heartbeat)]


def test_a_worker_report_is_judged_after_its_last_part() -> None:
    """An attempt in the second part is not lost with the first."""
    shell = Shell()
    shell.serve()
    shell.meet()
    shell.hear(ClaimOk(EPOCH, ()), Reattach((), 9, NodeState.READY))
    for ticket in range(6):
        shell.feed(submitted(ticket))
    held = tuple(
        item
        for message in sent(shell.log)
        if isinstance(message, Assign)
        for item in message.items
    )
    assert len(held) > 1

    first = shell.hear(Reattach(held[:1], 9, NodeState.READY, has_more=True))
    last = shell.hear(Reattach(held[1:], 9, NodeState.READY))

    assert of(Append, first + last) == []
    shell.meet()  # By another link, so that an unlisted attempt counts as lost.
    part = Reattach(held[1:], 9, NodeState.READY)
    assert of(Append, shell.hear(ClaimOk(EPOCH, ()), part)) != []


def test_a_new_dispatcher_knows_the_resources_of_connected_nodes_at_once() -> None:
    """It must not refuse a fail-fast task before the first reattach."""
    shell = Shell()
    shell.feed(TimerFired(0.5))
    big = replace(info(PEER), slots=8)
    hello = Hello(node=big, epoch=NO_EPOCH, dispatcher=None)
    sent_hello = shell.node.hello(node_moment(shell.now_s))
    shell.feed(PeerUp(PEER, sent_hello, hello, Address("10.0.0.2", 7878)))
    while not shell.node.is_dispatcher:
        shell.run(shell.now_s + 0.1)

    def hasty(ticket: int, cpus: int) -> list[Effect]:
        options = TaskOptions(requires=Requirements(cpus=cpus))
        draft = TaskDraft(command="true", options=options, is_fail_fast=True)
        asked = TasksSubmitted(ticket, (draft,), "me", ("0badcafe",), (None,))
        return of(Answer, shell.feed(asked))

    why = "no node has 9 CPUs; largest is 8 (pi-pppp)"
    assert hasty(1, 8) == []
    assert hasty(2, 9) == [Answer(2, Unplaceable(0, why))]

    shell.feed(PeerDown(PEER, "eof"))  # Before it attached.
    (answer,) = hasty(3, 8)
    assert isinstance(answer, Answer)
    assert isinstance(answer.reply, Unplaceable)


def test_a_floor_of_another_node_is_recorded_in_the_next_step() -> None:
    """The floor precedes later entries of this node's stream everywhere."""
    shell = followed()
    shell.has_disk = False  #: so no event comes of its own
    theirs = (Entry(StreamId(9), 1, 1 << 20, Floor(5, ())),)
    writers = ((StreamId(9), Epoch(1, PEER)),)

    shell.hear(Entries(theirs, writers, has_more=False, vector=()))

    assert shell.node.deadline() == shell.now_s
    (append,) = (
        effect for effect in shell.feed(TimerFired(0.5)) if isinstance(effect, Append)
    )
    assert isinstance(append.entries[0].fact, Floor)
    assert shell.node.deadline() > shell.now_s
