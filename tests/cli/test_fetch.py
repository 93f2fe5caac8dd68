"""Outputs come home: `octaskly fetch`, and `run` and `map` at their end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pexpect
import pytest

from octaskly.cli.commands.run import FetchOutcome, fetch_at_end
from octaskly.cli.demo.agents import DemoAgent
from octaskly.cli.output import fetched
from octaskly.client import Session
from octaskly.rest.client_types import Task
from tests.cli.stand_in import Api
from tests.cli.typed import typed, without_wait_reason
from tests.support.agents import until

BUILD = (
    "mkdir -p build/sub; echo app >build/app; chmod +x build/app; echo 1 >build/sub/x"
)

Call = subprocess.CompletedProcess[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The user's current folder."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def octaskly(agent: DemoAgent, home: Path, *arguments: str) -> Call:
    done = subprocess.run(
        typed("--state-dir", str(agent.state), *arguments),
        cwd=home,
        capture_output=True,
        timeout=60,
        check=False,
    )
    done = without_wait_reason(done)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def texts_in(folder: Path) -> dict[str, str]:
    """Return the files below a folder."""
    return {
        str(place.relative_to(folder)): place.read_text()
        for place in sorted(folder.rglob("*"))
        if place.is_file()
    }


def begun(agent: DemoAgent, home: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command in a folder, and do not wait for its end."""
    return subprocess.Popen(
        [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state), *words],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_fetches_outputs_into_the_current_folder(
    agent: DemoAgent, home: Path
) -> None:
    """Programs are executable; in a script nothing is said."""
    done = octaskly(agent, home, "run", "--scratch", "--out", "build/", "--", BUILD)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert texts_in(home) == {"build/app": "app\n", "build/sub/x": "1\n"}
    assert os.access(home / "build" / "app", os.X_OK)


def test_run_says_on_a_terminal_what_it_fetched(agent: DemoAgent, home: Path) -> None:
    """In the line about the end of the task."""
    said, _ = run_at_terminal(agent, home, "build/", BUILD)

    assert re.fullmatch(r"✓ lone, [\d.]+ m?s · build/: fetched 2 files, 6 B\n", said), (
        said
    )


def test_a_missing_output_is_no_success_on_a_terminal(
    agent: DemoAgent, home: Path
) -> None:
    """The mark in the last line agrees with the exit code."""
    said, code = run_at_terminal(agent, home, "gone", "true")

    assert code == 125
    assert re.fullmatch(
        r"task-\S+ ended without gone\n"
        r"✗ lone, [\d.]+ m?s · gone: fetched 0 files, 0 B\n",
        said,
    ), said


def run_at_terminal(
    agent: DemoAgent, home: Path, output: str, command: str
) -> tuple[str, int | None]:
    """Return what `octaskly run` says about a command with an output, and its code."""
    words = ["--state-dir", str(agent.state), "run", "--scratch", "--out", output]
    run = pexpect.spawn(
        sys.executable,
        ["-m", "octaskly", *words, "--", command],
        encoding="utf-8",
        timeout=60,
        cwd=home,
    )
    said = re.sub(r"^queued: .*\n", "", run.read().replace("\r", ""))
    run.close()
    return said, run.exitstatus


def test_a_failed_task_brings_its_outputs_home_too(
    agent: DemoAgent, home: Path
) -> None:
    """The exit code is its own; what it did not make is no error then."""
    done = octaskly(
        agent,
        home,
        *("run", "--scratch", "--out", "log", "--out", "never", "--"),
        "echo why >log; exit 7",
    )

    assert (done.returncode, done.stderr) == (7, "")
    assert texts_in(home) == {"log": "why\n"}


def test_a_missing_output_after_success_is_an_error(
    agent: DemoAgent, home: Path
) -> None:
    """Which names it; the others are fetched."""
    done = octaskly(
        agent,
        home,
        *("run", "--scratch", "--out", "made", "--out", "*.o", "--out", "gone/", "--"),
        "echo >made",
    )

    assert done.returncode == 125
    assert re.fullmatch(r"task-\S+ ended without \*\.o, gone\n", done.stderr)
    assert texts_in(home) == {"made": "\n"}
    shown = json.loads(octaskly(agent, home, "show", "last", "--json").stdout)
    state = ("completed", 0, "exit")
    assert (shown["status"], shown["exit_code"], shown["reason"]) == state
    assert shown["outputs_missing"] == ["*.o", "gone"]
    again = octaskly(agent, home, "show", "last").stdout
    assert "made (1 B), *.o (missing), gone (missing)" in again


def test_a_run_after_a_failed_task_says_why_it_did_not_run(
    agent: DemoAgent, home: Path
) -> None:
    """It was cancelled, but not by the user."""
    failed = octaskly(agent, home, "submit", "--scratch", "--out", "x", "--", "false")
    done = octaskly(agent, home, "run", "--from", "last", "--", "true")

    assert done.returncode == 125
    said = rf"task-\S+ was cancelled: {failed.stdout.strip()} did not end as required\n"
    assert re.fullmatch(said, done.stderr), done.stderr


def test_something_in_the_way_is_kept_and_reported(
    agent: DemoAgent, home: Path
) -> None:
    """With the name of the fetched one."""
    (home / "result").mkdir()
    done = octaskly(
        agent, home, "run", "--scratch", "--out", "result", "--", "echo new >result"
    )

    assert done.returncode == 125
    [(name, text)] = texts_in(home).items()
    assert re.fullmatch(r"result\.octaskly-task-\S+", name)
    assert text == "new\n"
    assert (
        done.stderr == "result already exists with other content, so the output "
        f"was fetched as {name}\n"
    )


@pytest.mark.parametrize("command", ["run", "map"])
def test_a_file_that_was_edited_in_the_meantime_is_kept(
    agent: DemoAgent, home: Path, tmp_path: Path, command: str
) -> None:
    """Another one that was sent is replaced, as a local command would do it."""
    for name in ("edited", "same"):
        (home / name).write_text("before\n")
    wait = f"touch {tmp_path}/on; until test -e {tmp_path}/go; do sleep 0.02; done;"
    make = f"{wait} echo new >>edited; echo new >>same"
    files = ("--in", "edited", "--in", "./same", "--out", "edited", "--out", "same")
    words = [command, *files]
    words += ["--", make] if command == "run" else [f"{make} # {{}}", ":::", "item"]
    process = begun(agent, home, words)
    until(lambda: (tmp_path / "on").exists() or None, "the task runs")
    (home / "edited").write_text("mine\n")
    (tmp_path / "go").touch()
    _, said = process.communicate(timeout=60)

    assert process.returncode == 125, said
    found = texts_in(home)
    [beside] = found.keys() - {"edited", "same"}
    assert beside.startswith("edited.octaskly-task-")
    assert found == {
        "edited": "mine\n",
        beside: "before\nnew\n",
        "same": "before\nnew\n",
    }
    assert (
        "edited already exists with other content, so the output was "
        f"fetched as {beside}\n" in said
    )


def test_ctrl_c_while_outputs_arrive_names_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task has ended, so there is nothing to cancel."""
    task = Task(id="task-007-abcdef12", status="completed", exit_code=0)

    class Answering:
        def send_and_decode(self, *_: object) -> Task:
            return task

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetched, "fetch_outputs", interrupt)
    outcome = fetch_at_end(cast("Session", Answering()), task, ["x"], {}, [])

    assert outcome == FetchOutcome(exit_code=130)
    said = capsys.readouterr().err
    assert said == "no longer fetching; to continue: octaskly fetch task-007-abcdef12\n"


@pytest.mark.parametrize("command", ["submit", "array"])
def test_a_file_that_was_edited_after_submit_is_kept(
    agent: DemoAgent, home: Path, command: str
) -> None:
    """In the folder from which it was sent, also by a second fetch."""
    names = ("edited", "same", "removed")
    for name in names:
        (home / name).write_text("before\n")
    files = [option for name in names for option in ("--in", name, "--out", name)]
    words = [command, *files, *(["1-1"] if command == "array" else [])]
    make = f"for name in {' '.join(names)}; do echo new >>$name; done"
    ref = octaskly(agent, home, *words, "--", make).stdout.strip()
    assert octaskly(agent, home, "wait", ref).returncode == 0
    (home / "edited").write_text("mine\n")
    (home / "removed").unlink()

    done = [octaskly(agent, home, "fetch", ref) for _ in range(2)]
    other = octaskly(agent, home, "fetch", ref, "--to", "elsewhere")

    task = ref if command == "submit" else f"{ref}.1"
    beside = f"edited.octaskly-{task}"
    assert [one.returncode for one in done] == [125, 125]
    assert all(
        "edited already exists with other content, so the output was fetched as"
        f" {beside}\n" in one.stderr
        for one in done
    )
    assert other.returncode == 0, other.stderr
    assert texts_in(home) == {
        "edited": "mine\n",
        **dict.fromkeys((beside, "same", "removed"), "before\nnew\n"),
        **{f"elsewhere/{name}": "before\nnew\n" for name in names},
    }


def test_a_folder_with_the_files_of_another_keeps_its_edits(
    agent: DemoAgent, home: Path
) -> None:
    """Each folder from which a tree was sent is remembered, not only the last."""
    tasks = {}
    for name in ("one", "two"):
        (home / name).mkdir()
        (home / name / "file").write_text("before\n")
        os.utime(home / name / "file", (1, 1))  # Equal trees have equal times.
        words = ("submit", "--in", "file", "--out", "file", "echo new >>file")
        tasks[name] = octaskly(agent, home / name, *words).stdout.strip()
        assert octaskly(agent, home, "wait", tasks[name]).returncode == 0
        (home / name / "file").write_text("mine\n")

    done = [octaskly(agent, home / name, "fetch", tasks[name]) for name in tasks]

    assert [one.returncode for one in done] == [125, 125], done
    assert texts_in(home) == {
        **{f"{name}/file": "mine\n" for name in tasks},
        **{f"{n}/file.octaskly-{task}": "before\nnew\n" for n, task in tasks.items()},
    }


def test_a_file_that_was_edited_before_a_retry_is_kept(
    agent: DemoAgent, home: Path, tmp_path: Path
) -> None:
    """The retry sends it as it was; the earlier output replaces no edit."""
    (home / "edited").write_text("before\n")
    make = f"test -e {tmp_path}/go && echo new >>edited # {{}}"
    files = ("--in", "edited", "--out", "edited")
    failed = octaskly(agent, home, "map", *files, make, ":::", "item")
    (home / "edited").write_text("mine\n")
    (tmp_path / "go").touch()

    done = octaskly(agent, home, "map", "--retry-failed", "last")

    assert (failed.returncode, done.returncode) == (1, 125), (failed, done)
    assert (
        f"· {home}/edited has changed since then; the retry uses the earlier content"
        " (a new run uses the present one)\n"
    ) in done.stderr
    found = texts_in(home)
    [beside] = found.keys() - {"edited"}
    assert found == {"edited": "mine\n", beside: "before\nnew\n"}


def test_an_interrupted_map_says_how_to_fetch_what_was_not_fetched(
    agent: DemoAgent, home: Path
) -> None:
    """With --keep-order, ended items wait for the first; a retry leaves them out."""
    make = "echo {} >{}; test {} != a || sleep 1000"
    words = ["map", "-k", "--out", "{}", "--cpus", "1", make, ":::", "a", "b", "c"]
    process = begun(agent, home, words)
    with agent.client() as client:
        array = until(
            lambda: next(
                (
                    task.id
                    for task in client.tasks(newest=True, text=make)
                    if task.array is not None and task.array.completed == 2
                ),
                None,
            ),
            "two items have ended",
        )
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    done = octaskly(agent, home, "fetch", array)

    assert process.returncode == 130, said
    assert said.splitlines() == [
        f"cancelling the rest of {array}",
        "0 of 3 failed, 1 did not finish",
        f"to retry them: octaskly map --retry-failed {array}",
        f"2 that ended were not printed: octaskly logs {array}",
        f"to fetch their outputs: octaskly fetch {array}",
    ]
    assert done.returncode == 0, done.stderr
    assert {"b": "b\n", "c": "c\n"}.items() <= texts_in(home).items()


def test_fetch_brings_what_submit_made(agent: DemoAgent, home: Path) -> None:
    """Into any folder, again and again; JSON for programs."""
    ref = octaskly(
        agent, home, "submit", "--scratch", "--out", "build/**", "--", BUILD
    ).stdout.strip()
    assert octaskly(agent, home, "wait", ref).returncode == 0

    done = octaskly(agent, home, "fetch", ref, "--to", "results")
    again = octaskly(agent, home, "fetch", ref, "--to", "results", "--json")

    assert done.returncode == 0, done.stderr
    assert done.stderr == "build/**: fetched 2 files, 6 B\n"
    assert texts_in(home) == {
        "results/build/app": "app\n",
        "results/build/sub/x": "1\n",
    }
    assert json.loads(again.stdout) == {
        "v": 1,
        "id": ref,
        "folder": str(home / "results"),
        "files": 2,
        "bytes": 6,
        "kept": [],
        "skipped_links": [],
        "missing": [],
    }


def test_fetch_names_the_outputs_that_a_failed_task_did_not_make(
    agent: DemoAgent, home: Path
) -> None:
    """A script that goes on after `fetch` needs them; one that never ran has none."""
    out = ("--scratch", "--out", "log", "--out", "never")
    failed = octaskly(agent, home, "submit", *out, "--", "echo why >log; exit 7")
    octaskly(agent, home, "wait", failed.stdout.strip())
    waits = octaskly(agent, home, "submit", "--on", "nowhere", *out, "--", "true")
    octaskly(agent, home, "cancel", waits.stdout.strip())

    done = octaskly(agent, home, "fetch", failed.stdout.strip())
    cancelled = octaskly(agent, home, "fetch", "--json", waits.stdout.strip())

    assert (done.returncode, cancelled.returncode) == (125, 125)
    assert f"{failed.stdout.strip()} ended without never\n" in done.stderr
    assert json.loads(cancelled.stdout)["missing"] == ["log", "never"]
    assert texts_in(home) == {"log": "why\n"}


def test_fetch_explains_why_there_is_nothing(agent: DemoAgent, home: Path) -> None:
    """A task that runs, those without outputs, and one that is unknown."""
    runs = octaskly(
        agent, home, "submit", "--out", "x", "--", "sleep 100"
    ).stdout.strip()
    early = octaskly(agent, home, "fetch", runs)
    octaskly(agent, home, "cancel", "--force", runs)
    octaskly(agent, home, "run", "--", "true")
    none = octaskly(agent, home, "fetch", "last")
    octaskly(agent, home, "map", "--", "true", ":::", "1", "2")
    empty = octaskly(agent, home, "fetch", "last")
    unknown = octaskly(agent, home, "fetch", "no-such")

    assert early.returncode == 1
    assert "Task has not ended" in early.stderr
    assert none.returncode == 1
    assert "has no declared outputs" in none.stderr
    assert empty.returncode == 1
    assert "has outputs" in empty.stderr
    assert unknown.returncode == 3
    assert texts_in(home) == {}


def test_map_fetches_the_outputs_of_each_item(agent: DemoAgent, home: Path) -> None:
    """With folders and placeholders in their paths, also of items that fail."""
    done = octaskly(
        agent,
        home,
        *("map", "-k", "--scratch", "--out", "{.}.out", "--out", "log-{#}/"),
        "mkdir -p {//} log-{#}; echo {/} | tee {.}.out >log-{#}/x; [ {#} != 2 ]",
        *(":::", "a/one.txt", "b/two.txt"),
    )

    assert done.returncode == 1
    assert texts_in(home) == {
        "a/one.out": "one.txt\n",
        "b/two.out": "two.txt\n",
        "log-1/x": "one.txt\n",
        "log-2/x": "two.txt\n",
    }


@pytest.mark.parametrize(
    ("outs", "items"),
    [
        (["result"], ["a", "b"]),
        (["{/}"], ["a/x", "b/x"]),
        (["{.}.o"], ["x.c", "x.h"]),
        (["{}"], ["a", "./a"]),
        (["{}"], ["a", "a"]),
        (["{}"], ["a", "a/b"]),
        (["{}"], ["a/b", "a"]),
        (["out/{}", "out"], ["a", "b"]),
    ],
)
def test_two_items_with_the_same_output_are_refused(
    agent: DemoAgent, home: Path, outs: list[str], items: list[str]
) -> None:
    """Before anything runs: one would replace the other."""
    flags = [word for out in outs for word in ("--out", out)]
    done = octaskly(agent, home, "map", *flags, "touch ran", ":::", *items)

    assert done.returncode == 2
    assert "would both write" in done.stderr


def test_a_glob_that_matches_no_file_is_not_called_two_items(
    agent: DemoAgent, home: Path
) -> None:
    """The shell passes it on, and then it fills `{/}` like any item."""
    words = ["--out", "{/}.gz", "gzip {}", ":::", "a/*.log", "b/*.log"]
    done = octaskly(agent, home, "map", *words)

    assert (done.returncode, done.stderr.partition("\n")[0]) == (
        2,
        "error: the item 'a/*.log' is a glob that matches nothing",
    )
    assert not (agent.state.parent / "work" / "ran").exists()


def test_fetch_brings_what_a_glob_covers_of_each_member(
    agent: DemoAgent, home: Path
) -> None:
    """Frames have numbers of their own; of two files of one name, the first is kept."""
    ref = octaskly(
        *(agent, home, "array", "--scratch", "--out", "*.png", "1-3", "--"),
        "echo {} >00{}.png; echo {} >same.png",
    ).stdout.strip()
    octaskly(agent, home, "wait", ref)

    fetched = octaskly(agent, home, "fetch", ref, "--to", "frames")

    made = {path.name: path.read_text() for path in (home / "frames").iterdir()}
    beside = {f"same.png.octaskly-{ref}.{number}": f"{number}\n" for number in (2, 3)}
    frames = {f"00{number}.png": f"{number}\n" for number in (1, 2, 3)}
    assert made == {**frames, "same.png": "1\n", **beside}
    assert fetched.returncode == 125


def test_fetch_brings_the_outputs_of_an_array(agent: DemoAgent, home: Path) -> None:
    """Unless two members have the same."""
    ref = octaskly(
        agent, home, "array", "--scratch", "--out", "r{}", "1-3", "--", "echo {} >r{}"
    ).stdout.strip()
    same = octaskly(
        agent, home, "array", "--scratch", "--out", "r", "1-2", "--", "echo {} >r"
    ).stdout.strip()
    octaskly(agent, home, "wait", ref, same)

    done = octaskly(agent, home, "fetch", ref)
    refused = octaskly(agent, home, "fetch", same)
    member = octaskly(agent, home, "fetch", f"{same}.2", "--to", "two")

    assert done.returncode == 0, done.stderr
    assert done.stderr == f"3 tasks of {ref}: fetched 3 files, 6 B\n"
    assert refused.returncode == 1
    assert "both have the output r" in refused.stderr
    assert member.returncode == 0, member.stderr
    assert texts_in(home) == {"r1": "1\n", "r2": "2\n", "r3": "3\n", "two/r": "2\n"}


# --- What is refused, and what goes wrong ------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("..", "it is outside the folder where the command runs"),
        ("a/../../x", "it is outside the folder where the command runs"),
        ("/etc/x", "name a path in the folder where the command runs"),
        (".git", ".git is never fetched"),
        ("a/.GIT/hooks/*", ".git is never fetched"),
        ("./", "name files or folders, or '*'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "submit", "map"])
def test_outputs_that_cannot_be_are_refused_first(
    api: Api, environ: dict[str, str], command: str, path: str, why: str
) -> None:
    """Before files are sent."""
    done = subprocess.run(
        typed("--node", "here", command, "--in", "no", "--out", path, "--", "true"),
        capture_output=True,
        env=environ,
        timeout=60,
        check=False,
    )

    assert (done.returncode, api.requests) == (2, [])
    hint = f"  hint: octaskly {command} --help\n"
    assert done.stderr.decode() == f"error: --out {path}: {why}\n{hint}"


def test_what_is_no_file_is_not_kept(agent: DemoAgent, home: Path) -> None:
    """A FIFO, also in a folder; the rest of the folder comes home, without set-id."""
    alone = octaskly(
        agent, home, "run", "--scratch", "--out", "pipe", "--", "mkfifo pipe"
    )
    make = "mkdir -p d/.git; touch d/.git/x d/app; chmod 6755 d/app; mkfifo d/pipe"
    among = octaskly(agent, home, "run", "--scratch", "--out", "d", "--", make)

    assert alone.returncode == 125
    first, second = alone.stderr.splitlines()
    assert re.fullmatch(r"task-\S+ ended without pipe", first)
    assert second == "output pipe was not kept: not a file or folder"
    assert (among.returncode, among.stderr) == (
        0,
        "output d/pipe was not kept: not a file or folder\n",
    )
    assert texts_in(home) == {"d/app": ""}
    assert (home / "d" / "app").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("glob", ["{}*", "*b*"])
def test_globs_of_two_items_that_cover_one_file_replace_nothing(
    agent: DemoAgent, home: Path, glob: str
) -> None:
    """That cannot be seen before; the one that ends later is saved beside the other."""
    done = octaskly(
        agent,
        home,
        *("map", "-k", "--scratch", "--out", glob, "echo {} >bb; echo {} >{}.own"),
        *(":::", "b", "bb"),
    )

    assert done.returncode == 125
    [name] = [name for name in texts_in(home) if "octaskly" in name]
    assert texts_in(home) == {
        "b.own": "b\n",
        "bb": "b\n",
        name: "bb\n",
        "bb.own": "bb\n",
    }
    assert (
        "bb already exists with other content, so the output was fetched "
        f"as {name}\n" in done.stderr
    )


def in_small_folder(agent: DemoAgent, home: Path, script: str) -> Call:
    """Run shell text in a folder with a disk of 1 MB of its own."""
    disk = f"mount -t tmpfs -o size=1000k none {home}; cd {home}"
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    cli = f"{sys.executable} -m octaskly --state-dir {agent.state}"
    return subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            f'{disk}; octaskly() {{ {cli} "$@"; }}; {script}',
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
        check=False,
    )


def said_by(done: Call) -> list[str]:
    """Return the lines on stderr, but for those about waiting."""
    lines = done.stderr.splitlines()
    return [line for line in lines if not line.startswith("queued: ")]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_full_disk_here_is_said_and_nothing_is_half_done(
    agent: DemoAgent, home: Path
) -> None:
    """Files that were there keep their content; with room, the fetch goes on."""
    make = "echo new >a; head -c 700000 /dev/zero >b; cp b c"
    done = in_small_folder(
        agent,
        home,
        "echo old >c; head -c 500000 /dev/zero >ballast;"
        f" octaskly run --scratch --out a --out b --out c -- '{make}'; echo $?;"
        " cat a c; ls; rm ballast; octaskly fetch last; echo $?; rm b;"
        " octaskly fetch last --json >fetched; echo $?; wc -c <c; rm fetched; ls -A",
    )

    said = said_by(done)
    assert done.stdout.split() == [
        *("125", "new", "old", "a", "ballast", "c"),
        *("1", "0", "700000", "a", "c"),
    ], done
    full = r"error: the disk of this machine has no space for [bc]"
    hint = r"  hint: octaskly fetch task-\S+    when there is space"
    ended = r"no longer fetching; to continue with: octaskly fetch task-\S+"
    expected = f"{ended}\n{full}\n{hint}\n{full}\n{hint}"
    found = "\n".join(said)
    assert re.fullmatch(expected, found), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_map_goes_on_if_the_outputs_of_an_item_cannot_be_placed(
    agent: DemoAgent, home: Path
) -> None:
    """They stay at their worker; later items need the files that the command lends."""
    done = in_small_folder(
        agent,
        home,
        "octaskly map -k --scratch --out {} 'head -c {} /dev/zero >{}' ::: 9000000 5;"
        " echo $?; ls",
    )

    assert done.stdout.split() == ["125", "5"]
    said = said_by(done)
    full = r"error: task-\S+\.0: the disk of this machine has no space for 9000000"
    assert re.fullmatch(full, said[0]), said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_the_hint_about_a_full_disk_names_the_folder(
    agent: DemoAgent, home: Path
) -> None:
    """Without it, the outputs would come into the folder where it is typed."""
    done = in_small_folder(
        agent,
        home,
        "octaskly run --scratch --out a -- 'head -c 700000 /dev/zero >a';"
        " head -c 500000 /dev/zero >ballast; octaskly fetch last --to 'my dir'",
    )

    assert done.returncode == 1
    (hint,) = [line for line in done.stderr.splitlines() if "hint" in line]
    expected = r"  hint: octaskly fetch task-\S+ --to 'my dir'    when there is space"
    assert re.fullmatch(expected, hint), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_full_disk_for_stdin_is_said_and_no_task_is_left(
    agent: DemoAgent, home: Path
) -> None:
    """Its bytes are kept on this machine first, because a task needs all of them."""
    before = agent_tasks(agent, home)

    done = in_small_folder(
        agent,
        home,
        "export TMPDIR=$PWD; head -c 3000000 /dev/zero | octaskly run -- wc -c;"
        " echo $?; ls -A; head -c 500 /dev/zero | octaskly run -- wc -c",
    )

    assert done.stdout.split() == ["125", "500"]
    said = said_by(done)
    assert said == [
        f"error: this machine cannot store stdin in {home}: No space left on device",
        "  hint: TMPDIR=/var/tmp octaskly run ...    stores it elsewhere",
    ]
    assert agent_tasks(agent, home) == before + 1


def agent_tasks(agent: DemoAgent, home: Path) -> int:
    """Return how many tasks the agent knows."""
    return int(json.loads(octaskly(agent, home, "ls", "--json").stdout)["total"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_full_disk_for_the_cache_costs_only_time(
    agent: DemoAgent, home: Path
) -> None:
    """Without the index, all is hashed; a retry cannot send what it does not know."""
    done = in_small_folder(
        agent,
        home,
        "export XDG_CACHE_HOME=$PWD; echo sent >f; cat /dev/zero >ballast 2>&-;"
        f" octaskly map --in f 'cat f; test -e {home.parent}/go #' ::: item;"
        f" echo $?; touch {home.parent}/go; octaskly map --retry-failed last; echo $?;"
        " rm ballast; octaskly run --in f -- cat f; echo $?",
    )

    assert done.stdout.split() == ["sent", "1", "sent", "0", "sent", "0"], done.stderr
    assert re.search(
        r"· this machine does not know the files of task-\S+; nodes use those that they"
        " still have\n",
        done.stderr,
    )
    assert "error" not in done.stderr


SLOW = """
import os, signal, sys
from octaskly.cli import main
from octaskly.cli.output import progress
progress.DRAW_S = progress.FIRST_DRAW_S = 1e-9
show = progress.TransferProgress.set_bytes
def show_and_interrupt(self, arrived, total):
    show(self, arrived, total)
    if arrived > 2_000_000 and "stop" in os.environ:
        os.kill(os.getpid(), signal.SIGINT)
progress.TransferProgress.set_bytes = show_and_interrupt
sys.exit(main(sys.argv[1:]))
"""


def test_fetch_shows_progress_and_resumes(agent: DemoAgent, home: Path) -> None:
    """On a terminal; after Ctrl-C the next one starts where it was."""
    make = "head -c 6000000 /dev/urandom >big; cksum <big"
    ran = octaskly(agent, home, "submit", "--scratch", "--out", "big", "--", make)
    octaskly(agent, home, "wait", ran.stdout.strip())

    said = []
    for stop in ({"stop": "1"}, {}):
        fetch = pexpect.spawn(
            sys.executable,
            ["-c", SLOW, "--state-dir", str(agent.state), "fetch", "last"],
            encoding="utf-8",
            timeout=60,
            cwd=home,
            env=os.environ | stop,
        )
        said.append(fetch.read())
        fetch.close()
        said.append(str(fetch.exitstatus))

    shown = r"fetching ([\d.]+) MB of 6\.0 MB, [\d.]+ [kMG]?B/s, [\w. ?]+ left"
    assert (said[1], said[3]) == ("130", "0"), said
    assert re.search(shown, said[0])
    match = re.search(shown, said[2])
    assert match is not None, said
    assert float(match[1]) >= 2.0
    assert "big: fetched 1 file, 6.0 MB" in said[2]
    logs = octaskly(agent, home, "logs", "last").stdout
    check = subprocess.run(
        ["cksum", home / "big"], capture_output=True, text=True, check=True
    )
    assert logs.split()[:2] == check.stdout.split()[:2]
    assert names_in(home) == ["big"]


def names_in(folder: Path) -> list[str]:
    """Return the names of files in a folder, hidden ones, too."""
    return sorted(path.name for path in folder.iterdir())
