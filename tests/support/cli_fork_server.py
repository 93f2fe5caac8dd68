"""A server that forks for each `octaskly` command, which saves interpreter starts.

The server has imported all commands, and forks for each one that is typed. A small
program hands over the words, folder, environment and open files, passes on Ctrl-C, and
ends as the command did. So a command runs its usual code, with one difference: its
modules were imported before. An agent starts without the server.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TYPED = """#!{python} -IS
import os, signal, socket, sys

if "agent" in sys.argv[1:] or "demo" in sys.argv[1:]:
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
request = [os.getcwd(), str(len(sys.argv) - 1), *sys.argv[1:]]
request += [f"{{name}}={{value}}" for name, value in os.environ.items()]
data = chr(0).join(request).encode(errors="surrogateescape")
socket.send_fds(server, [len(data).to_bytes(4, "big")], [0, 1, 2])
server.sendall(data)
pid = int.from_bytes(server.recv(4), "big")
signal.signal(signal.SIGINT, lambda *_: os.kill(pid, signal.SIGINT))
sys.exit(server.recv(1)[0])
"""
"""The program that users type; it imports next to nothing."""


@contextlib.contextmanager
def forking_cli(folder: Path) -> Iterator[Path]:
    """Run the server for the length of a block; return the folder for the path."""
    path = folder / "cli.sock"
    typed = folder / "octaskly"
    program = str(Path(sys.executable).with_name("octaskly"))
    typed.write_text(
        TYPED.format(python=sys.executable, program=program, path=str(path))
    )
    typed.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.cli_fork_server", str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield folder
    finally:
        server.terminate()
        server.communicate()


def serve(path: str) -> None:
    """Fork for each typed command."""
    from octaskly.cli.root import COMMANDS

    for place in COMMANDS.values():
        importlib.import_module(place.partition(":")[0])
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


def _answer(client: socket.socket) -> None:
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += client.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        client.close()
        for target, source in enumerate(files):
            os.dup2(source, target)
            os.close(source)
        _run(data.decode(errors="surrogateescape").split("\0"))
    client.sendall(pid.to_bytes(4, "big"))
    for source in files:
        os.close(source)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    client.sendall((code if code >= 0 else 128 - code).to_bytes(1, "big"))


def _run(request: list[str]) -> None:
    from octaskly.cli import main

    folder, count, *rest = request
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
    serve(sys.argv[1])
