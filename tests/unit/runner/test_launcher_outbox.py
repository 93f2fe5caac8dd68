"""Ends of attempts wait for each other in a launcher while orders wait."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from octaskly.runner.launcher.attempt_process import (
    AttemptProcess,
    PipeReader,
    StartOrder,
)
from octaskly.runner.launcher.outbox import HOLD_MAX_S, HOLD_WAITING_MIN, Outbox
from octaskly.runner.launcher.slots import Slot

EXITED_3 = 3 << 8  #: status of `wait4`


class Launcher:
    """An outbox, and the agent's end of its socket."""

    def __init__(self) -> None:
        self.agent, control = socket.socketpair()
        self.agent.setblocking(False)
        control.setblocking(False)
        self.epoll, self._control = select.epoll(), control
        self.outbox = Outbox(control, self.epoll)

    def close(self) -> None:
        """Close what is open."""
        for each in (self.agent, self._control, self.epoll):
            each.close()

    def end(self, status: int = 0) -> None:
        """End an attempt."""
        self.outbox.add_end(ended(status))

    def is_sent(self, at_s: float, waiting: int = HOLD_WAITING_MIN) -> bool:
        """Return True if something is sent while orders wait."""
        self.outbox.send_due(waiting, at_s)
        try:
            return bool(self.agent.recv(65536))
        except BlockingIOError:
            return False


def ended(status: int) -> AttemptProcess:
    """Return an attempt that ended without output."""
    order = StartOrder(1, "t", "1", "1", b"true", None, queued_s=0)
    read, write = os.pipe()
    os.close(write)
    stdout, stderr = PipeReader(read, 1, 1), PipeReader(os.dup(read), 1, 2)
    child = AttemptProcess(order, Slot(0), 1, (stdout, stderr), (0.0, 0))
    child.mark_exited(status, struct.pack("@5l", 0, 0, 0, 0, 0), now_s=1.0, now_ms=1)
    child.drain_output()
    return child


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    made = Launcher()
    yield made
    made.close()


def test_a_success_waits_for_others_for_a_bounded_time(launcher: Launcher) -> None:
    """The time counts from the first."""
    launcher.end()
    assert not launcher.is_sent(1.0)
    launcher.end()
    assert not launcher.is_sent(1.0 + HOLD_MAX_S / 2)
    assert launcher.is_sent(1.0 + HOLD_MAX_S)


def test_nothing_waits_if_hardly_any_orders_wait(launcher: Launcher) -> None:
    """Its slots would be free."""
    launcher.end()

    assert launcher.is_sent(1.0, waiting=HOLD_WAITING_MIN - 1)


def test_a_failure_takes_along_what_waits(launcher: Launcher) -> None:
    """The next success waits again."""
    launcher.end()
    assert not launcher.is_sent(1.0)
    launcher.end(EXITED_3)
    launcher.outbox.add_message("back", 2)
    assert launcher.is_sent(1.001)
    launcher.end()
    assert not launcher.is_sent(1.002)
