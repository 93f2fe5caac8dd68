"""Submitting, waiting, cancelling: what most programs do."""

from __future__ import annotations

import pytest

import octaskly


def test_a_command_is_run_and_comes_back(mesh: octaskly.Client) -> None:
    """As from subprocess.run: exit code and output, exact where it is no text."""
    ended = mesh.run(r"printf 'a\377b'; echo why >&2; exit 3")

    assert (ended.status, ended.exit_code) == ("failed", 3)
    assert (ended.stdout, ended.stderr) == ("a\ufffdb", "why\n")
    assert ended.output_bytes("stdout") == b"a\xffb"


def test_a_failure_is_an_error_where_that_is_asked_for(mesh: octaskly.Client) -> None:
    """It says how the task ended, with the last line of stderr, and has the task."""
    with pytest.raises(octaskly.TaskFailed, match="exit code 4: no such") as caught:
        mesh.run("echo no such >&2; exit 4", check=True)

    assert caught.value.task.exit_code == 4


def test_who_waits_no_longer_is_told_and_the_task_goes_on(
    mesh: octaskly.Client,
) -> None:
    """A deadline is of the caller; `timeout` is of the task."""
    task = mesh.submit("sleep 30")
    with pytest.raises(octaskly.TimedOut, match="has not ended within"):
        mesh.wait(task, deadline_s=0.2)

    assert not mesh.task(task).is_final
    mesh.cancel(task, force=True)
    assert mesh.wait(task).status == "cancelled"
