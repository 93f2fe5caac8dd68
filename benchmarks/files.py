"""Files that travel, beside nginx over HTTPS on the same pair of hosts.

Each host is a namespace with folders of its own. Needs root, iproute2, nginx, curl and
openssl. With the variable `BEFORE`, a tree of this repository from before tasks had
files, it also compares the path of a task without files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final, NamedTuple, Self

from benchmarks import compare
from benchmarks.measure import (
    Row,
    bound_row,
    children,
    cpu_s,
    rss_max_mb,
    rss_mb,
)
from octaskly.client.command_session import Session
from octaskly.client.flows.files import SentTree, TreeContents, upload_tree
from octaskly.files.digest_index import RACY_NS, DigestIndex
from octaskly.files.local_tree import name_path, scan_tree
from octaskly.files.manifest import (
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)
from tests.mesh.forming import form, roles
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import missing, wait_until

SMALL_FILES: Final = 1000
SMALL_BYTES: Final = 1024
LARGE_BYTES: Final = 1 << 30
MEMORY_MB: Final = 64  #: much less than the file
MANY_HOSTS: Final = 8
LINK_MBIT: Final = 100  #: so that the links are the limit, not the processors
SHAPED_BYTES: Final = 1 << 26
BEFORE_MIN: Final = 0.98
WITHOUT_FILES: Final = (
    ("bulk", 10, "true, tasks/s", "true by bulk REST, by before"),
    ("latency", 100, "submit to result, ms", "before, by submit to result"),
)
"""A comparison, its turns in a round, its figure, and the name of the row."""

NGINX: Final = "nginx by HTTPS"
BY_NGINX: Final = "the same forwarded by nginx"
FETCH: Final = "fetch over HTTPS"
FORWARDED: Final = "forwarded fetch"

NGINX_PORT: Final = 8443
NGINX_CONF: Final = """
daemon off; pid {folder}/{ip}.pid; error_log {folder}/error.log; worker_processes 2;
events {{ }}
http {{
    access_log off; sendfile on;
    server {{
        listen {ip}:{port} ssl; {serves}
        ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
        ssl_protocols TLSv1.3;
    }}
}}
"""
NGINX_FORWARDS: Final = """
        location / {{
            proxy_pass https://{ip}:{port}; proxy_http_version 1.1;
            proxy_max_temp_file_size 0; proxy_buffers 16 64k; proxy_buffer_size 64k;
            proxy_busy_buffers_size 256k;
        }}
"""


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure small files, a changed file, large files, and one tree for many hosts."""
    yield from _scan(folder / "scanned", runs=3 if quick else 15)
    if (reason := missing()) is not None:
        raise FileNotFoundError(reason)
    with Lab(2) as lab:
        form(lab)
        lender, (worker,) = roles(lab)
        yield from _small(lender, worker, runs=1 if quick else 5)
        size_bytes = (1 << 28) if quick else LARGE_BYTES
        yield from _large(lab, lender, worker, size_bytes, turns=1 if quick else 5)
    with Lab(1 + MANY_HOSTS) as lab:
        form(lab)
        yield from _many(lab, (1 << 24) if quick else SHAPED_BYTES)
    if before := os.environ.get("BEFORE"):
        yield from _without_files(folder, Path(before), rounds=1 if quick else 5)


def _scan(top: Path, *, runs: int) -> Iterator[Row]:
    """Scan a work tree again after a change to one of its files."""
    for number in range(SMALL_FILES):
        place = top / f"folder{number % 10}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(SMALL_BYTES))
    subprocess.run(["git", "init", "-q", top], check=True)
    subprocess.run(["git", "-C", top, "add", "-A"], check=True)
    named = [name_path(".", None, str(top))]
    taken_s = []
    for _ in range(1 + runs):
        began_s = time.perf_counter()
        # Files that were just written count as old, as in a later command.
        with DigestIndex(top.parent / "digests.db", _later_ns) as index:
            tree = scan_tree(named, index=index)
        taken_s.append(time.perf_counter() - began_s)
        assert len(tree.manifest.files) == SMALL_FILES
        (top / "folder0/file0").write_bytes(os.urandom(SMALL_BYTES))
    yield bound_row(
        f"one changed file of {SMALL_FILES} is found",
        statistics.median(taken_s[1:]) * 1000,
        "ms",
        150,
    )


def _later_ns() -> int:
    return time.time_ns() + 2 * RACY_NS


def _small(lender: Host, worker: Host, *, runs: int) -> Iterator[Row]:
    fresh_s, again_bytes = [], []
    plain_s = statistics.median(_timed(worker, {}) for _ in range(5))
    for _ in range(runs):
        contents = {
            f"folder{number % 10}/file{number}": os.urandom(SMALL_BYTES)
            for number in range(SMALL_FILES)
        }
        fresh_s.append(_timed(worker, _with_tree(send_tree(lender, contents))))
        contents["folder0/file0"] = os.urandom(SMALL_BYTES)
        start = _moved_bytes(worker)
        _timed(worker, {})
        plain = _moved_bytes(worker)
        _timed(worker, _with_tree(send_tree(lender, contents)))
        again_bytes.append(_moved_bytes(worker) - plain - (plain - start))
    yield bound_row(
        f"{SMALL_FILES} small files reach a fresh node",
        statistics.median(fresh_s) - plain_s,
        "s",
        1.0,
    )
    yield bound_row(
        "one of them changed: bytes moved, beside those of `true`",
        statistics.median(again_bytes) / 1000,
        "kB",
        64 + SMALL_BYTES / 1000,
    )


def _large(
    lab: Lab, lender: Host, worker: Host, size_bytes: int, *, turns: int
) -> Iterator[Row]:
    """Move a file of random bytes in each direction and way.

    The ways take turns, so that other work on the machine meets all of them alike. Each
    figure is a median over the turns, and each ratio the median of those in one turn.
    """
    memory_mb = [rss_mb(host.first.process.pid) for host in (lender, worker)]
    pids = [host.first.process.pid for host in (lender, worker)]
    path, token = _output(lender, size_bytes), lender.token()
    plain_s = statistics.median(_timed(worker, {}) for _ in range(5))
    stored = _Stored(lender, worker, size_bytes, plain_s)
    unused = lab.folder / "written"
    with (
        _Nginx(lab, lender, size_bytes) as server,
        server.forwarded_by(worker) as (url, pid),
    ):
        ways = {
            NGINX: _Way(lambda: _curl(worker, server.url), [server.pid]),
            # No goal: a forwarded fetch that reaches it costs what it must.
            BY_NGINX: _Way(lambda: _curl(worker, url), [server.pid, pid]),
            "write of a new file": _Way(lambda: _write(unused, size_bytes)),
            "upload over HTTPS": _Way(stored.upload, goal=0.4),
            "supply to a task's node": _Way(stored.supply, goal=0.4),
            FETCH: _Way(lambda: _download(worker, lender, path, token), pids[:1], 1.0),
            FORWARDED: _Way(lambda: _download(worker, worker, path, token), pids, 0.6),
        }
        costs = [
            {name: _move(way, unused, size_bytes) for name, way in ways.items()}
            for _ in range(turns)
        ]
    for name, way in ways.items():
        yield _rate_row(name, costs, way.goal, size_bytes)
    ratio = _median_of(costs, lambda turn: turn[FETCH].cpu_s / turn[NGINX].cpu_s)
    yield bound_row("fetch: CPU of the agent, by that of nginx", ratio, "", 2)
    ratio = _median_of(costs, lambda turn: turn[FORWARDED].cpu_s / turn[BY_NGINX].cpu_s)
    yield "forwarded fetch: CPU of both nodes, by nginx", "", f"{ratio:.2f}", "", ""
    growth_mb = max(
        rss_max_mb(pid) - before for pid, before in zip(pids, memory_mb, strict=True)
    )
    yield bound_row("most memory for these files", growth_mb, "MB", MEMORY_MB)


class _Stored:
    """A file of random bytes that no node has, and then one, and then both."""

    def __init__(
        self, lender: Host, worker: Host, size_bytes: int, plain_s: float
    ) -> None:
        self._lender, self._worker = lender, worker
        self._size_bytes, self._plain_s = size_bytes, plain_s
        self._sha256 = ""

    def upload(self) -> float:
        """Upload a new file to the lender; return the seconds."""
        data = _random_bytes(self._size_bytes)
        self._sha256 = content_digest(data)
        return _upload(self._worker, self._lender, data)

    def supply(self) -> float:
        """Run a task elsewhere that reads it; return the seconds that this adds."""
        file = {"sha256": self._sha256, "node": self._lender.name}
        return _timed(self._worker, {"stdin_file": file}) - self._plain_s


class _Way(NamedTuple):
    """A way to move a file."""

    move: Callable[[], float]  #: returns the seconds
    servers: Sequence[int] = ()  #: process ids
    goal: float = 0.0  #: least rate, by that of nginx; 0 for none


class _Cost(NamedTuple):
    """What one move took."""

    wall_s: float
    cpu_s: float  #: of the servers


_Turn = dict[str, _Cost]  #: by way


def _move(way: _Way, unused: Path, size_bytes: int) -> _Cost:
    """Move a file once.

    It does not wait for the disk to take what others have written. Nor does a virtual
    machine get the file's memory from its host for the first time, which can take a
    second a GB: a file with the size of the measured one was at `unused` before.
    """
    os.sync()
    _write(unused, size_bytes)
    before_s = sum(map(_all_cpu_s, way.servers))
    wall_s = way.move()
    return _Cost(wall_s, sum(map(_all_cpu_s, way.servers)) - before_s)


def _all_cpu_s(pid: int) -> float:
    return cpu_s(pid) + sum(cpu_s(child) for child in children(pid))


def _median_of(turns: Iterable[_Turn], figure: Callable[[_Turn], float]) -> float:
    return statistics.median(map(figure, turns))


def _rate_row(name: str, turns: Sequence[_Turn], goal: float, size_bytes: int) -> Row:
    ratio = _median_of(turns, lambda turn: turn[NGINX].wall_s / turn[name].wall_s)
    taken_s = _median_of(turns, lambda turn: turn[name].wall_s)
    value = f"{size_bytes / taken_s / 1e6:.0f} MB/s"
    if not goal:
        return name, value, f"{ratio:.2f}", "", ""
    met = "yes" if ratio >= goal else "no"
    return name, value, f"{ratio:.2f}", f">= {goal} nginx", met


def _write(path: Path, size_bytes: int) -> float:
    """Write a file as uploads do, and delete it; return the seconds, their bound."""
    data = os.urandom(1 << 20)
    began_s = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes >> 20):
            file.write(data)
    taken_s = time.perf_counter() - began_s
    path.unlink()
    return taken_s


def _random_bytes(size_bytes: int) -> bytes:
    return os.urandom(1 << 20) * (size_bytes >> 20)


def _many(lab: Lab, size_bytes: int) -> Iterator[Row]:
    """Send a tree to one host, then another one to eight hosts at once."""
    sender, *others = lab.hosts
    for host in lab.hosts:
        shape = f"root tbf rate {LINK_MBIT}mbit burst 128kb latency 50ms"
        _tc(host.netns, f"qdisc add dev eth0 {shape}")
        _tc(lab.switch, f"qdisc add dev {host.port} {shape}")
    took_s = []
    for hosts in (others[:1], others):
        fields = _with_tree(send_tree(sender, {"large": os.urandom(size_bytes)}))
        with ThreadPoolExecutor(len(hosts)) as pool:
            began_s = time.perf_counter()
            list(pool.map(_timed, hosts, [fields] * len(hosts)))
            took_s.append(time.perf_counter() - began_s)
    one_s, many_s = took_s
    size_mb = size_bytes / 1e6
    name = f"{size_mb:.0f} MB to one host by {LINK_MBIT} Mbit/s"
    yield name, f"{one_s:.1f} s", "1.00", "", ""
    met = "yes" if many_s <= 2 * one_s else "no"
    name = f"to {MANY_HOSTS} hosts at once"
    yield name, f"{many_s:.1f} s", f"{many_s / one_s:.2f}", "<= 2 of one", met


def _tc(netns: str, command: str) -> None:
    words = ["ip", "netns", "exec", netns, "tc", *command.split()]
    subprocess.run(words, check=True, capture_output=True)


def _without_files(folder: Path, before: Path, *, rounds: int) -> Iterator[Row]:
    """Compare tasks without files with those of an earlier tree, in turns."""
    trees = [before, Path(__file__).parents[1]]
    for what, count, figure, name in WITHOUT_FILES:
        turns = []
        for number in range(rounds):
            place = folder / f"{what}{number}"
            place.mkdir()
            turns += compare.WHAT[what](place, trees, count)[figure]
        now_by_before = statistics.median(now / then for then, now in turns)
        ratio = now_by_before if what == "bulk" else 1 / now_by_before
        met = "yes" if ratio >= BEFORE_MIN else "no"
        yield name, "", f"{ratio:.3f}", f">= {BEFORE_MIN}", met


def send_tree(host: Host, contents: dict[str, bytes]) -> SentTree:
    """Send a tree to the node of a host, as the user of that host."""
    now_ns = time.time_ns()
    manifest = encode_manifest(
        make_manifest(
            TreeFile(path, hashlib.sha256(data).digest(), len(data), now_ns)
            for path, data in contents.items()
        )
    )
    by_digest = {content_digest(data): data for data in (*contents.values(), manifest)}
    sizes = {name: len(data) for name, data in by_digest.items()}
    tree = TreeContents(
        content_digest(manifest),
        sizes,
        lambda name, start: iter([by_digest[name][start:]]),
    )
    with Session.at_socket(host.first.description["socket"]) as session:
        return session.run(upload_tree(session.requests, tree))


def _with_tree(tree: SentTree) -> dict[str, Any]:
    return {
        "tree": {"sha256": tree.sha256, "node": tree.node},
        "workdir": "scratch",
    }


def _timed(worker: Host, fields: dict[str, Any]) -> float:
    """Return the seconds from submission to the end of `true` on a host."""
    draft = {"command": "true", "requires": {"node": worker.name}, **fields}
    began_s = time.perf_counter()
    created = worker.http("POST", "/api/v1/tasks", json=draft)
    assert created.status == 201, created.body
    path = f"/api/v1/tasks/{created.json['id']}?wait=120"
    ended = worker.http("GET", path, timeout_s=130).json
    assert ended["status"] == "completed", ended
    return time.perf_counter() - began_s


def _moved_bytes(host: Host) -> int:
    """Return how much a host has sent and received, with all headers."""
    counts = (f"/sys/class/net/eth0/statistics/{way}_bytes" for way in ("rx", "tx"))
    return sum(map(int, host.run("cat", *counts).stdout.split()))


def _output(host: Host, size_bytes: int) -> str:
    """Make a file on a host; return its place in the API."""
    draft = {
        "command": f"head -c {size_bytes} /dev/urandom > made",
        "requires": {"node": host.name},
        "workdir": "scratch",
        "outputs": ["made"],
    }
    created = host.http("POST", "/api/v1/tasks", json=draft)
    assert created.status == 201, created.body
    path = f"/api/v1/tasks/{created.json['id']}"
    ended = host.http("GET", f"{path}?wait=120", timeout_s=130).json
    assert ended["outputs"][0]["bytes"] == size_bytes, ended
    return f"{path}/outputs/made"


def _download(client: Host, server: Host, path: str, token: str) -> float:
    """Download a file from the node of a host; return the seconds."""
    port = server.first.description["lan_url"].rpartition(":")[2]
    return _curl(
        client,
        f"https://{server.ip}:{port}{path}",
        *("-H", f"Authorization: Bearer {token}"),
    )


def _upload(worker: Host, lender: Host, data: bytes) -> float:
    """Upload a file from one host to the node of another; return the seconds."""
    port = lender.first.description["lan_url"].rpartition(":")[2]
    with NamedTemporaryFile() as file:
        file.write(data)
        return _curl(
            worker,
            f"https://{lender.ip}:{port}/api/v1/files/{content_digest(data)}",
            *("-X", "POST", "-T", file.name, "-H", "Expect:"),
            *("-H", f"Authorization: Bearer {lender.token()}"),
            *("-H", "Content-Type: application/octet-stream"),
        )


class _Nginx:
    """nginx with one file on a host."""

    def __init__(self, lab: Lab, host: Host, size_bytes: int) -> None:
        self._host, self._folder = host, lab.folder / "nginx"
        (self._folder / "www").mkdir(parents=True)
        self._folder.chmod(0o755)
        lab.folder.chmod(0o755)
        (self._folder / "www/file").write_bytes(_random_bytes(size_bytes))
        self.url = f"https://{host.ip}:{NGINX_PORT}/file"
        self.pid = 0  #: of the main process

    def __enter__(self) -> Self:
        if shutil.which("nginx") is None:
            raise FileNotFoundError("nginx")
        folder = str(self._folder)
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=nginx"),
                *("-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"),
            ],
            check=True,
            capture_output=True,
        )
        self._process = self._start(self._host, f"root {folder}/www;")
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)
        shutil.rmtree(self._folder)

    @contextmanager
    def forwarded_by(self, host: Host) -> Iterator[tuple[str, int]]:
        """Have nginx on another host forward to this one; yield URL and process."""
        process = self._start(
            host, NGINX_FORWARDS.format(ip=self._host.ip, port=NGINX_PORT)
        )
        yield f"https://{host.ip}:{NGINX_PORT}/file", process.pid
        _end(process)

    def _start(self, host: Host, serves: str) -> subprocess.Popen[bytes]:
        folder = str(self._folder)
        conf = self._folder / f"{host.name}.conf"
        conf.write_text(
            NGINX_CONF.format(folder=folder, ip=host.ip, port=NGINX_PORT, serves=serves)
        )
        process = host.popen("nginx", "-p", folder, "-c", str(conf))
        wait_until("nginx listens", lambda: _listens(host), within_s=10)
        return process


def _listens(host: Host) -> bool:
    try:
        with host.connect((host.ip, NGINX_PORT), 1.0):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def _curl(host: Host, url: str, *more: str) -> float:
    wanted = ("-skf", "-o", "/dev/null", "-w", "%{time_total}")
    done = host.run("curl", *wanted, *more, url, timeout_s=300)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
