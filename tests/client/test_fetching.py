"""Outputs in a folder of the program, from another node, with both clients."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import octaskly

MAKE = (
    "mkdir -p build/sub; echo app >build/app; chmod +x build/app;"
    " ln -s app build/link; head -c 3000000 /dev/zero >build/sub/big"
)


def awaited(client: octaskly.Client, found: Any) -> octaskly.Fetched:
    """Return the result of a task's method, which may be a coroutine."""
    if inspect.iscoroutine(found):
        found = client._runner.run(found)  # type: ignore[attr-defined]
    fetched: octaskly.Fetched = found
    return fetched


def test_outputs_are_fetched_into_a_folder(
    client: octaskly.Client, tmp_path: Path
) -> None:
    """From the node that has them, through the one that is asked, with progress."""
    task = client.run(
        MAKE,
        outputs=["build", "gone"],
        workdir="scratch",
        requires={"node": "cedar"},
        check=True,
    )
    seen: list[tuple[int, int]] = []

    fetched = client.fetch(
        task, tmp_path / "home", on_progress=lambda *at: seen.append(at)
    )

    home = tmp_path / "home"
    assert (home / "build" / "app").read_text() == "app\n"
    assert (home / "build" / "app").stat().st_mode & 0o100
    assert (home / "build" / "link").readlink() == Path("app")
    assert (home / "build" / "sub" / "big").read_bytes() == bytes(3_000_000)
    assert (fetched.files, fetched.bytes) == (3, 3_000_004)
    assert (fetched.kept, fetched.missing) == ((), ("gone",))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 3_000_000
    assert [p.name for p in home.iterdir()] == ["build"]


def test_a_fetch_that_was_interrupted_resumes(
    client: octaskly.Client, tmp_path: Path
) -> None:
    """It goes on where the program was interrupted."""
    task = client.run(MAKE, outputs=["build"], workdir="scratch", check=True)

    class Stopped(Exception):
        pass

    def stop(arrived: int, _total: int) -> None:
        if arrived > 1_000_000:
            raise Stopped

    with pytest.raises(Stopped):
        awaited(client, task.fetch(tmp_path, on_progress=stop))
    firsts: list[int] = []
    client.fetch(task.id, tmp_path, on_progress=lambda at, _: firsts.append(at))

    assert firsts[0] > 1_000_000
    assert (tmp_path / "build" / "sub" / "big").read_bytes() == bytes(3_000_000)
    assert [p.name for p in tmp_path.iterdir()] == ["build"]


def test_a_file_that_changed_here_is_kept(
    client: octaskly.Client, tmp_path: Path
) -> None:
    """If the program says what it has sent."""
    (tmp_path / "notes").write_text("edited")
    task = client.run("echo new >notes", outputs=["notes"], workdir="scratch")

    fetched = client.fetch(task, tmp_path, sent={"notes": bytes(32)})

    assert (tmp_path / "notes").read_text() == "edited"
    [kept] = fetched.kept
    assert kept == octaskly.KeptFile("notes", f"notes.octaskly-{task.id}")
    assert (tmp_path / kept.saved_as).read_text() == "new\n"


def test_only_an_ended_task_has_outputs(
    client: octaskly.Client, tmp_path: Path
) -> None:
    """A task that made nothing gives nothing."""
    task = client.submit("sleep 100", outputs=["x"])
    with pytest.raises(
        octaskly.Conflict, match="its outputs are available once it has ended"
    ):
        client.fetch(task, tmp_path)
    client.cancel(task, force=True)
    none = client.run("true", outputs=["x"])

    assert client.fetch(none, tmp_path) == octaskly.Fetched(missing=("x",))
