"""Ctrl-C at each phase of `octaskly join` on a real terminal."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pexpect

from tests.integration.joining.test_joining import (
    invite,
    is_listening,
    member,
    names,
    newcomer,
    waiting,
)
from tests.support.agents import Agent, ending, until

__all__ = ["member"]  # A fixture.
WAIT_S = 55
CANCELLED = 130
CODE = "7-4821-9375"


def join(agent: Agent, *words: str) -> pexpect.spawn[str]:
    return pexpect.spawn(
        sys.executable,
        ["-m", "octaskly", "--state-dir", str(agent.state), "join", *words],
        timeout=WAIT_S,
        encoding="utf-8",
    )


def interrupt(joining: pexpect.spawn[str]) -> str:
    """Press Ctrl-C; return the output."""
    joining.sendintr()
    said = str(joining.read())
    joining.close()
    assert joining.exitstatus == CANCELLED, said
    assert "Traceback" not in said
    return said


def sockets(joining: pexpect.spawn[str]) -> int:
    folder = Path(f"/proc/{joining.pid}/fd")
    found = 0
    for one in folder.iterdir():
        with suppress(FileNotFoundError):  # Closed meanwhile.
            found += str(one.readlink()).startswith("socket:")
    return found


def test_ctrl_c_before_the_secret_arrives_changes_nothing(
    member: Agent, tmp_path: Path
) -> None:
    """In each phase of the word comparison, and with a code and a silent member."""
    joiner = newcomer(tmp_path, "bay")
    with ending(joiner), socket.create_server(("127.0.0.1", 0)) as silent:
        joiner.ready()

        looking = join(joiner)
        until(lambda: sockets(looking) > 1, "it looks for meshes")
        interrupt(looking)

        waits = join(joiner)
        waits.expect_exact("on a member: octaskly approve bay")
        interrupt(waits)

        compares = join(joiner)
        compares.expect_exact("on a member: octaskly approve bay")
        waiting(member, "bay")
        compares.expect_exact("same words?")
        interrupt(compares)

        exchanges = join(joiner)
        exchanges.expect_exact("on a member: octaskly approve bay")
        waiting(member, "bay")
        exchanges.expect_exact("same words?")
        exchanges.sendline("y")
        exchanges.expect_exact("waiting until somebody approves at ash")
        interrupt(exchanges)

        proves = join(joiner, "--at", f"127.0.0.1:{silent.getsockname()[1]}", CODE)
        there, _ = silent.accept()
        with there:
            assert there.recv(1)
            interrupt(proves)
            there.settimeout(WAIT_S)
            while there.recv(4096):
                pass

        assert not (tmp_path / "bay.key").exists()
        assert joiner.ready()["mesh"] is None
        assert "bay" not in names(member)


def test_ctrl_c_after_the_secret_arrived_reports_the_state(
    member: Agent, tmp_path: Path
) -> None:
    """The agent, which gets it late, stores the secret completely or not at all."""
    joiner = newcomer(tmp_path, "cay")
    with ending(joiner):
        joiner.ready()
        code, place = invite(member)
        joining = join(joiner, "--at", place, "-")
        joining.expect_exact("Code")
        joiner.process.send_signal(signal.SIGSTOP)
        try:
            joining.sendline(code)
            joining.expect_exact("ash admitted this machine")
            said = interrupt(joining)
        finally:
            joiner.process.send_signal(signal.SIGCONT)

        assert "octaskly leave" in said
        until(lambda: not is_listening(place), "the invite is used")
        secret = tmp_path / "cay.key"
        until(
            lambda: ("cay" in names(member)) == secret.exists(),
            "it is in, or it is not",
        )
