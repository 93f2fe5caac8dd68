"""What the agent tells the service manager, over a real socket."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from octaskly.agent.notify import Notifier
from tests.agents import WAIT_S_MAX


def test_the_name_of_a_node_gives_no_order_to_systemd(tmp_path: Path) -> None:
    """The status is one line, whatever peers call themselves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S_MAX)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})

        with contextlib.closing(notifier):
            notifier.status("worker of eve\nMAINPID=1\rSTOPPING=1")

        assert manager.recv(4096) == b"STATUS=worker of eve MAINPID=1 STOPPING=1"


def test_a_long_drain_is_announced(tmp_path: Path) -> None:
    """So the unit need not be changed with `--drain`: sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S_MAX)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})

        with contextlib.closing(notifier):
            notifier.stopping(90.5)

        assert manager.recv(4096) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=90500000"
