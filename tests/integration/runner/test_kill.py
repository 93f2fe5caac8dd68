"""One way to end a task, whoever wants it, and what is told of it is what happened."""

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

#: How the main process takes SIGTERM: its code and signal.
MANNERS = {
    "ends well": ("trap 'exit 0' TERM", 0, None),
    "ends badly": ("trap 'exit 7' TERM", 7, None),
    "dies by it": (":", 143, 15),
    "dies by another": ("trap 'trap - USR1; kill -USR1 $$' TERM", 138, 10),
    "ignores it": ("trap '' TERM", 137, 9),
}


#: Those that end by themselves have all the time for it that they need.
PATIENT_S = 60.0
HASTY = {"ignores it": TaskOptions(grace_s=1)}


async def began(made: Rig, manner: str, **fields: Any) -> Any:
    """Start a task that takes SIGTERM so, and wait until it is ready for it.

    Or until it has ended: on a busy machine one may be late before it is ready.
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
    """It is cancelled whatever it made of the signal, and reported once (B29)."""
    async with rig(
        tmp_path, slots=len(MANNERS), kill_grace_s=PATIENT_S, **mode
    ) as made:
        names = [
            await began(made, manner, options=HASTY.get(name))
            for name, (manner, _, _) in MANNERS.items()
        ]
        made.pool.stop_attempts(names)
        ends = [outcome_summary(await made.end_of(task)) for task, _ in names]

        assert dict(zip(MANNERS, ends, strict=True)) == {
            name: (AttemptState.CANCELLED, EndReason.CANCELLED, code, number)
            for name, (_, code, number) in MANNERS.items()
        }


@MODES
async def test_a_task_that_is_late_ends_with_124_however_it_took_it(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """Also one that ignores SIGTERM (B29)."""
    async with rig(tmp_path, slots=len(MANNERS), **mode) as made:
        names = [
            await began(made, manner, timeout_s=1) for manner, _, _ in MANNERS.values()
        ]
        ends = {outcome_summary(await made.end_of(task)) for task, _ in names}

        assert ends == {(AttemptState.FAILED, EndReason.TIMEOUT, 124, None)}


async def test_a_cancel_of_what_is_late_already_is_a_cancel(tmp_path: Path) -> None:
    """The client was told so; the task gets one SIGTERM and one time of grace."""
    async with rig(tmp_path, kill_grace_s=60.0) as made:
        heard = made.workdir / "heard"
        manner = f"trap 'echo >> {heard}' TERM"
        task, attempt = await began(made, manner, timeout_s=5)
        await eventually(heard.exists)
        made.pool.stop_attempts([(task, attempt)])
        made.pool.stop_attempts([(task, attempt)], EndReason.DRAINING)
        await made.run("true")
        assert heard.read_text() == "\n"
        made.pool.set_frozen(is_frozen=True)  # Ends the grace.

        outcome = await made.end_of(task)
        assert (outcome.state, outcome.signal) == (AttemptState.CANCELLED, 9)


async def test_what_a_leaving_node_ends_is_released(tmp_path: Path) -> None:
    """It was told to end, so nothing that it did then counts; it is run elsewhere."""
    async with rig(tmp_path, kill_grace_s=PATIENT_S) as made:
        task, attempt = await began(made, "trap 'exit 0' TERM")
        made.pool.stop_attempts([(task, attempt)], EndReason.DRAINING)
        outcome = await made.end_of(task)

        assert (outcome.state, outcome.reason) == (
            AttemptState.RELEASED,
            EndReason.DRAINING,
        )
        assert outcome.detail == "ended with code 0"


async def test_what_ended_before_a_node_leaves_counts(tmp_path: Path) -> None:
    """Only what was told to end is run again."""
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


async def test_a_task_may_have_a_grace_of_its_own(tmp_path: Path) -> None:
    """Longer than that of the node, or none."""
    async with rig(tmp_path, kill_grace_s=0.1) as made:
        patient = await began(made, SLOW, options=TaskOptions(grace_s=60))
        made.pool.stop_attempts([patient])
        assert (await made.end_of(patient[0])).exit_code == 5
    async with rig(tmp_path, kill_grace_s=60.0) as made:
        hasty = await began(made, SLOWEST, options=TaskOptions(grace_s=0))
        made.pool.stop_attempts([hasty])
        assert (await made.end_of(hasty[0])).exit_code == 137


async def test_a_leaving_node_waits_for_no_task_longer_than_its_own_grace(
    tmp_path: Path,
) -> None:
    """The service manager would kill the agent meanwhile."""
    async with rig(tmp_path, kill_grace_s=0.1) as made:
        task, attempt = await began(made, SLOWEST, options=TaskOptions(grace_s=3600))
        made.pool.stop_attempts([(task, attempt)], EndReason.DRAINING)

        assert (await made.end_of(task)).detail == "ended by signal 9"


def has_mark(pid: int, mark: bytes) -> bool:
    return mark in proc_tree.environment_of(pid)


async def test_attempts_of_two_reigns_are_told_apart() -> None:
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
    """Neither of two reigns, nor of two tasks that clients call the same."""
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
        assert ends > {f"{spec.id}.3.{STREAM}.1\n".encode()}
