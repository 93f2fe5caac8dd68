"""Files that travel, beside nginx over HTTPS on the same pair of hosts.

Two hosts with disks of their own; each is a namespace. Needs root, iproute2, nginx,
curl and openssl.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import statistics
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.measure import Row, bound_row, ratio_row
from octaskly.client.command_session import Session
from octaskly.client.flows.files import SentTree, TreeContents, upload_tree
from octaskly.files.digest_index import RACY_NS, DigestIndex
from octaskly.files.local_tree import parse_named_path, scan_tree
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
NGINX_PORT: Final = 8443
NGINX_CONF: Final = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 2;
events {{ }}
http {{
    access_log off; sendfile on;
    server {{
        listen {ip}:{port} ssl; root {folder}/www;
        ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
        ssl_protocols TLSv1.3;
    }}
}}
"""


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure small files, a changed file, and large files against nginx."""
    yield from _scan(folder / "scanned", runs=3 if quick else 15)
    if (reason := missing()) is not None:
        raise FileNotFoundError(reason)
    with Lab(2) as lab:
        form(lab)
        lender, (worker,) = roles(lab)
        yield from _small(lender, worker, runs=1 if quick else 5)
        yield from _large(lab, lender, worker, (1 << 28) if quick else LARGE_BYTES)


def _scan(top: Path, *, runs: int) -> Iterator[Row]:
    """Scan a work tree again after a change to one of its files."""
    for number in range(SMALL_FILES):
        place = top / f"folder{number % 10}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(SMALL_BYTES))
    subprocess.run(["git", "init", "-q", top], check=True)
    subprocess.run(["git", "-C", top, "add", "-A"], check=True)
    named = [parse_named_path(".", str(top))]
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
        before = _received_bytes(worker)
        _timed(worker, _with_tree(send_tree(lender, contents)))
        again_bytes.append(_received_bytes(worker) - before)
    yield bound_row(
        f"{SMALL_FILES} small files reach a fresh node",
        statistics.median(fresh_s) - plain_s,
        "s",
        1.0,
    )
    yield bound_row(
        "one of them changed: bytes to the worker",
        statistics.median(again_bytes) / 1000,
        "kB",
        64 + SMALL_BYTES / 1000,
    )


def _large(lab: Lab, lender: Host, worker: Host, size_bytes: int) -> Iterator[Row]:
    data = os.urandom(1 << 20) * (size_bytes >> 20)
    with _nginx(lab, lender, data) as server:
        before_s = server.cpu_s()
        nginx_s = min(_curl(worker, server.url) for _ in range(3))
        nginx, nginx_cpu_s = size_bytes / nginx_s / 1e6, (server.cpu_s() - before_s) / 3
        yield "nginx by HTTPS", f"{nginx:.0f} MB/s", "1.00", "", ""
        yield from _fetched(lender, worker, size_bytes, nginx, nginx_cpu_s)
        sent_s = _upload(worker, lender, data)
        rate = size_bytes / sent_s / 1e6
        yield ratio_row("upload over HTTPS", rate, nginx, 0.4, "nginx")
        stored = {"sha256": content_digest(data), "node": lender.name}
        supplied_s = _timed(worker, {"stdin_file": stored}) - _timed(worker, {})
        rate = size_bytes / supplied_s / 1e6
        yield ratio_row("supply to a task's node", rate, nginx, 0.4, "nginx")


def _fetched(
    dispatcher: Host, worker: Host, size_bytes: int, nginx: float, nginx_cpu_s: float
) -> Iterator[Row]:
    """Fetch an output of the dispatcher, and one that it relays from the worker."""
    for host, name, goal in (
        (dispatcher, "fetch an output", 1.0),
        (worker, "fetch it through the dispatcher", 0.6),
    ):
        url = _make_output(dispatcher, host, size_bytes)
        token = ("-H", f"Authorization: Bearer {dispatcher.token()}")
        before_s = _agent_cpu_s(dispatcher)
        taken_s = min(_curl(worker, url, *token) for _ in range(3))
        cpu_s = (_agent_cpu_s(dispatcher) - before_s) / 3
        yield ratio_row(name, size_bytes / taken_s / 1e6, nginx, goal, "nginx")
        if host is dispatcher:
            yield bound_row("its CPU, of nginx's", cpu_s / nginx_cpu_s, "x", 2.0)


def _make_output(dispatcher: Host, host: Host, size_bytes: int) -> str:
    """Run a task that leaves a large output on a host; return its URL."""
    draft = {
        "command": f"head -c {size_bytes} /dev/urandom > big",
        "outputs": ["big"],
        "workdir": "scratch",
        "requires": {"node": host.name},
    }
    created = dispatcher.http("POST", "/api/v1/tasks", json=draft)
    assert created.status == 201, created.body
    path = f"/api/v1/tasks/{created.json['id']}"
    ended = dispatcher.http("GET", f"{path}?wait=120", timeout_s=130).json
    assert ended["status"] == "completed", ended
    return f"{dispatcher.first.description['lan_url']}{path}/outputs/big"


def _agent_cpu_s(host: Host) -> float:
    return cpu_s(host.first.pid)


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def _received_bytes(host: Host) -> int:
    path = "/sys/class/net/eth0/statistics/rx_bytes"
    return int(host.run("cat", path).stdout)


def _upload(worker: Host, lender: Host, data: bytes) -> float:
    """Upload a file from one host to the node of another; return the seconds."""
    token = lender.token()
    port = int(lender.first.description["lan_url"].rpartition(":")[2])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = worker.connect((lender.ip, port), 60.0)
    connection = HTTPSConnection(lender.ip, port)
    connection.sock = context.wrap_socket(plain)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/octet-stream",
    }
    view, name = memoryview(data), content_digest(data)
    parts = (view[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20))
    began_s = time.perf_counter()
    connection.request(
        "POST",
        f"/api/v1/files/{name}",
        parts,
        {**headers, "Content-Length": str(len(data))},
    )
    response = connection.getresponse()
    assert response.status == 201, response.read()
    return time.perf_counter() - began_s


class _nginx:  # noqa: N801 - a context manager
    """nginx with one file on a host."""

    def __init__(self, lab: Lab, host: Host, data: bytes) -> None:
        self._host, self._folder = host, lab.folder / "nginx"
        (self._folder / "www").mkdir(parents=True)
        self._folder.chmod(0o755)
        lab.folder.chmod(0o755)
        (self._folder / "www/file").write_bytes(data)

    def cpu_s(self) -> float:
        """Return the CPU time of its processes so far."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(cpu_s(int(each)) for each in (pid, *children))

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
        conf = self._folder / "nginx.conf"
        conf.write_text(
            NGINX_CONF.format(folder=folder, ip=self._host.ip, port=NGINX_PORT)
        )
        self._process = self._host.popen("nginx", "-p", folder, "-c", str(conf))
        wait_until("nginx listens", self._listens, within_s=10)
        self.url = f"https://{self._host.ip}:{NGINX_PORT}/file"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _listens(self) -> bool:
        try:
            with self._host.connect((self._host.ip, NGINX_PORT), 1.0):
                return True
        except OSError:
            return False


def _curl(host: Host, url: str, *options: str) -> float:
    shown = ("-o", "/dev/null", "-w", "%{time_total}")
    done = host.run("curl", "-skf", *shown, *options, url)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
