"""Ending tasks: one way for all reasons, with a true report."""

from __future__ import annotations

import asyncio
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from octaskly.core.model.ids import StreamId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import AttemptState, EndReason
from octaskly.runner.processes import proc_tree
from tests.support.pooling import (
    STREAM,
    Rig,
    eventually,
    outcome_summary,
    processes_with,
    rig,
    token,
)

MODES = pytest.mark.parametrize(
    "mode",
    [{"with_cgroups": True}, {"launchers": 5}, {"with_cgroups": False}],
    ids=["a group a slot", "a group a launcher", "no groups"],
)

#: The reaction of the main process to SIGTERM: its code and signal.
MANNERS = {
    "ends well": ("trap 'exit 0' TERM", 0, None),
    "ends badly": ("trap 'exit 7' TERM", 7, None),
    "dies by it": (":", 143, 15),
    "dies by another": ("trap 'trap - USR1; kill -USR1 $$' TERM", 138, 10),
    "ignores it": ("trap '' TERM", 137, 9),
}


#: Tasks that end by themselves get all the time that they need.
PATIENT_S = 60.0
HASTY = {"ignores it": TaskOptions(grace_s=1)}


async def start_handler(made: Rig, manner: str, **fields: Any) -> Any:
    """Start a task with this SIGTERM handler, and wait until it is ready.

    Or until it has ended: on a busy machine it may be late before it is ready.
    """
    ready = made.workdir / f"ready-{token()}"
    wait = "while :; do sleep 0.01; done"
    name = made.start(f"{manner}; echo $$ > {ready}; {wait}", **fields)
    await eventually(
        lambda: (ready.exists() and ready.read_text()) or made.outcome(name[0])
    )
    return name


@MODES
async def test_a_cancelled_task_has_its_own_code_and_signal(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """It is cancelled whatever its handler did, and reported once (B29)."""
    async with rig(
        tmp_path, slots=len(MANNERS), kill_grace_s=PATIENT_S, **mode
    ) as made:
        names = [
            await start_handler(made, manner, options=HASTY.get(name))
            for name, (manner, _, _) in MANNERS.items()
        ]
        made.pool.stop_attempts(names)
        ends = [outcome_summary(await made.end_of(task)) for task, _ in names]

        assert dict(zip(MANNERS, ends, strict=True)) == {
            name: (AttemptState.CANCELLED, EndReason.CANCELLED, code, number)
            for name, (_, code, number) in MANNERS.items()
        }


@MODES
async def test_a_task_past_its_timeout_ends_with_124(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """Also one that ignores SIGTERM (B29)."""
    async with rig(tmp_path, slots=len(MANNERS), **mode) as made:
        names = [
            await start_handler(made, manner, timeout_s=1)
            for manner, _, _ in MANNERS.values()
        ]
        ends = {outcome_summary(await made.end_of(task)) for task, _ in names}

        assert ends == {(AttemptState.FAILED, EndReason.TIMEOUT, 124, None)}


async def test_a_cancel_after_the_timeout_is_a_cancel(tmp_path: Path) -> None:
    """The client got that answer; the task gets one SIGTERM and one grace period."""
    async with rig(tmp_path, kill_grace_s=60.0) as made:
        heard = made.workdir / "heard"
        manner = f"trap 'echo >> {heard}' TERM"
        task, attempt = await start_handler(made, manner, timeout_s=5)
        await eventually(heard.exists)
        made.pool.stop_attempts([(task, attempt)])
        made.pool.stop_attempts([(task, attempt)], EndReason.DRAINING)
        await made.run("true")
        assert heard.read_text() == "\n"
        made.pool.set_frozen(is_frozen=True)  # Ends the grace.

        outcome = await made.end_of(task)
        assert (outcome.state, outcome.signal) == (AttemptState.CANCELLED, 9)


async def test_a_task_ended_by_a_leaving_node_is_released(tmp_path: Path) -> None:
    """It got SIGTERM, so its result does not count; it runs elsewhere."""
    async with rig(tmp_path, kill_grace_s=PATIENT_S) as made:
        task, attempt = await start_handler(made, "trap 'exit 0' TERM")
        made.pool.stop_attempts([(task, attempt)], EndReason.DRAINING)
        outcome = await made.end_of(task)

        assert (outcome.state, outcome.reason) == (
            AttemptState.RELEASED,
            EndReason.DRAINING,
        )
        assert outcome.detail == "ended with code 0"


async def test_a_task_that_ended_before_its_node_leaves_counts(tmp_path: Path) -> None:
    """Only tasks that got SIGTERM run again."""
    async with rig(tmp_path) as made:
        ended = made.workdir / "ended"
        name = made.start(f"echo > {ended}; exit 3")
        await eventually(lambda: ended.exists() and not processes_with(str(ended)))
        made.pool.stop_attempts([name], EndReason.DRAINING)

        outcome = await made.end_of(name[0])
        assert outcome_summary(outcome) == (
            AttemptState.FAILED,
            EndReason.EXIT,
            3,
            None,
        )


SLOW = "trap 'sleep 0.5; exit 5' TERM"
SLOWEST = "trap 'sleep 600; exit 5' TERM"


async def test_a_task_may_have_its_own_grace_period(tmp_path: Path) -> None:
    """Longer than that of the node, or none."""
    async with rig(tmp_path, kill_grace_s=0.1) as made:
        patient = await start_handler(made, SLOW, options=TaskOptions(grace_s=60))
        made.pool.stop_attempts([patient])
        assert (await made.end_of(patient[0])).exit_code == 5
    async with rig(tmp_path, kill_grace_s=60.0) as made:
        hasty = await start_handler(made, SLOWEST, options=TaskOptions(grace_s=0))
        made.pool.stop_attempts([hasty])
        assert (await made.end_of(hasty[0])).exit_code == 137


async def test_a_leaving_node_waits_for_a_task_at_most_its_own_grace(
    tmp_path: Path,
) -> None:
    """The service manager would kill the agent meanwhile."""
    async with rig(tmp_path, kill_grace_s=0.1) as made:
        task, attempt = await start_handler(
            made, SLOWEST, options=TaskOptions(grace_s=3600)
        )
        made.pool.stop_attempts([(task, attempt)], EndReason.DRAINING)

        assert (await made.end_of(task)).detail == "ended by signal 9"


def has_mark(pid: int, mark: bytes) -> bool:
    return mark in proc_tree.environment_of(pid)


async def test_attempts_of_two_epochs_are_distinguished() -> None:
    """Both are the first of the same task; only one had the launcher that died."""
    marks = [b"OCTASKLY_MARK=t.1.5.1", b"OCTASKLY_MARK=t.2.6.1"]
    word = token()
    processes = [
        subprocess.Popen(
            ["sleep", word],
            env={
                "OCTASKLY_TASK_ID": "t",
                "OCTASKLY_ATTEMPT": "1",
                "OCTASKLY_MARK": mark.decode().partition("=")[2],
                "PATH": os.environ["PATH"],
            },
        )
        for mark in marks
    ]
    try:
        for mark, process in zip(marks, processes, strict=True):
            await eventually(partial(has_mark, process.pid, mark))
        await asyncio.to_thread(proc_tree.kill_marked, {marks[0]}, set())

        assert [process.poll() is None for process in processes] == [False, True]
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def test_no_two_attempts_share_a_mark(tmp_path: Path) -> None:
    """Neither of two epochs, nor of two tasks with the same name."""
    async with rig(tmp_path) as made:
        (attempt, spec), ends = made.item("echo $OCTASKLY_MARK"), set()
        items = [
            (attempt, spec),
            (replace(attempt, term=4), spec),
            (replace(attempt, stream=StreamId(78)), spec),
            (replace(attempt, n=2), spec),
        ]
        made.pool.start_attempts(items)
        await eventually(lambda: len(made.reports) == len(items))
        ends = {report.outcome.stdout for report in made.reports}

        assert len(ends) == len(items)
        assert ends > {f"{spec.id}.3-{STREAM}-1-1\n".encode()}
