"""`octaskly wait` and `octaskly events`: what happens in the mesh, as it happens."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from octaskly.cli import completing
from octaskly.cli.choice import Choice, resolve_ref
from octaskly.cli.following import FULL, LOST_MAX, pause_s
from octaskly.cli.render import (
    EXIT_NOT_FOUND,
    EXIT_OCTASKLY_FAILED,
    EXIT_TIMEOUT,
    Duration,
    note,
    print_json,
    printable,
    report,
)
from octaskly.cli.running import OWN_CODES, exit_code
from octaskly.cli.stalls import stall_told
from octaskly.client import FINAL, Refused, ReplyLost, Unreachable
from octaskly.errors import OctasklyError

if TYPE_CHECKING:
    from octaskly.client import Client, Event, Task


class _TimeUp(Exception):
    """The user waits no longer."""


@click.command(epilog="Example: octaskly wait --any --timeout 10m 12 13")
@click.argument(
    "refs", nargs=-1, required=True, metavar="ID...", shell_complete=completing.tasks
)
@click.option("--any", "is_any", is_flag=True, help="Only until one of them has ended.")
@click.option(
    "--timeout", type=Duration(), metavar="S", help="Wait no longer than 90, 15m, 2h."
)
@click.option("--json", "as_json", is_flag=True, help="Print the ended tasks.")
@click.pass_obj
def wait(
    choice: Choice,
    refs: Sequence[str],
    is_any: bool,  # noqa: FBT001
    timeout: int | None,
    as_json: bool,  # noqa: FBT001
) -> int:
    """Wait until tasks have ended; Ctrl-C leaves them alone.

    Exit code: that of the first of them whose code is not 0, as from `octaskly run`;
    124 when the time is over, 125 Octaskly failed, 3 no such task.
    """
    try:
        with choice.client() as client, choice.client() as listening:
            full = [resolve_ref(client, ref) for ref in refs]
            waiting = _Waiting(client, full, count=1 if is_any else None)
            try:
                with _time_limit(timeout), stall_told(choice, full):
                    waiting.to_the_end(listening)
            except _TimeUp:
                note(f"{waiting.progress} when the time was over")
                return EXIT_TIMEOUT
            finally:
                waiting.end_line()
            if as_json:
                for task in waiting.ended:
                    print_json(client.task_reply(task.id).body)
    except OctasklyError as error:
        code = report(error)
        return code if code in {*OWN_CODES, EXIT_NOT_FOUND} else EXIT_OCTASKLY_FAILED
    codes = [exit_code(task, is_cancelled=False) for task in waiting.ended]
    return next((code for code in codes if code), 0)


@click.command(epilog="Example: octaskly events --types task --json")
@click.option(
    "--types",
    metavar="TYPES",
    default="task,node",
    show_default=True,
    help="Which events: task, node.",
)
@click.option(
    "--task",
    "ref",
    metavar="ID",
    shell_complete=completing.tasks,
    help="Only of this task.",
)
@click.option("--after", metavar="EVENT", default="", help="Go on after this event id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_obj
def events(
    choice: Choice,
    types: str,
    ref: str | None,
    after: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print what happens to tasks and nodes, until Ctrl-C."""
    with choice.client() as client:
        task = None if ref is None else resolve_ref(client, ref)
        for event in news(client, types=types, task=task, last_id=after):
            if event.kind and as_json:
                line = {"event": event.kind, "id": event.id or None, "data": event.data}
                click.echo(json.dumps(line))
            elif event.kind:
                click.echo(printable(_line(event)).replace("\n", " "))


def news(
    client: Client, *, types: str = "task", task: str | None = None, last_id: str = ""
) -> Iterator[Event]:
    """Yield what happens, for ever and through lost connections.

    Raises:
        ReplyLost, Unreachable: the node stays away.
        Refused: it refuses.
    """
    lost = 0
    while True:
        try:
            with closing(client.events(types=types, task=task, last_id=last_id)) as got:
                for event in got:
                    lost = 0
                    last_id = event.id or last_id
                    yield event
        except (ReplyLost, Unreachable):
            if lost >= LOST_MAX:
                raise
        except Refused as error:
            if str(error) != FULL:
                raise
            lost = 0  # It lives, and has room once others have ended.
        lost += 1
        time.sleep(pause_s(lost))


class _Waiting:
    """Tasks that somebody waits for.

    Args:
        client: Where they are looked up.
        refs: The tasks; unknown ones are noticed at the first look.
        count: How many have to end; None: all.
    """

    def __init__(self, client: Client, refs: Sequence[str], count: int | None) -> None:
        self._client = client
        self._tasks: dict[str, Task | None] = dict.fromkeys(refs)
        self._count = count
        self._shows = sys.stderr.isatty()

    @property
    def ended(self) -> list[Task]:
        """Those that have ended, in the order in which they were named."""
        return [task for task in self._tasks.values() if task is not None]

    @property
    def progress(self) -> str:
        """How far it is."""
        return f"{len(self.ended)} of {len(self._tasks)} have ended"

    def to_the_end(self, listening: Client) -> None:
        """Wait, with a second connection that hears what happens."""
        self._look()
        if self._is_enough():
            return
        only = next(iter(self._tasks)) if len(self._tasks) == 1 else None
        is_told = False
        for event in news(listening, task=only):
            if not is_told or event.kind == "reset":
                # From now on all ends are told; until now some were not.
                is_told = True
                self._look()
            elif self._is_end(event):
                self._read(event.data["id"])
            if self._is_enough():
                return

    def end_line(self) -> None:
        """Leave the line of the progress."""
        if self._shows:
            click.echo(err=True)

    def _look(self) -> None:
        for ref in [ref for ref, task in self._tasks.items() if task is None]:
            self._read(ref)
            if self._is_enough():
                return

    def _read(self, ref: str) -> None:
        task = self._client.task(ref)
        if task.id != ref and ref in self._tasks:
            # By its full name, as events call it.
            self._tasks = {
                task.id if known == ref else known: found
                for known, found in self._tasks.items()
            }
        if task.is_final:
            self._tasks[task.id] = task
        if self._shows:
            click.echo(f"\r{self.progress}", nl=False, err=True)

    def _is_end(self, event: Event) -> bool:
        return (
            event.kind == "task"
            and event.data.get("status") in FINAL
            and self._tasks.get(event.data.get("id", ""), True) is None
        )

    def _is_enough(self) -> bool:
        wanted = len(self._tasks) if self._count is None else self._count
        return len(self.ended) >= wanted


@contextlib.contextmanager
def _time_limit(limit_s: int | None) -> Iterator[None]:
    """Raise `_TimeUp` in the block, whatever it waits for."""
    if limit_s is None:
        yield
        return

    def on_alarm(_number: int, _frame: object) -> None:
        raise _TimeUp

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _line(event: Event) -> str:
    """Return an event for people."""
    data: dict[str, Any] = event.data
    if event.kind == "task":
        parts = [data["at"], data["id"], data["status"]]
        if data["worker_id"]:
            parts.append(f"on {data['worker_id']}")
        if data["exit_code"] is not None:
            parts.append(f"exit code {data['exit_code']}")
        if data["reason"] not in (None, "exit"):
            parts.append(f"({data['reason']})")
    elif event.kind == "node":
        parts = ["node", data["name"], data["state"], data["role"]]
    else:
        parts = [event.kind, data.get("message", "")]
    return "  ".join(str(part) for part in parts)
