"""Runs of burst's command: real processes that get an invite and must not show it."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Iterator, Sequence

import pytest

from octaskly.cli.burst.runs import (
    INVITE_VARIABLE,
    TAIL_BYTES,
    CommandRuns,
    agent_command,
    visible_lines,
)

INVITE = "octaskly://10.77.1.1:47801/112-abcdefghijklmnopqrstuvwxyz234567"
SECRET = "abcdefghijklmnopqrstuvwxyz234567"
AGENT = "octaskly agent --visitor --idle 300"
END_S = 45.0


class Ends:
    """Runs of one command, and how they ended."""

    def __init__(self, words: Sequence[str]) -> None:
        self._queue: queue.SimpleQueue[tuple[int, str | None, str]] = (
            queue.SimpleQueue()
        )
        environ = {**os.environ, "OCTASKLY_TOKEN": "a-token"}
        self.runs = CommandRuns(
            words, AGENT, environ, lambda *end: self._queue.put(end)
        )

    def next(self) -> tuple[int, str | None, str]:
        return self._queue.get(timeout=END_S)


@pytest.fixture
def started() -> Iterator[list[Ends]]:
    """All runs of the test, which are ended after it."""
    made: list[Ends] = []
    yield made
    for ends in made:
        ends.runs.terminate(ends.runs.running)


def start(started: list[Ends], *words: str) -> Ends:
    """Run a command once."""
    ends = Ends(words)
    started.append(ends)
    ends.runs.start(1, INVITE)
    return ends


def test_placeholder_becomes_the_agent_in_one_word(started: list[Ends]) -> None:
    """`--wrap '{agent}'` and `ssh host '{agent}'` pass one word to a shell."""
    ends = start(started, "printf", "[%s]", "--wrap", "nice {agent} --slots 2")

    expected = f"[--wrap][nice {AGENT} --slots 2]"
    assert ends.next() == (1, None, expected)


def test_invite_is_in_the_environment_and_on_stdin(started: list[Ends]) -> None:
    """A batch system passes on the one, `ssh` the other."""
    script = f'read line; test "$line" = "${INVITE_VARIABLE}" && echo same'

    assert start(started, "sh", "-c", script).next() == (1, None, "same")


def test_other_settings_of_octaskly_are_not_passed_on(started: list[Ends]) -> None:
    """A visitor must get neither a token nor the folder of this machine's agent."""
    ends = start(started, "sh", "-c", "env | grep -c ^OCTASKLY_")

    assert ends.next() == (1, None, "1")


def test_command_that_reads_no_stdin_is_no_failure(started: list[Ends]) -> None:
    """Most commands read none."""
    assert start(started, "true", AGENT).next() == (1, None, "")


@pytest.mark.parametrize(
    "script",
    [
        "echo $OCTASKLY_INVITE >&2; exit 3",
        "env | grep INVITE; exit 3",
        "set -x; : $OCTASKLY_INVITE; exit 3",
        "cat; exit 3",
        "echo ${OCTASKLY_INVITE#*-}; exit 3",
    ],
)
def test_invite_that_the_command_prints_is_not_shown(
    started: list[Ends], script: str
) -> None:
    """Errors are shown, and may end up in a bug report."""
    _, error, line = start(started, "sh", "-c", script).next()

    assert error is not None
    assert error.startswith("exit code 3\n")
    assert "[invite]" in error
    assert SECRET not in error + line


@pytest.mark.parametrize("cut", range(0, len(INVITE) + 2, 7))
def test_invite_that_was_cut_is_not_shown(cut: int) -> None:
    """Of a long output only the end is kept, and that may begin within the invite."""
    kept = TAIL_BYTES + len(INVITE)
    rest = INVITE[cut:]
    output = (rest + "x" * kept)[: kept - 2] + "\n!"

    shown = "\n".join(visible_lines(output.encode(), INVITE))

    assert rest[-8:] == "" or rest[-8:] not in shown
    assert shown.endswith("!")


def test_output_of_a_failure_is_its_last_lines(started: list[Ends]) -> None:
    """An endless output takes no memory."""
    script = "seq 1000000; printf 'sbatch: error: \\033[31mno controller\\n'; exit 1"

    _, error, _ = start(started, "sh", "-c", script).next()

    assert error == (
        "exit code 1\n999997\n999998\n999999\n1000000\n"
        "sbatch: error: �[31mno controller"
    )


def test_program_that_does_not_exist_is_a_failure(started: list[Ends]) -> None:
    """It may be missing for a while, as on a shared folder."""
    ends = start(started, "/nonexistent/sbatch", "{agent}")

    assert ends.next() == (1, "/nonexistent/sbatch: No such file or directory", "")


def test_terminate_ends_a_command_with_its_children(started: list[Ends]) -> None:
    """`ssh` may be started by a script."""
    ends = start(started, "sh", "-c", "sleep 1000 & wait")
    assert ends.runs.running == {1}

    ends.runs.terminate([1])

    assert ends.next()[:2] == (1, "signal 15, without a message")
    assert ends.runs.running == set()


def test_agent_command_is_a_shell_command_of_this_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests run by `python -m`, so that is what another machine would have to run."""
    monkeypatch.setattr(sys, "argv", ["/nonexistent/program"])

    assert agent_command(["--label", "a b"]) == (
        f"{sys.executable} -m octaskly agent --visitor --label 'a b'"
    )
