"""Faults of a host: disks, sockets, multicast, saved states.

Links, splits and wrong neighbour entries are methods of `Lab`; signals are methods of
`Agent`.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.mesh.lab import Host, Lab
from tests.mesh.netns import ip

CHUNK = 64 << 10
PROXY_LINKS_MAX = 64
PAGE = 4096


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path]:
    """Mount a small file system at a folder, before an agent uses it."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={size_mb}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "lab", folder], check=True)
    try:
        yield folder
    finally:
        # Lazily: the agent that still uses it ends with the lab.
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, *, left_bytes: int = 0) -> Path:
    """Fill a folder's disk except for so many bytes; return the file that fills it."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(max(0, free - left_bytes) // PAGE):
            file.write(bytes(PAGE))
    return ballast


def save(state: Path, copy: Path) -> None:
    """Copy the state folder of a stopped agent, as a backup does."""
    shutil.copytree(state, copy, ignore=shutil.ignore_patterns("*.sock", "agent.json"))


def restore(copy: Path, state: Path) -> None:
    """Put a copy in the place of a state folder."""
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(copy, state)


def lose_log(state: Path) -> None:
    """Delete the database of a stopped agent; it keeps its key and name."""
    for path in state.glob("log.db*"):
        path.unlink()


def damage(state: Path, *, page: int = 1) -> None:
    """Overwrite a page of the database of a stopped agent."""
    with (state / "log.db").open("r+b") as file:
        file.seek(page * PAGE)
        file.write(os.urandom(PAGE))


def block_multicast(lab: Lab, host: Host) -> None:
    """Block multicast to a host; all other traffic passes."""
    ip(f"link set {host.port} type bridge_slave mcast_flood off", netns=lab.switch)


def block_connections(lab: Lab, host: Host, peer: Host) -> None:
    """Block connections between two hosts; multicast passes."""
    lab.misroute(host, peer)
    lab.misroute(peer, host)


def allow_connections(lab: Lab, host: Host, peer: Host) -> None:
    """End `block_connections`."""
    lab.end_misroute(host, peer)
    lab.end_misroute(peer, host)


def move(host: Host, address: str) -> None:
    """Give a host another address on the same network, as DHCP may."""
    ip(
        f"addr del {host.ip}/24 dev eth0",
        f"addr add {address}/24 dev eth0",
        netns=host.netns,
    )
    if not host.run("ip", "route", "show", "224.0.0.0/4").stdout:
        ip("route add 224.0.0.0/4 dev eth0", netns=host.netns)
    host.ip = address


class Proxy:
    """Relays TCP connections from one host to another, slowly or not at all.

    While it stalls, it reads and sends nothing, and data waits in sockets: the peer is
    half-open. Use it as a context manager.
    """

    def __init__(self, host: Host, port: int, target: tuple[str, int]) -> None:
        self.delay_s = 0.0
        self._host = host
        self._target = target
        self._flows = threading.Event()
        self._flows.set()
        self._is_over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = host.call(lambda: socket.create_server(("", port)))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def stall(self) -> None:
        """Relay nothing from now on."""
        self._flows.clear()

    def flow(self) -> None:
        """Relay the waiting data, and all that arrives."""
        self._flows.set()

    @property
    def links(self) -> int:
        """The number of connections made so far."""
        return len(self._sockets) // 2

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._flows.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._sockets) < 2 * PROXY_LINKS_MAX:
                near, _ = self._listener.accept()
                try:
                    far = self._host.connect(self._target, 5.0)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._sockets += (near, far)
                for source, target in ((near, far), (far, near)):
                    pump = threading.Thread(
                        target=self._pump, args=(source, target), daemon=True
                    )
                    self._threads.append(pump)
                    pump.start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._is_over.wait(self.delay_s)
                self._flows.wait()
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
