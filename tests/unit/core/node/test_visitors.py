"""A dispatcher and a visitor whose messages pass the link, but are meant to harm."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Answer, Append, Disconnect, Effect, Save, Send
from octaskly.core.events import Event as CoreEvent
from octaskly.core.events import (
    LiveLoaded,
    OutputRequested,
    PeerDown,
    PeerUp,
    Persisted,
    QueuedLoaded,
    Received,
    RecordRequested,
    SavedState,
    TasksSubmitted,
    TimerFired,
)
from octaskly.core.log.mesh_records import VISIT_ENDED, RecordDraft
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.field_types import TIME_MS_MAX
from octaskly.core.model.ids import NO_EPOCH, Address, AttemptId, NodeId, TaskId
from octaskly.core.model.keyring_state import VISIT_ENDED_REASON
from octaskly.core.model.nodes import NO_LOAD, LoadSample, NodeState, RosterEntry
from octaskly.core.model.settings import Settings
from octaskly.core.model.task_options import (
    ArraySpec,
    Requirements,
    TaskOptions,
    VisitorRule,
)
from octaskly.core.model.tasks import (
    DETAIL_CHARS_MAX,
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)
from octaskly.core.node.node import Node
from octaskly.core.node.visitors import BUDGETS_MAX, TOO_MANY_REASON, Visitors
from octaskly.core.protocol.messages import (
    CONTACTS_MAX,
    VISITORS_MAX,
    Assign,
    AssignRanges,
    ClaimOk,
    Contacts,
    Heartbeat,
    HeartbeatOk,
    Hello,
    Message,
    OutputPiece,
    OutputPieces,
    Probe,
    ReadOutput,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.protocol.visitor_rules import (
    ITEM_MESSAGES,
    LINK_MESSAGES,
    MEMORY_MB_MAX,
    MESSAGES_BURST,
    READS_MAX,
    bounded_outcome,
)
from octaskly.core.replies import NoVisitorOutput, VisitorOutput
from octaskly.core.scheduling.queued_task import VISITOR_RETURNS_MAX
from tests.support.builders import node_info, node_moment
from tests.support.sample_messages import OUTCOME

ME, PAL = NodeId("m" * 16), NodeId("p" * 16)
VISITOR = NodeId("visitor-" + "v" * 16)
HOUR_MS = 3_600_000
FLOOD = Disconnect(VISITOR, "protocol: flood")
ITEMS_MAX = int(MESSAGES_BURST / ITEM_MESSAGES)


class Member:
    """A dispatcher with a disk that answers at once."""

    def __init__(self) -> None:
        info = replace(node_info("ash", slots=1), id=ME)
        self.node = Node(Settings(node=info), SavedState())
        self.now_s = 100.0
        self.stay_ms = HOUR_MS  #: of visitors
        self.sent: list[Message] = []  #: to the visitor
        self.feed(TimerFired(0.5))
        self.run(0.75)
        self.feed(LiveLoaded(1, ()))
        self.feed(QueuedLoaded(1, (), has_more=False))
        assert self.node.is_dispatcher

    def feed(self, event: CoreEvent) -> list[Effect]:
        effects = self.node.step(event, node_moment(self.now_s))
        for effect in tuple(effects):
            if isinstance(effect, Append | Save):
                effects += self.feed(Persisted(effect.number))
            elif isinstance(effect, Send) and effect.peer == VISITOR:
                self.sent += effect.messages
        return effects

    def run(self, for_s: float) -> None:
        until_s = self.now_s + for_s
        while self.now_s < until_s:
            due_s = max(self.node.deadline(), self.now_s + 0.001)
            self.now_s = min(due_s, until_s)
            self.feed(TimerFired(0.5))

    def visit(self, node: NodeId = VISITOR, **lies: object) -> list[Effect]:
        """Link a visitor."""
        info = replace(node_info("guest"), id=node)
        hello = Hello(node=replace(info, **lies), epoch=NO_EPOCH, dispatcher=None)
        now = node_moment(self.now_s)
        ends_ms = now.wall_ms + self.stay_ms
        up = PeerUp(node, self.node.hello(now), hello, Address("10.0.0.2", 1))
        return self.feed(replace(up, visit_ends_ms=ends_ms))

    def attach(self) -> None:
        """Link the visitor, and make it a worker."""
        self.visit()
        self.run(1.5)
        assert any(isinstance(message, Heartbeat) for message in self.sent)
        assert FLOOD not in self.say(Reattach((), 2, NodeState.READY))

    @property
    def visitors(self) -> Visitors:
        return self.node._handlers.visitors

    def say(self, *messages: Message) -> list[Effect]:
        return self.feed(Received(VISITOR, messages))

    def assign(self) -> tuple[AttemptId, TaskSpec]:
        """Submit a task that a visitor may run, and return the visitor's attempt."""
        for suffix, rule in (
            ("00000001", VisitorRule.UNSET),
            ("00000002", VisitorRule.ALLOWED),
        ):
            options = TaskOptions(requires=Requirements(visitors=rule))
            draft = TaskDraft("true", options=options)
            self.feed(TasksSubmitted(1, (draft,), "ana", (suffix,), (None,)))
        ((item,),) = [m.items for m in self.sent if isinstance(m, Assign)]
        return item

    def listed(self) -> RosterEntry:
        """Return the visitor in the roster."""
        self.run(1.5)
        roster = self.node.roster
        assert roster is not None
        (entry,) = roster.visitors
        return entry


@pytest.fixture
def member() -> Member:
    return Member()


def attempts(count: int) -> tuple[tuple[AttemptId, TaskSpec], ...]:
    """Return attempts that no visitor was given."""
    return tuple(
        (AttemptId(1, 1, n + 1, 1), TaskSpec(TaskId(f"t{n}"), "true"))  # type: ignore[arg-type]
        for n in range(count)
    )


def test_a_list_of_attempts_that_never_ends_is_cut_off(member: Member) -> None:
    """Its parts would fill the memory: a thousand, each of megabytes."""
    member.attach()
    part = Reattach(attempts(4000), 2, NodeState.READY, has_more=True)

    answers = [member.say(part) for _ in range(ITEMS_MAX // 4000 + 1)]

    assert sum(FLOOD in effects for effects in answers) == 1


def test_reports_of_what_it_was_not_given_count_as_messages(member: Member) -> None:
    """One message may have 65 000 of them, which take longer to refuse than to send."""
    member.attach()
    reports = [
        Report(spec.id, attempt, OUTCOME) for attempt, spec in attempts(ITEMS_MAX)
    ]

    assert FLOOD in member.say(Results(tuple(reports), 2))
    assert not any(isinstance(message, ResultsOk) for message in member.sent)


def test_repeated_reports_of_its_own_attempt_count_as_messages(member: Member) -> None:
    """Only the first in a message can be meant."""
    member.attach()
    attempt, spec = member.assign()
    report = Report(spec.id, attempt, OUTCOME)

    assert FLOOD in member.say(Results((report,) * ITEMS_MAX, 2))


def test_outputs_in_reports_count_as_messages(member: Member) -> None:
    """Also before it has said what it runs: they were decoded by then."""
    member.visit()
    ((attempt, spec),) = attempts(1)
    outputs = tuple(OutputFile(f"out-{n}", 1) for n in range(9000))
    report = Report(spec.id, attempt, replace(OUTCOME, outputs=outputs))

    assert FLOOD in member.say(Results((report,) * 4, 2))


def test_members_of_an_array_reach_a_visitor_one_by_one(member: Member) -> None:
    """It does not learn the items of members that run elsewhere."""
    member.attach()
    options = TaskOptions(
        requires=Requirements(visitors=VisitorRule.ALLOWED),
        array=ArraySpec(count=3, has_items=True, items=("a", "b", "c")),
    )
    draft = TaskDraft("echo {}", options=options)

    member.feed(TasksSubmitted(1, (draft,), "ana", ("00000001",), (None,)))
    member.feed(QueuedLoaded(1, (), has_more=False))

    given = [i for m in member.sent if isinstance(m, Assign) for i in m.items]
    assert len(given) == 2
    assert all(spec.array is None for _, spec in given)


def test_few_reports_of_what_runs_elsewhere_by_now_are_acknowledged(
    member: Member,
) -> None:
    """An honest visitor comes back with the ends of all its slots."""
    member.attach()
    reports = [Report(spec.id, attempt, OUTCOME) for attempt, spec in attempts(4096)]

    assert FLOOD not in member.say(Results(tuple(reports), 2))
    (ok,) = [message for message in member.sent if isinstance(message, ResultsOk)]
    assert len(ok.items) == 4096


def test_a_new_link_does_not_renew_what_a_visitor_may_send(member: Member) -> None:
    """Otherwise it would dial again before each flood is noticed."""
    member.attach()
    probes = [Probe(ME, 0.0)] * (int(MESSAGES_BURST) - 100)
    assert FLOOD not in member.say(*probes)
    member.feed(PeerDown(VISITOR, "eof"))
    assert FLOOD not in member.visit()

    assert FLOOD in member.say(*probes)


def test_links_count_as_messages(member: Member) -> None:
    """Each takes time, and lines in the log."""
    links = int(MESSAGES_BURST / LINK_MESSAGES) + 1

    answers = [member.visit() for _ in range(links)]

    assert [FLOOD in effects for effects in answers].index(True) == links - 1


def test_a_crowd_of_visitors_does_not_displace_one_that_stays(member: Member) -> None:
    """What a visitor has sent is forgotten only after its link has ended."""
    member.attach()

    for n in range(BUDGETS_MAX + 1):
        guest = NodeId(f"visitor-{n}")
        member.visit(guest)
        member.feed(PeerDown(guest, "eof"))

    assert FLOOD not in member.say(Probe(ME, 0.0))


@pytest.mark.parametrize("name", ["ash", ME])
def test_a_visitor_does_not_get_the_name_or_the_id_of_a_member(
    member: Member, name: str
) -> None:
    """Tasks, drains and revocations name nodes by either."""
    member.visit(name=name)
    member.run(1.5)
    member.say(Reattach((), 2, NodeState.READY))

    assert member.listed().name == f"{name}-visi"


def test_a_member_gets_the_name_that_a_visitor_has(member: Member) -> None:
    """The visitor came first, to get the tasks for that member."""
    member.visit(name="oak")
    member.run(1.5)
    member.say(Reattach((), 2, NodeState.READY))
    assert member.listed().name == "oak"
    info = replace(node_info("oak", slots=1), id=PAL)
    hello = Hello(node=info, epoch=NO_EPOCH, dispatcher=None)
    own = member.node.hello(node_moment(member.now_s))

    member.feed(PeerUp(PAL, own, hello, Address("10.0.0.3", 1)))
    reattach = Reattach((), 1, NodeState.READY)
    member.feed(Received(PAL, (ClaimOk(member.node.epoch, ()), reattach)))

    assert member.listed().name == "oak-visi"
    assert member.node.roster is not None
    assert "oak" in [each.name for each in member.node.roster.members]


@pytest.mark.parametrize(
    "lies",
    [
        {"name": ""},
        {"name": "аsh"},  # noqa: RUF001  # Its first letter is Cyrillic.
        {"name": "a b"},
        {"labels": (("gpu", "\x1b[2J"),)},
        {"gpus": ("\x07",)},
        {"pythons": ("\u202e3.13",)},
        {"os": "li\nnux"},
        {"memory_mb": MEMORY_MB_MAX + 1},
        {"cpus": 1 << 60},
    ],
    ids=str,
)
def test_a_description_that_cannot_be_shown_is_refused(
    member: Member, lies: dict[str, object]
) -> None:
    """Names look like other names, and control characters change a terminal."""
    assert Disconnect(VISITOR, "protocol: node") in member.visit(VISITOR, **lies)


def test_the_load_of_a_visitor_is_what_a_machine_can_have(member: Member) -> None:
    """It would fill lines of `octaskly nodes`, and show negative memory."""
    member.attach()
    epoch = member.node.epoch
    lie = LoadSample(1e300, -1e300, -(1 << 60), 1 << 60, 1e9, -1)

    member.say(HeartbeatOk(epoch, 0.0, NodeState.READY, 2, lie))

    assert member.listed().load == LoadSample(100.0, 0, 0, MEMORY_MB_MAX, 100.0, 0)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (AttemptState.RELEASED, EndReason.RETURNED),
        (AttemptState.RELEASED, EndReason.ROOM),
        (AttemptState.RELEASED, EndReason.INPUTS),
        (AttemptState.CANCELLED, EndReason.CANCELLED),
    ],
)
def test_a_task_that_a_visitor_does_not_run_goes_to_none_in_the_end(
    member: Member, state: AttemptState, reason: EndReason
) -> None:
    """Each attempt is in the log, so that it would grow for as long as it goes on."""
    member.attach()
    member.assign()
    seen = 0

    for _ in range(5):
        given = [m.items[0] for m in member.sent if isinstance(m, Assign)]
        for attempt, spec in given[seen:]:
            member.say(Results((Report(spec.id, attempt, Outcome(state, reason)),), 2))
        seen = len(given)
        member.run(15.0)

    assert seen <= VISITOR_RETURNS_MAX


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (AttemptState.OK, EndReason.LOST),
        (AttemptState.FAILED, EndReason.RETURNED),
        (AttemptState.FAILED, EndReason.POISON),
        (AttemptState.RELEASED, EndReason.EXIT),
        (AttemptState.CANCELLED, EndReason.ROOM),
        (AttemptState.RUNNING, EndReason.EXIT),
    ],
)
def test_an_end_that_no_worker_reports_is_refused(
    member: Member, state: AttemptState, reason: EndReason
) -> None:
    """A task would show a reason that no task has."""
    member.attach()
    attempt, spec = member.assign()

    effects = member.say(
        Results((Report(spec.id, attempt, Outcome(state, reason)),), 2)
    )

    assert Disconnect(VISITOR, "protocol: fact") in effects


def test_the_times_and_outputs_of_an_end_are_those_that_it_can_have() -> None:
    """An end in the year 6429 would lead each list for good."""
    lie = Outcome(
        AttemptState.OK,
        EndReason.EXIT,
        started_ms=0,
        ended_ms=TIME_MS_MAX - 1,
        duration_ms=TIME_MS_MAX - 1,
        outputs=(OutputFile("out", 1), OutputFile("../x", 1), OutputFile("out", 2)),
        detail="x" * (DETAIL_CHARS_MAX + 1),
    )
    spec = TaskSpec(TaskId("t"), "true", outputs=("out",), created_ms=1000)

    told = bounded_outcome(lie, spec, wall_ms=5000)

    assert told == replace(
        lie,
        started_ms=1000,
        ended_ms=5000,
        duration_ms=4000,
        outputs=(OutputFile("out", 2),),
        detail="x" * DETAIL_CHARS_MAX,
    )


def test_a_link_ends_with_the_certificate_that_it_was_made_with(
    member: Member,
) -> None:
    """Whatever the visitor says of the time when it leaves."""
    member.stay_ms = 4000  # It is not silent for so long that this ends the link.
    member.visit(VISITOR, leaves_ms=TIME_MS_MAX - 1)
    member.run(1.5)
    member.say(Reattach((), 2, NodeState.READY))
    assert member.listed().id == VISITOR

    member.run(2.0)

    assert member.node.roster is not None
    assert member.node.roster.visitors == ()


def test_at_most_256_visitors_are_linked_to_a_member(member: Member) -> None:
    """The next one is told why; it may come when another has left."""
    guests = [NodeId(f"visitor-{n}") for n in range(VISITORS_MAX)]
    refusal = Disconnect(VISITOR, TOO_MANY_REASON)

    for guest in guests:
        assert Disconnect(guest, TOO_MANY_REASON) not in member.visit(guest)
    assert refusal in member.visit(VISITOR)
    member.feed(PeerDown(guests[0], "eof"))

    assert refusal not in member.visit(VISITOR)


def test_a_visitor_learns_the_addresses_of_at_most_eight_members(
    member: Member,
) -> None:
    """The dispatcher is the first; the others may become dispatcher."""
    for n in range(CONTACTS_MAX + 2):
        pal = NodeId(f"{n:016}")
        address = Address(f"10.0.1.{n}", 1)
        info = replace(node_info(f"pal{n}", slots=1), id=pal)
        hello = Hello(node=info, epoch=NO_EPOCH, dispatcher=None)
        own = member.node.hello(node_moment(member.now_s))
        member.feed(PeerUp(pal, own, hello, address))
        reattach = Reattach((), 1, NodeState.READY)
        member.feed(Received(pal, (ClaimOk(member.node.epoch, ()), reattach)))

    member.attach()
    member.run(0.5)

    assert member.node.roster is not None
    assert len(member.node.roster.members) == CONTACTS_MAX + 3
    *_, contacts = [each for each in member.sent if isinstance(each, Contacts)]
    assert len(contacts.members) == CONTACTS_MAX
    assert contacts.members[0].id == ME


def submit_array(member: Member, requires: Requirements | None) -> list[Message]:
    """Submit an array of three; return what the visitor gets of it."""
    options = TaskOptions(
        requires=requires,
        array=ArraySpec(count=3, has_items=True, items=("a", "b", "c")),
    )
    draft = TaskDraft("echo {}", options=options)
    member.sent.clear()
    member.feed(TasksSubmitted(1, (draft,), "ana", ("00000001",), (None,)))
    member.feed(QueuedLoaded(1, (), has_more=False))
    return [each for each in member.sent if isinstance(each, Assign | AssignRanges)]


def test_members_of_an_array_go_to_visitors_only_as_their_requirements_say(
    member: Member,
) -> None:
    """Ranges of members would be given to any worker, without a look at them."""
    member.attach()  # It has two slots, and an hour.
    allowed = Requirements(visitors=VisitorRule.ALLOWED)

    assert submit_array(member, None) == []
    assert submit_array(member, replace(allowed, visitor_s=7200)) == []
    (given,) = submit_array(member, replace(allowed, visitor_s=600))

    assert isinstance(given, Assign)
    assert [spec.command for _, spec in given.items] == ["echo a", "echo b"]


# --- Live output.

TICKET = 41
UNASKED = Disconnect(VISITOR, "protocol: output")


def read_output(member: Member, ticket: int = TICKET) -> ReadOutput:
    """Ask the visitor for the stdout of an attempt, from its third byte on."""
    ((attempt, spec),) = attempts(1)
    read = ReadOutput(ticket, spec.id, attempt, (2, None))
    asked = OutputRequested(ticket, VISITOR, read.task, attempt, read.starts)

    assert member.feed(asked) == [Send(VISITOR, (read,))]
    return read


def test_output_of_a_visitor_answers_the_request_that_asked_for_it(
    member: Member,
) -> None:
    """It comes once, with the number of the request."""
    member.attach()
    read_output(member)
    pieces = OutputPiece(0, 2, b"one\n"), OutputPiece(0, 9, b"two\n")

    told = member.say(OutputPieces(TICKET, pieces, is_complete=True))

    assert told == [Answer(TICKET, VisitorOutput(pieces, is_complete=True))]


def test_a_visitor_without_the_output_ends_the_request(member: Member) -> None:
    """Its attempt has not begun, for example."""
    member.attach()
    read_output(member)

    told = member.say(OutputPieces(TICKET, (), is_complete=True, is_absent=True))

    assert told == [Answer(TICKET, NoVisitorOutput())]


@pytest.mark.parametrize(
    "lie",
    [
        OutputPieces(TICKET, (OutputPiece(1, 0, b"stderr"),), is_complete=False),
        OutputPieces(TICKET, (OutputPiece(2, 0, b"none"),), is_complete=False),
        OutputPieces(TICKET, (OutputPiece(0, 1, b"again"),), is_complete=False),
        OutputPieces(
            TICKET,
            (OutputPiece(0, 4, b"next"), OutputPiece(0, 5, b"x")),
            is_complete=False,
        ),
    ],
    ids=["another stream", "no stream", "before", "overlap"],
)
def test_output_that_was_not_asked_for_closes_the_link(
    member: Member, lie: OutputPieces
) -> None:
    """Whoever waits learns that the visitor has gone."""
    member.attach()
    read_output(member)

    told = member.say(lie)

    assert UNASKED in told
    assert Answer(TICKET, NoVisitorOutput()) in told


def test_output_counts_as_a_message_unless_a_request_waits_for_it(
    member: Member,
) -> None:
    """A late answer, over a new link, is that of an honest visitor."""
    member.attach()
    output = OutputPieces(TICKET, (), is_complete=False)
    for _ in range(int(2 * MESSAGES_BURST)):
        read_output(member)
        assert member.say(output) == [
            Answer(TICKET, VisitorOutput((), is_complete=False))
        ]

    assert member.say(output) == []
    assert FLOOD in member.say(*[output] * int(2 * MESSAGES_BURST))


def test_requests_for_the_output_of_one_visitor_are_bounded(member: Member) -> None:
    """It may answer none of them."""
    member.attach()
    for ticket in range(READS_MAX):
        read_output(member, ticket)
    ((attempt, spec),) = attempts(1)

    more = OutputRequested(READS_MAX, VISITOR, spec.id, attempt, (0, 0))

    assert member.feed(more) == [Answer(READS_MAX, NoVisitorOutput())]


def test_without_the_visitor_a_request_for_output_is_answered(member: Member) -> None:
    """Its link ends before it answers, or it never came."""
    member.attach()
    read = read_output(member)

    told = member.feed(PeerDown(VISITOR, "eof"))
    again = OutputRequested(7, VISITOR, read.task, read.attempt, read.starts)

    assert Answer(TICKET, NoVisitorOutput()) in told
    assert member.feed(again) == [Answer(7, NoVisitorOutput())]


def test_an_ended_visit_closes_the_link_and_opens_no_other(member: Member) -> None:
    """Other visitors stay."""
    other = NodeId("visitor-" + "w" * 16)
    member.attach()
    member.visit(other)

    member.feed(RecordRequested(7, (RecordDraft(VISIT_ENDED, VISITOR, b"", 0),)))
    member.run(0.3)
    again = member.visit()

    assert Disconnect(VISITOR, VISIT_ENDED_REASON) in again
    assert [node for node in (VISITOR, other) if node in member.visitors] == [other]


def test_a_linked_visitor_does_not_say_that_it_is_lost(member: Member) -> None:
    """Lists would show it as one that nobody needs to end."""
    member.attach()
    epoch = member.node.epoch

    member.say(HeartbeatOk(epoch, 0.0, NodeState.LOST, 2, NO_LOAD))
    member.say(Results((), 2, NodeState.LOST))

    assert member.listed().state is NodeState.READY
