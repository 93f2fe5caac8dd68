"""A local user who takes a port once it is free, and keeps all that is sent there.

Usage: port_thief.py UID PORT ADDRESS..., as root. It becomes that user, prints a line
when it has failed once, and one when it has the port. Then it writes to stdout what
programs send. It answers as an agent would, so that a program which trusts the port
goes on talking.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

THIEF_UID = 64_420
TRIED = b"the port is taken\n"
BOUND = b"the port is mine\n"
RETRY_S = 0.001
BODY = b'{"status":"healthy","version":"1.0.0","uptime_seconds":1}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class Thief:
    """The process of the attacker, and what it has got."""

    def __init__(self, heard: Path) -> None:
        self._heard = heard

    def heard(self) -> bytes:
        """Return its lines, and what was sent to it."""
        return self._heard.read_bytes()

    def has_tried(self) -> bool:
        """Return True once it has found the port taken; it tries again all the time."""
        return TRIED in self.heard()

    def has_port(self) -> bool:
        """Return True once it listens on all of its addresses."""
        return BOUND in self.heard()


@contextlib.contextmanager
def thief(
    folder: Path, *addresses: str, port: int = 3000, uid: int = THIEF_UID
) -> Iterator[Thief]:
    """Let somebody try to take a port, for the length of a block."""
    heard = folder / f"heard-{uid}"
    with (
        heard.open("wb") as file,
        subprocess.Popen(
            [sys.executable, __file__, str(uid), str(port), *addresses], stdout=file
        ) as process,
    ):
        try:
            yield Thief(heard)
        finally:
            process.kill()


def take(address: str, port: int) -> socket.socket:
    """Return a listener, as soon as the port is free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for count in itertools.count(1):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((address, port))
            listener.listen()
        except OSError:
            listener.close()
            if count == 1:
                os.write(1, TRIED)
            time.sleep(RETRY_S)
        else:
            return listener
    raise AssertionError("unreachable")


def listen(listeners: list[socket.socket]) -> None:
    """Keep what is sent, and answer."""
    ready = selectors.DefaultSelector()
    for listener in listeners:
        ready.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            assert isinstance(key.fileobj, socket.socket)
            if key.fileobj in listeners:
                ready.register(key.fileobj.accept()[0], selectors.EVENT_READ)
                continue
            with contextlib.suppress(OSError):
                data = key.fileobj.recv(65_536)
                os.write(1, data)
                if data:
                    key.fileobj.sendall(ANSWER)
                    continue
            ready.unregister(key.fileobj)
            key.fileobj.close()


def main() -> None:
    """Become the user, take the port, listen."""
    uid, port, *addresses = sys.argv[1:]
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    listeners = [take(address, int(port)) for address in addresses]
    os.write(1, BOUND)
    listen(listeners)


if __name__ == "__main__":
    main()
