"""The whole text of each refusal of files that no other test has."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from octaskly.cli import main
from octaskly.cli.demo.agents import DemoAgent
from octaskly.files import ignore_rules, local_tree, manifest
from tests.cli.stand_in import Api
from tests.cli.typed import typed, without_wait_reason
from tests.mesh.faults import small_disk
from tests.support.agents import Agent, ending, start

FILES = 5
LONG = "x" * 256
DISK_MB = 200  #: all of them stay free for the log

ABOUT = "PROJECT"  #: the folder in which the commands are typed
USAGE = "  hint: octaskly map --help\n"

TABLE = [
    (
        ["run", "--in", "many", "--", "true"],
        125,
        (
            "error: there are more than 4 files and folders below 'PROJECT/many'\n"
            "  hint: send a smaller folder, or one archive of it; .gitignore can"
            " exclude files\n"
        ),
    ),
    (
        [
            "submit",
            "--in",
            "many/0=0",
            "--in",
            "many/1=1",
            "--in",
            "half",
            "--",
            "true",
        ],
        1,
        (
            "error: with 'half', there are more than 4 files and folders to send\n"
            "  hint: send fewer files, or one archive of them\n"
        ),
    ),
    (
        ["array", "--in", "long", "1-2", "--", "true"],
        1,
        (
            "error: the list of files has 257 bytes; at most 200 are possible\n"
            "  hint: send fewer files, or one archive of them\n"
        ),
    ),
    (
        ["run", "--in", f"half/0={LONG}", "--", "true"],
        125,
        f"error: the name '{LONG[:80]}'... is too long\n",
    ),
    (
        ["map", "--in", "half", "--out", "made", "true", ":::", "a", "b"],
        2,
        (
            "error: --out made: 'a' and 'b' would both write made; add {} or another"
            f" placeholder\n{USAGE}"
        ),
    ),
    (
        ["map", "--in", "half", "--out", "{/}", "true", ":::", "a/x", "b/x"],
        2,
        (
            "error: --out {/}: 'a/x' and 'b/x' would both write x; add {} or another"
            f" placeholder\n{USAGE}"
        ),
    ),
]


@pytest.fixture
def project(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder of the user, where a tree may have few files."""
    folder = tmp_path / "project"
    for name, count in (("many", FILES), ("half", FILES - 2)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / str(number)).touch()
    (folder / "long").mkdir()
    (folder / "long" / ("n" * 200)).touch()
    monkeypatch.chdir(folder)
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.mark.parametrize(
    ("words", "code", "said"), TABLE, ids=[row[2].splitlines()[0][:60] for row in TABLE]
)
def test_files_that_cannot_be_sent_are_refused(
    api: Api,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    """Before any request: nothing is sent, and nothing runs."""
    for module in (ignore_rules, local_tree, manifest):
        monkeypatch.setattr(module, "ENTRIES_MAX", FILES - 1)
    monkeypatch.setattr(manifest, "MANIFEST_BYTES_MAX", 200)

    found = main(["--node", "here", *words])

    text = capsys.readouterr()
    assert (found, text.err.replace(str(project), ABOUT)) == (code, said)
    assert (text.out, api.requests) == ("", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_of_the_node_that_gets_the_files_is_its_error(
    tmp_path: Path,
) -> None:
    """The user cannot free it from here, and no task is left that would wait."""
    (tmp_path / "data").write_bytes(bytes(1000))
    with small_disk(tmp_path / "ash", DISK_MB):
        agent = start(tmp_path, "ash")
        with ending(agent):
            agent.ready()
            ends = [sent_by(agent, command) for command in ("run", "submit")]
            _, listed = agent.call("GET", "/api/v1/tasks")

    full = (
        "error: The node cannot write to its disk\n"
        "  cause: the disk of this node is full: N MB are free, and 268 MB stay free"
        " for the log; free disk space there, or send the files through another node\n"
    )
    assert ends == [(125, full), (1, full)]
    assert listed["tasks"] == []


def sent_by(agent: Agent, command: str) -> tuple[int, str]:
    """Return how a command ends that sends a file to an agent, and its stderr."""
    done = without_wait_reason(
        subprocess.run(
            typed("--state-dir", str(agent.state), command, "--in", "data", "true"),
            cwd=agent.state.parent,
            capture_output=True,
            timeout=60,
            check=False,
        )
    )
    said = re.sub(r"\d+ MB are free", "N MB are free", done.stderr.decode())
    return done.returncode, said


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_tree_of_100_000_files_runs_and_one_more_is_refused(
    agent: DemoAgent, tmp_path: Path
) -> None:
    """Before anything is sent, and with the exit code of Octaskly's own failures."""
    folder = tmp_path / "many"
    for number in range(100):
        (folder / f"{number}").mkdir(parents=True)
    for number in range(100_000):
        (folder / f"{number % 100}" / f"{number}").touch()
    words = typed("--state-dir", str(agent.state), "run", "--in", "many", "--")
    count = [*words, "find many -type f | wc -l"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            count, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    whole = run()
    (folder / "one more").touch()
    refused = run()

    assert (whole.returncode, whole.stdout) == (0, "100000\n"), whole.stderr
    assert (refused.returncode, refused.stdout) == (125, "")
    assert refused.stderr == (
        f"error: there are more than 100000 files below '{folder}'\n"
        "  hint: send a smaller folder, or one archive of it; .gitignore can exclude"
        " files\n"
    )
