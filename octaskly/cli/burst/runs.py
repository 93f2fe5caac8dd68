"""Runs of the user's command: processes with an invite each, and the ends of them.

The invite is a secret. A run gets it in the environment and as a line on stdin, never
in an argument. What a run prints is kept only in part, and never with the invite in it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from octaskly.cli.output.terminal import on_one_line

PLACEHOLDER: Final = "{agent}"
INVITE_VARIABLE: Final = "OCTASKLY_INVITE"
OWN_VARIABLES: Final = "OCTASKLY_"
"""Start of the names of variables that a visitor must not inherit."""
TAIL_BYTES: Final = 4096  #: of the output of a run
SHOWN_LINES_MAX: Final = 5
SHOWN_CHARS_MAX: Final = 500
END_S: Final = 5.0  #: from SIGTERM to SIGKILL
HIDDEN: Final = "[invite]"

OnEnd = Callable[[int, str | None, str], None]
"""Gets the number of a run, why it failed, and the last line that it printed."""


def agent_command(flags: Sequence[str]) -> str:
    """Return the text for `{agent}`: a command for a shell, without a secret."""
    return shlex.join([*_program(), "agent", "--visitor", *flags])


def _program() -> list[str]:
    """Return the words that start this program, by its name where a shell finds it.

    Another machine may have it in another folder.
    """
    script = Path(sys.argv[0])
    found = shutil.which(script.name)
    if found and (not script.exists() or script.samefile(found)):
        return [script.name]
    if os.access(script, os.X_OK):
        return [str(script.absolute())]
    return [sys.executable, "-m", "octaskly"]


class CommandRuns:
    """The running commands.

    Args:
        words: The user's command; `{agent}` is replaced in each word.
        agent: The text for `{agent}`.
        environ: The environment of this process.
        on_end: Called in a thread when a run has ended.
    """

    def __init__(
        self,
        words: Sequence[str],
        agent: str,
        environ: Mapping[str, str],
        on_end: OnEnd,
    ) -> None:
        self._words = [word.replace(PLACEHOLDER, agent) for word in words]
        self._environ = {
            name: value
            for name, value in environ.items()
            if not name.startswith(OWN_VARIABLES)
        }
        self._on_end = on_end
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: dict[int, threading.Thread] = {}

    @property
    def running(self) -> set[int]:
        """The numbers of the runs that have not ended."""
        return {n for n, thread in self._threads.items() if thread.is_alive()}

    def start(self, number: int, invite_url: str) -> None:
        """Start a run; a program that cannot be started is a run that failed."""
        try:
            process = subprocess.Popen(  # noqa: S603  the words are the user's
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**self._environ, INVITE_VARIABLE: invite_url},
                # Ctrl-C is for this process, which decides what ends.
                start_new_session=True,
            )
        except OSError as error:
            self._on_end(number, f"{self._words[0]}: {error.strerror}", "")
            return
        self._processes[number] = process
        thread = threading.Thread(
            target=self._follow, args=(number, process, invite_url), daemon=True
        )
        self._threads[number] = thread
        thread.start()

    def terminate(self, numbers: Iterable[int]) -> None:
        """End these runs with all their processes, by SIGTERM first."""
        ended = [n for n in numbers if n in self.running]
        for number in ended:
            self._signal(number, signal.SIGTERM)
        for number in ended:
            self._threads[number].join(END_S)
            self._signal(number, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until all runs have ended; a signal interrupts it."""
        for thread in tuple(self._threads.values()):
            thread.join()

    def _signal(self, number: int, signal_number: signal.Signals) -> None:
        process = self._processes[number]
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_number)

    def _follow(
        self, number: int, process: subprocess.Popen[bytes], invite_url: str
    ) -> None:
        """Feed a run, read its output to the end, and report it."""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(f"{invite_url}\n".encode())
        with process.stdout as stdout:
            tail = _read_tail(stdout, TAIL_BYTES + len(invite_url))
        code = process.wait()
        lines = visible_lines(tail, invite_url)
        error = None if code == 0 else _describe_failure(code, lines)
        self._on_end(number, error, lines[-1] if lines else "")


def _read_tail(stream: IO[bytes], size: int) -> bytes:
    """Read a stream to its end, and return its last bytes."""
    tail = b""
    while chunk := os.read(stream.fileno(), 1 << 16):
        tail = (tail + chunk)[-size:]
    return tail


def visible_lines(output: bytes, invite_url: str) -> list[str]:
    """Return the last lines of an output as text without control characters or invite.

    If the output was cut, its first characters may be the end of the invite, so as many
    characters as the invite has are left out.
    """
    text = output.decode("utf-8", "replace")
    code = invite_url.rpartition("/")[2]
    for secret in (invite_url, code, code.partition("-")[2]):
        if secret:
            text = text.replace(secret, HIDDEN)
    if len(output) >= TAIL_BYTES + len(invite_url):
        text = text[len(invite_url) :]
    lines = [on_one_line(line.strip()) for line in text.splitlines() if line.strip()]
    return [line[:SHOWN_CHARS_MAX] for line in lines[-SHOWN_LINES_MAX:]]


def _describe_failure(code: int, lines: Sequence[str]) -> str:
    """Return how a run ended and what it printed last."""
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return "\n".join([how, *lines]) if lines else f"{how}, without a message"
