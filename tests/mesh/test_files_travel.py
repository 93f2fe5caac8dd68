"""Files that travel between three hosts with separate disks, by the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.forming import dispatcher_of, form
from tests.mesh.lab import OF_THE_STARTER, ROOT, Host, Lab

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

PROJECT = ROOT / "tests/support/c_project"
MANY_FILES = 1000
AGAIN_BYTES_MAX = 64_000  #: on the wire beside a changed file
PICTURES = 200  #: those that are drawn below


@pytest.fixture(scope="module")
def hosts(_may_make_labs: None) -> Iterator[list[Host]]:
    with Lab(3, has_own_disks=True) as lab:
        form(lab)
        yield lab.hosts


def typed(host: Host, folder: Path, *words: str) -> str:
    """Type `octaskly ...` in a folder of a host; return what it prints."""
    state = str(host.first.state)
    done = host.run(
        *("env", "-C", str(folder), sys.executable, "-m", "octaskly"),
        *("--state-dir", state, *words),
        env=host.environ(host.first.name),
        timeout_s=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(folder: Path, *words: str) -> list[str]:
    """Run `make` without Octaskly; return the lines that it prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OF_THE_STARTER)}
    done = subprocess.run(
        ["make", *words],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        check=True,
    )
    return commands_in(done.stdout)


def commands_in(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if not line.startswith("mkdir ")]


def host_sha256(folder: Path, *names: str) -> str:
    """Return what `sha256sum` prints without Octaskly."""
    done = subprocess.run(
        ["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def moved_bytes(host: Host) -> int:
    """Return how much a host has sent and received, with all headers."""
    counts = (f"/sys/class/net/eth0/statistics/{way}_bytes" for way in ("rx", "tx"))
    return sum(map(int, host.run("cat", *counts).stdout.split()))


@pytest.fixture(scope="module")
def project(hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a C project on the first host, compiled by all and linked by one."""
    place = hosts[0].folder / "project"
    shutil.copytree(PROJECT, place)
    sources = sorted(str(path.relative_to(place)) for path in place.glob("src/*.c"))
    typed(
        *(hosts[0], place, "map", "--in", ".", "--out", "build/{/.}.*"),
        *("make build/{/.}.o", ":::", *sources),
    )
    planned = make(place, "--dry-run")
    assert len(planned) == 1, planned
    link = ("run", "--in", ".", "--in", "build", "--out", "build/calc", "--", "make")
    assert commands_in(typed(hosts[0], place, *link)) == planned
    return place


def test_a_project_is_built_over_three_hosts(
    hosts: list[Host], project: Path, tmp_path: Path
) -> None:
    """The program is executable, and each byte is that of a local build."""
    local = tmp_path / "local"
    shutil.copytree(PROJECT, local)
    make(local, "-j2")

    built = project / "build/calc"

    assert built.read_bytes() == (local / "build/calc").read_bytes()
    assert os.access(built, os.X_OK)
    tasks = json.loads(typed(hosts[0], project, "ls", "--json"))["tasks"]
    (array,) = (task["id"] for task in tasks if task["array"] is not None)
    members = hosts[0].http("GET", f"/api/v1/tasks?array={array}").json["tasks"]
    assert {member["worker_id"] for member in members} == {"h1", "h2", "h3"}


def test_sent_objects_are_made_again_exactly_as_by_a_local_make(
    hosts: list[Host], project: Path
) -> None:
    """Their times count, on a host that has not compiled them."""
    run = ("run", "--in", ".", "--in", "build", "--out", "build")
    for host in hosts[1:]:
        printed = typed(hosts[0], project, *run, "--on", host.name, "--", "make")
        assert printed == "make: 'build/calc' is up to date.\n"
        os.utime(project / "src/lexer.h")
        planned = make(project, "--dry-run")
        assert [line.split()[-1] for line in planned] == [
            "src/lexer.c",
            "src/parser.c",
            "-lm",
        ]

        printed = typed(hosts[0], project, *run, "--on", host.name, "--", "make")

        assert commands_in(printed) == planned
        assert make(project, "--dry-run") == ["make: 'build/calc' is up to date."]


def test_a_host_sees_no_file_of_another(hosts: list[Host]) -> None:
    """Else these tests would show nothing."""
    (hosts[0].folder / "own").touch()
    listed = f"ls {hosts[0].folder}"

    run = ("run", "--on", "h2", "--")
    assert typed(hosts[0], hosts[0].folder, *run, listed) == ""


def test_a_second_run_moves_what_changed(hosts: list[Host]) -> None:
    """Of 1000 files, one: that file and less than 64 kB beside it, in both directions.

    A run without files moves the rest, such as the task and the heartbeats meanwhile.
    Of each, the one of three that moves least counts: heartbeats only add.
    """
    folder = hosts[0].folder / "many"
    for number in range(MANY_FILES):
        place = folder / f"folder{number % 10}/file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(1024))
    dispatcher = dispatcher_of(hosts[0])
    worker = next(host for host in hosts[1:] if host.name != dispatcher)
    on_worker = ("--on", worker.name, "--")
    typed(hosts[0], folder, "run", "--in", ".", *on_worker, "true")
    command = "sha256sum folder3/file333"
    plain, changed = [], []
    for _ in range(3):
        (folder / "folder3/file333").write_bytes(os.urandom(1024))
        start = moved_bytes(worker)
        typed(hosts[0], folder, "run", *on_worker, f"{command} || :")
        plain.append(moved_bytes(worker) - start)

        printed = typed(hosts[0], folder, "run", "--in", ".", *on_worker, command)

        changed.append(moved_bytes(worker) - start - plain[-1])
        assert printed == host_sha256(folder, "folder3/file333")
    assert min(changed) - min(plain) < AGAIN_BYTES_MAX + 1024


def test_a_writer_changes_no_file_of_the_next_task(hosts: list[Host]) -> None:
    """Neither of a small file nor of a large one, also as root."""
    folder = hosts[0].folder / "planted"
    folder.mkdir()
    for name, size_bytes in (("small", 10), ("large", 17 << 20)):
        (folder / name).write_bytes(b"x" * size_bytes)
    run = ("run", "--in", ".", "--on", "h2", "--")
    digests = host_sha256(folder, "small", "large")

    typed(hosts[0], folder, *run, "chmod u+w *; echo y >> small; echo y >> large || :")

    assert typed(hosts[0], folder, *run, "sha256sum small large") == digests


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("identify") is None, reason="no ImageMagick")
def test_one_line_makes_thumbnails_of_200_pictures(hosts: list[Host]) -> None:
    """Each arrives beside its picture, and is what a local command makes."""
    folder = hosts[0].folder / "pictures"
    folder.mkdir()
    drawing = 'for n in $(seq 200); do convert -size 96x64 plasma: "no $n.png"; done'
    subprocess.run(["sh", "-c", drawing], cwd=folder, check=True)
    pictures = sorted(path.name for path in folder.iterdir())

    command = "convert {} -thumbnail 32x32 -strip {.}.small.png"
    out = ("--in", "{}", "--out", "{.}.small.png")
    typed(hosts[0], folder, "map", *out, command, ":::", *pictures)

    made = sorted(folder.glob("*.small.png"))
    shapes = subprocess.run(
        ["identify", "-format", "%wx%h\n", *made],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shapes.stdout.split() == ["32x21"] * PICTURES
    subprocess.run(
        ["convert", pictures[0], "-thumbnail", "32x32", "-strip", "local.png"],
        cwd=folder,
        check=True,
    )
    assert made[0].read_bytes() == (folder / "local.png").read_bytes()
