"""An agent as the system unit sets it up, without systemd.

Users, folders, modes, umask, capabilities and the sockets of the API are those of
`systemd/octaskly.service` and `octaskly.socket`, whose lines are read here. The sandbox
of the unit, which would hide more, is left out: what is refused here is refused with
any sandbox.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octaskly.trust import create_secret_file
from tests.support import as_systemd, as_unit
from tests.support.agents import Agent, ending

SYSTEMD = as_unit.CHECKOUT / "systemd"
AGENT_UID, TASK_UID = as_unit.AGENT[1], as_unit.TASKS[1]
DEFAULT_MODE = "0755"  #: of systemd, where a unit states none


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemAgent:
    """The agent, and the folders that systemd makes for it."""

    agent: Agent
    state: Path
    runtime: Path
    cache: Path
    settings: Path
    credentials: Path

    @property
    def base(self) -> Path:
        """The folder of all of these, and of the file `journal`."""
        return self.state.parent

    @property
    def pid(self) -> int:
        """The process id of the agent."""
        return self.agent.process.pid


def options(unit: str, section: str) -> dict[str, list[str]]:
    """Return the options of a section of a unit file."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in (SYSTEMD / unit).read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and not line.startswith("#") and "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@contextlib.contextmanager
def api_sockets() -> Iterator[list[socket.socket]]:
    """The listening sockets of `octaskly.socket`, owned by root."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for address in options("octaskly.socket", "Socket")["ListenStream"]:
            host, _, port = address.rpartition(":")
            family = socket.AF_INET6 if "[" in host else socket.AF_INET
            bound = (host.strip("[]"), int(port))
            sockets.append(
                stack.enter_context(socket.create_server(bound, family=family))
            )
        yield sockets


@contextlib.contextmanager
def system_agent(*extra: str) -> Iterator[SystemAgent]:
    """Run an agent with the users, folders and sockets of the system unit."""
    base = Path(tempfile.mkdtemp(prefix="octaskly-", dir="/tmp"))
    base.chmod(0o755)  # As /var/lib and its like are.
    found = _make_folders(base)
    with api_sockets() as sockets:
        process = _start(base, found, sockets, extra)
        agent = Agent(process, found["STATE"], time.perf_counter())
        with ending(agent):
            agent.ready()
            yield SystemAgent(
                agent=agent,
                state=found["STATE"],
                runtime=found["RUNTIME"],
                cache=found["CACHE"],
                settings=found["CONFIGURATION"],
                credentials=found["CREDENTIALS"],
            )
    shutil.rmtree(base)


def _make_folders(base: Path) -> dict[str, Path]:
    """Make the folders as systemd does, and the home of tasks as systemd-tmpfiles."""
    service = options("octaskly.service", "Service")
    folders = {}
    for kind in ("State", "Runtime", "Cache", "Configuration"):
        place = base / kind.lower()
        place.mkdir()
        place.chmod(int(service.get(f"{kind}DirectoryMode", [DEFAULT_MODE])[0], 8))
        if kind != "Configuration":
            os.chown(place, AGENT_UID, AGENT_UID)
        folders[kind.upper()] = place
    credentials = base / "credentials"
    create_secret_file(credentials / "mesh.key")
    for place, mode in ((credentials / "mesh.key", 0o400), (credentials, 0o500)):
        os.chown(place, AGENT_UID, AGENT_UID)
        place.chmod(mode)
    settings = folders["CONFIGURATION"] / "config.toml"
    settings.write_text('name = "sys"\nslots = 2\ninterfaces = ["lo"]\n')
    settings.chmod(0o644)
    for name, kind, mode, user, *_ in _tmpfiles():
        if name.startswith("/var/cache/octaskly/"):
            place = folders["CACHE"] / Path(name).name
            assert (kind, user) == ("d", "octaskly-task")
            place.mkdir()
            place.chmod(mode)
            os.chown(place, TASK_UID, TASK_UID)
    return {**folders, "CREDENTIALS": credentials}


def _tmpfiles() -> Iterator[tuple[str, str, int, str]]:
    """Yield path, type, mode and user of each line of the tmpfiles of the unit."""
    for line in (SYSTEMD / "tmpfiles.d" / "octaskly.conf").read_text().splitlines():
        if not line.startswith("#"):
            kind, path, mode, user, *_ = line.split()
            yield path, kind, int(mode, 8), user


def _start(
    base: Path,
    folders: dict[str, Path],
    sockets: list[socket.socket],
    extra: tuple[str, ...],
) -> subprocess.Popen[bytes]:
    numbers = [each.fileno() for each in sockets]
    kept = {
        n: v for n, v in os.environ.items() if not n.startswith(("OCTASKLY_", "XDG_"))
    }
    places = {f"{kind}_DIRECTORY": str(place) for kind, place in folders.items()}
    with (base / "journal").open("ab") as journal:
        (base / "journal").chmod(0o640)
        return subprocess.Popen(
            [
                *(sys.executable, as_systemd.__file__, ",".join(map(str, numbers))),
                *("unshare", "--mount", "--propagation", "private"),
                *(sys.executable, as_unit.__file__, str(folders["CACHE"]), *extra),
            ],
            stdout=journal,
            stderr=journal,
            stdin=subprocess.DEVNULL,
            env={**kept, **places, "OCTASKLY_TASK_USER": as_unit.TASKS[0]},
            pass_fds=numbers,
        )
