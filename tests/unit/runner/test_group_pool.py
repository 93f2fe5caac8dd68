"""The groups of a launcher's slots, by files in place of the kernel's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from octaskly.runner.processes.cgroup import GroupPool

FAST_S, SLOW_S = 0.000_02, 0.015


def group_pool(folder: Path) -> GroupPool:
    """Return the groups of one slot and of the launcher."""
    for group in (folder / "home", folder / "slot-0"):
        group.mkdir()
        for name in ("procs", "freeze", "kill", "events"):
            (group / f"cgroup.{name}").touch()
    return GroupPool(folder, 1)


def test_a_busy_machine_is_no_kernel_on_which_moves_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that waits for a processor in some moves goes on to use groups."""
    moves_s = [SLOW_S, FAST_S, FAST_S] * 10

    assert count_tasks_in_groups(tmp_path, monkeypatch, moves_s) == len(moves_s)


def test_tasks_run_without_a_group_if_moves_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each move would take longer than the start of a task."""
    moves_s = [SLOW_S] * GroupPool.MOVES_MEASURED + [FAST_S] * 20

    in_group = count_tasks_in_groups(tmp_path, monkeypatch, moves_s)

    assert in_group == GroupPool.MOVES_MEASURED


def count_tasks_in_groups(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moves_s: Sequence[float]
) -> int:
    """Start one task after the other; each move takes the next time."""
    pool = group_pool(folder)
    readings = itertools.accumulate(
        each for move_s in moves_s for each in (1.0, move_s)
    )
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    in_group = 0
    for _ in moves_s:
        group = pool.enter_group()
        if group is not None:
            in_group += 1
            pool.leave_group()
            pool.release_group(group)
    return in_group
