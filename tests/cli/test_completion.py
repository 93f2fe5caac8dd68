"""Completion in real shells, with a node on a real socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pexpect
import pytest

from octaskly.cli.completion import OFFERED_MAX
from tests.cli.conftest import Run
from tests.cli.stand_in import Api
from tests.cli.typed import PROGRAM

SHELLS = ("bash", "zsh", "fish")
WAIT_S = 60.0
TRIES = 40  #: for machines too slow for the default budget; users may set it, too

BASH = """\
eval "$(octaskly completion bash)"
COMP_WORDS=(octaskly {words} "{last}") COMP_CWORD=$(({count} + 1))
_octaskly_completion octaskly
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = """\
octaskly completion fish | source
complete -C "octaskly {words} {last}"
"""


@pytest.fixture
def shell_environ(environ: dict[str, str]) -> dict[str, str]:
    """An environment in which `octaskly` is the version under test."""
    path = f"{Path(PROGRAM[0]).parent}:{environ['PATH']}"
    return environ | {"PATH": path, "TERM": "dumb"}


def offered(
    shell: str, environ: dict[str, str], words: list[str], last: str = ""
) -> list[str]:
    """Return the completions of bash or fish for the last of these words."""
    text = {"bash": BASH, "fish": FISH}[shell].format(
        words=" ".join(words), count=len(words), last=last
    )
    done = subprocess.run(
        [need(shell), "-c", text],
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines() if line]


def completions_of_tasks(
    shell: str, environ: dict[str, str], words: list[str], last: str = ""
) -> list[str]:
    """Return the completions of the node's tasks."""
    tries = (offered(shell, environ, words, last) for _ in range(TRIES))
    return next((found for found in tries if found), [])


def need(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"there is no {shell}; tests/setup-host brings it")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_shells_offer_commands_ids_nodes_and_options(
    api: Api, octaskly: Run, shell_environ: dict[str, str], shell: str
) -> None:
    """As the command line itself knows them at this moment."""
    task = octaskly("submit", "--", "true").stdout.decode().strip()

    assert "drain" in offered(shell, shell_environ, [], "dr")
    assert completions_of_tasks(shell, shell_environ, ["show"], "t") == [task]
    assert completions_of_tasks(shell, shell_environ, ["--node", "here", "drain"]) == [
        "here"
    ]
    tokens = [
        {"id": "1", "name": "ci", "role": "client", "state": "good"},
        {"id": "2", "name": "old", "role": "client", "state": "revoked"},
    ]
    api.answers["/api/v1/tokens"] = {"tokens": tokens}
    assert completions_of_tasks(shell, shell_environ, ["token", "revoke"]) == ["ci"]
    assert completions_of_tasks(shell, shell_environ, ["run", "--require"]) == [
        "room=attic"
    ]
    assert "--max-fails" in offered(shell, shell_environ, ["array"], "--max")
    assert completions_of_tasks(shell, shell_environ, ["--node"]) == ["here"]


@pytest.mark.slow
def test_zsh_completes_an_id_in_the_line(
    api: Api, octaskly: Run, shell_environ: dict[str, str]
) -> None:
    """Its completion is in the line editor, so a terminal is needed."""
    task = octaskly("submit", "--", "true").stdout.decode().strip()
    zsh = pexpect.spawn(
        need("zsh"), ["-f", "-i"], env=shell_environ, timeout=WAIT_S, encoding="utf-8"
    )
    zsh.sendline("PS1='ready> '; autoload -Uz compinit; compinit -u -D")
    zsh.sendline('eval "$(octaskly completion zsh)"; echo load""ed')
    zsh.expect("loaded")
    zsh.expect("ready> ")
    zsh.send("octaskly show ta")
    for _ in range(TRIES):
        zsh.send("\t")
        if zsh.expect_exact([task, pexpect.TIMEOUT], timeout=2) == 0:
            break

    assert zsh.after == task
    zsh.close(force=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_needs_no_agent(octaskly: Run, shell: str) -> None:
    """A shell reads it at its start, when no output is allowed."""
    done = octaskly("completion", shell, node=None)

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"_OCTASKLY_COMPLETE" in done.stdout


def test_only_the_newest_tasks_are_completed(
    api: Api, shell_environ: dict[str, str]
) -> None:
    """A million ids are no help, and would exceed the budget."""
    for number in range(1, OFFERED_MAX + 3):
        name = f"task-{number:03}-{number:08x}"
        api.tasks[name] = {"id": name, "command": "c", "status": "completed"}
        api.tasks[name] |= {"worker_id": None}

    tries = (offered("bash", shell_environ, ["show"]) for _ in range(TRIES))
    found = next(found for found in tries if len(found) > 1)

    assert len(found) == OFFERED_MAX + 1
    assert "task-002-00000002" not in found
    assert "last" in found


@pytest.mark.slow
def test_completion_gives_up_silently_on_a_silent_node(
    environ: dict[str, str], shell_environ: dict[str, str], tmp_path: Path
) -> None:
    """The user is typing: 0.2 s, and no output."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "run" / "octaskly" / "here.sock"))
        deaf.listen()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(held_s, deaf)
            found = offered("bash", shell_environ, ["drain"])
            took_s = waiting.result(WAIT_S)
    assert found == []
    assert took_s < WAIT_S / 12  # Any timeout of the client itself is longer.


def held_s(deaf: socket.socket) -> float:
    """Return the time that a client waits for a missing answer."""
    with deaf.accept()[0] as client:
        began_s = time.monotonic()
        while client.recv(4096):
            pass
        return time.monotonic() - began_s


def test_without_an_agent_completion_is_silent(
    shell_environ: dict[str, str],
) -> None:
    """Words that need no mesh are still completed."""
    assert offered("bash", shell_environ, ["drain"]) == []
    assert "drain" in offered("bash", shell_environ, [], "d")
