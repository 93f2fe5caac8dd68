"""Ctrl-C at every line of `octaskly run`, and at each phase on a real terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pexpect
import pytest

from tests.cli.stand_in import Api
from tests.cli.test_run import wait_until_asked
from tests.support.agents import until

WAIT_S = 55
EVERY_LINE = """\
import json, signal, sys
from octaskly.cli import interrupts, main
from octaskly.cli.commands import run
from octaskly.cli.output import follow
from octaskly.client import command_session, http_connection
from octaskly.client.drivers import thread_driver
from octaskly.client.flows import request_flow, resumable, retry, sse, streams

COMMANDS = (run, interrupts, follow)
FLOWS = (request_flow, resumable, retry, sse, streams)
CLIENT = (http_connection, command_session, thread_driver, *FLOWS)
FILES = {m.__file__ for m in COMMANDS + CLIENT}
TICK_S, TICKS_IDLE = 0.3, 4
# Each look would run lines, so that no wait was the last.
http_connection.SIGNAL_CHECK_S = 3600

def interrupted(at):
    # Where there are fewer lines, in the wait behind the last one: none ran between
    # several ticks. A machine that stands still gives one tick, however long.
    seen = 0
    ticks = []
    def on_line(frame, event, _):
        nonlocal seen
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line" and (seen := seen + 1) == at:
            signal.raise_signal(signal.SIGINT)
        return on_line
    def on_tick(*_):
        ticks.append(seen)
        if seen and ticks[-TICKS_IDLE:] == [seen] * TICKS_IDLE:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGALRM, on_tick)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    sys.settrace(on_line)
    try:
        code = main(["--node", "here", "run", *sys.argv[2:], "--", "sleep 1000"])
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return code, seen >= at

codes, at, is_there = [], int(sys.argv[1]) - 2, True
while is_there:
    at += 2
    code, is_there = interrupted(at)
    codes.append(code)
print(json.dumps(codes))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("first", "options"),
    [
        (1, []),
        (2, ["--json"]),
        pytest.param(2, [], marks=pytest.mark.soak),
        pytest.param(1, ["--json"], marks=pytest.mark.soak),
    ],
)
def test_an_interrupt_at_any_line_leaves_no_task_running(
    api: Api, environ: dict[str, str], first: int, options: list[str]
) -> None:
    """The task was not submitted, or it is cancelled.

    Tests take every second line, from the first or the second on.
    """
    done = subprocess.run(
        [sys.executable, "-c", EVERY_LINE, str(first), *options],
        env=environ,
        capture_output=True,
        text=True,
        timeout=7 * WAIT_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) == {130}
    assert len(codes) > 50  # Lines at which it came.
    assert len(api.tasks) > 30
    assert {task["status"] for task in api.tasks.values()} == {"cancelled"}
    assert "Traceback" not in done.stderr


def terminal(environ: dict[str, str], *words: str) -> pexpect.spawn[str]:
    return pexpect.spawn(
        sys.executable,
        ["-m", "octaskly", "--node", "here", *words],
        env=environ,
        timeout=WAIT_S,
        encoding="utf-8",
    )


@pytest.mark.parametrize("phase", ["handing in", "waiting", "writing", "cancelling"])
def test_ctrl_c_in_each_phase_of_run(
    api: Api, environ: dict[str, str], phase: str
) -> None:
    """The terminal sends the signal to the whole process group."""
    may_answer = threading.Event()
    held = {"handing in": "POST", "cancelling": "DELETE"}.get(phase)

    def hold(method: str, _path: str) -> None:
        if method == held:
            may_answer.wait(WAIT_S)

    api.refuse = hold
    command = "echo begun; sleep 1000" if phase == "writing" else "sleep 1000"
    run = terminal(environ, "run", "--", command)
    wait_until_asked(api, "POST" if phase == "handing in" else "/logs")
    run.sendintr()
    if phase == "cancelling":
        wait_until_asked(api, "DELETE")
        run.sendintr()
        run.expect_exact("^C")
        run.expect_exact("^C")  # The terminal has sent the second signal.
    may_answer.set()
    if phase != "cancelling":
        run.expect_exact("cancelling task-001-00000001; Ctrl-C again to stop waiting")
    else:
        run.expect_exact("octaskly logs -f task-001-00000001")
    run.expect(pexpect.EOF)
    run.close()

    assert run.exitstatus == 130
    until(
        lambda: [task["status"] for task in api.tasks.values()] == ["cancelled"],
        "the task is cancelled",
    )


def test_sigterm_leaves_no_task_running(api: Api, environ: dict[str, str]) -> None:
    """`timeout` and build servers send it, and expect that the command ends."""
    run = terminal(environ, "run", "--", "sleep 1000")
    wait_until_asked(api, "/logs")
    run.kill(signal.SIGTERM)
    run.expect_exact("cancelling task-001-00000001")
    run.expect(pexpect.EOF)
    run.close()

    assert run.exitstatus == 130
    assert [task["status"] for task in api.tasks.values()] == ["cancelled"]


UNFINISHED = """\
import click, sys
from octaskly.cli import main, root

class Unfinished:
    def __init__(self):
        raise KeyboardInterrupt
    def __del__(self):
        print(self.never_set)

unfinished = click.Command("unfinished", callback=Unfinished)
root.COMMANDS["unfinished"] = "__main__:unfinished"
sys.exit(main(["unfinished"]))
"""


def test_an_interrupted_constructor_prints_no_traceback() -> None:
    """Ctrl-C inside `SocketIO()` did."""
    ended = subprocess.run(
        [sys.executable, "-c", UNFINISHED], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\n")
