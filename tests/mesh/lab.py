"""A LAN of hosts made of network namespaces, with decoys and faults.

A `Lab` has a switch (a namespace with bridges) and hosts (a namespace each, with `eth0`
plugged into the switch). It never touches the network of this machine. Each host also
has interfaces of real machines that agents must not advertise: a `docker0` with the
same address everywhere, and a `tun0`. Needs root and iproute2.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.mesh.agents import Agent, Answer
from tests.mesh.netns import NETNS, end_all_in, enter, have_carrier, ip, wait_until
from tests.support.agents import UnixConnection, fork_agent
from tests.support.fork_server import ForkedProcess

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
REQUEST_S = 30.0
CARRIER_S = 45.0
DECOY_HOST = "172.17.0.1"  #: of the docker0 of each host
OF_THE_STARTER = ("OCTASKLY_", "XDG_", "NOTIFY_", "WATCHDOG_", "MAKE", "MFLAGS")
"""Variables with these first letters say who starts the tests, as `make` does."""
TUNNEL_NET = "10.8.0."
HIDE = """
while [ "$1" != -- ]; do mount -t tmpfs tmpfs "$1" || exit 1; shift; done
shift; exec "$@"
"""
"""Covers folders for one command; `ip netns exec` gave it mounts of its own."""


class Host:
    """One machine of the lab."""

    def __init__(self, lab: "Lab", number: int) -> None:
        self.number = number
        self.name = f"h{number}"
        self.netns = f"{lab.prefix}h{number}"
        self.port = f"p{number}"  #: bridge ports of the switch
        self.ip = f"10.77.1.{number}"
        self.mac = f"02:77:00:00:01:{number:02x}"
        self.link_local = f"fe80::77:ff:fe00:1{number:02x}"
        self.folder = lab.folder / self.name
        self.folder.mkdir()
        self.agents: dict[str, Agent] = {}
        self.program = "octaskly"  #: the module that is run as agent
        self._lab = lab
        self._inside = ThreadPoolExecutor(1, initializer=enter, initargs=(self.netns,))

    @property
    def prefix(self) -> list[str]:
        """The command prefix for this namespace; the command keeps the pid."""
        place = ["ip", "netns", "exec", self.netns]
        if not self._lab.has_own_disks:
            return place
        others = [str(host.folder) for host in self._lab.hosts if host is not self]
        return [*place, "sh", "-c", HIDE, "hide", *others, "--"]

    def popen(self, *args: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start a command here; it is killed at the end of the lab."""
        process = subprocess.Popen([*self.prefix, *args], cwd=ROOT, **options)
        self._lab.processes.append(process)
        return process

    def run(
        self, *args: str, timeout_s: float = 60.0, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command here to its end and return its output."""
        return subprocess.run(
            [*self.prefix, *args],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            **options,
        )

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on a thread that lives in this namespace.

        Its sockets stay in the namespace wherever they are used later.
        """
        return self._inside.submit(function, *args).result()

    def connect(self, address: tuple[str, int], timeout_s: float) -> socket.socket:
        """Open a TCP connection from here."""
        return self.call(socket.create_connection, address, timeout_s)

    def environ(self, name: str) -> dict[str, str]:
        """Return the environment of an agent and its CLI, with folders of its own."""
        folder = self.folder / name
        own = {
            "HOME": "home",
            "XDG_STATE_HOME": "xdg-state",
            "XDG_CONFIG_HOME": "xdg-config",
            "XDG_RUNTIME_DIR": "run",
        }
        for place in own.values():
            (folder / place).mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(OF_THE_STARTER)
        }
        return {**kept, **{key: str(folder / place) for key, place in own.items()}}

    def agent(
        self,
        name: str = "",
        *args: str,
        secret: Path | None = None,
        env: Mapping[str, str] | None = None,
        mounts: str = "",
        is_awaited: bool = True,
    ) -> Agent:
        """Start an agent here, and wait until it is ready.

        Args:
            name: Name of the node; by default the name of the host.
            args: Further options of `octaskly agent`.
            secret: The file of the mesh secret; None: the agent finds its own.
            env: Further environment variables.
            mounts: Shell text that mounts what only this agent sees.
            is_awaited: True to wait; otherwise read its `description` later.
        """
        name = name or self.name
        folder = self.folder / name
        environ = {**self.environ(name), **(env or {})}
        (folder / "work").mkdir(exist_ok=True)
        options = ["--name", name, "--state-dir", str(folder / "state")]
        options += ["--workdir", str(folder / "work")]
        if secret is not None:
            options += ["--secret-file", str(secret)]
        words = ["agent", *options, *args]
        # Without a secret it looks for a mesh while it loads its modules.
        is_plain = not (env or mounts or self._lab.has_own_disks)
        is_usual = self.program == "octaskly" and secret is not None and is_plain
        process: ForkedProcess | subprocess.Popen[bytes] | None = None
        with (
            (folder / "agent.log").open("ab") as log,
            Path(os.devnull).open("rb") as nothing,
        ):
            files = (nothing, log, log)
            if is_usual:
                process = fork_agent(
                    words, environ=environ, files=files, netns=self.netns
                )
            process = process or self.popen(
                *with_mounts(mounts),
                *(sys.executable, "-m", self.program, *words),
                env=environ,
                stdin=nothing,
                stdout=log,
                stderr=log,
            )
        agent = Agent(process, folder, name)
        self.agents[name] = agent
        if is_awaited:
            assert agent.description
        return agent

    @property
    def first(self) -> Agent:
        """The agent that was started here first, usually the only one."""
        return next(iter(self.agents.values()))

    def cli(
        self, *args: str, name: str = "", timeout_s: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run `octaskly ...` here, against an agent of this host."""
        agent = self.agents[name] if name else self.first
        return self.run(
            *(sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *args),
            env=self.environ(agent.name),
            timeout_s=timeout_s,
        )

    def token(self) -> str:
        """Return a token of the mesh with all rights, made by this host."""
        asked = {"role": "admin", "subject": "lab"}
        made = self.http("POST", "/api/v1/tokens", json=asked)
        assert made.status == 201, made.body
        return str(made.json["token"])

    def http(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
        timeout_s: float = REQUEST_S,
    ) -> Answer:
        """Send a request to the first agent of this host, as a user of the host would.

        Without a token it goes over the local socket, which needs none. With a token,
        or with `token=""` for no token, it goes from here over TCP. The port is that of
        the agent, unless it is given.
        """
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        body = None
        if json is not None:
            sent["Content-Type"] = "application/json"
            body = _dumps(json)
        connection: http.client.HTTPConnection
        if token is None:
            path_here = self.first.description["socket"]
            connection = UnixConnection(path_here, timeout_s)
        else:
            connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
            port = port or int(self.first.description["api_url"].rpartition(":")[2])
            connection.sock = self.connect(("localhost", port), timeout_s)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())

    def close(self) -> None:
        """End the thread of the namespace."""
        self._inside.shutdown(wait=True)


class Lab:
    """A switch with hosts; use it as a context manager."""

    def __init__(self, hosts: int = 3, *, has_own_disks: bool = False) -> None:
        """Describe it; nothing is made yet.

        Args:
            hosts: The number of hosts.
            has_own_disks: True if commands on a host cannot see the folders of others.
        """
        self.has_own_disks = has_own_disks
        self.prefix = f"ok{os.getpid():x}{_next_number():x}"
        self.switch = f"{self.prefix}sw"
        self.folder = Path(tempfile.mkdtemp(prefix="oklab-"))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.hosts = [Host(self, number) for number in range(1, hosts + 1)]
        self._bridges = 1

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.show_logs()
        self.close()

    def cut(self, host: Host) -> None:
        """Unplug a host; it gets silence, no refusals."""
        ip(f"link set {host.port} down", netns=self.switch)

    def heal(self, host: Host) -> None:
        """Plug a host in again."""
        ip(f"link set {host.port} up", netns=self.switch)

    def replace_device(self, host: Host) -> None:
        """Give a host a new network device, with the same address as the old one."""
        ip(f"link del {host.port}", _cable_command(host), netns=self.switch)
        ip(f"link set {host.port} master br0 up", netns=self.switch)
        ip(
            f"link set eth0 address {host.mac} multicast on up",
            f"addr add {host.ip}/24 dev eth0",
            "route add 224.0.0.0/4 dev eth0",
            netns=host.netns,
        )

    def split(self, *groups: Sequence[Host]) -> None:
        """Let hosts talk within their group only; all groups stay up."""
        while self._bridges < len(groups):
            ip(*_bridge_commands(self._bridges), netns=self.switch)
            self._bridges += 1
        self._plug({host: n for n, group in enumerate(groups) for host in group})

    def join(self) -> None:
        """End a split."""
        self._plug(dict.fromkeys(self.hosts, 0))

    def misroute(self, host: Host, peer: Host) -> None:
        """Drop frames from a host to a peer's address; multicast still passes."""
        nowhere = "lladdr 02:77:00:00:09:99 nud permanent dev eth0"
        ip(
            f"neigh replace {peer.ip} {nowhere}",
            f"neigh replace {peer.link_local} {nowhere}",
            netns=host.netns,
        )

    def end_misroute(self, host: Host, peer: Host) -> None:
        """End `misroute`."""
        ip(
            f"neigh del {peer.ip} dev eth0",
            f"neigh del {peer.link_local} dev eth0",
            netns=host.netns,
        )

    def close(self) -> None:
        """End every process of the lab and take it down."""
        for name in self._namespaces():
            end_all_in(name)
        for host in self.hosts:
            for agent in host.agents.values():
                agent.kill()  # It has ended, and its socket is closed here.
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for host in self.hosts:
            host.close()
        ip(*(f"netns del {name}" for name in self._namespaces()))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _build(self) -> None:
        names = [self.switch, *(host.netns for host in self.hosts)]
        ip(*(f"netns add {name}" for name in names))
        ip(*_bridge_commands(0), netns=self.switch)
        for host in self.hosts:
            # Without it a link-local address is not usable for a second or two.
            quick = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
            done = host.run("sh", "-c", quick)
            assert done.returncode == 0 or "nonexistent" in done.stderr, done.stderr
        ip(*map(_cable_command, self.hosts), netns=self.switch)
        ip(
            *(f"link set {host.port} master br0 up" for host in self.hosts),
            netns=self.switch,
        )
        for host in self.hosts:
            ip(*_host_commands(host), netns=host.netns)
        wait_until(
            "all cables carry",
            lambda: all(map(have_carrier, names)),
            within_s=CARRIER_S,
        )

    def _plug(self, bridges: Mapping[Host, int]) -> None:
        ip(
            *(
                f"link set {host.port} master br{number}"
                for host, number in bridges.items()
            ),
            netns=self.switch,
        )

    def _namespaces(self) -> list[str]:
        """Return the existing namespaces; a build may have ended half-way."""
        if not NETNS.is_dir():
            return []
        return [path.name for path in NETNS.glob(f"{self.prefix}*")]

    def show_logs(self) -> None:
        """Print the end of each agent's log, for the report of a failed test."""
        for host in self.hosts:
            for agent in host.agents.values():
                lines = agent.log.splitlines()[-60:]
                print(
                    f"--- {agent.name} (exit {agent.process.poll()})", *lines, sep="\n"
                )


def with_mounts(mounts: str) -> list[str]:
    """Return the prefix of a command on a host that sees mounts of its own.

    `ip netns exec` has made a mount namespace for it.
    """
    return ["sh", "-ec", f'{mounts}\nexec "$@"', "sh"] if mounts else []


def _bridge_commands(number: int) -> list[str]:
    """Return the commands for a bridge that floods multicast and forwards at once."""
    kind = "type bridge mcast_snooping 0 stp_state 0 forward_delay 0"
    return [f"link add br{number} {kind}", f"link set br{number} up"]


def _cable_command(host: Host) -> str:
    """Return the commands for the cable between the switch and a host."""
    return f"link add {host.port} type veth peer name eth0 netns {host.netns}"


def _host_commands(host: Host) -> list[str]:
    """Return the commands that give a host its addresses and decoys."""
    tunnel = f"{TUNNEL_NET}{host.number} peer {TUNNEL_NET}254"
    return [
        "link set lo up",
        f"link set eth0 address {host.mac} multicast on up",
        f"addr add {host.ip}/24 dev eth0",
        "route add 224.0.0.0/4 dev eth0",
        "link add docker0 type bridge",
        f"addr add {DECOY_HOST}/16 dev docker0",
        "link set docker0 up",
        "tuntap add dev tun0 mode tun",
        f"addr add {tunnel} dev tun0",
        "link set tun0 up",
    ]


_made = 0


def _next_number() -> int:
    """Count the labs of this process, so that their names differ."""
    global _made  # noqa: PLW0603  names of namespaces are global to the machine
    _made += 1
    return _made


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()
