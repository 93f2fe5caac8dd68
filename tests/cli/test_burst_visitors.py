"""`octaskly burst` with real visitors, which its command starts on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octaskly.cli.demo.agents import DemoAgent
from tests.cli.typed import typed
from tests.support.agents import until
from tests.support.burst import Burst, bursting


def submit(agent: DemoAgent, command: str) -> str:
    """Submit a task that only a visitor of burst can run; return its id."""
    words = ("submit", "--visitors", "--require", "site=away", "--", command)
    done = subprocess.run(
        typed("--state-dir", str(agent.state), *words),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def output_of(agent: DemoAgent, task: str) -> str:
    """Wait for a task, and return its output."""
    done = subprocess.run(
        typed("--state-dir", str(agent.state), "logs", "-f", task),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def state_of(agent: DemoAgent, task: str) -> str:
    """Return the state of a task."""
    with agent.client() as client:
        return str(client.task(task).status)


def words_of_visitors(burst: Burst) -> list[str]:
    """Return the command lines of what burst has started, as anybody may see them."""
    shown = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "--visitor" in words and path.parent.name != str(burst.process.pid):
            shown.append(words)
    return shown


def run_starts(agent: DemoAgent, script: str) -> None:
    """Check that one visitor of a script runs what waits, and then leaves."""
    tasks = [submit(agent, "env; sleep 0.1") for _ in range(3)]
    command = ("--for", "site=away", "--idle", "3s", "--", "sh", "-c", script)

    with bursting(agent.state, *command) as burst:
        joined = burst.wait_for("joined")
        shown = words_of_visitors(burst)
        outputs = [output_of(agent, task) for task in tasks]
        left = burst.wait_for("left")
        code = burst.interrupt()

    assert code == 0
    assert left["has_worked"]
    assert left["node"] == joined["node"] != "lone"
    assert [event["run"] for event in burst.of("joined")] == [1]
    # Nobody else sees the invite, and tasks do not, either.
    assert shown
    assert not any("octaskly://" in words for words in shown)
    assert not any("OCTASKLY_INVITE" in output for output in outputs)
    assert "octaskly://" not in str(burst.events) + str(burst.errors)


def test_one_visitor_of_a_run_joins_runs_what_waits_and_leaves(
    agent: DemoAgent,
) -> None:
    """The invite of a run is for one visitor; another one is refused."""
    run_starts(agent, "{agent} & {agent} & wait")


@pytest.mark.soak
def test_a_hundred_starts_bring_one_visitor(agent: DemoAgent) -> None:
    """The same with as many as a mistake in a loop would start."""
    run_starts(agent, "for n in $(seq 100); do {agent} & done; wait")


def test_ctrl_c_withdraws_what_is_requested(agent: DemoAgent, tmp_path: Path) -> None:
    """A visitor that starts later is refused, and the command ends."""
    task = submit(agent, "true")
    invite = tmp_path / "invite"
    script = f"cat > {invite}.new; mv {invite}.new {invite}; sleep 1000 # {{agent}}"

    with bursting(agent.state, "--for", "site=away", "--", "sh", "-c", script) as burst:
        burst.wait_for("requested")
        until(invite.exists, "the command has its invite")
        code = burst.interrupt()

    assert code == 0
    late = subprocess.run(
        [sys.executable, "-m", "octaskly", "agent", "--visitor"],
        env={**os.environ, "OCTASKLY_INVITE": invite.read_text().strip()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert late.returncode in (1, 4), late.stderr  # No listener, or a refusal.
    subprocess.run(typed("--state-dir", str(agent.state), "cancel", task), check=True)


def test_ctrl_c_waits_for_visitors_and_a_second_one_ends_them(
    agent: DemoAgent,
) -> None:
    """Its tasks are given back, and wait for another node."""
    task = submit(agent, "sleep 600")
    command = ("--for", "site=away", "--", "sh", "-c", "{agent}")

    with bursting(agent.state, *command) as burst:
        node = burst.wait_for("joined")["node"]
        until(lambda: state_of(agent, task) == "running", "it runs there")
        burst.process.send_signal(signal.SIGINT)
        until(lambda: len(burst.errors) == 2, "it says what it waits for")
        assert state_of(agent, task) == "running"
        code = burst.interrupt()

    assert code == 0
    assert burst.errors == [
        f"{node} leaves after the idle time\n",
        "1 command of visitors still running; Ctrl-C ends them\n",
    ]
    until(lambda: state_of(agent, task) == "queued", "it waits again")
    subprocess.run(typed("--state-dir", str(agent.state), "cancel", task), check=True)
