"""A server that forks for each `octaskly` process, which saves interpreter starts.

The server has imported the modules of all commands, or those of an agent, and forks for
each process that is asked of it. It takes over words, folder, environment and open
files, and reports how the process ended. So a process runs its usual code, with one
difference: its modules were imported before.

Commands are typed as a small program, which passes on Ctrl-C and ends as the command
did. It starts agents without the server. Tests that start an agent themselves get one
that is forked from a server of its own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from aiohttp import web

from octaskly.system.build import build_id
from tests.mesh.netns import enter_as_command, set_namespace

THREAD_NETWORK = Path("/proc/thread-self/ns/net")
"""The network namespace of the calling thread, which tests may have moved."""

TYPED = """#!{python} -IS
import os, signal, socket, sys

if "agent" in sys.argv[1:] or "demo" in sys.argv[1:]:
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = [os.getcwd(), "", str(len(sys.argv) - 1), *sys.argv[1:]]
request += [f"{{name}}={{value}}" for name, value in os.environ.items()]
data = chr(0).join(request).encode(errors="surrogateescape")
socket.send_fds(server, [len(data).to_bytes(4, "big")], [0, 1, 2])
server.sendall(data)
pid = int.from_bytes(server.recv(4), "big")
signal.signal(signal.SIGINT, lambda *_: os.kill(pid, signal.SIGINT))
code = int.from_bytes(server.recv(4), "big", signed=True)
sys.exit(code if code >= 0 else 128 - code)
"""
"""The program that users type; it imports next to nothing."""


class ForkedProcess:
    """A process that a server has forked, used as `subprocess.Popen` is."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.pid = int.from_bytes(link.recv(4), "big")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, negative by a signal; None: it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return how it ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._link, select.POLLIN)
            if not poll.poll(None if timeout is None else max(0.0, timeout * 1000)):
                raise subprocess.TimeoutExpired("octaskly", timeout or 0.0)
            code = self._link.recv(4)
            assert len(code) == 4, "the fork server has ended"
            self.returncode = int.from_bytes(code, "big", signed=True)
            self._link.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A server of processes with some modules; the first of them starts it."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._stack = contextlib.ExitStack()
        self._path: Path | None = None

    def start(
        self,
        words: Sequence[str],
        *,
        environ: Mapping[str, str],
        files: Sequence[IO[bytes]],
        netns: str = "",
    ) -> ForkedProcess:
        """Start `octaskly` with these words.

        Args:
            words: Its arguments.
            environ: Its environment.
            files: Its stdin, stdout and stderr.
            netns: Its network namespace; by default that of the calling thread.
        """
        if self._path is None:
            folder = tempfile.TemporaryDirectory(prefix="okf-")
            path = Path(self._stack.enter_context(folder)) / "server.sock"
            self._stack.enter_context(forking(path, *self._modules))
            self._path = path
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self._path))
        request = [str(Path.cwd()), netns, str(len(words)), *words]
        request += [f"{name}={value}" for name, value in environ.items()]
        data = "\0".join(request).encode(errors="surrogateescape")
        with THREAD_NETWORK.open("rb") as network:
            descriptors = [one.fileno() for one in (*files, network)]
            socket.send_fds(link, [len(data).to_bytes(4, "big")], descriptors)
        link.sendall(data)
        return ForkedProcess(link)

    def close(self) -> None:
        """End the server."""
        self._stack.close()


@contextlib.contextmanager
def forking_cli(folder: Path) -> Iterator[Path]:
    """Run a server of commands for a block; return the folder for the path."""
    path = folder / "cli.sock"
    typed = folder / "octaskly"
    program = str(Path(sys.executable).with_name("octaskly"))
    typed.write_text(
        TYPED.format(python=sys.executable, program=program, path=str(path))
    )
    typed.chmod(0o755)
    with forking(path):
        yield folder


@contextlib.contextmanager
def forking(path: Path, *modules: str) -> Iterator[None]:
    """Run a server for a block, with these modules; by default those of commands."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server", str(path), *modules],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
    finally:
        server.terminate()
        server.communicate()


def serve(path: str, modules: Sequence[str]) -> None:
    """Fork for each request."""
    for module in modules or _modules_of_commands():
        importlib.import_module(module)
    if modules:
        _prepare_agents()
    # A collection in each process would copy what it looks at.
    gc.collect()
    gc.freeze()
    # No process waits for the child that answers.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _answer(client)
            os._exit(0)
        client.close()


def _prepare_agents() -> None:
    """Do once what each agent would do again: read files, and compile patterns."""
    from octaskly.api.routes import dashboard, table

    build_id()
    dashboard.assets()
    router = web.UrlDispatcher()
    for route in table.ROUTES:
        router.add_resource(route.path)


def _modules_of_commands() -> list[str]:
    from octaskly.cli.command_names import COMMANDS

    return [place.partition(":")[0] for place in COMMANDS.values()]


def _answer(client: socket.socket) -> None:
    size, files, _, _ = socket.recv_fds(client, 4, 4)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += client.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        client.close()
        for network in files[3:]:
            if os.fstat(network).st_ino != THREAD_NETWORK.stat().st_ino:
                set_namespace(network)
            os.close(network)
        for target, source in enumerate(files[:3]):
            os.dup2(source, target)
            os.close(source)
        _run(data.decode(errors="surrogateescape").split("\0"))
    client.sendall(pid.to_bytes(4, "big"))
    for source in files:
        os.close(source)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # The test does not care any more.
        client.sendall(code.to_bytes(4, "big", signed=True))


def _run(request: list[str]) -> None:
    from octaskly.cli import main

    folder, netns, count, *rest = request
    if netns:
        enter_as_command(netns)
    os.chdir(folder)
    os.environ.clear()
    for variable in rest[int(count) :]:
        name, _, value = variable.partition("=")
        os.environ[name] = value
    time.tzset()  # From the environment of the caller.
    sys.argv = ["octaskly", *rest[: int(count)]]
    code = 1
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
