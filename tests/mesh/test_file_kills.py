"""Files survive kills: the right outputs, or an error that says so.

`SOAK_FILES_SEED` sets the first seed, `SOAK_FILES_SEEDS` their number.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.file_kills import COMMAND_S, FAULTS, HOSTS, FileKills, seeds_of
from tests.mesh.forming import FORM_S, dispatcher_of, form, is_formed, roles
from tests.mesh.lab import ROOT, Host, Lab
from tests.mesh.netns import wait_until

SEEDS = int(os.environ.get("SOAK_FILES_SEEDS", "50"))
FIRST = int(os.environ.get("SOAK_FILES_SEED", "1"))
LARGE_BYTES = 48 << 20
LINK_MBIT = 100  #: so that it takes four seconds
MEMORY_MB = 24  #: of a client beside that of a small command; half of the file
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
open(sys.argv[1], "w").write(str(peak_kb))
sys.exit(code)
"""
"""Runs a command, and writes to a file how much memory it had at most."""

pytestmark = pytest.mark.netns


@pytest.mark.timeout(600)
def test_one_of_each_kill_ends_with_right_outputs_or_an_error(
    make_lab: MakeLab,
) -> None:
    """Of a worker, the dispatcher, the command, the node with the files, two disks.

    A round fails if its command had ended before the kill.
    """
    commands = ("map", "submit", "run", "map", "run", "submit")
    with FileKills(make_lab(3)) as kills:
        for seed, (fault, command) in enumerate(zip(FAULTS, commands, strict=True)):
            kills.run_round(seed, fault, command)

    assert [one.fault for one in kills.rounds] == list(FAULTS)


@pytest.mark.soak
@pytest.mark.timeout(120 * SEEDS)
def test_many_kills_end_with_right_outputs_or_an_error(make_lab: MakeLab) -> None:
    """Most end well: a kill of one node loses no file of a task that can run again."""
    with FileKills(make_lab(HOSTS)) as kills:
        for seed, fault in seeds_of(FIRST, SEEDS):
            kills.run_round(seed, fault)

    ended = Counter((one.fault, one.code == 0) for one in kills.rounds)
    print(ended)
    assert ended["worker", True] >= ended["worker", False]
    assert ended["dispatcher", True] >= ended["dispatcher", False]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_upload_outlives_the_dispatcher_that_it_goes_to(
    make_lab: MakeLab, part: float
) -> None:
    """Or it ends with an error; no node takes what it has of the file for all of it."""
    lab, dispatcher, client, _ = _formed(make_lab)
    folder = _slow_folder(lab, "sent")
    data = random.Random(part).randbytes(LARGE_BYTES)
    (folder / "large").write_bytes(data)
    command = ("--in", "large", "--out", "copy", "--", "cp large copy")
    process = _start(client, folder, "submit", *command)

    _kill_once(lab, dispatcher, part, lambda: _written_bytes(_store(dispatcher)))
    task, error = process.communicate(timeout=COMMAND_S)

    _check_memory(client, folder)
    print(process.returncode, error)
    for host in lab.hosts:
        _check_store(host)
    if process.returncode == 0:
        assert _end(_start(client, folder, "wait", task.strip())) == (0, "")
        assert _end(_start(client, folder, "fetch", task.strip()))[0] == 0
        assert (folder / "copy").read_bytes() == data
    else:
        assert "error:" in error.lower()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_fetch_outlives_the_dispatcher_that_forwards_it(
    make_lab: MakeLab, part: float
) -> None:
    """Or it ends with an error, and leaves no file with the name of an output."""
    lab, dispatcher, client, worker = _formed(make_lab)
    work = f"head -c {LARGE_BYTES} /dev/urandom | tee made | sha256sum"
    task = _submit(worker, work)
    folder = _slow_folder(lab, "fetched")
    before_bytes = _received_bytes(dispatcher)
    process = _start(client, folder, "fetch", task["id"])

    _kill_once(lab, dispatcher, part, lambda: _written_bytes(folder))
    assert _received_bytes(dispatcher) - before_bytes >= part * LARGE_BYTES
    _, error = process.communicate(timeout=COMMAND_S)

    _check_memory(client, folder)
    print(process.returncode, error)
    if process.returncode != 0:
        assert "error:" in error.lower()
        assert not (folder / "made").exists()
        assert _end(_start(client, folder, "fetch", task["id"]))[0] == 0
    [made] = folder.iterdir()
    assert task["stdout"] == f"{_digest(made)}  -\n"


def _formed(make_lab: MakeLab) -> tuple[Lab, Host, Host, Host]:
    """Return a lab with a mesh: its dispatcher, a client and a worker."""
    lab = make_lab(3)
    form(lab)
    dispatcher, (client, worker) = roles(lab)
    return lab, dispatcher, client, worker


def _slow_folder(lab: Lab, name: str) -> Path:
    """Slow down all links, and return a new folder for the files that travel."""
    shape = f"root tbf rate {LINK_MBIT}mbit burst 128kb latency 50ms"
    for host in lab.hosts:
        words = ["ip", "netns", "exec", host.netns, "tc", "qdisc", "add", "dev"]
        subprocess.run([*words, "eth0", *shape.split()], check=True)
    folder = lab.folder / name
    folder.mkdir()
    return folder


def _start(host: Host, folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a command in a folder, as a user of a host would."""
    state = str(host.first.state)
    measured = (sys.executable, "-c", MEASURE, str(_peak_file(folder)))
    return subprocess.Popen(
        [
            *(*host.prefix, *measured),
            *(sys.executable, "-m", "octaskly", "--state-dir", state, *words),
        ],
        cwd=folder,
        env=host.environ(host.name) | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, error = process.communicate(timeout=COMMAND_S)
    return process.returncode, error


def _peak_file(folder: Path) -> Path:
    """Return the file with the memory of the last command typed in a folder."""
    return folder.with_suffix(".peak_kb")


def _check_memory(host: Host, folder: Path) -> None:
    """Check that the last command held no file in memory."""
    peak_kb = int(_peak_file(folder).read_text())
    assert _end(_start(host, folder, "nodes"))[0] == 0
    small_kb = int(_peak_file(folder).read_text())
    print(f"memory: {peak_kb} kB; of a small command: {small_kb} kB")
    assert peak_kb - small_kb < MEMORY_MB << 10


def _kill_once(
    lab: Lab, dispatcher: Host, part: float, written_bytes: Callable[[], int]
) -> None:
    """Kill the dispatcher once a part of the file is written; start it again later."""
    wait_until(
        f"{part} of it is there",
        lambda: written_bytes() >= part * LARGE_BYTES,
        within_s=FORM_S,
        every_s=0.01,
    )
    assert written_bytes() < LARGE_BYTES, "it is too late"
    dispatcher.first.signal(signal.SIGKILL)
    dispatcher.first.wait()
    other = next(host for host in lab.hosts if host is not dispatcher)
    wait_until(
        "another dispatcher",
        lambda: dispatcher_of(other) not in (None, dispatcher.name),
        within_s=FORM_S,
    )
    dispatcher.agent("", secret=lab.folder / "mesh.key", is_awaited=False)
    wait_until("one mesh", lambda: is_formed(lab.hosts), within_s=FORM_S)


def _submit(worker: Host, command: str) -> dict[str, str]:
    """Run a task on a host to its end; its output is `made`."""
    fields = {"requires": {"node": worker.name}, "workdir": "scratch"}
    draft = {"command": command, "outputs": ["made"], **fields}
    created = worker.http("POST", "/api/v1/tasks", json=draft)
    assert created.status == 201, created.body
    path = f"/api/v1/tasks/{created.json['id']}?wait=60"
    ended: dict[str, str] = worker.http("GET", path, timeout_s=70).json
    assert ended["status"] == "completed", ended
    return ended


def _store(host: Host) -> Path:
    return host.first.state / "files"


def _received_bytes(host: Host) -> int:
    return int(host.run("cat", "/sys/class/net/eth0/statistics/rx_bytes").stdout)


def _written_bytes(folder: Path) -> int:
    """Return how much of files below a folder is written; they may have holes."""
    written = 0
    for place in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            written += place.lstat().st_blocks * 512
    return written


def _check_store(host: Host) -> None:
    """Check that each file in the store of a host has the content of its name."""
    for place in _store(host).glob("?" * 64):
        assert _digest(place) == place.name, f"{host.name}: {place}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
