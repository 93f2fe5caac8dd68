"""Other systems at the same work: N times `sh -c true`, captured, two slots.

Each function returns tasks per second from submit until every result is known to the
client. What is not installed is skipped with its name.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SLOTS = 2
LISTENS_S_MAX = 10.0  #: until a server listens


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


def ray(count: int) -> float:
    """Ray, one node with two processors; nothing is durable."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # It must not call home.
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=SLOTS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            shell = ray.remote(num_cpus=1)(_shell)

            def work(n: int) -> None:
                ray.get([shell.remote("true") for _ in range(n)])

            work(100)
            return _rate(count, lambda: work(count))
        finally:
            ray.shutdown()


def hyperqueue(count: int) -> float:
    """HyperQueue, a server and a worker with two cores; output goes to files."""
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    with tempfile.TemporaryDirectory() as folder:
        muted = _muted()  # It prints a table and a progress bar.
        with muted, LocalCluster(f"{folder}/server", WorkerConfig(cores=SLOTS)) as hq:
            client = hq.client()

            def work(n: int) -> None:
                job = Job(default_workdir=Path(folder, "work"))
                for _ in range(n):
                    job.program(["sh", "-c", "true"])
                client.wait_for_jobs([client.submit(job)])

            work(100)
            return _rate(count, lambda: work(count))


def gearman(count: int) -> float:
    """Gearman in C: two workers start `sh -c true`, two clients ask for one at a time.

    Nothing is durable.
    """
    if not shutil.which("gearmand") or not shutil.which("gearman"):
        raise FileNotFoundError("gearmand and gearman")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        port = _free_port()
        server = ["gearmand", "--listen", "127.0.0.1", "--port", str(port)]
        log = ["--log-file", str(Path(folder, "log"))]
        running.enter_context(_process([*server, *log], port))
        tool = ["gearman", "-h", "127.0.0.1", "-p", str(port), "-f", "true"]
        for _ in range(SLOTS):
            running.enter_context(_process([*tool, "-w", "--", "sh", "-c", "true"]))

        def work(n: int) -> None:
            lines = b"job\n" * (n // SLOTS)
            clients = [
                subprocess.Popen(
                    [*tool, "-n"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
                )
                for _ in range(SLOTS)
            ]
            with ThreadPoolExecutor(SLOTS) as threads:
                list(threads.map(lambda each: each.communicate(lines), clients))
            assert not any(each.returncode for each in clients)

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
    "peer: gearman": gearman,
    "peer: Ray": ray,
    "peer: Dask": dask,
    "peer: HyperQueue": hyperqueue,
    "peer: GNU parallel -j2": gnu_parallel,
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
    port = _free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    with _process([*command, "--save", "", "--dir", folder], port):
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Send what this process and its libraries print to nowhere."""
    sys.stdout.flush()
    with Path(os.devnull).open("wb") as nowhere:
        kept = [(os.dup(number), number) for number in (1, 2)]
        for _, number in kept:
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        for copy, number in kept:
            os.dup2(copy, number)
            os.close(copy)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(command: list[str], port: int | None = None) -> Iterator[None]:
    """Run a program for the length of a block, which begins once it listens."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.perf_counter() + LISTENS_S_MAX
        while port is not None and time.perf_counter() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 0.2),
            ):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)
