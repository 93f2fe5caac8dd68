"""Burst onto a real cluster of Slurm: allocations start, end and are cancelled."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.forming import form
from tests.mesh.lab import ROOT, Host
from tests.mesh.netns import pids_in, wait_until
from tests.support.burst import Burst, bursting
from tests.support.slurm import UNENDED, SlurmCluster, missing_programs

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

FILES, FILE_BYTES = 20, 20_000
VISITORS_MAX = 2
STALL_S = 60.0  #: longest time in which no task ends
RECIPE = (str(ROOT / "contrib/burst/slurm.sbatch"), "{agent}")
WRAPPED = ("--wrap", "{agent} --slots 2")
AWAITED = ("--wait", *WRAPPED)
SEEDS = 20
WORKING_PART = 0.7  #: of the disturbances, which hit a visitor that has joined


@dataclass(frozen=True, kw_only=True)
class Site:
    """A mesh of two members beside a cluster with two nodes."""

    member: Host
    nodes: list[Host]
    slurm: SlurmCluster
    folder: Path  #: where a user works
    job: Sequence[str]  #: the last words of the command that starts a visitor

    def type(self, *words: str) -> subprocess.Popen[str]:
        """Type `octaskly ...` in the folder of the user, at the first member."""
        state = str(self.member.first.state)
        return subprocess.Popen(
            [
                *(*self.member.prefix, "env", "-C", str(self.folder), sys.executable),
                *("-m", "octaskly", "--state-dir", state, *words),
            ],
            env=self.member.environ(self.member.first.name),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def members(self) -> list[dict[str, Any]]:
        """Return the members of the latest array."""
        array = self.member.http("GET", "/api/v1/arrays").json["tasks"][0]["id"]
        found: list[dict[str, Any]] = []
        while True:
            path = f"/api/v1/tasks?array={array}&limit=1000&offset={len(found)}"
            page = self.member.http("GET", path).json["tasks"]
            found += page
            if not page:
                return found


@pytest.fixture
def site(
    make_lab: MakeLab, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Site]:
    if (reason := missing_programs()) is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    lab = make_lab(4)
    hosts = lab.hosts
    (tmp_path / "data").mkdir()
    for number in range(FILES):
        (tmp_path / f"data/{number}").write_bytes(os.urandom(FILE_BYTES))
    with SlurmCluster(hosts[0], hosts[2:], lab.folder / "slurm") as slurm:
        form(lab, hosts=hosts[:2], slots=1)
        yield Site(
            member=hosts[0],
            nodes=hosts[2:],
            slurm=slurm,
            folder=tmp_path,
            job=getattr(request, "param", WRAPPED),
        )


@pytest.fixture
def burst(site: Site) -> Iterator[Burst]:
    output = f"--output={site.folder}/slurm-%j.log"
    state = site.member.first.state
    environ = {**site.member.environ(site.member.first.name), **site.slurm.environ}
    environ["TMPDIR"] = str(site.folder)  # Killed visitors leave folders.
    command = ("sbatch", output, "--time=10", "--cpus-per-task=2", *site.job)
    limits = ("--max", str(VISITORS_MAX), "--idle", "3s")
    with bursting(
        state,
        *(*limits, "--", *command),
        prefix=site.member.prefix,
        environ=environ,
    ) as started:
        yield started


def start_tasks(site: Site, count: int, wait: str) -> subprocess.Popen[str]:
    """Start tasks that each read one of some files, and write one of their own."""
    read = f"sha256sum < data/$(({{}} % {FILES}))"
    command = f"{wait}; mkdir -p out; {read} > out/{{}}"
    items = [str(number) for number in range(count)]
    files = ("--in", "data", "--out", "out/{}")
    return site.type("map", "--visitors", *files, command, ":::", *items)


def check_outputs(site: Site, tasks: subprocess.Popen[str], count: int) -> None:
    """Wait for the tasks; check that each wrote what a local one would write."""
    stdout, stderr = wait_for_end(site, tasks)
    assert tasks.returncode == 0, stdout + stderr
    digests = [
        hashlib.sha256((site.folder / f"data/{number}").read_bytes()).hexdigest()
        for number in range(FILES)
    ]
    for number in range(count):
        written = (site.folder / f"out/{number}").read_text()
        assert written == f"{digests[number % FILES]}  -\n"


def wait_for_end(site: Site, tasks: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait until tasks have ended, some of them in each `STALL_S`; return the output.

    How long they take in all says more about a busy machine than about the product.
    """
    ended = -1
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return tasks.communicate(timeout=STALL_S)
        before, ended = ended, len(list(site.folder.glob("out/*")))
        assert ended > before, f"no task has ended for {STALL_S} s, after {ended}"


def check_visitors_worked(site: Site) -> None:
    """Check that a task of the latest array has ended at a visitor."""
    names = {member["worker_id"] for member in site.members()}
    assert names & {node.name for node in site.nodes}, names


def visitor_pids(host: Host) -> list[int]:
    """Return the processes of visitors on a node of the cluster."""
    found = []
    for pid in pids_in(host.netns):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--visitor" in words:
            found.append(pid)
    return found


@pytest.mark.parametrize("site", [RECIPE], indirect=True, ids=["recipe"])
def test_queue_drains_on_allocations_that_end_by_themselves(
    site: Site, burst: Burst
) -> None:
    """One is cancelled and a visitor is killed, and no task is lost.

    Tasks wait while the gate is closed, so that members do not drain the queue before
    the visitors are there.
    """
    count, gate = 150, site.folder / "gate"
    tasks = start_tasks(site, count, wait=f"until [ -e {gate} ]; do sleep 0.1; done")
    assert burst.wait_for("joined", VISITORS_MAX)["slots"] == 2
    assert len(site.slurm.jobs()) == VISITORS_MAX
    cancelled, killed = site.nodes
    gate.touch()
    wait_until("some end", lambda: list(site.folder.glob("out/*")), within_s=60.0)
    gate.unlink()

    site.slurm.cancel(*site.slurm.jobs(node=cancelled.name))
    for pid in visitor_pids(killed):
        os.kill(pid, signal.SIGKILL)
    burst.wait_for("left", VISITORS_MAX)
    burst.wait_for("joined", VISITORS_MAX + 1)
    gate.touch()

    check_outputs(site, tasks, count)
    check_visitors_worked(site)
    wait_until("all jobs end", lambda: not site.slurm.jobs(UNENDED), within_s=60.0)
    burst.wait_for("left", len(burst.of("joined")))
    assert burst.interrupt() == 0
    invites = site.member.http("GET", "/api/v1/invites").json["invites"]
    assert [each for each in invites if each["state"] == "open"] == []
    assert not any(map(visitor_pids, site.nodes))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "site"),
    [(seed, AWAITED if seed % 2 else WRAPPED) for seed in range(SEEDS)],
    indirect=["site"],
    ids=map(str, range(SEEDS)),
)
def test_cancelled_allocations_lose_none_of_2000_tasks(
    site: Site, burst: Burst, seed: int
) -> None:
    """At random times an allocation is cancelled, or a visitor killed."""
    draw = random.Random(seed)
    count = 2000
    tasks = start_tasks(site, count, wait="sleep 0.02")
    burst.wait_for("joined")
    with ThreadPoolExecutor(1) as threads:
        checked = threads.submit(check_outputs, site, tasks, count)
        while not wait([checked], timeout=draw.uniform(0.5, 6.0)).done:
            disturb(site, draw)
            if draw.random() < WORKING_PART:
                wait_for_visitor(burst, checked)
        checked.result()
    assert burst.interrupt() == 0
    check_visitors_worked(site)


def wait_for_visitor(burst: Burst, checked: Future[None]) -> None:
    """Wait until another visitor has joined, or all tasks have ended."""
    joined = len(burst.of("joined"))
    while len(burst.of("joined")) == joined and burst.process.poll() is None:
        if wait([checked], timeout=0.2).done:
            return


def disturb(site: Site, draw: random.Random) -> None:
    """End something of a visitor without a warning, or with Slurm's."""
    jobs = site.slurm.jobs()
    pids = [pid for host in site.nodes for pid in visitor_pids(host)]
    if draw.random() < 0.5 and pids:
        os.kill(draw.choice(pids), signal.SIGKILL)
    elif jobs:
        site.slurm.cancel(draw.choice(jobs))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_unavailable_slurm_stops_burst_with_its_error(site: Site, burst: Burst) -> None:
    """Three runs failed, and the last message is shown."""
    site.slurm.stop_controller()
    gate = site.folder / "gate"
    tasks = start_tasks(site, 40, wait=f"until [ -e {gate} ]; do sleep 0.1; done")

    assert burst.end(within_s=480.0) == 1  # sbatch tries for a while, too.
    gate.touch()

    stopped = burst.of("stopped")[0]
    assert stopped["reason"] == "command"
    assert "Unable to contact slurm controller" in stopped["error"]
    shown = "".join(burst.errors)
    assert shown.startswith("error: the command failed 3 times\n")
    check_outputs(site, tasks, 40)  # The members did the work.
