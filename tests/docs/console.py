"""Runs the console blocks of a page as a reader would, on loopback, and compares.

What is compared is the shape of the output: numbers, ids, times and names of machines
differ from run to run. A comment before a block says that it is not run, and why; a
comment `then: Ctrl-C NAME` ends the agent of that name.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from octaskly.trust import make

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0
POLL_S = 0.02
LOOKS = re.compile(r"^octaskly (--node \w+ )?nodes$")
SENTINEL = "=-=-= end of command"
STEP = re.compile(
    r"<!-- not run: (?P<why>[^>]+) -->\s+```console\n.*?^```"
    r"|<!-- then: Ctrl-C (?P<stop>[\w-]+) -->"
    r"|^```console\n(?P<block>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
#: Names of machines and agents in the pages; which one answers differs.
NAMES = ("ash", "birch", "cedar", "desk", "pi4")
SHAPES = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\btask-\d+-[0-9a-f]{8}\b"), "TASK"),
    (re.compile(r"\d+(\.\d+)?( ms| s)\b"), "SPAN"),
    (re.compile(r"\bSPAN ago\b"), "now"),
    (re.compile(r"\d+(\.\d+)?"), "N"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass
class Command:
    """One command of a block, and the lines that it shows."""

    text: str
    shown: list[str] = field(default_factory=list)


def commands_of(block: str) -> list[Command]:
    """Return the commands of a block; a backslash continues one."""
    commands: list[Command] = []
    is_open = False
    for line in block.splitlines():
        if is_open:
            commands[-1].text += "\n" + line
        elif line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ ")))
        else:
            commands[-1].shown.append(line)
            continue
        is_open = line.endswith("\\")
    return commands


def shape(lines: list[str]) -> list[str]:
    """Return lines without what differs, equal neighbours once, progress left out."""
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


def matches(pattern: str, line: str) -> bool:
    """Whether a line has the shape of a shown one, in which `...` is anything."""
    [wanted], [given] = shape([pattern]) or [""], shape([line]) or [""]
    parts = [re.escape(part.strip()) for part in wanted.split("...")]
    return re.fullmatch(".*".join(parts), given) is not None


class Console:
    """A shell in a home of its own, and the agents that the page has started."""

    def __init__(self, home: Path) -> None:
        self._home = home
        runtime = home / "run"
        runtime.mkdir()
        make(home / ".config" / "octaskly" / "mesh.key")
        self._environ = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._port: int | None = None  #: of the first agent's API
        self._lines: queue.Queue[str] = queue.Queue()
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environ,
            cwd=home,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the shell and every agent."""
        for name in list(self._agents):
            self.interrupt(name)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.wait(10)
        self._reader.join(10)
        self._shell.stdout.close()

    def run(self, command: Command) -> None:
        """Run a command and compare what it prints with what the page shows."""
        text = command.text.replace("make .venv && ", "").replace(".venv/bin/", "")
        # A tenth of the modules shows the same.
        text = text.replace("make demo", "octaskly demo --modules 40")
        if text.startswith("octaskly agent"):
            self._start(text, command.shown)
            return
        if self._port is not None:
            text = text.replace("localhost:3000", f"localhost:{self._port}")
        printed = self._ask(text)
        deadline = time.monotonic() + DEADLINE_S
        while LOOKS.search(text) and shape(printed) != shape(command.shown):
            # A reader takes longer to get here than nodes take to settle.
            if time.monotonic() > deadline:
                break
            printed = self._ask(text)
        assert shape(printed) == shape(command.shown), (text, printed)

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

    def _start(self, text: str, shown: list[str]) -> None:
        name = re.search(r"--name (\S+)", text)
        called = name[1] if name else socket.gethostname().split(".")[0]
        loopback = "" if "--interface lo" in text else " --interface lo"
        ports = " --api-port 0 --peer-port 0 --lan-port 0"
        with (self._home / f"{called}.log").open("wb") as log:
            self._agents[called] = subprocess.Popen(
                ["bash", "-c", f"exec {text}{loopback}{ports}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                cwd=self._home,
            )
        # A page that shows nothing goes on when the agent serves.
        for line in shown or ["... agent ready ..."]:
            self._until_logged(called, line)
        if self._port is None:
            state = self._home / ".local" / "state" / "octaskly" / called
            described = json.loads((state / "agent.json").read_text())
            self._port = int(described["api_url"].rpartition(":")[2])

    def _until_logged(self, name: str, line: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if any(matches(line, logged) for logged in self._log(name).splitlines()):
                return
            assert self._agents[name].poll() is None, self._log(name)
            time.sleep(POLL_S)
        raise AssertionError(f"{name} never logged {line!r}:\n{self._log(name)}")

    def _log(self, name: str) -> str:
        return (self._home / f"{name}.log").read_text()

    def _ask(self, text: str) -> list[str]:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{text}\necho; echo '{SENTINEL}'\n")
        self._shell.stdin.flush()
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
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self._lines.put(line.rstrip("\n"))


@contextlib.contextmanager
def console(home: Path) -> Iterator[Console]:
    """Give a shell for the length of a block."""
    opened = Console(home)
    try:
        yield opened
    finally:
        opened.close()
