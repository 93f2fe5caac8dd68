"""Other systems at the same work: N times `sh -c true`, captured, two slots.

Each function returns tasks per second from submit until every result is known to the
client. What is not installed is skipped with its name.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SLOTS = 2


def xargs(count: int) -> float:
    """`xargs -P2`: no queue, no log, no network."""
    return _rate(
        count,
        lambda: subprocess.run(
            f"seq {count} | xargs -P{SLOTS} -n1 sh -c true >/dev/null",
            shell=True,
            check=True,
        ),
    )


def gnu_parallel(count: int) -> float:
    """`parallel -j2`, which captures what each task prints: no log, no network."""
    if not shutil.which("parallel"):
        raise FileNotFoundError("parallel")
    return _rate(
        count,
        lambda: subprocess.run(
            f"seq {count} | SHELL=/bin/sh parallel -j{SLOTS} -n0 true",
            shell=True,
            check=True,
            stderr=subprocess.DEVNULL,  # It asks to be cited.
        ),
    )


def dask(count: int) -> float:
    """Dask distributed, a LocalCluster of two processes."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=SLOTS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):

        def work(n: int) -> None:
            client.gather(client.map(_shell, ["true"] * n, pure=False))

        work(100)
        return _rate(count, lambda: work(count))


def celery_redis(count: int) -> float:
    """Celery with Redis as broker and result store, two prefork workers."""
    if not shutil.which("redis-server"):
        raise FileNotFoundError("redis-server")
    with tempfile.TemporaryDirectory() as folder, _redis(folder) as url:
        module = Path(folder) / "bench_celery_app.py"
        module.write_text(
            "import subprocess\n"
            "from celery import Celery\n"
            f"app = Celery('bench', broker={url!r}, backend={url!r})\n"
            "app.conf.worker_prefetch_multiplier = 16\n"
            "@app.task\n"
            "def shell(command):\n"
            "    r = subprocess.run(command, shell=True, capture_output=True)\n"
            "    return r.returncode, r.stdout.decode(), r.stderr.decode()\n"
        )
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "bench_celery_app", "worker"),
                *("-c", str(SLOTS), "-l", "ERROR"),
                *("--without-gossip", "--without-mingle"),
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        sys.path.insert(0, folder)
        try:
            from celery import group

            shell = importlib.import_module("bench_celery_app").shell

            def work(n: int) -> None:
                group(shell.s("true") for _ in range(n)).apply_async().get(timeout=120)

            work(20)
            return _rate(count, lambda: work(count))
        finally:
            sys.path.remove(folder)
            worker.terminate()
            worker.wait(10)


#: By the names of their figures.
PEERS: dict[str, Callable[[int], float]] = {
    "peer: xargs -P2": xargs,
    "peer: GNU parallel -j2": gnu_parallel,
    "peer: Dask": dask,
    "peer: Celery + Redis": celery_redis,
}


def _shell(command: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


@contextlib.contextmanager
def _redis(folder: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.perf_counter() + 10
        while time.perf_counter() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 0.2),
            ):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)
