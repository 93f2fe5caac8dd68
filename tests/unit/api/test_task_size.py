"""The memory that a response with a whole task takes is known before it is encoded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octaskly.api.schemas import task_response
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, NodeId, StreamId, TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    OutputFile,
    TaskSpec,
)

FIXED_BYTES = 4096  #: of names and numbers

REPEATED = 500  #: each text and output
TEXT = st.text(max_size=50) | st.text("\1", min_size=50, max_size=50)
BLOB = st.binary(max_size=50) | st.just(b"\xff\1" * 25)


@given(command=TEXT, value=TEXT, output=BLOB, path=TEXT, exact=st.booleans())
def test_no_task_is_larger_than_what_was_reserved_for_it(
    command: str, value: str, output: bytes, path: str, *, exact: bool
) -> None:
    """Otherwise, it would be encoded only to be refused."""
    command, value, path = (REPEATED * text for text in (command, value, path))
    output *= REPEATED
    task = TaskId("1-1-1")
    files = (OutputFile(path, 1),)
    outcome = Outcome(AttemptState.OK, EndReason.EXIT, stdout=output, outputs=files)
    attempt = Attempt(
        AttemptId(1, StreamId(1), 1, 1), NodeId("n"), AttemptState.OK, outcome, 1
    )
    options = TaskOptions(env=(("V", value),))
    spec = TaskSpec(task, command, outputs=(path,), options=options)
    record = TaskRecord(task, spec, attempts=(attempt,), has_succeeded=True)

    shown = task_response.task(record, {}, is_exact=exact)
    encoded = task_response.encode(shown)
    visible = task_response.visible_of(record)
    reserved = task_response.size_bytes_max(record, visible, is_exact=exact)

    assert shown.command == command
    assert shown.env == {"V": value}
    assert shown.sent_stdout is not None
    assert len(encoded) <= reserved + FIXED_BYTES


def test_an_output_that_a_task_did_not_declare_is_not_shown() -> None:
    """A client would place it in the user's folder, over a file of the same name."""
    task = TaskId("1-1-1")
    files = (OutputFile("build", 5), OutputFile("Makefile", 20))
    outcome = Outcome(AttemptState.OK, EndReason.EXIT, outputs=files)
    attempt = Attempt(
        AttemptId(1, StreamId(1), 1, 1), NodeId("n"), AttemptState.OK, outcome, 1
    )
    spec = TaskSpec(task, "make", outputs=("build",))
    record = TaskRecord(task, spec, attempts=(attempt,), has_succeeded=True)

    shown = task_response.task(record, {}, is_exact=True)

    assert [each.path for each in shown.outputs] == ["build"]
