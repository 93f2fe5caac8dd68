"""Iterators: logs, events, results of arrays and of `map`."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import octaskly


def test_log_is_streamed_while_the_task_writes_it(client: octaskly.Client) -> None:
    """Piece by piece, as bytes, with a position from which to continue."""
    task = client.submit(
        r"echo a; printf '\377' >&2; until test -e go; do sleep .02; done"
    )
    log = client.logs(task, deadline_s=60)
    pieces = list(itertools.islice(log, 3))
    assert pieces[0].kind == "attempt"
    assert {piece.data for piece in pieces} == {b"", b"a\n", b"\xff"}
    log.close()

    client.cancel(task, force=True)
    rest = list(client.logs(task, after=pieces[-1].id))

    assert [piece.kind for piece in rest] == ["end"]
    assert rest[0].details["status"] == "cancelled"


def test_events_continue_after_a_known_one(client: octaskly.Client) -> None:
    """A program that stopped misses no event."""
    news = client.events(deadline_s=60)
    first = next(news)
    assert first.node is not None
    assert first.node.state == "ready"
    task = client.run("true")
    known = next(event for event in news if event.data.get("id") == task.id)
    news.close()
    assert known.task is not None

    after = client.events(types=["task"], task=task, after=known.id, deadline_s=60)

    states = [known.task.status]
    for event in after:
        states.append(event.data["status"])
        if event.data["status"] == "completed":
            break
    after.close()
    assert sorted(set(states)) in (
        ["completed", "queued", "running"],
        ["completed", "running"],
    )


def test_map_yields_results_in_order(client: octaskly.Client) -> None:
    """Each item is one word for the shell, whatever its content."""
    items = ["a b", "$HOME", "'", 4, "ä"]

    ended = list(client.map("printf %s {}", items, requires={"os": "linux"}))

    assert [(task.item, task.command, task.stdout) for task in ended] == [
        (item, f"printf %s {shlex.quote(item)}", item) for item in map(str, items)
    ]


def test_unordered_map_yields_results_as_they_end(
    client: octaskly.Client, tmp_path: Path
) -> None:
    """Quick items do not wait for a slow one."""
    command = (
        f"test {{}} = b || until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 3"
    )
    ended = client.map(command, ["a", "b"], ordered=False)
    first = next(ended)
    (tmp_path / "go").touch()
    ended_pairs = [(task.item, task.exit_code) for task in (first, *ended)]
    assert ended_pairs == [("b", 3), ("a", 3)]


def test_map_reads_items_as_they_are_needed(
    client: octaskly.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be any number of them; two arrays are under way at a time."""
    monkeypatch.setattr("octaskly.client.flows.arrays.ITEMS_MAX", 3)
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            yield taken
            taken += 1

    ended = client.map("echo {}", endless())
    first = [task.stdout for task in itertools.islice(ended, 4)]

    assert first == ["0\n", "1\n", "2\n", "3\n"]
    assert taken <= 9
    ended.close()


def test_leaving_a_map_cancels_the_rest(client: octaskly.Client) -> None:
    """No other program knows of these tasks."""
    ended = client.map("test {} = 0 || sleep 60", [0, 1], name="half")
    next(ended)
    ended.close()

    half = [task for task in client.tasks() if task.name == "half"][-1]
    assert client.wait(half, deadline_s=60).status == "cancelled"


def test_array_is_submitted_once_and_its_results_are_read_later(
    client: octaskly.Client,
) -> None:
    """Members have their number, their output, and their outcome."""
    array = client.array("echo {}; exit {}", "0-2", max_fails=9)

    ended = list(client.results(array.id))

    assert [(task.index, task.stdout, task.exit_code) for task in ended] == [
        (0, "0\n", 0),
        (1, "1\n", 1),
        (2, "2\n", 2),
    ]
    members = client.wait(array).array
    assert members is not None
    assert (members.total, members.failed, members.max_fails) == (3, 2, 9)
    assert len(list(client.tasks(array=array, status="failed"))) == 2


def test_file_is_streamed_in_pieces(client: octaskly.Client) -> None:
    """Of any size, also empty."""
    task = client.run(
        "head -c 300000 /dev/urandom > big; cksum < big; : > 'an empty one'",
        outputs=["big", "an empty one"],
    )

    pieces = list(client.output(task, "big"))

    assert len(pieces) > 1
    assert sum(map(len, pieces)) == 300_000
    assert list(client.output(task, "an empty one")) == []
    with pytest.raises(octaskly.NotFound):
        list(client.output(task, "other"))


def test_deadline_ends_a_stream(client: octaskly.Client) -> None:
    """It raises an error, because the end of an iterator means that it is complete."""
    news = client.events(types=["node"], deadline_s=0.3)

    with pytest.raises(octaskly.TimedOut):
        for _ in news:
            pass
