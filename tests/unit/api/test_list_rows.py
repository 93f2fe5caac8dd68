"""Rows of lists are bounded in bytes, and show what they have if that is short."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octaskly.api.routes import tasks
from octaskly.api.schemas import list_rows
from octaskly.api.schemas.task_response import LiveFacts
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import NodeId, TaskId
from octaskly.ports.store import DisplayFacts
from octaskly.rest import tasks as rest
from octaskly.system.clock import SystemClock

LONGEST: dict[str, Any] = {
    "id": "t" * 64 + ".999999999~99",
    "status": "cancelled",
    "worker_id": "n" * 63,
    "attempt": 10**6,
    "exit_code": 255,
    "signal": 64,
    "reason": "cancelled",
    "timeout": 86_400,
    "created_at": "2026-02-06T12:00:00Z",
    "duration_ms": 10**15,
    "queue_ms": 10**15,
    "cpu_seconds": 10**12 + 0.001,
    "memory_peak_mb": 10**12 + 0.1,
    "started_at": "2026-02-06T12:00:00Z",
    "completed_at": "2026-02-06T12:00:00Z",
    "elapsed_ms": 10**15,
    "short_id": "99999999999.999999999",
    "priority": -50,
}


def longest_array(detail: str) -> rest.Members:
    """Return the counts of an array with the longest texts."""
    numbers = ("total", "max_fails", "queued", "running", "completed", "failed")
    return rest.Members(
        range="999999999-999999999:999999999",
        **dict.fromkeys(numbers, 10**7),
        cancelled=10**7,
        rate_per_s=999999.999,
        eta_ms=10**15,
        first_failure=rest.FirstFailure(
            id="t" * 64 + ".999999999",
            index=999_999_999,
            exit_code=255,
            signal=64,
            reason="cancelled",
            detail=detail,
        ),
    )


TEXT = st.text(max_size=300) | st.sampled_from(["\1" * 2000, "é" * 2000, "x" * 65_536])
NAMES = st.sampled_from(["", "n" * 128, '"' * 128, "\U0001f600" * 128])
LABELS = st.dictionaries(
    st.text("abc/", max_size=64), st.text(max_size=256), max_size=32
) | st.just({f"{n:064}": "\U0001f600" * 256 for n in range(32)})


@given(command=TEXT, detail=TEXT, name=NAMES, call=NAMES, labels=LABELS, item=TEXT)
@example(
    command="x" * 2000,
    detail="x" * 2000,
    name="\U0001f600" * 128,
    call="\U0001f600" * 128,
    labels=dict.fromkeys("abcdefghijklmnopqrstuvwxyz", "x")
    | {f"{number:02}": "x" for number in range(100)},
    item="x" * 2000,
)
def test_a_row_has_at_most_2_kib_whatever_is_in_the_task(
    command: str,
    detail: str,
    name: str,
    call: str,
    labels: dict[str, str],
    item: str,
) -> None:
    """A page of 1000 stays below 2 MiB; what is cut is the beginning, and says so."""
    asked: dict[str, Any] = {
        **LONGEST, "command": command, "detail": detail, "name": name, "call": call,
        "labels": labels,
    }  # fmt: skip
    lacking = detail or msgspec.UNSET
    lines = (
        rest.ArrayMember(**asked, index=10**9, item=item, missing_output=lacking),
        # An array has no output, so its own detail is short.
        rest.TaskLine(**asked | {"detail": detail[:80]}, array=longest_array(detail)),
    )
    for line in lines:
        row = list_rows.encode_row(line)
        shown = msgspec.json.decode(row, type=type(line))

        assert len(row) <= list_rows.ROW_BYTES_MAX
        assert shown.name == name
        assert call.startswith((shown.call or "").removesuffix("..."))
        assert bool(shown.call) == bool(call)
        assert command.startswith(shown.command or "")
        assert (shown.command_truncated is True) == (shown.command != command)
        assert shown.labels.items() <= labels.items()
        assert (shown.labels_truncated is True) == (shown.labels != labels)
        assert bool(shown.command) == bool(command)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1024),
        ("é" * 513, "é" * 512),
        ("\1" * 171, "\1" * 170),
        ("\n" * 513, "\n" * 512),
    ],
)
def test_a_command_is_cut_at_1_kib_of_json(command: str, shown: str) -> None:
    """A control character takes six bytes there."""
    row = list_rows.encode_row(rest.TaskLine(id="a", status="queued", command=command))

    assert msgspec.json.decode(row)["command"] == shown
    assert (b'"command_truncated":true' in row) == (command != shown)


def test_usual_labels_detail_and_name_are_whole() -> None:
    """Beside a long command, too."""
    line = rest.TaskLine(
        id="task-001-a1b2c3d4",
        status="failed",
        command="x" * 1025,
        name="n" * 128,
        labels={"team": "red", "room": "attic"},
        detail="exit code 2: No such file or directory",
    )

    shown = msgspec.json.decode(list_rows.encode_row(line), type=rest.TaskLine)

    assert (shown.name, shown.labels, shown.detail) == (
        line.name,
        line.labels,
        line.detail,
    )
    assert shown.command == "x" * 1024


async def no_facts(_records: object) -> dict[TaskId, DisplayFacts]:
    return {}


def test_a_long_list_lets_others_run_meanwhile() -> None:
    """The event loop gets a turn after every 50 rows."""
    turn = 0
    turns: list[int] = []
    request: Any = SimpleNamespace(
        gateway=SimpleNamespace(node_names=dict, read_display_facts=no_facts),
        info=SimpleNamespace(row_count=None),
        services=SimpleNamespace(clock=SystemClock()),
    )

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def encode(_: TaskRecord, __: Mapping[NodeId, str], ___: LiveFacts) -> bytes:
        turns.append(turn)
        return b"{}"

    async def encode_all() -> list[bytes]:
        async with asyncio.TaskGroup() as group:
            other = group.create_task(count_turns())
            records = [TaskRecord(TaskId("a"), None)] * 1000
            rows = await tasks.encode_rows(request, records, encode)
            other.cancel()
        return rows

    assert asyncio.run(encode_all()) == [b"{}"] * 1000
    assert set(Counter(turns).values()) == {list_rows.ROWS_PER_TURN}
    assert request.info.row_count == 1000
