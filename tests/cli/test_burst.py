"""`octaskly burst` in a terminal and for programs, against a small stand-in."""

from __future__ import annotations

import datetime as dt
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from octaskly.cli import main
from octaskly.cli.burst import command, policy
from octaskly.cli.burst.policy import (
    BurstPolicy,
    CommandKeepsFailing,
    Joined,
    Left,
    NobodyJoined,
    Overdue,
    Polled,
    RunCommand,
    Visitor,
    VisitorsRunNothing,
)
from octaskly.cli.burst.report import Reporter, state_line
from tests.cli.stand_in import Api
from tests.support.agents import until

LEAVES = dt.datetime.now(dt.UTC).replace(hour=16, minute=40, second=7)
NODE17 = Visitor(name="node17", slots=32, leaves_at=LEAVES.isoformat())
INVITE = "octaskly://10.77.1.1:47801/112-abcdefghijklmnopqrstuvwxyz234567"
Screen = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Show times of this time zone, so that a screen is the same everywhere."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def screen(
    api: Api,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Screen:
    """Run burst in this process, in a hurry; return exit code, stdout and stderr."""
    for name in ("WAITED_S", "RETRY_S", "SETTLE_S"):
        monkeypatch.setattr(policy, name, 0.0)
    monkeypatch.setattr(command, "POLL_S", 0.05)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    api.answers["/api/v1/stats/visitors"] = {"waiting": 5}
    api.answers["/api/v1/invites"] = {
        "id": "112",
        "code": INVITE.rpartition("/")[2],
        "url": INVITE,
        "expires_at": "2026-02-06T12:00:00Z",
        "places": ["10.77.1.1:47801"],
        "invites": [],
        "total": 0,
    }
    api.answers["/api/v1/invites/112"] = {}

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["--node", "here", "burst", *words])
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run


def test_command_that_fails_three_times_is_shown_with_its_error(screen: Screen) -> None:
    """The last output is what helps."""
    script = "echo {agent} >/dev/null; echo 'sbatch: error: no controller' >&2; exit 1"

    code, out, err = screen("--", "sh", "-c", script)

    assert (code, out) == (1, "")
    assert err == (
        "visitor 1 requested\n"
        "the command for visitor 1 failed: exit code 1\n"
        "    sbatch: error: no controller\n"
        "    the next one starts in 0 s\n"
        "visitor 2 requested\n"
        "the command for visitor 2 failed: exit code 1\n"
        "    sbatch: error: no controller\n"
        "    the next one starts in 0 s\n"
        "visitor 3 requested\n"
        "error: the command failed 3 times\n"
        "  cause: exit code 1\n"
        "    sbatch: error: no controller\n"
        "  hint: run it by hand, with `true` in place of {agent}\n"
    )


def test_invites_of_failed_runs_are_revoked(screen: Screen, api: Api) -> None:
    """Nobody may come by them later."""
    screen("--", "sh", "-c", "exit 1 # {agent}")

    assert api.requests.count("POST /api/v1/invites") == 3
    assert api.requests.count("DELETE /api/v1/invites/112") == 3


def test_programs_get_one_object_per_event(screen: Screen) -> None:
    """Errors are on stderr nevertheless."""
    _, out, err = screen("--json", "--", "sh", "-c", "exit 1 # {agent}")

    lines = [json.loads(line) for line in out.splitlines()]
    kinds = ["requested", "failed", "requested", "failed", "requested", "stopped"]
    assert [line["event"] for line in lines] == kinds
    assert all(line["v"] == 1 for line in lines)
    assert lines[-1]["reason"] == "command"
    assert err.startswith("error: the command failed 3 times\n")


def test_ctrl_c_while_nothing_waits_ends_burst(screen: Screen, api: Api) -> None:
    """Nothing was requested, so there is nothing to withdraw."""
    api.answers["/api/v1/stats/visitors"] = {"waiting": 0}

    def press() -> None:
        polls = "GET /api/v1/stats/visitors"
        until(lambda: sum(r.startswith(polls) for r in api.requests) > 1, "it polls")
        signal.raise_signal(signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    code, out, err = screen("--json", "--", "false", "{agent}")
    pressing.join()

    assert (code, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["stopped"]
    assert not any(request.startswith("POST") for request in api.requests)


def test_secret_that_the_command_prints_is_not_shown(screen: Screen) -> None:
    """Neither in an error, nor as JSON."""
    printing = ("sh", "-c", "env; echo $OCTASKLY_INVITE; exit 1 # {agent}")

    for words in (["--", *printing], ["--json", "--", *printing]):
        _, out, err = screen(*words)
        assert "[invite]" in out + err
        assert "abcdefghij" not in out + err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--", "sbatch", "job"], "the command lacks {agent}"),
        (["--", "{agent}"], "'{agent}' is no program"),
        (["--for", "gpu", "--", "sh", "-c", "{agent}"], "--for 'gpu' is no label"),
        (["--", "/nonexistent/sbatch", "{agent}"], "the command failed 3 times"),
    ],
)
def test_mistakes_are_errors_with_a_hint(
    screen: Screen, words: list[str], error: str
) -> None:
    """They start nothing on another machine."""
    code, _, err = screen(*words)

    assert code in (1, 2)
    assert f"error: {error}\n" in err
    assert "  hint: " in err


def test_refused_invite_is_a_failure(screen: Screen, api: Api) -> None:
    """This user may see the mesh, but not let others in."""
    refused: list[str] = []

    def refuse(method: str, path: str) -> tuple[int, dict[str, str]] | None:
        if (method, path) == ("POST", "/api/v1/invites"):
            refused.append(path)
            return 403, {}
        return None

    api.refuse = refuse

    code, _, err = screen("--", "true", "{agent}")

    assert code == 1
    assert len(refused) == 3
    assert "  cause: no invite: Refused: the test said so\n" in err


def test_live_line_has_the_numbers_that_matter() -> None:
    """Tasks, requests, and who is there."""
    burst = BurstPolicy(4, request_s=3600, idle_s=300)
    burst.step(Polled(212, {}), 0.0)
    for now_s in (10.0, 30.0, 50.0, 70.0):
        burst.step(Polled(212, {}), now_s)
    assert state_line(burst) == "212 tasks waiting · 4 visitors requested"

    burst.step(Polled(212, {2: NODE17}), 90.0)

    assert state_line(burst) == (
        "212 tasks waiting · 3 visitors requested · node17 (32 slots, leaves 16:40)"
    )


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        (RunCommand(2), "visitor 2 requested\n"),
        (Joined(2, NODE17), "node17 (32 slots, leaves 16:40) joined as visitor 2\n"),
        (Left(2, NODE17, has_worked=True), "node17 left\n"),
        (
            Left(2, NODE17, has_worked=False),
            "node17 left without having run a task\n",
        ),
        (
            Left(2, None, False),
            (
                "visitor 2 was admitted, but has not reached the dispatcher;"
                " look at its output there\n"
            ),
        ),
        (
            Overdue(2, 600.0),
            (
                "visitor 2 has not joined for 10m00s, and its command has ended;"
                " another one may be requested\n"
            ),
        ),
        (
            NobodyJoined(4),
            (
                "no visitor has joined for 30 minutes, and 4 visitors are requested\n"
                "    a visitor must reach 10.77.1.1:47801 or [fd00::1]:47801;"
                " check that from there: nc -vz 10.77.1.1 47801\n"
                "    or they still wait in a queue, or have ended: look at their"
                " output there\n"
            ),
        ),
    ],
)
def test_notes_say_what_happens(
    action: Any, shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is one line, or one with more below it."""
    burst = BurstPolicy(4, request_s=3600, idle_s=300)
    places = ["10.77.1.1:47801", "[fd00::1]:47801"]

    Reporter(burst, as_json=False).on_action(action, places)

    assert capfd.readouterr().err == shown


def test_end_without_work_says_where_the_reason_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Tasks wait for something that these visitors do not have."""
    code = Reporter(BurstPolicy(4, 3600, 300), as_json=False).on_stop(
        VisitorsRunNothing()
    )

    assert code == 1
    said = capfd.readouterr().err
    assert "octaskly ls --status queued    lists the tasks that wait" in said
    assert "octaskly explain ID    says why" in said


def test_error_of_the_command_may_have_several_lines(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They are indented, so that none looks like a line of Octaskly."""
    stop = CommandKeepsFailing("exit code 1\nerror: a\nerror: b")

    Reporter(BurstPolicy(4, 3600, 300), as_json=False).on_stop(stop)

    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[:1]
