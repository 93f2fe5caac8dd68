"""Runs the blocks of a page on loopback, and compares the output.

Only the shape of the output is compared, because numbers, ids, times and names of
machines differ from run to run.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from octaskly.trust import create_secret_file
from tests.docs.blocks import RUN, Block, Command, commands_of

DEADLINE_S = 60.0
POLL_S = 0.02
LOOKS = re.compile(r"^octaskly (--node \w+ )?nodes$")
SENTINEL = "=-=-= end of command"
INVITE = re.compile(r"\b\d+-\d{4}-\d{4}\b")
"""The code of an invite; the page shows a sample, and tests type the real one."""

FAILED = "=-=-= failed:"
PROGRAM = """
program() {
    for path; do printf '#!/bin/sh\\n' > "$path" && chmod +x "$path"; done
}
"""
"""Makes programs that a page requires; they do nothing and exit with 0."""

ENDLESS_S = 1.5  #: seconds for a command that runs until Ctrl-C
#: Names of machines and agents in the pages; any of them may answer.
NAMES = ("ash", "birch", "cedar", "desk", "pi4")
SHAPES = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\btask-\d+-[0-9a-f]{8}\b"), "TASK"),
    (re.compile(r"\d+(\.\d+)?( ms| s)\b"), "SPAN"),
    (re.compile(r"\bSPAN ago\b"), "now"),
    (re.compile(r"\bmesh [0-9a-f]{4}\b"), "mesh ID"),
    (re.compile(r"\b(aarch64|x86_64)\b"), "ARCH"),
    (re.compile(r"\d+(\.\d+)?"), "N"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"; joined now$"), ""),  # Shown for a minute.
)


def shape(lines: list[str]) -> list[str]:
    """Return lines without varying parts, repeated lines and progress."""
    names = re.compile(
        rf"\b({'|'.join((*NAMES, re.escape(socket.gethostname())))})(\b|(?=-))"
    )
    shaped: list[str] = []
    for line in lines:
        text = names.sub("NAME", line)
        for pattern, word in SHAPES:
            text = pattern.sub(word, text)
        text = text.strip()
        if re.match(r"(compressing|fetching and comparing)\b", text):
            continue
        if text and (not shaped or shaped[-1] != text):
            shaped.append(text)
    return shaped


def alike(shown: list[str], printed: list[str]) -> bool:
    """Return True if lines have the shape of the shown ones; `...` matches any.

    The reason why a task waits may be missing or present, because any machine may
    stall.
    """
    if not any(line.startswith("queued: ") for line in shown):
        printed = [line for line in printed if not line.startswith("queued: ")]
    wanted, given = shape(shown), shape(printed)
    return len(wanted) == len(given) and all(map(_matches, wanted, given))


def _matches(wanted: str, given: str) -> bool:
    parts = [re.escape(part.strip()) for part in wanted.split("...")]
    return re.fullmatch(".*".join(parts), given) is not None


class Shell:
    """One bash, which runs a command at a time."""

    def __init__(
        self, environ: dict[str, str], folder: Path, place: Sequence[str] = ()
    ) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._bash = subprocess.Popen(
            [*place, "bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=folder,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close it."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self._bash.stdout.close()

    def ask(self, text: str) -> list[str]:
        """Return the output lines of a command."""
        assert self._bash.stdin is not None
        # As from a terminal, whose lines no command takes for its stdin.
        self._bash.stdin.write(f"{{ {text}\n}} </dev/null\necho; echo '{SENTINEL}'\n")
        self._bash.stdin.flush()
        printed: list[str] = []
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text} does not end: {printed}") from None
            if line == SENTINEL:
                return printed
            printed.append(line)

    def _read(self) -> None:
        assert self._bash.stdout is not None
        for line in self._bash.stdout:
            self._lines.put(line.rstrip("\n"))


class Console:
    """A shell in a home of its own, and the agents that were started in it.

    If it is strict, the page must show the whole output of a command. Otherwise the
    page may show a part, and no command may fail.
    """

    def __init__(
        self,
        home: Path,
        *,
        is_strict: bool = True,
        place: Sequence[str] = (),
        invites: list[str] | None = None,
    ) -> None:
        """Make the home; nothing runs yet.

        Args:
            home: An empty folder.
            is_strict: As above.
            place: Prefix of a command that runs on a machine of its own; there
                the ports are the usual ones, and a mesh secret is not there yet.
            invites: Codes that the machines of one page have shown.
        """
        self.home = home
        self.folder = home  #: the working folder of commands
        self._is_strict = is_strict
        runtime = home / "run"
        runtime.mkdir()
        self.secret = home / ".config" / "octaskly" / "mesh.key"
        self._place = place
        self._invites = [] if invites is None else invites
        if not place:
            create_secret_file(self.secret)
        self.environ = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "PATH": f"{home}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }
        if tested := os.environ.get("PYTHONPATH"):
            self.environ["PYTHONPATH"] = tested
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._port: int | None = None  #: of the first agent's API
        self._shell: Shell | None = None

    def close(self) -> None:
        """Close the shell and stop every agent."""
        self.begin()
        for name in list(self._agents):
            self.interrupt(name)

    def begin(self, given: str = "") -> None:
        """Start a page in a new shell, and run its `given` commands."""
        if self._shell is not None:
            self._shell.close()
            self._shell = None
        if given:
            self.ask(given)

    def do(self, block: Block) -> int:
        """Process a block; return the number of commands that ran."""
        for text in block.given:
            if text.startswith("octaskly agent"):
                self.start(text, [])
            else:
                self._succeed(text)
        if block.stopped:
            self.interrupt(block.stopped)
        if block.not_run is not None or block.language not in RUN:
            return 0
        commands = commands_of(block)
        for command in commands:
            if block.language == "python":  # The page shows no output.
                self._succeed(command.text)
            elif block.is_endless:
                text = f"timeout -s INT {ENDLESS_S} {command.text} || [ $? -eq 124 ]"
                self._succeed(text)
            else:
                self.run(command)
        return len(commands)

    def run(self, command: Command) -> None:
        """Run a command and compare its output with the page."""
        text = command.text.replace("make .venv && ", "").replace(".venv/bin/", "")
        # A tenth of the modules shows the same.
        text = text.replace("make demo", "octaskly demo --modules 40")
        if text.startswith("octaskly agent"):
            self.start(text, command.shown)
            return
        if not self._is_strict:
            printed = self._succeed(text)
            assert not command.shown or alike(command.shown, printed), printed
            return
        printed = self.ask(text)
        deadline = time.monotonic() + DEADLINE_S
        while LOOKS.search(text) and not alike(command.shown, printed):
            # A reader takes longer to get here than nodes take to settle.
            if time.monotonic() > deadline:
                break
            printed = self.ask(text)
        assert alike(command.shown, printed), (text, printed)

    def ask(self, text: str) -> list[str]:
        """Return the output lines of a command, which may fail."""
        if self._port is not None:
            text = text.replace("localhost:3000", f"localhost:{self._port}")
        if self._shell is None:
            self._shell = Shell(self.environ, self.folder, self._place)
            self._shell.ask(PROGRAM)
        if self._invites:
            text = INVITE.sub(self._invites[-1], text)
        printed = self._shell.ask(text)
        self._invites += INVITE.findall("\n".join(printed))
        return printed

    def interrupt(self, name: str) -> None:
        """Press Ctrl-C in the terminal of an agent, and wait for its end."""
        agent = self._agents.pop(name)
        agent.send_signal(signal.SIGINT)
        try:
            code = agent.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
            raise
        assert code == 0, self._log(name)

    def start(self, text: str, shown: list[str]) -> None:
        """Start an agent, and wait until it prints the shown lines, or serves."""
        name = re.search(r"--name (\S+)", text)
        called = name[1] if name else self.ask("hostname")[0].split(".")[0]
        flags = " --api-port 0 --peer-port 0 --lan-port 0"
        if "--interface lo" not in text:
            flags += " --interface lo"
        if self._place:
            flags = ""
        ours, terminal = os.openpty()
        log = (self.home / f"{called}.log").open("wb", buffering=0)
        threading.Thread(target=_copy_screen, args=(ours, log), daemon=True).start()
        try:
            self._agents[called] = subprocess.Popen(
                [*self._place, "bash", "-c", f"exec {text}{flags}"],
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                env=self.environ | {"NO_COLOR": "1"},
                cwd=self.home,
            )
        finally:
            os.close(terminal)
        # Without shown lines, continue once the agent serves or waits for admission.
        for line in shown or ["Octaskly ... running until Ctrl-C"]:
            self._until_logged(called, line)
        if self._port is None and not self._place:
            state = self.home / ".local" / "state" / "octaskly" / called
            described = json.loads((state / "agent.json").read_text())
            self._port = int(described["api_url"].rpartition(":")[2])

    def _until_logged(self, name: str, line: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if any(alike([line], [logged]) for logged in self._log(name).splitlines()):
                return
            assert self._agents[name].poll() is None, self._log(name)
            time.sleep(POLL_S)
        raise AssertionError(f"{name} never logged {line!r}:\n{self._log(name)}")

    def _log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def _succeed(self, text: str) -> list[str]:
        """Return the output of a command, no part of which may fail."""
        self.ask(f"trap 'echo \"{FAILED} $BASH_COMMAND\"' ERR")
        printed = self.ask(text)
        self.ask("trap - ERR")
        assert not any(line.startswith(FAILED) for line in printed), "\n".join(printed)
        return printed


def _copy_screen(terminal: int, log: IO[bytes]) -> None:
    """Copy what a program prints on a terminal until its end."""
    with contextlib.suppress(OSError), log:
        while data := os.read(terminal, 1 << 16):
            log.write(data.replace(b"\r\n", b"\n"))
    os.close(terminal)


@contextlib.contextmanager
def console(home: Path, **options: Any) -> Iterator[Console]:
    """Open a console for the length of a block."""
    opened = Console(home, **options)
    try:
        yield opened
    finally:
        opened.close()
