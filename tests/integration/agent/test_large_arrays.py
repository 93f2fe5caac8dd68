"""Large arrays that fail or are cancelled: right counts, bounded memory, clear answers.

A process for each member would take hours. So these agents, or the workers of one, end
attempts without processes; all else is what users run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octaskly.trust import create_secret_file
from tests.support.agents import (
    ENDS,
    WAIT_S_MAX,
    Agent,
    ending,
    launch,
    memory_mb,
    reset_peak,
    submit,
    until_nodes,
)
from tests.support.herd import Work, herd
from tests.support.no_op_agent import ENDLESS, EVERY_THIRD_FAILS, NO_OP_PROGRAM

ARRAYS = "/api/v1/arrays"
STATES = ("queued", "running", "completed", "failed", "cancelled")
SLOTS = 512  #: of the agent without processes, so that work never waits for a message
MEMORY_MB = 150.0  #: growth of an agent, whatever the number of members
QUEUE_MAX = 20_000_000  #: more than the largest array has members
FOREVER_S = 3600.0
"""For tests that `make soak` repeats; each ends long before."""

Counts = dict[str, int]


def start(folder: Path, slots: int) -> Agent:
    """Start an agent whose tasks need no processes."""
    create_secret_file(folder / "mesh.key")
    words = ["--name", "ash", "--slots", str(slots), "--queue-max", str(QUEUE_MAX)]
    return launch(folder / "ash", folder / "mesh.key", *words, program=NO_OP_PROGRAM)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with ending(agent := start(tmp_path_factory.mktemp("large"), SLOTS)):
        until_nodes(agent, 1)
        yield agent


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Agent]:
    """A dispatcher whose only slot is taken, so that others get all work."""
    with ending(agent := start(tmp_path, 1)):
        until_nodes(agent, 1)
        submit(agent, ENDLESS)
        yield agent


def watch(
    agent: Agent,
    array: str,
    members: int,
    is_over: Callable[[Any], bool],
    within_s: float = WAIT_S_MAX,
) -> Any:
    """Look at an array until something holds; return it.

    At every look, the counts must add up, and no member may leave its end.
    """
    last: Counts = dict.fromkeys(STATES, 0)
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        status, body = agent.call("GET", f"{ARRAYS}/{array}?wait=1&limit=1")
        assert status == 200, body
        counts = counts_of(body)
        assert sum(counts.values()) == members, counts
        assert all(counts[state] >= last[state] for state in ENDS), (last, counts)
        if is_over(body):
            return body
        last = counts
    raise AssertionError(f"not within {within_s} s: {last}")


def has_ended(body: Any) -> bool:
    return body["status"] in ENDS


def counts_of(body: Any) -> Counts:
    return {state: body["array"][state] for state in STATES}


def ends(**counts: int) -> Counts:
    return dict.fromkeys(STATES, 0) | counts


def shown(agent: Agent, array: str) -> dict[str, str]:
    """Return what `octaskly show` says of an array, by field."""
    words = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)]
    shown = subprocess.run(
        [*words, "show", array], capture_output=True, text=True, timeout=60, check=True
    )
    fields = (line.partition(":") for line in shown.stdout.splitlines())
    return {name: value.strip() for name, _, value in fields}


@pytest.mark.parametrize(
    ("members", "within_s"),
    [
        (10_000, WAIT_S_MAX),
        pytest.param(
            10_000_000,
            FOREVER_S,
            marks=[pytest.mark.soak, pytest.mark.timeout(int(FOREVER_S))],
        ),
    ],
)
def test_every_third_member_fails(agent: Agent, members: int, within_s: float) -> None:
    """The memory of the agent does not grow with the members."""
    reset_peak(agent)
    before_mb = memory_mb(agent, "VmRSS")
    array = submit(agent, EVERY_THIRD_FAILS, array={"range": f"1-{members}"})

    body = watch(agent, array, members, has_ended, within_s)

    failed = members // 3
    assert counts_of(body) == ends(completed=members - failed, failed=failed)
    assert body["status"] == "failed"
    assert body["array"]["first_failure"]["id"] == f"{array}.3"
    assert memory_mb(agent, "VmHWM") - before_mb < MEMORY_MB
    fields = shown(agent, array)
    assert fields["failed"] == str(failed)
    assert fields["failures"] == f"{array}.3: exit code 1"


@pytest.mark.soak
def test_a_cancel_by_force_in_the_middle_of_200_ranges(head: Agent) -> None:
    """Each member either has ended before, or is cancelled."""
    members, workers = 10_000, 200
    with herd(head, workers, Work(slots=16, from_s=1.0, to_s=60.0, ends_alone=True)):
        until_nodes(head, 1 + workers)
        reset_peak(head)
        before_mb = memory_mb(head, "VmRSS")
        array = submit(head, "true", array={"range": f"1-{members}"})
        watch(head, array, members, lambda body: body["array"]["completed"] > 200)

        status, answer = head.call("DELETE", f"{ARRAYS}/{array}?force=true")
        body = watch(head, array, members, has_ended)

        assert (status, body["status"]) == (200, "cancelled"), answer
        completed = body["array"]["completed"]
        cancelled = members - completed
        assert counts_of(body) == ends(completed=completed, cancelled=cancelled)
        assert 200 < completed < 16 * workers
        assert memory_mb(head, "VmHWM") - before_mb < MEMORY_MB
        assert shown(head, array)["cancelled"] == str(cancelled)


@pytest.mark.soak
def test_max_fails_is_reached_in_50_ranges_at_once(head: Agent) -> None:
    """Running members end by themselves, and no other member starts."""
    members, workers, slots = 10_000, 50, 16
    with herd(head, workers, Work(slots, from_s=2.0, to_s=2.0, fails=True)):
        until_nodes(head, 1 + workers)
        options = {"range": f"1-{members}", "max_fails": 10}
        array = submit(head, "false", array=options)

        body = watch(head, array, members, has_ended)

        failed = slots * workers
        assert body["status"] == "failed"
        assert counts_of(body) == ends(failed=failed, cancelled=members - failed)
        fields = shown(head, array)
        assert (fields["failed"], fields["max failures"]) == (str(failed), "10")
