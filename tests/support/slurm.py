"""A Slurm cluster of Debian's packages, on the hosts of a lab.

`slurmctld` runs on the first host and a `slurmd` on each other one, in the foreground
and as root. They share one `munged`. Jobs are the same processes as on a real cluster,
but nothing counts or limits what they use: that would need cgroups.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.mesh.lab import Host
from tests.support.agents import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
STOP_S = 20.0
UNENDED = "pending,running,completing"
CONF = """\
ClusterName=lab
SlurmctldHost={controller}({controller_ip})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SlurmctldParameters=enable_configless
KillWait=1
CompleteWait=0
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr={ip} NodeHostname={name} CPUs={cpus} State=UNKNOWN"


def missing_programs() -> str | None:
    """Return the reason why no cluster can be made here, or None."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"these programs are missing: {', '.join(lacking)}" if lacking else None


class SlurmCluster:
    """A cluster; use it as a context manager.

    Args:
        controller: The host of the controller, where jobs are submitted.
        nodes: The hosts that run jobs.
        folder: A new folder for its files.
        cpus: Number of processors that each node pretends to have.
    """

    def __init__(
        self, controller: Host, nodes: Sequence[Host], folder: Path, *, cpus: int = 2
    ) -> None:
        self._controller, self._nodes = controller, nodes
        self._folder, self._cpus = folder, cpus
        self._conf = folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of its commands."""
        return {**os.environ, "SLURM_CONF": str(self._conf)}

    def __enter__(self) -> Self:
        """Start the daemons, and wait until all nodes accept jobs."""
        try:
            self._start()
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
        """End all jobs and daemons."""
        if error is not None:
            for log in sorted(self._folder.glob("*.log")):
                print(f"--- {log.name}", *log.read_text().splitlines()[-30:], sep="\n")
        self.close()

    def run(self, *words: str) -> str:
        """Run a command of Slurm on the controller's host; return its output."""
        done = self._controller.run(*words, env=self.environ)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, states: str = "running", *, node: str = "") -> list[int]:
        """Return the ids of the jobs in these states, of one node or of all, by age."""
        words = ["squeue", "--noheader", "--format=%i", f"--states={states}"]
        shown = self.run(*words, *([f"--nodelist={node}"] * bool(node)))
        return sorted(int(line) for line in shown.split())

    def cancel(self, *jobs: int) -> None:
        """End jobs as their user or an administrator would."""
        self.run("scancel", *map(str, jobs))

    def stop_controller(self) -> None:
        """End the controller, so that every command of Slurm fails."""
        _stop(self._daemons.pop(1))

    def close(self) -> None:
        """End all jobs, then the daemons."""
        with contextlib.suppress(AssertionError):  # The controller may be gone.
            if len(self._daemons) > 1:
                self.run("scancel", "--user=root", "--full")
                until(lambda: not self.jobs(UNENDED), "all jobs have ended")
        while self._daemons:
            _stop(self._daemons.pop())

    def _start(self) -> None:
        folder, controller = self._folder, self._controller
        (folder / "state").mkdir(parents=True)
        key = folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(128))
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        self._conf.write_text(
            CONF.format(
                controller=controller.name,
                controller_ip=controller.ip,
                folder=folder,
                nodes="\n".join(
                    NODE.format(name=host.name, ip=host.ip, cpus=self._cpus)
                    for host in self._nodes
                ),
            )
        )
        munge = ["munged", "--force", "--foreground", f"--key-file={key}"]
        munge += (
            f"--{option}={folder}/munge.{option.removesuffix('-file')}"
            for option in ("socket", "pid-file", "log-file", "seed-file")
        )
        self._spawn(controller, "munged", *munge)
        until((folder / "munge.socket").exists, "munged listens")
        self._spawn(controller, "slurmctld", "slurmctld", "-D", "-i")
        for host in self._nodes:
            self._spawn(host, f"slurmd-{host.name}", "slurmd", "-D", "-N", host.name)
        until(self._is_ready, "all nodes of the cluster are idle")

    def _spawn(self, host: Host, name: str, *words: str) -> None:
        """Start a daemon whose machine has the host's name."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', host.name]
        with (self._folder / f"{name}.log").open("ab") as log:
            process = host.popen(
                *named, *words, env=self.environ, stdout=log, stderr=log
            )
        self._daemons.append(process)

    def _is_ready(self) -> bool:
        done = self._controller.run(
            *("sinfo", "--noheader", "--Node", "--format=%t"), env=self.environ
        )
        return done.stdout.split() == ["idle"] * len(self._nodes)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
