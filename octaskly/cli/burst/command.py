"""`octaskly burst`: runs the user's command while tasks wait for visitors."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterable, Sequence
from typing import Final

import click

from octaskly.agent.visiting.folder import erase_abandoned
from octaskly.cli import completion
from octaskly.cli.agent import parse_until
from octaskly.cli.burst.mesh import BurstMesh
from octaskly.cli.burst.policy import (
    BurstPolicy,
    CommandEnded,
    Event,
    Failed,
    Left,
    NotPolled,
    RunCommand,
    Withdraw,
)
from octaskly.cli.burst.report import Reporter
from octaskly.cli.burst.runs import PLACEHOLDER, CommandRuns, agent_command
from octaskly.cli.context import CliContext
from octaskly.cli.interrupts import interrupt_on_sigterm
from octaskly.cli.options import Duration, UsageProblem
from octaskly.cli.output.render import count_of, note
from octaskly.errors import OctasklyError

POLL_S: Final = 1.0
DAY_S: Final = 86_400
VISITORS_MAX: Final = 64
EXAMPLE: Final = "octaskly burst -- sbatch --wait --wrap '{agent}'"


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=f"Example: {EXAMPLE}",
)
@click.option(
    "--max",
    "visitors_max",
    type=click.IntRange(1, VISITORS_MAX),
    metavar="N",
    default=1,
    show_default=True,
    help="Most visitors at the same time, requested ones included.",
)
@click.option(
    "--idle",
    "idle_s",
    type=Duration(),
    metavar="T",
    default="5m",
    show_default=True,
    help="A visitor leaves after so long without a task.",
)
@click.option(
    "--until",
    metavar="TIME",
    help="Stop at this time, such as 16:40, or after 2h; visitors leave then, too.",
)
@click.option(
    "--for",
    "label",
    metavar="NAME=VALUE",
    help="Only for tasks that require this label, which the visitors get.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event.")
@click.argument(
    "words",
    nargs=-1,
    required=True,
    metavar="-- CMD...",
    shell_complete=completion.complete_files,
)
@click.pass_obj
def burst(
    context: CliContext,
    visitors_max: int,
    idle_s: int,
    until: str | None,
    label: str | None,
    as_json: bool,  # noqa: FBT001
    words: Sequence[str],
) -> int:
    """Run CMD while tasks wait that allow visitors, until Ctrl-C.

    CMD starts a visitor on another machine, by whatever tool you use: `{agent}` in it
    becomes the command of a visitor, for a shell. Each run is for one visitor, whose
    invite is in the variable OCTASKLY_INVITE and on stdin.
    """
    _check_command(words)
    until_ms = None if until is None else parse_until(until)
    left_s = None if until_ms is None else until_ms / 1000 - time.time()
    life_s = DAY_S if left_s is None else max(60, min(DAY_S, int(left_s)))
    flags = ["--idle", str(idle_s)]
    if until_ms is not None:
        at = time.localtime(until_ms / 1000)
        flags += ["--until", time.strftime("%Y-%m-%dT%H:%M:%S%z", at)]
    if label is not None:
        _check_label(label)
        flags += ["--label", label]
    with context.connect(is_silent=True) as client:
        mesh = BurstMesh(client, label or "", request_s=life_s, stay_s=life_s)
        mesh.poll()  # Without an agent, or as a stranger, nothing is started.
        policy = BurstPolicy(
            visitors_max,
            request_s=life_s,
            idle_s=idle_s,
            until_s=None if left_s is None else time.monotonic() + left_s,
        )
        reporter = Reporter(policy, as_json=as_json)
        return _Burst(mesh, policy, reporter, words, flags, context).run()


def _check_command(words: Sequence[str]) -> None:
    if PLACEHOLDER in words[0]:
        raise UsageProblem(
            f"{words[0]!r} is no program",
            cause=f"{PLACEHOLDER} is a command for a shell, of several words",
            hint="octaskly burst -- sh -c '{agent}'    starts it on this machine",
        )
    if not any(PLACEHOLDER in word for word in words):
        raise UsageProblem(
            f"the command lacks {PLACEHOLDER}",
            cause="that is where it gets the command that starts a visitor",
            hint=EXAMPLE,
        )


def _check_label(label: str) -> None:
    name, equals, value = label.partition("=")
    if not (name and equals and value):
        raise UsageProblem(
            f"--for {label!r} is no label",
            cause="a label has a name and a value",
            hint="octaskly burst --for gpu=a100 -- ...",
        )


class _Burst:
    """The loop: polls the mesh, steps the policy and performs its actions."""

    def __init__(
        self,
        mesh: BurstMesh,
        policy: BurstPolicy,
        reporter: Reporter,
        words: Sequence[str],
        flags: Sequence[str],
        context: CliContext,
    ) -> None:
        self._mesh, self._policy, self._reporter = mesh, policy, reporter
        self._ended: queue.SimpleQueue[tuple[int, str | None, str]] = (
            queue.SimpleQueue()
        )
        self._runs = CommandRuns(
            words,
            agent_command(flags),
            context.environ,
            lambda run, error, line: self._ended.put((run, error, line)),
        )

    def run(self) -> int:
        """Run until Ctrl-C or a stop of the policy; return the exit code."""
        try:
            with contextlib.suppress(KeyboardInterrupt), interrupt_on_sigterm():
                self._run_until_stopped()
            return self._reporter.on_stop(self._policy.stopped)
        finally:
            self._end()

    def _run_until_stopped(self) -> None:
        # Not inside the `with` of the caller: Python checks for signals at the jump
        # back of a loop, which no handler around the loop covers.
        while self._policy.stopped is None:
            self._poll()
            self._wait_for_ends()

    def _poll(self) -> None:
        try:
            polled = self._mesh.poll()
        except OctasklyError as error:
            # The agent may restart, or the mesh elect a dispatcher.
            self._reporter.on_unreachable(error.message)
            self._step(NotPolled())
            return
        self._step(polled)
        self._reporter.show_state()

    def _wait_for_ends(self) -> None:
        """Handle the ends of commands until the next poll is due."""
        due_s = time.monotonic() + POLL_S
        while (wait_s := due_s - time.monotonic()) > 0 and not self._policy.stopped:
            try:
                run, error, line = self._ended.get(timeout=wait_s)
            except queue.Empty:
                return
            if error is None:
                self._reporter.on_output(run, line)
            self._step(CommandEnded(run, error))

    def _step(self, event: Event) -> None:
        for action in self._policy.step(event, time.monotonic()):
            self._reporter.on_action(action, self._mesh.places)
            match action:
                case RunCommand(run):
                    self._start(run)
                case Withdraw(run):
                    self._withdraw([run])
                case Left(run) | Failed(run):
                    self._mesh.forget(run)
                case _:
                    pass

    def _start(self, run: int) -> None:
        try:
            invite_url = self._mesh.open_invite(run)
        except OctasklyError as error:
            why = f"no invite: {error.message}"
            self._ended.put((run, f"{why}: {error.hint}" if error.hint else why, ""))
            return
        self._runs.start(run, invite_url)

    def _withdraw(self, runs: Iterable[int]) -> None:
        """Revoke invites, and end the commands that still wait for a visitor."""
        for run in runs:
            try:
                self._mesh.revoke_invite(run)
            except OctasklyError as error:
                # It expires by itself, and admits one visitor at most.
                self._reporter.on_unreachable(error.message)
        self._runs.terminate(runs)

    def _end(self) -> None:
        """Withdraw what is requested, and wait for commands that hold a visitor."""
        here = [visitor.name for visitor in self._policy.visitors.values()]
        try:
            with interrupt_on_sigterm():
                self._withdraw(self._policy.requests)
                # `sbatch --wait` looks rarely whether its visitor has left.
                gone = self._runs.running - self._policy.visitors.keys()
                self._runs.terminate(gone)
                if here:
                    verb = "leaves" if len(here) == 1 else "leave"
                    note(f"{', '.join(here)} {verb} after the idle time")
                if running := self._runs.running:
                    count = count_of(len(running), "command")
                    note(f"{count} of visitors still running; Ctrl-C ends them")
                    self._runs.wait()
        except KeyboardInterrupt:
            self._runs.terminate(self._runs.running)
        finally:
            erase_abandoned()  # Its command may have started visitors here.
