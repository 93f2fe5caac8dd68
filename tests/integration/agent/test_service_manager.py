"""The agent's messages to the service manager, over a real socket."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from octaskly.agent.process_hooks import SystemdNotifier
from octaskly.trust import create_secret_file
from tests.support.agents import READY_S_MAX, WAIT_S_MAX, ending, launch


def test_the_name_of_a_node_cannot_command_systemd(tmp_path: Path) -> None:
    """The status is one line, whatever the names of peers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S_MAX)
        notifier = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})

        with contextlib.closing(notifier):
            notifier.set_status("worker of eve\nMAINPID=1\rSTOPPING=1")

        assert manager.recv(4096) == b"STATUS=worker of eve MAINPID=1 STOPPING=1"


def test_a_long_drain_is_announced(tmp_path: Path) -> None:
    """So the unit need not be changed with `--drain`: sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S_MAX)
        notifier = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})

        with contextlib.closing(notifier):
            notifier.notify_stopping(90.5)

        assert manager.recv(4096) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=90500000"


def test_an_agent_reports_readiness_and_its_watchdog(
    tmp_path: Path,
) -> None:
    """Readiness comes with the first answer of the API, and then regular pings."""
    secret = tmp_path / "mesh.key"
    create_secret_file(secret)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_S_MAX)
        notify = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        agent = launch(tmp_path / "ana", secret, environ={**os.environ, **notify})
        with ending(agent):
            assert manager.recv(4096) == b"READY=1"
            # Nothing is waited for: it is there by now.
            assert agent.description() is not None
            assert agent.call("GET", "/health")[0] == 200

            said: list[bytes] = []
            while said.count(b"WATCHDOG=1") < 3:
                said.append(manager.recv(4096))
            assert agent.call("GET", "/health")[0] == 200

    assert set(said) - {b"WATCHDOG=1"} == {s for s in said if s[:7] == b"STATUS="}
