"""`octaskly top`: a live view of the mesh."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import click
import msgspec

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION
from octaskly.cli.output import terminal
from octaskly.cli.output.render import print_json
from octaskly.errors import OctasklyError

if TYPE_CHECKING:
    from octaskly.cli.output.top_screen import MeshSnapshot, ViewOptions

ASK_S: Final = 1.0  #: between two polls of the mesh
DRAW_S: Final = 0.5  #: between two frames, so that times advance between polls
RATE_S: Final = 10.0  #: period over which tasks per second are measured
KEY_BYTES: Final = 64
RIGHT, LEFT = b"\x1b[C", b"\x1b[D"


@click.command(epilog="Example: octaskly top")
@click.option("--once", is_flag=True, help="Print one frame and exit.")
@JSON_OPTION
@click.pass_obj
def top(context: CliContext, once: bool, as_json: bool) -> None:  # noqa: FBT001
    """Watch nodes, queue and running tasks live.

    Keys: q or Ctrl-C quits; left and right change the sort order of the tasks, r
    reverses it. If stdout is not a terminal, one frame is printed.
    """
    # The import takes 30 ms, which would slow other commands.
    from octaskly.cli.output import top_screen  # noqa: PLC0415

    with context.connect() as client:
        first = top_screen.fetch_snapshot(client)
    if as_json:
        print_json(msgspec.json.encode(first))
    elif once or not terminal.is_terminal():
        columns = terminal.columns() or top_screen.PIPE_COLUMNS
        terminal.print_text(top_screen.render_plain(first, columns))
    else:
        _run_live(_SnapshotPoller(context, first))


class _SnapshotPoller:
    """Polls the mesh in a thread, so that keys and frames never wait for a response."""

    def __init__(self, context: CliContext, first: MeshSnapshot) -> None:
        self.snapshot = first
        self.snapshot_s = time.monotonic()
        self.error: str | None = None
        self._context = context
        self._ended: deque[tuple[float, int]] = deque(
            [(self.snapshot_s, first.ended_count)]
        )
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def polling(self) -> Iterator[None]:
        """Poll until the block ends."""
        # Do not join the thread: its current request may take seconds.
        threading.Thread(target=self._run, daemon=True).start()
        try:
            yield
        finally:
            self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._poll()
            except OctasklyError as error:
                self.error = error.message
                self._stopped.wait(ASK_S)

    def _poll(self) -> None:
        """Connect, and poll until a request fails."""
        from octaskly.cli.output import top_screen  # noqa: PLC0415

        with self._context.connect(is_silent=True) as client:
            while not self._stopped.wait(ASK_S):
                snapshot = top_screen.fetch_snapshot(client)
                rate = self._rate(snapshot.ended_count)
                self.snapshot = msgspec.structs.replace(snapshot, tasks_per_second=rate)
                self.snapshot_s, self.error = time.monotonic(), None

    def _rate(self, ended: int) -> float:
        """Return the recent number of ended tasks per second."""
        now_s = time.monotonic()
        self._ended.append((now_s, ended))
        while now_s - self._ended[0][0] > RATE_S and len(self._ended) > 2:  # noqa: PLR2004
            self._ended.popleft()
        then_s, before = self._ended[0]
        # Deleted tasks would otherwise make the rate negative.
        return max(0, ended - before) / max(now_s - then_s, ASK_S)


def _run_live(poller: _SnapshotPoller) -> None:
    """Draw frames until the user quits; restore the terminal."""
    from octaskly.cli.output import top_screen  # noqa: PLC0415

    view = top_screen.ViewOptions(has_keys=sys.stdin.isatty())
    with (
        contextlib.suppress(KeyboardInterrupt),
        _Keyboard() as keys,
        terminal.live_screen() as screen,
        poller.polling(),
    ):
        while True:
            shown = replace(view, error=_error_text(poller))
            late_s = time.monotonic() - poller.snapshot_s
            frame = top_screen.render_frame(
                poller.snapshot, shown, late_s=late_s, rows=screen.rows()
            )
            screen.draw(frame)
            pressed = keys.wait(DRAW_S)
            if b"q" in pressed:
                return
            view = _apply_keys(view, pressed)


def _apply_keys(view: ViewOptions, pressed: bytes) -> ViewOptions:
    """Return the display options after these keys."""
    from octaskly.cli.output.top_screen import SORTS  # noqa: PLC0415

    names = list(SORTS)
    steps = pressed.count(RIGHT) - pressed.count(LEFT)
    sort = names[(names.index(view.sort) + steps) % len(names)]
    is_turned = pressed.count(b"r") % 2 == 1
    return replace(view, sort=sort, is_reversed=view.is_reversed ^ is_turned)


def _error_text(poller: _SnapshotPoller) -> str | None:
    if poller.error is None:
        return None
    return (
        f"{poller.error}; last update {time.monotonic() - poller.snapshot_s:.0f} s ago"
    )


class _Keyboard:
    """Unbuffered keyboard input without echo, and changes of the terminal's size."""

    def __init__(self) -> None:
        self._stdin = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Change the terminal's mode."""
        self._woken, woken = os.pipe()
        for end in (self._woken, woken):
            self._stack.callback(os.close, end)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        self._stack.callback(signal.set_wakeup_fd, -1)
        # A signal must not end the process before the terminal is restored.
        for number, then in (
            (signal.SIGWINCH, _wake),
            (signal.SIGTERM, _exit),
            (signal.SIGHUP, _exit),
        ):
            before = signal.signal(number, then)
            self._stack.callback(signal.signal, number, before)
        if self._stdin is not None:
            modes = termios.tcgetattr(self._stdin)
            self._stack.callback(
                termios.tcsetattr, self._stdin, termios.TCSADRAIN, modes
            )
            tty.setcbreak(self._stdin)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Restore the terminal and the signal handlers."""
        self._stack.close()

    def wait(self, timeout_s: float) -> bytes:
        """Return the keys pressed within the timeout; return early on a resize."""
        waited = [self._woken] + ([] if self._stdin is None else [self._stdin])
        ready, _, _ = select.select(waited, [], [], timeout_s)
        if self._woken in ready:
            os.read(self._woken, KEY_BYTES)
        if self._stdin is None or self._stdin not in ready:
            return b""
        # An empty read means that the terminal is gone, so quit.
        return os.read(self._stdin, KEY_BYTES) or b"q"


def _wake(_number: int, _frame: Any) -> None:
    """Do nothing: the signal itself interrupts the wait."""


def _exit(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)
