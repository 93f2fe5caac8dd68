"""Tasks that ask for nothing but a command start another way, and must not see it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from octaskly.core.model.task_options import TaskOptions
from octaskly.runner.launch_protocol import RESET_SIGNALS
from octaskly.runner.launcher import fast_spawn, spawn
from octaskly.runner.launcher.child import StartOrder
from octaskly.runner.launcher.fast_spawn import COMMAND_BYTES, WORDS_MAX, Plain
from octaskly.runner.launcher.slots import SlotAllocator
from tests.support.pooling import rig

SURROUNDINGS = "cat /proc/self/environ /proc/self/status /proc/self/stat"
OWN = ("OCTASKLY_TASK_ID=", "OCTASKLY_MARK=")


def seen(output: bytes) -> tuple[set[str], list[str], bool]:
    """Return settings, lines on signals, and whether it leads its session."""
    *settings, rest = output.decode().split("\0")
    lines = rest.splitlines()
    pid, *_, fields = lines[-1].partition(" ")
    session = fields.rpartition(")")[2].split()[3]
    return (
        {setting for setting in settings if not setting.startswith(OWN)},
        [line for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))],
        session == pid,
    )


@pytest.mark.parametrize("command", [SURROUNDINGS, f"exec {SURROUNDINGS}"])
async def test_a_plain_task_sees_what_one_with_a_wish_sees(
    tmp_path: Path, command: str
) -> None:
    """Variables, signals, session: started directly or by a shell."""
    options = TaskOptions(env=(("WISH", "1"),))
    async with rig(tmp_path, slots=1) as made:
        as_asked = seen((await made.run(command, options=options)).stdout)
        as_plain = seen((await made.run(command)).stdout)

        assert as_plain == (as_asked[0] - {"WISH=1"}, *as_asked[1:])
        assert as_plain[2] is True


async def test_plain_tasks_after_each_other_keep_nothing_of_the_last(
    tmp_path: Path,
) -> None:
    """Longer words and more of them came before shorter ones and fewer."""
    commands = ["echo one two three four", "echo five", f"echo {'x' * 5000}", "echo 6"]
    direct = [f"{shutil.which('echo')}{command[4:]}" for command in commands]
    async with rig(tmp_path) as made:
        for lines in (commands, direct):
            outcomes = await made.run_all(lines)

            assert [outcome.stdout.decode() for outcome in outcomes] == [
                f"{line.partition(' ')[2]}\n" for line in lines
            ]


async def test_what_is_too_long_or_looks_like_an_option_starts_as_well(
    tmp_path: Path,
) -> None:
    """What has no room where plain commands are put goes the way of all others."""
    words = " ".join(["w"] * (WORDS_MAX + 5))
    async with rig(tmp_path, output_bytes_max=1 << 20) as made:
        many = await made.run(f"/bin/echo {words}")
        option = await made.run("-c")
        long = await made.run(f"true {'x' * COMMAND_BYTES}")

        assert many.stdout.decode() == f"{words}\n"
        assert (option.exit_code, b"-c" in option.stderr) == (127, True)
        assert (long.exit_code, "Argument list too long" in long.detail) == (126, True)


def test_more_pipes_than_are_remembered_are_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which descriptors a pipe has depends on what else is open."""
    monkeypatch.setattr(fast_spawn, "ACTIONS_MAX", 2)
    starter = Plain({b"A": b"1", b"B": b""}, (b"B",), RESET_SIGNALS)
    for number in range(5):
        starter.put([b"B=%d" % number])
        with (tmp_path / f"{number}").open("wb") as out:
            pid = starter.start_shell(
                b"/bin/sh", b"echo $A $B; echo no >&2", (out.fileno(), out.fileno())
            )
            os.waitpid(pid, 0)

        assert (tmp_path / f"{number}").read_text() == f"1 {number}\nno\n"


def test_a_null_byte_is_refused_and_not_the_end_of_the_command(tmp_path: Path) -> None:
    """Else what is before it would run."""
    pad = spawn.SpawnContext(
        workdir=str(tmp_path), node="pi4", output_bytes_max=1, has_ctype=False
    )
    order = StartOrder(1, "t", "1", "t.1.1.1", b"true\0 false", 60, queued_s=0.0)

    with pytest.raises(spawn.SpawnRefused, match="null byte"):
        pad.spawn_attempt(
            order, SlotAllocator(0, 1, None).acquire_slot(None), begin_s=0.0, begin_ms=0
        )
