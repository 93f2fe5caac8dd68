"""Recipes for burst in `contrib`: they start a visitor, and keep the invite to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.support.agents import until

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "contrib/burst"
SCHEMA = ROOT / "tests/support/kubernetes_job_schema.json"
"""Of a `Job`, from Kubernetes 1.34 (Apache-2.0), without descriptions."""
AGENT = "octaskly agent --visitor --idle 120 --label site=lab"
INVITE = "octaskly://10.77.1.1:47801/112-abcdefghijklmnopqrstuvwxyz234567"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for stand-ins of programs, first on the path."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def put(programs: Path, name: str, script: str) -> None:
    """Write a program that notes how it is called, and then does what the test says."""
    note = f'printf "%s\\n" "$*" >> {programs}/{name}.calls'
    (programs / name).write_text(f"#!/bin/sh\n{note}\n{script}\n")
    (programs / name).chmod(0o755)


def calls(programs: Path, name: str) -> list[str]:
    """Return the arguments of each call of a program."""
    return (programs / f"{name}.calls").read_text().splitlines()


def environ(programs: Path) -> Mapping[str, str]:
    """Return the environment of a run of burst's command."""
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(programs),
        "OCTASKLY_INVITE": INVITE,
    }


def run(programs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe as burst does."""
    return subprocess.run(
        [str(RECIPES / words[0]), *words[1:]],
        input=f"{INVITE}\n",
        env=environ(programs),
        capture_output=True,
        text=True,
        check=False,
    )


def errors_of(job: Any) -> list[str]:
    """Return what the schema of Kubernetes says of a job."""
    schema = jsonschema_rs.Draft202012Validator(json.loads(SCHEMA.read_text()))
    return [error.message for error in schema.iter_errors(job)]


def test_kubernetes_manifest_follows_its_schema() -> None:
    """A name that Kubernetes does not know would be an error, too."""
    job = yaml.safe_load((RECIPES / "kubernetes/visitor-job.yaml").read_text())

    assert errors_of(job) == []
    job["spec"]["template"]["spec"]["restart"] = "Never"
    assert len(errors_of(job)) == 1


def test_kubernetes_recipe_creates_a_job_and_its_secret(programs: Path) -> None:
    """The job gets the flags of the agent, and the invite is in no argument."""
    put(
        programs,
        "kubectl",
        f'test "$1" = patch || cat >> {programs}/stdin; test "$2" = secret || echo uid',
    )

    done = run(programs, "kubernetes/start-visitor", AGENT)

    assert done.returncode == 0, done.stderr
    manifest, _, secret = (programs / "stdin").read_text().rpartition("octaskly://")
    job = yaml.safe_load(manifest)
    name = job["metadata"]["name"]
    assert errors_of(job) == []
    assert re.fullmatch(r"octaskly-visitor-[0-9a-f]{8}", name)
    container = job["spec"]["template"]["spec"]["containers"][0]
    expected = f"exec {AGENT} --slots 4 --until 115m"
    assert container["args"] == [expected]
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == name
    assert f"octaskly://{secret}" == f"{INVITE}\n"
    assert calls(programs, "kubectl")[1].startswith(f"create secret generic {name} ")
    assert INVITE not in "".join(calls(programs, "kubectl"))


def test_ssh_recipe_takes_the_first_machine_without_a_visitor(programs: Path) -> None:
    """The command runs as long as its visitor, and so long the machine is taken."""
    hold = f"{programs}/hold"
    os.mkfifo(hold)
    put(programs, "ssh", f'read line; test "$line" = {INVITE} && read end < {hold}')
    words = ["ssh-visitor", AGENT, "pc1", "pc2"]
    started = [
        subprocess.Popen(
            [str(RECIPES / words[0]), *words[1:]],
            stdin=subprocess.PIPE,
            env=environ(programs),
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(f"{INVITE}\n".encode())
        process.stdin.close()

    with Path(hold).open("w") as end:  # Both wait for it.
        until(lambda: len(calls(programs, "ssh")) == len(started), "both run")
        third = run(programs, *words)
        end.write("end\nend\n")
    codes = [process.wait() for process in started]

    assert codes == [0, 0]
    hosts = sorted(re.findall(r"pc\d", " ".join(calls(programs, "ssh"))))
    assert hosts == ["pc1", "pc2"]
    assert all(f'"exec {AGENT}"' in call for call in calls(programs, "ssh"))
    assert INVITE not in "".join(calls(programs, "ssh"))
    assert third.returncode == 1
    assert third.stderr == "each of these machines has a visitor: pc1 pc2\n"


def test_ssh_recipe_keeps_its_locks_where_only_this_user_writes(
    programs: Path,
) -> None:
    """In a folder that everybody may make, they could be links to files of the user."""
    put(programs, "ssh", "true")
    home = {"HOME": str(programs), "XDG_RUNTIME_DIR": ""}

    done = subprocess.run(
        [str(RECIPES / "ssh-visitor"), AGENT, "pc1"],
        env={**environ(programs), **home},
        check=False,
    )

    assert done.returncode == 0
    assert (programs / ".cache/octaskly-burst/pc1").exists()


@pytest.mark.parametrize("end", ["", "1796050800"])
def test_slurm_recipe_uses_the_allocation(programs: Path, end: str) -> None:
    """Its processors, and its time, if it has an end."""
    put(programs, "octaskly", "")
    slurm = {"SLURM_CPUS_ON_NODE": "8", "SLURM_JOB_END_TIME": end, "TZ": "UTC"}

    subprocess.run(
        ["sh", str(RECIPES / "slurm.sbatch"), AGENT],
        env={**environ(programs), **slurm},
        check=True,
    )

    until = " --until 2026-11-30T15:00:00+0000" if end else ""
    flags = AGENT.removeprefix("octaskly ")
    assert calls(programs, "octaskly") == [f"{flags} --slots 8{until}"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)
def test_unit_is_valid(tmp_path: Path) -> None:
    """Systemd reports no problem."""
    text = (RECIPES / "octaskly-burst.service").read_text()
    unit = tmp_path / "octaskly-burst.service"
    unit.write_text(text.replace("%h/.local/bin/octaskly", "/bin/true"))

    done = subprocess.run(
        ["systemd-analyze", "--man=no", "--user", "verify", str(unit)],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": "/root",
            "XDG_RUNTIME_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
