"""`octaskly map` on a real agent: items in, output out, Ctrl-C in between."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from octaskly.cli.demo.agents import DemoAgent
from octaskly.core.model.arrays import ITEM_BYTES_MAX, ITEMS_BYTES_MAX
from tests.cli.typed import typed, without_wait_reason
from tests.support.agents import until

Call = subprocess.CompletedProcess[bytes]
WAIT_S = 60.0


def words(agent: DemoAgent, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "octaskly",
        "--state-dir",
        str(agent.state),
        *arguments,
    ]


def octaskly(agent: DemoAgent, *arguments: str, stdin: bytes = b"") -> Call:
    done = subprocess.run(
        typed("--state-dir", str(agent.state), *arguments),
        input=stdin,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    return without_wait_reason(done)


def newest(agent: DemoAgent) -> dict[str, object]:
    shown: dict[str, object] = json.loads(
        octaskly(agent, "show", "last", "--json").stdout
    )
    return shown


def count(agent: DemoAgent) -> int:
    with agent.client() as client:
        return len(list(client.tasks()))


def test_a_member_that_a_signal_ended_shows_its_signal(agent: DemoAgent) -> None:
    """Like an exit code."""
    done = octaskly(agent, "map", "kill -{} $$", ":::", "9")

    assert done.returncode == 1
    assert re.search(
        rb"^task-[\w-]+\.0 \(9\) failed on \S+: signal 9$", done.stderr, re.MULTILINE
    )


def test_a_program_that_is_missing_on_a_node_is_named_with_the_node(
    agent: DemoAgent,
) -> None:
    """It may be installed on the others."""
    done = octaskly(agent, "map", "no-such-program", ":::", "9")

    said = f".0 (9) failed on {agent.name}: exit code 127 (command not found)\n"
    assert said.encode() in done.stderr


def test_results_come_in_order_of_completion_or_of_items(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """The first item ends after the second one's output was seen, or after its end."""
    gate = tmp_path / "gate"
    command = f"test {{}} = b || until test -e {gate}; do sleep 0.05; done; echo {{}}"
    with subprocess.Popen(
        words(agent, "map", "--cpus", "1", command, ":::", "a", "b"),
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"b\n"
        gate.touch()
        assert process.stdout.read() == b"a\n"
    gate.unlink()
    opened = f"test {{}} = a || touch {gate}; {command}"
    done = octaskly(agent, "map", "-k", opened, ":::", "a", "b")

    assert (process.returncode, done.returncode) == (0, 0)
    assert done.stdout == b"a\nb\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "printed"),
    [
        (["-0", "printf '<%s>'"], b"a\nb\0 c \0", b"<a\nb>< c >"),
        (["printf '<%s>'"], b"a b\n\nit's\r\n--\n", b"<a b><it's\r><-->"),
        (
            ["printf", "<%s>", "{#}", "{/.}", ":::", "-n", "x/y.z"],
            b"",
            b"<1><-n><2><y>",
        ),
        (['printf "<$OCTASKLY_ITEM>"', ":::", "$HOME", "`id`"], b"", b"<$HOME><`id`>"),
        (["printf", "<%s>", ":::", "-k", ":::"], b"", b"<-k><:::>"),
    ],
)
def test_items_may_contain_any_characters(
    agent: DemoAgent, arguments: list[str], stdin: bytes, printed: bytes
) -> None:
    """From arguments, lines or NUL-ended texts; options end where a command starts."""
    done = octaskly(agent, "map", "--keep-order", *arguments, stdin=stdin)

    assert (done.returncode, done.stdout, done.stderr) == (0, printed, b"")


def test_a_dry_run_prints_the_shell_commands(tmp_path: Path) -> None:
    """It needs no agent."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "octaskly", "--state-dir", str(tmp_path), "map"),
            *("--dry-run", "gzip -k", ":::", "a.log", "b c.log"),
        ],
        capture_output=True,
        check=True,
    )

    assert done.stdout == b"gzip -k a.log\ngzip -k 'b c.log'\n"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"x\n" + b"y" * (ITEM_BYTES_MAX + 1), b"item 2 has 65537 bytes"),
        (
            (b"y" * 999 + b"\n") * (ITEMS_BYTES_MAX // 999),
            b"in parts",
        ),
        (b"a\n" * (ITEMS_BYTES_MAX // 7 + 1), b"in parts"),
        (b"a\nb\xff\n", b"item 2 is not UTF-8 text"),
        (b"a\0b\n", b"item 1 contains a NUL character; see -0"),
    ],
    ids=["long", "large", "many", "latin", "nul"],
)
def test_invalid_items_are_reported_before_any_runs(
    agent: DemoAgent, stdin: bytes, message: bytes
) -> None:
    """The error has the number of the item, and nothing was submitted."""
    before = count(agent)
    done = octaskly(agent, "map", "true", stdin=stdin)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith(b"error: ")
    assert count(agent) == before


def test_endless_items_are_not_read_ahead(agent: DemoAgent) -> None:
    """`yes` must not fill the memory."""
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        done = subprocess.run(
            words(agent, "map", "true"),
            stdin=endless.stdout,
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
        endless.kill()

    assert done.returncode == 2


def test_output_beyond_the_limit_of_a_result_comes_whole(agent: DemoAgent) -> None:
    """The client reads it from its node, at its position."""
    command = "echo {}; yes {} | head -c 3000000; echo; echo end {}"
    done = octaskly(agent, "map", "-k", command, ":::", "a", "b")

    assert len(done.stdout) == 2 * (2 + 3000000 + 1 + 6)
    assert done.stdout.endswith(b"end b\n")
    assert b"end a\nb\n" in done.stdout


def test_failed_members_are_repeated_and_printed(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """By the printed id; successful members do not run again."""
    gate = tmp_path / "gate"
    command = f"echo {{}}; test {{}} = b || test -e {gate}"
    done = octaskly(agent, "map", "--name", "m", command, ":::", "a", "b", "c")
    assert done.returncode == 1
    hint = done.stderr.decode().splitlines()[-1]
    gate.touch()

    again = octaskly(agent, *hint.partition("octaskly ")[2].split(), "-k")

    assert hint.startswith("to retry them: octaskly map --retry-failed task-")
    assert (again.returncode, again.stdout) == (0, b"a\nc\n")
    third = octaskly(agent, "map", "--retry-failed", "last")
    assert third.returncode == 125
    assert b"all members of the array are completed" in third.stderr


def test_failed_members_of_a_retry_are_named_by_their_items(agent: DemoAgent) -> None:
    """A retry numbers its members anew."""
    octaskly(agent, "map", "test {} = a", ":::", "a", "b", "c")

    again = octaskly(agent, "map", "-k", "--retry-failed", "last")

    retry = newest(agent)["id"]
    assert again.stderr.decode().splitlines()[:2] == [
        f"{retry}.0 (b) failed on {agent.name}: exit code 1",
        f"{retry}.1 (c) failed on {agent.name}: exit code 1",
    ]


@pytest.mark.parametrize(
    "flags",
    [
        *("--timeout 5", "--name x", "--out y", "--cpus 1", "--env A=1", "--retries 0"),
        *("--max-fails 1", "--in .", "--dry-run", "--null", "--idempotency-key k"),
        *("--priority 0", "--here", "--durability normal"),
    ],
)
def test_members_are_repeated_as_they_are(agent: DemoAgent, flags: str) -> None:
    """An option that would have no effect is refused, also with its default."""
    octaskly(agent, "map", "exit 3", ":::", "a")
    before = count(agent)

    done = octaskly(agent, "map", *flags.split(), "--retry-failed", "last", "-k")

    assert done.returncode == 2
    option, *_value = flags.split()
    assert done.stderr.decode().startswith(f"error: {option} is not allowed: --retry-f")
    assert count(agent) == before


def test_only_an_array_has_members_to_repeat(agent: DemoAgent, tmp_path: Path) -> None:
    """Another task must not be repeated by mistake."""
    command = f"echo x >> {tmp_path}/runs; exit 3"
    assert octaskly(agent, "run", command).returncode == 3

    done = octaskly(agent, "map", "--retry-failed", "last")

    assert done.returncode == 3
    assert b"is not an array" in done.stderr
    assert newest(agent)["command"] == command
    assert newest(agent)["retry_of"] is None


def test_too_many_failures_stop_further_members(agent: DemoAgent) -> None:
    """`--retry-failed` then continues with all unsuccessful members."""
    options = ["--max-fails", "0", "--cpus", "1"]
    done = octaskly(agent, "map", *options, "exit 3", stdin=b"1\n" * 500)
    message = done.stderr.decode()

    assert done.returncode == 1
    assert " of 500 failed, " in message
    assert " did not finish\n" in message
    array = newest(agent)["array"]
    again = octaskly(agent, "retry", "last").stdout.decode().strip()
    with agent.client() as client:
        repeated = client.task(again).array
    assert isinstance(array, dict)
    assert repeated is not None
    assert repeated.total == 500 - array["completed"]


def spawn(agent: DemoAgent, *arguments: str) -> pexpect.spawn[bytes]:
    program, *rest = words(agent, *arguments)
    return pexpect.spawn(program, rest, timeout=WAIT_S, dimensions=(24, 120))


@pytest.mark.slow
def test_an_interrupt_cancels_the_rest_and_prints_how_to_continue(
    agent: DemoAgent,
) -> None:
    """On a terminal with a progress line."""
    items = [str(number) for number in range(100)]
    terminal = spawn(agent, "map", "test {} -lt 3 || sleep 1000", ":::", *items)
    terminal.expect_exact("3 of 100, ")
    terminal.expect_exact(" left")
    terminal.sendintr()
    terminal.expect("cancelling the rest of (task-[0-9a-f-]+)")
    assert isinstance(terminal.match, re.Match)
    array = terminal.match[1].decode()
    terminal.expect_exact("0 of 100 failed, 97 did not finish")
    terminal.expect_exact(f"octaskly map --retry-failed {array}")
    terminal.expect(pexpect.EOF)
    terminal.close()

    assert terminal.exitstatus == 130
    with agent.client() as client:
        ended = client.wait(array, deadline_s=WAIT_S)
    assert (ended.status, ended.array and ended.array.cancelled) == ("cancelled", 97)


def test_a_closed_reader_of_both_streams_cancels_the_rest(
    agent: DemoAgent,
) -> None:
    """As `octaskly map ... 2>&1 | head -1`: nobody reads of the cancel either."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        text = "echo {}; test {} = 0 || sleep 60"
        done = subprocess.run(
            words(agent, "map", text, ":::", *map(str, range(9))),
            stdout=pipe,
            stderr=pipe,
            timeout=WAIT_S,
            check=False,
        )

    assert done.returncode == 125
    assert newest(agent)["status"] == "cancelled"


def test_a_member_is_named_by_any_name_of_its_array(agent: DemoAgent) -> None:
    """The views of an array show `ID.7`, and a number is an ID, too."""
    assert octaskly(agent, "map", "echo {}", ":::", "p", "q").returncode == 0
    number = str(newest(agent)["id"]).split("-")[1]

    for array in (number, "last"):
        assert octaskly(agent, "logs", f"{array}.1").stdout == b"q\n"
    assert octaskly(agent, "logs", "last.9").returncode == 3
    assert octaskly(agent, "logs", "nothing.1").returncode == 3


@pytest.mark.slow
def test_a_closed_reader_cancels_the_rest(agent: DemoAgent) -> None:
    """As `octaskly map ... | head -1`: nobody wants the rest."""
    text = "echo {}; test {} -lt 3 || until test -e stop; do sleep 0.1; done"
    with subprocess.Popen(
        words(agent, "map", "--cpus", "1", text, ":::", *map(str, range(50))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        (agent.state.parent / "work" / "stop").touch()
        message = process.stderr.read()

    assert process.returncode == 125
    assert b"cancelling the rest of task-" in message


def test_logs_of_a_running_array_follow_one_stream(agent: DemoAgent) -> None:
    """The first member ends while the second one runs."""
    text = "echo o{}; echo e{} >&2; test {} = 1 || until test -e go; do sleep 0.1; done"
    array = octaskly(agent, "array", "1-2", text).stdout.decode().strip()
    with subprocess.Popen(
        words(agent, "logs", "-f", "--stderr", array),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stderr.readline()
        (agent.state.parent / "work" / "go").touch()
        rest, printed = process.stderr.read(), process.stdout.read()

    assert (first, rest, printed) == (b"e1\n", b"e2\n", b"")
    assert process.returncode == 0


def test_an_array_has_no_attempts(agent: DemoAgent) -> None:
    """Its members have."""
    array = octaskly(agent, "array", "1-2", "true").stdout.decode().strip()
    done = octaskly(agent, "logs", "--attempt", "1", array)

    assert done.returncode == 2
    assert f"name a member of the array {array}" in done.stderr.decode()


def test_an_array_that_was_cancelled_elsewhere_is_named(agent: DemoAgent) -> None:
    """Otherwise it is not clear why the rest did not finish."""
    running = agent.state.parent / "work" / "running"
    with subprocess.Popen(
        words(agent, "map", f"touch {running}; sleep 1000 {{}}", ":::", "9"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(running.exists, "it runs")
        array = newest(agent)["id"]
        octaskly(agent, "cancel", "--force", "last")
        _, message = process.communicate(timeout=WAIT_S)

    assert process.returncode == 1
    assert message.splitlines()[-3:] == [
        f"{array} was cancelled",
        "0 of 1 failed, 1 did not finish",
        f"to retry them: octaskly map --retry-failed {array}",
    ]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_hundred_thousand_items_keep_memory_small_and_order(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """The client holds the items and one bit for each, not their output."""
    items = tmp_path / "items"
    items.write_text("".join(f"{number}\n" for number in range(100_000)))
    out = tmp_path / "out"
    with items.open() as stdin, out.open("wb") as stdout:
        process = subprocess.Popen(
            words(agent, "map", "-k", "echo"), stdin=stdin, stdout=stdout
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)

    assert status == 0
    assert out.read_bytes() == items.read_bytes()
    assert usage.ru_maxrss < 150 << 10  # KiB


def test_a_missing_separator_before_items_is_an_error(agent: DemoAgent) -> None:
    """They look like words of the command, and stdin is empty."""
    done = octaskly(agent, "map", "echo {}", "a", "b")

    assert (done.returncode, done.stdout) == (2, b"")
    assert b"octaskly map 'echo {}' ::: a b" in done.stderr
