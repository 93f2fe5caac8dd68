"""Pausing: a frozen tree uses no processor, loses nothing, and can still be ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from tests.support.pooling import Rig, eventually, processes_with, rig, token

MODES = pytest.mark.parametrize(
    "mode",
    [{"with_cgroups": True}, {"launchers": 2}, {"with_cgroups": False}],
    ids=["a group a slot", "a group a launcher", "no groups"],
)

#: Each session gets an equal share of the cores, so these would leave none to others.
MODEST = "{ echo 15 >/proc/self/autogroup; } 2>/dev/null"
LOOP = f"{MODEST}; while :; do :; done"

#: Each uses a core that is free, in a process with this word in its command line.
BURNERS = {
    "alone": f"exec sh -c '{LOOP}' WORD",
    "children": f"sh -c '{LOOP}' WORD & sh -c '{LOOP}' WORD",
    "another session": f"setsid sh -c '{LOOP}' WORD & wait",
    "daemon": f"(setsid sh -c '{LOOP}' WORD &) ; sleep WORD",
    "no environment": f"(env -i setsid sh -c '{LOOP}' WORD &) ; sleep WORD",
    "forks": f"{MODEST}; sh -c 'while :; do sh -c : WORD; done' WORD",
}


def ticks(word: str) -> int:
    """Return the processor time of the processes with this word."""
    return sum(sum(map(int, stat[11:15])) for stat in stats_with(word).values())


def stats_with(word: str) -> dict[int, list[str]]:
    """Return the state of the processes with this word, and the fields after it."""
    found = {}
    for pid in processes_with(word):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            text = Path(f"/proc/{pid}/stat").read_text()
            found[pid] = text.rpartition(")")[2].split()
    return found


async def frozen(made: Rig, *words: str) -> None:
    """Pause, and wait until nothing moves any more."""
    made.pool.set_frozen(is_frozen=True)
    await still(*words)


async def still(*words: str) -> None:
    """Wait until these processes have used no processor for a while."""
    seen: list[object] = []
    for _ in range(30):
        before, seen = seen, [(ticks(w), set(processes_with(w))) for w in words]
        if before == seen:
            return
        await asyncio.sleep(0.3)  # In ticks of 10 ms.
    raise AssertionError(f"it goes on: {seen}")


async def is_burning(word: str, since: int = 1) -> None:
    await eventually(lambda: ticks(word) > since)


@MODES
async def test_paused_trees_use_no_processor(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """Measured as zero, even with forks at that moment."""
    many = {key: value * 3 for key, value in mode.items() if key == "launchers"}
    async with rig(tmp_path, slots=len(BURNERS), **(mode | many)) as made:
        words = {token(): text for text in BURNERS.values()}
        names = [made.start(text.replace("WORD", word)) for word, text in words.items()]
        for word in words:
            await is_burning(word)
        await frozen(made, *words)
        before = {word: ticks(word) for word in words}
        made.pool.set_frozen(is_frozen=False)
        for word in words:
            await is_burning(word, before[word])
        made.pool.stop_attempts(names)

        for task, _ in names:
            assert (await made.end_of(task)).state == AttemptState.CANCELLED
        assert not any(map(processes_with, words))


@MODES
async def test_paused_time_does_not_count(tmp_path: Path, mode: dict[str, Any]) -> None:
    """It neither makes a task late, nor saves one that is late anyway."""
    word = token()
    limit_s = 4  #: far more than the short one needs, and less than the pause
    async with rig(tmp_path, **mode) as made:
        begin_s = time.monotonic()
        short, _ = made.start(
            f"while ! [ -e go ]; do sleep 0.05; done; : {word}", timeout_s=limit_s
        )
        late, _ = made.start(f"sleep {word}", timeout_s=limit_s)
        await eventually(lambda: len(processes_with(word)) == 2)
        made.pool.set_frozen(is_frozen=True)
        before_s = time.monotonic() - begin_s  # At most: some of it may count.
        await asyncio.sleep(limit_s + 0.5)
        assert made.reports == []
        (made.workdir / "go").touch()
        begin_s = time.monotonic()
        made.pool.set_frozen(is_frozen=False)

        assert (await made.end_of(short)).state == AttemptState.OK
        assert (await made.end_of(late)).reason is EndReason.TIMEOUT
        assert before_s + time.monotonic() - begin_s > limit_s - 0.1


@MODES
async def test_a_pause_gives_no_limit_to_a_task_without_one(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """Its deadline is never, before and after."""
    word = token()
    async with rig(tmp_path, **mode) as made:
        endless, _ = made.start(
            f"while ! [ -e go ]; do sleep 0.05; done; : {word}", timeout_s=None
        )
        await eventually(lambda: len(processes_with(word)) == 1)
        made.pool.set_frozen(is_frozen=True)
        made.pool.set_frozen(is_frozen=False)
        (made.workdir / "go").touch()

        assert (await made.end_of(endless)).state == AttemptState.OK


@MODES
async def test_a_paused_task_can_be_cancelled(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """It cannot handle a signal, so it is killed at once; the others stay frozen."""
    word, other_word = token(), token()
    async with rig(tmp_path, kill_grace_s=60.0, **mode) as made:
        task, attempt = made.start(BURNERS["daemon"].replace("WORD", word))
        other, _ = made.start(BURNERS["alone"].replace("WORD", other_word))
        await is_burning(word)
        await is_burning(other_word)
        made.pool.set_frozen(is_frozen=True)
        made.pool.stop_attempts([(task, attempt)])
        outcome = await made.end_of(task)

        assert (outcome.state, outcome.signal) == (AttemptState.CANCELLED, 9)
        assert processes_with(word) == {}
        assert made.outcome(other) is None
        await still(other_word)


@MODES
async def test_a_pause_ends_the_grace_period_of_a_task(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """An operator who pauses a machine needs it now."""
    word = token()
    async with rig(tmp_path, kill_grace_s=60.0, **mode) as made:
        task, attempt = made.start(f"trap : TERM; while :; do sh -c : {word}; done")
        await eventually(lambda: ticks(word) > 0)
        made.pool.stop_attempts([(task, attempt)])
        made.pool.set_frozen(is_frozen=True)

        assert (await made.end_of(task)).signal == 9


@MODES
async def test_the_slot_of_a_paused_task_can_be_used_again(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    """A task that was killed while frozen leaves no frozen group behind."""
    word = token()
    async with rig(tmp_path, **mode) as made:
        task, attempt = made.start(BURNERS["alone"].replace("WORD", word))
        await is_burning(word)
        made.pool.set_frozen(is_frozen=True)
        made.pool.stop_attempts([(task, attempt)])
        await made.end_of(task)
        made.pool.set_frozen(is_frozen=False)
        ends = await made.run_all(["true"] * 4)

        assert [end.state for end in ends] == [AttemptState.OK] * 4


async def test_a_process_that_a_task_stopped_itself_stays_stopped(
    tmp_path: Path,
) -> None:
    """Without cgroups a pause is a signal, and both look alike."""
    word = token()
    async with rig(tmp_path, with_cgroups=False) as made:
        made.start(f"sh -c 'kill -STOP $$; sleep {word}' & sh -c : ; sleep {word}")
        await eventually(lambda: stopped_with(word))
        before = stopped_with(word)
        made.pool.set_frozen(is_frozen=True)
        await eventually(lambda: len(stopped_with(word)) > len(before))
        made.pool.set_frozen(is_frozen=False)
        await eventually(lambda: stopped_with(word) == before)


def stopped_with(word: str) -> set[int]:
    """Return the stopped processes with this word."""
    return {pid for pid, stat in stats_with(word).items() if stat[0] == "T"}


async def test_waiting_attempts_are_returned(tmp_path: Path) -> None:
    """To run elsewhere, at once; running ones go on."""
    word = token()
    async with rig(tmp_path) as made:
        running = [made.start(f"sleep {word}") for _ in range(2)]
        await eventually(lambda: len(processes_with(word)) == 2)
        (made.workdir / "there").touch()
        waiting = [made.start("true")[0], made.start("true", inputs=("there",))[0]]
        made.pool.release_waiting()
        ends: list[Outcome] = [await made.end_of(task) for task in waiting]

        assert {(end.state, end.reason) for end in ends} == {
            (AttemptState.RELEASED, EndReason.DRAINING)
        }
        assert all(made.outcome(task) is None for task, _ in running)
        assert len(processes_with(word)) == 2
