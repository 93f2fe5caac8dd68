"""Output of burst for people and programs: a live line, notes, JSON lines, errors."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any, Final, assert_never

from octaskly.cli.burst.policy import (
    FAILURES_MAX,
    NO_JOIN_S,
    Action,
    BurstPolicy,
    CommandKeepsFailing,
    Failed,
    Joined,
    Left,
    NobodyJoined,
    Overdue,
    RunCommand,
    Stop,
    TimeIsUp,
    Visitor,
    VisitorsRunNothing,
    Withdraw,
)
from octaskly.cli.output.render import (
    EXIT_FAILED,
    JSON_VERSION,
    clock_time,
    count_of,
    duration,
    is_quiet,
    note,
    print_error,
)
from octaskly.cli.output.terminal import ProgressLine, flush, print_line

SHOWN_VISITORS_MAX: Final = 3


class Reporter:
    """Prints what happens: JSON lines on stdout, or notes and a live line on stderr."""

    def __init__(self, policy: BurstPolicy, *, as_json: bool) -> None:
        self._policy, self._as_json = policy, as_json
        self._line = ProgressLine(is_quiet=as_json or is_quiet())
        self._unreachable = ""  #: the last error of the mesh, until a poll succeeds

    def show_state(self) -> None:
        """Draw the live line."""
        self._unreachable = ""
        self._line.show(state_line(self._policy))

    def on_unreachable(self, message: str) -> None:
        """Say once that the mesh does not answer; burst tries again."""
        if self._unreachable != message:
            self._unreachable = message
            self._say("unreachable", {"error": message}, f"{message}; trying again")

    def on_output(self, run: int, line: str) -> None:
        """Show what a successful run of the command printed last."""
        if line:
            self._say("output", {"run": run, "line": line}, f"visitor {run}: {line}")

    def on_action(self, action: Action, places: Sequence[str]) -> None:
        """Report an action of the policy, except for a stop.

        Args:
            action: What happened, or is about to.
            places: The addresses that visitors dial.
        """
        match action:
            case RunCommand(run):
                self._say("requested", {"run": run}, f"visitor {run} requested")
            case Joined(run, visitor):
                text = f"{_describe(visitor)} joined as visitor {run}"
                self._say("joined", {"run": run, **_fields(visitor)}, text)
            case Left(run, visitor, has_worked):
                fields = {"run": run, **_fields(visitor), "has_worked": has_worked}
                text = _describe_end(run, visitor, has_worked=has_worked)
                self._say("left", fields, text)
            case Failed(run, error, retry_s):
                text = (
                    f"the command for visitor {run} failed: {error}\n"
                    f"the next one starts in {retry_s:.0f} s"
                )
                fields = {"run": run, "error": error, "retry_s": retry_s}
                self._say("failed", fields, text)
            case Overdue(run, waited_s):
                text = (
                    f"visitor {run} has not joined for {duration(waited_s * 1000)},"
                    " and its command has ended; another one may be requested"
                )
                fields = {"run": run, "waited_s": round(waited_s)}
                self._say("overdue", fields, text)
            case NobodyJoined(requested):
                fields = {"places": list(places)}
                self._say("nobody_joined", fields, _describe_absence(requested, places))
            case Withdraw() | CommandKeepsFailing() | VisitorsRunNothing() | TimeIsUp():
                pass
            case _:
                assert_never(action)

    def on_stop(self, stop: Stop | None) -> int:
        """Report why burst ends, None for Ctrl-C; return the exit code."""
        self._line.clear()
        match stop:
            case None:
                self._say("stopped", {"reason": "interrupted"}, "")
            case TimeIsUp():
                self._say("stopped", {"reason": "until"}, "the time is up")
            case CommandKeepsFailing(error):
                self._print({"reason": "command", "error": error})
                print_error(
                    f"the command failed {FAILURES_MAX} times",
                    cause=error,
                    hints=["run it by hand, with `true` in place of {agent}"],
                )
                return EXIT_FAILED
            case VisitorsRunNothing():
                self._print({"reason": "visitors"})
                print_error(
                    f"{FAILURES_MAX} visitors in a row got no task in their idle time",
                    cause="tasks wait that allow visitors, but none ran on these",
                    hints=[
                        "octaskly ls --status queued    lists the tasks that wait",
                        "octaskly explain ID    says why one does not run",
                    ],
                )
                return EXIT_FAILED
            case _:
                assert_never(stop)
        return 0

    def _print(self, stopped: dict[str, Any]) -> None:
        if self._as_json:
            self._say("stopped", stopped, "")

    def _say(self, event: str, fields: dict[str, Any], text: str) -> None:
        if self._as_json:
            counts = {
                "waiting": self._policy.waiting,
                "requested": self._policy.requested,
            }
            line = {"v": JSON_VERSION, "event": event, **counts, **fields}
            print_line(json.dumps(line))
            flush()
        elif text:
            note(text)


def state_line(policy: BurstPolicy) -> str:
    """Return the live line."""
    parts = [f"{count_of(policy.waiting, 'task')} waiting"]
    if policy.requested:
        parts.append(f"{count_of(policy.requested, 'visitor')} requested")
    if policy.overdue:
        parts.append(f"{policy.overdue} overdue")
    here = list(policy.visitors.values())
    parts += map(_describe, here[:SHOWN_VISITORS_MAX])
    if more := len(here) - SHOWN_VISITORS_MAX:
        parts += [f"{more} more"] * (more > 0)
    return " · ".join(parts)


def _describe(visitor: Visitor) -> str:
    details = [count_of(visitor.slots, "slot")]
    if visitor.leaves_at:
        details.append(f"leaves {_clock(visitor.leaves_at)}")
    return f"{visitor.name} ({', '.join(details)})"


def _describe_end(run: int, visitor: Visitor | None, *, has_worked: bool) -> str:
    if visitor is None:
        return (
            f"visitor {run} was admitted, but has not reached the dispatcher;"
            " look at its output there"
        )
    how = "left" if has_worked else "left without having run a task"
    return f"{visitor.name} {how}"


def _clock(timestamp: str) -> str:
    """Return a timestamp as a local time, with its day if that is not today."""
    shown = clock_time(timestamp, dt.datetime.now(dt.UTC))
    time, _, seconds = shown.rpartition(":")
    return time if ":" in time and len(seconds) == len("00") else shown


def _fields(visitor: Visitor | None) -> dict[str, Any]:
    if visitor is None:
        return {"node": None}
    leaves_at = visitor.leaves_at or None
    return {"node": visitor.name, "slots": visitor.slots, "leaves_at": leaves_at}


def _describe_absence(requested: int, places: Sequence[str]) -> str:
    first = places[0].rpartition(":") if places else ("HOST", "", "PORT")
    host, port = first[0].strip("[]"), first[2]
    return (
        f"no visitor has joined for {NO_JOIN_S / 60:.0f} minutes, and"
        f" {count_of(requested, 'visitor')} {'is' if requested == 1 else 'are'}"
        " requested\n"
        f"a visitor must reach {' or '.join(places) or 'this machine'};"
        f" check that from there: nc -vz {host} {port}\n"
        "or they still wait in a queue, or have ended: look at their output there"
    )
