"""Files that go along with tasks of a program, with both clients."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import octaskly
from octaskly.client.lending import CLOSE_S
from tests.cli.stand_in import Api, serving
from tests.client.kinds import Open
from tests.client.test_fetching import awaited

MISSING, REPLICATE = "/api/v1/files/missing", "/api/v1/files/replicate"
LEND = "/api/v1/files/lend"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the program, with a few files."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "greet").write_text("#!/bin/sh\ncat src/text\n")
    (folder / "greet").chmod(0o755)
    (folder / "src" / "text").write_text("hello\n")
    (folder / "a.log").write_text("ignored\n")
    (folder / ".gitignore").write_text("*.log\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_folder_travels_to_another_node_and_back(
    client: octaskly.Client, project: Path
) -> None:
    """A local file that changed meanwhile is kept, as by the commands."""
    task = client.run(
        "./greet; echo made >>src/text; mkdir build; echo app >build/app",
        inputs=".",
        outputs=["build", "src/text"],
        requires={"node": "cedar"},
        check=True,
    )
    (project / "src" / "text").write_text("edited\n")

    fetched = awaited(client, task.fetch())
    elsewhere = awaited(client, task.fetch(project / "other"))

    assert task.stdout == "hello\n"
    assert (project / "build" / "app").read_text() == "app\n"
    assert (project / "src" / "text").read_text() == "edited\n"
    [kept] = fetched.kept
    assert (project / kept.saved_as).read_text() == "hello\nmade\n"
    assert elsewhere.kept == ()
    assert (project / "other" / "src" / "text").read_text() == "hello\nmade\n"


@pytest.mark.parametrize("outputs", ["made", Path("made"), ("made",)])
def test_outputs_are_one_path_or_several(client: octaskly.Client, outputs: Any) -> None:
    """As text or not."""
    task = client.submit("true", workdir="scratch", outputs=outputs)

    assert [output.path for output in client.wait(task).outputs] == ["made"]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("src", "./src/text"),
        (Path("src"), "./src/text"),
        (["src", Path("a.log")], "./a.log ./src/text"),
        ({"src": "in/deep", Path("greet"): "tool"}, "./in/deep/text ./tool"),
        ([("src", "."), "greet"], "./greet ./text"),
        ([Path("/etc/hostname").with_name("passwd")], None),
        ((), None),
    ],
    ids=str,
)
def test_inputs_have_the_places_that_the_program_chose(
    client: octaskly.Client, project: Path, inputs: Any, expected: str | None
) -> None:
    """One path, several, or with places; a named file is sent though git ignores it."""
    if expected is None and inputs:
        with pytest.raises(octaskly.ManifestError, match="is outside this folder"):
            client.run("true", inputs=inputs)
        return

    done = client.run("find . -type f | sort | xargs echo", inputs=inputs)

    if expected is not None:
        assert done.stdout == f"{expected}\n"


def test_submitted_tasks_find_their_files(
    client: octaskly.Client, project: Path
) -> None:
    """Also what git ignores, if it is wanted; and what `wait` returns knows of them."""
    submitted = client.submit(
        "cat a.log; ls -A", inputs=".", includes_ignored=True, outputs=["a.log"]
    )
    (project / "a.log").write_text("edited\n")

    ended = client.wait(submitted)

    assert ended.stdout == "ignored\n.gitignore\na.log\ngreet\nsrc\n"
    [kept] = client.fetch(ended).kept
    assert kept.path == "a.log"


@pytest.mark.parametrize("call", ["run", "submit"])
def test_a_later_program_keeps_a_file_that_was_edited_since_it_was_sent(
    client: octaskly.Client, project: Path, call: str
) -> None:
    """It knows only the id of the task; this machine has a record of the files."""
    task = getattr(client, call)(
        "echo made >>src/text", inputs="src", outputs=["src/text"]
    )
    assert client.wait(task).status == "completed"
    (project / "src" / "text").write_text("edited\n")

    fetched = client.fetch(task.id)

    assert (project / "src" / "text").read_text() == "edited\n"
    assert [kept.path for kept in fetched.kept] == ["src/text"]


def test_tasks_of_one_request_get_the_same_files(
    client: octaskly.Client, project: Path
) -> None:
    """They are sent once; each task declares its own outputs and the common ones."""
    tasks = client.submit_many(
        [
            "./greet > all",
            octaskly.Draft(command="cp src/text all; ls > own", outputs=["own"]),
        ],
        inputs={"greet": "greet", "src": "src"},
        outputs=["all"],
    )

    ended = [client.wait(task) for task in tasks]
    for number, task in enumerate(ended):
        awaited(client, task.fetch(project / str(number)))

    assert [task.status for task in ended] == ["completed", "completed"]
    assert (project / "0" / "all").read_text() == "hello\n"
    assert (project / "1" / "all").read_text() == "hello\n"
    assert (project / "1" / "own").read_text() == "all\ngreet\nown\nsrc\n"
    with pytest.raises(octaskly.Invalid, match="includes_ignored needs inputs"):
        client.submit_many(["true"], includes_ignored=True)
    with pytest.raises(octaskly.ManifestError):
        client.submit_many(["true"], inputs="none")


def test_members_of_arrays_get_their_own_files(
    client: octaskly.Client, project: Path
) -> None:
    """By placeholders, beside those that all members get."""
    for name in ("part-1", "part-2"):
        (project / name).write_text(f"{name}\n")
    command = "cat src/text; cat {}* part* >made-{}; ls"

    array = client.array(command, "1-2", inputs={"part-{}": "part", "src": "src"})
    results = [task.stdout for task in client.results(array)]
    mapped = client.map(
        "cat {} > {.}.out",
        (name for name in ("part-1", "part-2")),
        inputs=["{}", "src"],
        outputs=["{.}.out"],
    )
    for task in mapped:
        awaited(client, task.fetch())

    assert [str(result).split() for result in results] == [
        ["hello", f"made-{number}", "part", "src"] for number in (1, 2)
    ]
    assert (project / "part-1.out").read_text() == "part-1\n"
    assert (project / "part-2.out").read_text() == "part-2\n"


@pytest.fixture
def changing(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A file that changes before it is opened to be sent, as often as the list says."""
    left = [0]
    place = project / "src" / "text"
    real_open = os.open

    def open_and_change(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if path == str(place) and left[0]:
            left[0] -= 1
            place.write_text(place.read_text() + "x")
        return real_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", open_and_change)
    return left


def test_large_files_are_lent_while_the_program_waits(
    client: octaskly.Client, project: Path
) -> None:
    """They are sent when a node wants them; nothing is left running."""
    for name in ("one", "two"):
        (project / name).write_bytes(os.urandom(2_000_000))
    done = client.run("wc -c one", inputs=["one"], requires={"node": "cedar"})
    mapped = list(client.map("wc -c {}", ["one", "two"], inputs=["{}"]))

    assert done.stdout == "2000000 one\n"
    assert [task.stdout for task in mapped] == ["2000000 one\n", "2000000 two\n"]
    assert done.tree is not None
    assert done.tree.lent
    assert [t.name for t in threading.enumerate() if t.name == "lender"] == []


def test_a_lent_file_that_changes_ends_the_run(
    client: octaskly.Client, project: Path, changing: list[int]
) -> None:
    """Its task is cancelled, and the error names the file."""
    (project / "src" / "text").write_bytes(os.urandom(2_000_000).hex().encode())
    client.run("true", inputs=["greet"])  # So that only the lender opens the file.
    changing[0] = 99

    with pytest.raises(octaskly.FileChanged, match="text' changes while it is sent"):
        client.run("true", inputs=["src"], name="changed")

    [task] = [task for task in client.tasks() if task.name == "changed"][-1:]
    assert client.wait(task).status == "cancelled"


def test_a_file_that_changes_while_it_is_sent_is_scanned_once_more(
    client: octaskly.Client, project: Path, changing: list[int]
) -> None:
    """Then it is an error that names it; no task was submitted."""
    (project / "src" / "text").write_text(f"new, {client!r}")
    changing[0] = 1
    done = client.run("cat src/text", inputs=["src"])
    before = client.stats().tasks
    (project / "src" / "text").write_text(f"newer, {client!r}")
    changing[0] = 99

    with pytest.raises(
        octaskly.FileChanged, match=r"src/text' changes while it is sent"
    ):
        client.run("true", inputs=["src"])

    assert done.stdout == f"new, {client!r}x"
    assert client.stats().tasks == before


@pytest.mark.parametrize("is_array", [False, True], ids=["submit", "array"])
def test_files_are_safe_in_the_mesh_before_their_task_is_submitted(
    open_client: Open, project: Path, *, is_array: bool
) -> None:
    """The program does not wait for the task; if they are not, there is no task."""
    api = Api(refusal_hint="ben: the disk is full")
    api.answers |= {
        MISSING: {"missing": [], "node": "n1"},
        REPLICATE: {"nodes": ["n1", "n2"]},
    }
    stored = [f"POST {MISSING}", f"POST {REPLICATE}"]

    def submit(client: octaskly.Client) -> None:
        if is_array:
            client.array("true", "1-2", inputs=["src"])
        else:
            client.submit("true", inputs=["src"])

    with serving(api) as url:
        client = open_client(url)
        submit(client)
        asked = [request for request in api.requests if request.startswith("POST")]
        (draft,) = api.drafts
        api.requests.clear()
        api.refuse = lambda _, path: (507, {}) if path == REPLICATE else None
        with pytest.raises(octaskly.Refused) as refusal:
            submit(client)

    assert asked == [*stored, "POST /api/v1/tasks"]
    assert api.bodies[1] == {"sha256": draft["tree"]["sha256"], "node": "n1"}
    assert refusal.value.hint == "ben: the disk is full"
    assert api.requests == stored


@pytest.mark.parametrize(
    ("call", "slow"),
    [
        ("submit", MISSING),
        ("submit", REPLICATE),
        ("array", MISSING),
        ("submit_many", MISSING),
        ("run", MISSING),
        ("run", LEND),
        ("map", LEND),
    ],
)
def test_a_deadline_ends_the_sending_of_files(
    open_client: Open, project: Path, call: str, slow: str
) -> None:
    """Whatever the node is slow at; no task is submitted."""
    (project / "src" / "text").write_bytes(bytes(2_000_000))
    calls: dict[str, Callable[[octaskly.Client, Any], object]] = {
        "submit": lambda client, wanted: client.submit("true", **wanted),
        "array": lambda client, wanted: client.array("true", "1-2", **wanted),
        "submit_many": lambda client, wanted: client.submit_many(["true"], **wanted),
        "run": lambda client, wanted: client.run("true", **wanted),
        "map": lambda client, wanted: list(client.map("true", ["a"], **wanted)),
    }
    # Of what is lent, the node lacks all but the manifest.
    lacks_all = call in ("run", "map")
    api, is_over = Api(), threading.Event()

    def answer(path: str, body: Any) -> Any:
        if path == slow:
            is_over.wait(9)
        asked = body["sha256"]
        if path == MISSING:
            is_many = lacks_all and len(asked) > 1
            return {"missing": asked if is_many else [], "node": "n1"}
        return {"nodes": ["n1", "n2"]}

    for path in (MISSING, REPLICATE, LEND):
        api.answers[path] = partial(answer, path)

    with serving(api) as url:
        began_at = time.monotonic()
        with pytest.raises(octaskly.TimedOut, match="files"):
            calls[call](open_client(url), {"inputs": ["src"], "deadline_s": 0.5})
        took_s = time.monotonic() - began_at
        is_over.set()
        for thread in threading.enumerate():
            if thread.name == "lender":
                thread.join(5)
                assert not thread.is_alive()

    assert took_s < 0.5 + CLOSE_S + 1
    assert f"POST {slow}" in api.requests
    assert api.drafts == []
