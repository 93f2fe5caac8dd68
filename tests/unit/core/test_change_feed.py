"""The change feed: positions in the log, and the events of entries."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.change_feed import (
    REWRITE_AGE_MS,
    FeedCursor,
    FeedPosition,
    StreamExtent,
    TaskEvent,
    outline_record,
    resume_cursor,
    task_event_of,
)
from octaskly.core.log.facts import (
    NO_FLOOR,
    Entry,
    Fact,
    Finished,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import TaskRecord, apply_fact
from octaskly.core.model.hlc import HLC_COUNTER_BITS, hlc_of
from octaskly.core.model.ids import Epoch, NodeId, StreamId
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    OutputFile,
    TaskSpec,
    TaskState,
)
from tests.contract import log_kit as kit

OLD, OWN, NEXT, SPLIT = StreamId(5), StreamId(9), StreamId(2), StreamId(7)
AT_MS = 1_700_000_000_000
AT = hlc_of(AT_MS)


def reach(stream: StreamId, term: int, seq: int, start: int = 0) -> StreamExtent:
    return StreamExtent(stream, Epoch(term, NodeId("n")), seq, start)


def bookmark(hlc: int = 100, *, stream: StreamId = OWN, **seqs: int) -> FeedCursor:
    names = {"old": OLD, "own": OWN, "next": NEXT, "split": SPLIT}
    return FeedCursor(hlc, {names[name]: seq for name, seq in seqs.items()}, stream)


def test_a_position_survives_its_text_form() -> None:
    """Clients keep it as text."""
    place = bookmark(old=3, own=200).position

    assert FeedPosition.parse(str(place)) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-2-3",
        "1-2-3-g" + "0" * 15,
        "1-2-3-" + "0" * 17,
        "-1-2-3-" + "0" * 16,
        "1" * 17 + "-2-3-" + "0" * 16,
        "1-2-3-" + "0" * 16 + "\n",
        "A-2-3-" + "0" * 16,
        "8" + "0" * 15 + "-2-3-" + "0" * 16,
        "1-f" + "0" * 15 + "-3-" + "0" * 16,
    ],
)
def test_an_invalid_position_is_refused(text: str) -> None:
    """Whatever a client sends, the node does not guess."""
    with pytest.raises(ValueError, match="not a position"):
        FeedPosition.parse(text)


def test_a_reader_resumes_in_the_same_epoch() -> None:
    """Nothing is missing, nothing comes twice."""
    place = bookmark(old=3, own=4).position

    found, is_exact = resume_cursor(place, [reach(OLD, 1, 3), reach(OWN, 2, 4)], OWN)

    assert is_exact
    assert found.vector == {OLD: 3, OWN: 4}


def test_a_reader_resumes_after_a_failover() -> None:
    """The next epoch has everything that the reader saw, and more."""
    place = bookmark(old=3, own=4).position
    reaches = [reach(OLD, 1, 3), reach(OWN, 2, 4), reach(NEXT, 3, 0)]

    found, is_exact = resume_cursor(place, reaches, NEXT)

    assert is_exact
    assert found.vector == {OLD: 3, OWN: 4}


def test_a_next_dispatcher_with_a_slow_clock_hides_no_event() -> None:
    """Its entries are older than the client's last one by timestamp."""
    place = bookmark(old=3, own=4).position
    reaches = [reach(OLD, 1, 3), reach(OWN, 2, 4), reach(NEXT, 3, 8)]

    found, is_exact = resume_cursor(place, reaches, NEXT)

    assert is_exact
    assert found.vector == {OLD: 3, OWN: 4}


def test_entries_missing_at_the_next_dispatcher_are_sent_again_later() -> None:
    """It may have rerun a task that had ended for the client."""
    place = bookmark(old=3, own=4).position
    reaches = [reach(OLD, 1, 3), reach(OWN, 2, 3), reach(NEXT, 3, 0)]

    found, is_exact = resume_cursor(place, reaches, NEXT)

    assert is_exact
    assert found.vector == {OLD: 3, OWN: 3}


def test_merged_entries_of_a_split_count_as_seen() -> None:
    """They were merged and sent before the client left."""
    place = bookmark(old=3, own=4, split=6).position
    reaches = [reach(OLD, 1, 3), reach(OWN, 2, 4), reach(SPLIT, 3, 6)]

    found, is_exact = resume_cursor(place, reaches, OWN)

    assert is_exact
    assert found.vector == {OLD: 3, OWN: 4, SPLIT: 6}


def test_late_entries_are_reported() -> None:
    """A stream has older entries that the client never received."""
    place = bookmark(old=3, own=4).position
    reaches = [reach(OLD, 1, 3), reach(OWN, 2, 4), reach(SPLIT, 2, 6)]

    _, is_exact = resume_cursor(place, reaches, OWN)

    assert not is_exact


def test_a_position_of_an_unknown_epoch_is_reported() -> None:
    """Its disk is lost, with the entries that the client saw."""
    found, is_exact = resume_cursor(bookmark(own=4).position, [reach(NEXT, 3, 2)], NEXT)

    assert not is_exact
    assert found.vector == {NEXT: 2, OWN: 0}


def test_a_position_before_the_floor_is_reported() -> None:
    """The entries in between are deleted."""
    found, is_exact = resume_cursor(
        bookmark(own=4).position, [reach(OWN, 2, 7, 7)], OWN
    )

    assert not is_exact
    assert found.vector == {OWN: 7}


def test_an_epoch_without_entries_need_not_be_known() -> None:
    """Everything that its clients saw is in other streams."""
    place = bookmark(old=3).position

    found, is_exact = resume_cursor(place, [reach(OLD, 1, 3), reach(NEXT, 3, 0)], NEXT)

    assert is_exact
    assert found.vector == {OLD: 3, NEXT: 0, OWN: 0}


def test_a_reader_cannot_resume_between_late_entries() -> None:
    """It can resume only after the last of them."""
    reader = bookmark(hlc=AT, own=4)
    before = reader.position

    assert not reader.advance_past(Entry(SPLIT, 1, AT - 5, kit.submitted(1)))
    assert reader.advance_past(Entry(OWN, 5, AT + 1, kit.submitted(2)))
    assert reader.position.seq == 5
    assert reader.position.digest != before.digest


def record(*facts: Submitted | TaskCancelled | Finished) -> TaskRecord:
    found: TaskRecord | None = None
    for fact in facts:
        found = apply_fact(found, fact)
    assert found is not None
    return found


def news(fact: Fact, known: TaskRecord, *, hlc: int = AT) -> TaskEvent | None:
    return task_event_of(Entry(OWN, 1, hlc, fact), known)


def submitted(ord_hlc: int = AT) -> Submitted:
    return kit.submitted(1, ord=50 << 56 | ord_hlc)


def test_an_acceptance_is_one_event() -> None:
    """Worker reports and floors write the submission again."""
    known = record(submitted())
    late = AT + (REWRITE_AGE_MS << HLC_COUNTER_BITS)

    assert news(submitted(), known) == TaskEvent(
        outline_record(known), TaskState.QUEUED, AT_MS
    )
    assert news(submitted(), known, hlc=late) is None


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (AttemptState.OK, TaskState.COMPLETED),
        (AttemptState.FAILED, TaskState.FAILED),
        (AttemptState.RELEASED, TaskState.QUEUED),
    ],
)
def test_the_end_of_an_attempt_is_an_event(
    state: AttemptState, shown: TaskState
) -> None:
    """It includes the attempt and its reason."""
    fact = kit.finished(1, state=state)
    known = record(submitted(), fact)

    event = news(fact, known)

    assert event is not None
    assert event.state is shown
    assert event.attempt == known.attempts[0]


def test_the_start_of_an_attempt_is_an_event() -> None:
    """Also when the task has ended by now."""
    fact = kit.assigned(1)
    known = record(submitted(), kit.finished(1))

    event = news(fact, known)

    assert event is not None
    assert event.state is TaskState.RUNNING
    assert event.attempt == Attempt(id=kit.attempt_id(), node=kit.WORKER)


def test_a_failure_of_a_completed_task_is_no_event() -> None:
    """A second attempt in the other half of a split changes nothing."""
    second = kit.finished(1, 2, state=AttemptState.FAILED)
    known = record(submitted(), kit.finished(1), second)

    assert news(second, known) is None
    assert news(kit.assigned(1, 2), known) is None


def test_a_success_that_another_epoch_replaced_is_reported_as_the_shown_one() -> None:
    """The log of a dead dispatcher returned; clients have the later output."""
    earlier, later = kit.finished(1), replace(kit.finished(1, 2), decided_term=2)
    known = record(submitted(), earlier, later)

    event = news(earlier, known)

    assert event is not None
    assert event.attempt == known.attempts[1]


@pytest.mark.parametrize(
    ("other", "end"),
    [
        (kit.finished(1), TaskState.COMPLETED),
        (kit.finished(1, state=AttemptState.FAILED), TaskState.FAILED),
        (kit.cancelled(1), TaskState.CANCELLED),
    ],
)
def test_an_ended_task_is_not_queued_again(
    other: Finished | TaskCancelled, end: TaskState
) -> None:
    """Its lost worker finished it, or the other side cancelled it."""
    lost = kit.finished(1, state=AttemptState.RELEASED)
    known = record(submitted(), lost, other)

    event = news(lost, known)

    assert event is not None
    assert event.state is end


def test_a_cancel_is_an_event_unless_the_task_succeeded() -> None:
    """The event matches the state of the task."""
    known = record(submitted(), kit.cancelled(1))

    assert news(kit.cancelled(1), known) == TaskEvent(
        outline_record(known), TaskState.CANCELLED, AT_MS
    )
    ended = apply_fact(known, kit.finished(1))
    assert news(kit.cancelled(1), ended) is None


def test_a_floor_is_no_event() -> None:
    """It belongs to no task."""
    spec = TaskSpec(id=kit.task_id(1), command="true")

    assert news(NO_FLOOR, record(Submitted(spec))) is None


def test_events_are_small() -> None:
    """Thousands are kept for listeners, and a task may have megabytes."""
    spec = TaskSpec(
        id=kit.task_id(1),
        command="xx",
        inputs=("xx",),
        outputs=("xx",),
        created_ms=7,
        ord=50 << 56 | AT,
        options=TaskOptions(
            env=(("X", "xx"),), array=ArraySpec(count=1, items=("xx",))
        ),
    )
    ended = kit.finished(1, outputs=(OutputFile("x", 1),), stdout=b"x", stderr=b"x")
    known = record(Submitted(spec))

    event = news(Submitted(spec), known)
    end = news(ended, record(submitted(), ended))

    assert event is not None
    assert event.record.spec is not None
    assert "xx" not in repr(event.record.spec)
    assert event.record.spec.created_ms == 7
    assert end is not None
    assert end.attempt is not None
    assert end.attempt.outcome is not None
    assert end.attempt.outcome.outputs == ()
    assert end.attempt.outcome.stdout == end.attempt.outcome.stderr == b""
