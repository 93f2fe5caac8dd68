"""What `octaskly explain` says about the bytes of a task's files."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.cli.output.task_view import explanation_lines
from octaskly.rest.tasks import Explanation, FirstFailure, InputBytes, SentBytes

GB = 1_000_000_000
FAILED = "it failed on nas: exit code 1"
INPUTS = InputBytes(
    node="nas",
    bytes=3_200_000_000,
    present_bytes=3_100_000_000,
    sent=[SentBytes(node="desk", bytes=100_000_000)],
)


FIRST = FirstFailure(
    id="task-041-3fa2c91d.2", index=2, exit_code=3, signal=None, reason="exit"
)


def lines(status: str, inputs: InputBytes | None) -> list[str]:
    summary = FAILED if status == "failed" else "it runs on nas"
    found = Explanation(id="task-041", status=status, summary=summary, inputs=inputs)
    return [*explanation_lines(found)]


def test_it_says_where_the_bytes_came_from() -> None:
    """With the node that has the task, and those that sent something."""
    (line,) = lines("running", INPUTS)
    assert line == (
        "task-041 (running on nas): 3.1 GB of 3.2 GB was already there;"
        " 100 MB came from desk"
    )
    all_there = InputBytes(node="nas", bytes=2 * GB, present_bytes=2 * GB)
    assert lines("completed", all_there) == [
        "task-041 (completed on nas): 2.0 GB of 2.0 GB was already there"
    ]


def test_it_says_what_a_task_waits_for() -> None:
    """Its client lends the files, and may have closed its laptop."""
    files = "the files of node desk: 3 of them not yet sent by the client"
    awaiting = replace(INPUTS, awaited=files)

    assert lines("running", awaiting) == [f"task-041 (waiting on nas): {files}"]
    assert lines("failed", awaiting)[1] == FAILED


def test_the_files_of_a_returned_attempt_are_no_answer() -> None:
    """Its node, which had no room for them, has the task no more."""
    returned = InputBytes(node="nas", bytes=0, present_bytes=0)

    assert lines("queued", returned) == ["task-041 (queued): it runs on nas"]


def test_a_failed_array_names_its_first_failed_member() -> None:
    """With the reason, as for a task."""
    summary = "it failed: 2 of 9 members did"
    found = Explanation(
        id="task-041", status="failed", summary=summary, first_failure=FIRST
    )

    assert [*explanation_lines(found)] == [
        f"task-041 (failed): {summary}",
        "first failed member: task-041-3fa2c91d.2: exit code 3",
    ]


def test_a_failure_keeps_its_reason() -> None:
    """The bytes are one more line."""
    assert lines("failed", INPUTS)[1] == FAILED


def test_files_of_unknown_size_are_not_called_present() -> None:
    """Their list has not arrived, as when the node that has it is away."""
    unknown = InputBytes(node="nas", bytes=0, present_bytes=0)

    assert lines("running", unknown) == ["task-041 (running): it runs on nas"]
    assert lines("failed", unknown) == [f"task-041 (failed): {FAILED}"]


def test_a_task_without_files_has_no_such_line() -> None:
    """Nor one whose node does not know any more."""
    assert lines("running", None) == ["task-041 (running): it runs on nas"]
