"""`octaskly top`: frames of two widths, and terminal handling."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.console import Console

from octaskly.cli.output import top_screen
from tests.cli.conftest import Run
from tests.cli.stand_in import NODE, NODES, STATS, Api

SCREENS = Path(__file__).parent / "screens"
WAIT_S = 60
HOSTILE = "\x1b[31mred\x1b[0m\n[bold]and\u202e more[/bold]"
NOW = "2026-02-06T12:00:00.000Z"


def run(number: int, **more: object) -> dict[str, object]:
    return {
        "id": f"task-{number:03}-{number:08x}",
        "worker_id": "attic" if number % 2 else "here",
        "assigned_at": f"2026-02-06T11:{59 - number:02}:30.000Z",
        "name": None,
        "command": f"convert --quality 90 --strip in-{number}.png output-{number}.jpg",
        **more,
    }


def snapshot(*, nodes: int = 4, running: int = 6) -> top_screen.MeshSnapshot:
    """A mesh with one lost node, and one short of memory."""
    members = [
        NODE,
        NODE | {"name": "attic", "role": "standby", "short_of": "memory", "running": 2},
        NODE | {"name": HOSTILE, "role": "worker", "state": "draining"},
        NODE | {"name": "gone", "role": "worker", "state": "lost"},
    ]
    members += [NODE | {"name": f"node-{n}", "role": "worker"} for n in range(100)]
    failure = {"id": "task-007-00000007.17", "index": 17, "exit_code": 3}
    counts: dict[str, Any] = {"total": 100, "queued": 60, "running": 4}
    counts |= {"completed": 30, "failed": 6}
    counts |= {"rate_per_s": 0.4, "eta_ms": 160_000, "first_failure": failure}
    arrays = [
        {"id": "task-007-00000007", "short_id": "7", "status": "running"}
        | {"command": "./run {}", "elapsed_ms": 90_000, "array": counts},
    ]
    runs = [run(1, command=HOSTILE), run(2, name="album"), *map(run, range(3, 50))]
    return top_screen.MeshSnapshot(
        at=NOW,
        mesh={"term": 4, "replicas": 2, "reign_seconds": 3700},
        nodes=members[:nodes],
        tasks={"queued": 5, "running": running, "completed": 150, "failed": 3},
        tasks_per_second=12.34,
        running=runs[:running],
        arrays=arrays,
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_a_frame_matches_its_recording(columns: int) -> None:
    """Every difference must be intended; hostile names have no effect."""
    text = top_screen.render_plain(snapshot(), columns) + "\n"
    file = SCREENS / f"top-{columns}.txt"
    if os.environ.get("OCTASKLY_SCREENS") == "write":
        file.write_text(text)

    assert text == file.read_text()
    assert max(map(len, text.splitlines())) <= columns
    assert "\x1b" not in text


@pytest.mark.parametrize("columns", [24, 40, 66])
def test_a_narrow_terminal_shows_names_and_states_of_nodes(columns: int) -> None:
    """Columns at the right have no room."""
    lines = top_screen.render_plain(snapshot(), columns).splitlines()

    assert max(map(len, lines)) <= columns
    shown = [line.split() for line in lines if line.startswith(("here ", "attic "))]
    assert shown[1][:2] == ["here", "ready"]
    assert shown[2][:2] == ["attic", "short"]


@pytest.mark.parametrize("rows", [12, 24, 60])
def test_a_frame_fits_its_terminal(rows: int) -> None:
    """With a hundred nodes and many tasks it shows some of both, and says so."""
    console = Console(width=80, color_system=None)
    view = top_screen.ViewOptions(error="No dispatcher is elected", has_keys=True)
    with console.capture() as caught:
        console.print(
            top_screen.render_frame(snapshot(nodes=100, running=40), view, rows=rows)
        )

    lines = caught.get().splitlines()
    assert len(lines) <= rows
    assert sum(line.startswith("... and ") for line in lines) == 2
    assert any(line.startswith("task-") for line in lines)


@pytest.mark.parametrize("sort", list(top_screen.SORTS))
def test_tasks_are_sorted_as_requested(sort: str) -> None:
    """Also where a node does not know a start time yet."""
    seen = snapshot()
    seen.running[0]["assigned_at"] = None

    orders = []
    for is_reversed in (False, True):
        console = Console(width=200, color_system=None)
        with console.capture() as caught:
            console.print(
                top_screen.render_frame(seen, top_screen.ViewOptions(sort, is_reversed))
            )
        lines = caught.get().splitlines()
        orders.append([line for line in lines if line.startswith("task-")])

    assert len(orders[0]) == len(seen.running)
    assert orders[0] == orders[1][::-1]


def test_without_a_terminal_one_frame_is_printed(busy_api: Api, octaskly: Run) -> None:
    """Whole lines, no colours, and an end."""
    done = octaskly("top")

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"convert --quality 90 --strip in-3.png output-3.jpg\n" in done.stdout
    assert b"\x1b" not in done.stdout


def test_json_is_one_versioned_snapshot(busy_api: Api, octaskly: Run) -> None:
    """For scripts: the same values as a frame."""
    done = octaskly("top", "--json")

    shown = json.loads(done.stdout)
    assert shown["v"] == 1
    assert shown["at"] == NOW
    assert [node["name"] for node in shown["nodes"]] == ["here"]
    assert shown["tasks"] == STATS["tasks"]
    assert [one["worker_id"] for one in shown["running"]] == ["attic", "here"]


@pytest.fixture
def busy_api(api: Api) -> Api:
    """A node with two running tasks."""
    api.answers["/api/v1/attempts"] = {"now": NOW, "running": [run(3), run(4)]}
    return api


@contextmanager
def watching(environ: dict[str, str]) -> Iterator[Any]:
    """Run it on a terminal of 24 lines, which may be resized."""
    environ = {k: v for k, v in environ.items() if k not in ("COLUMNS", "LINES")}
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "octaskly", "--node", "here", "top"],
        env=environ | {"TERM": "xterm"},
        timeout=WAIT_S,
        encoding="utf-8",
        dimensions=(24, 80),
    )
    before = termios.tcgetattr(terminal.child_fd)
    try:
        terminal.expect("q quit")
        assert termios.tcgetattr(terminal.child_fd) != before
        yield terminal
        end = terminal.read()
        # The cursor and the previous screen are restored.
        assert "\x1b[?25h" in end
        assert "\x1b[?1049l" in end
        assert termios.tcgetattr(terminal.child_fd) == before
    finally:
        terminal.close(force=True)


@pytest.mark.slow
def test_keys_sort_the_tasks_and_a_resize_redraws(
    busy_api: Api, environ: dict[str, str]
) -> None:
    """Right, left, r and q; a wider terminal shows more of a command at once."""
    with watching(environ) as terminal:
        terminal.send("\x1b[C")
        terminal.expect("NODE ▼")
        terminal.send("r")
        terminal.expect("NODE ▲")
        terminal.send("\x1b[D")
        terminal.expect("TIME ▲")
        terminal.setwinsize(24, 140)
        terminal.expect("output-3.jpg")
        terminal.send("q")
    assert terminal.exitstatus == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)]
)
def test_a_signal_restores_the_terminal(
    busy_api: Api, environ: dict[str, str], number: signal.Signals, code: int
) -> None:
    """Ctrl-C is the usual exit, and no failure."""
    with watching(environ) as terminal:
        terminal.kill(number)
    assert terminal.exitstatus == code


@pytest.mark.slow
def test_the_last_frame_stays_while_no_node_answers(
    busy_api: Api, environ: dict[str, str]
) -> None:
    """A failover is a red line, not an end; then updates resume."""
    with watching(environ) as terminal:
        busy_api.refusal = "No dispatcher is elected"
        busy_api.refuse = lambda _method, _path: (503, {})
        terminal.expect(r"No dispatcher is elected; last update \d+ s ago")
        busy_api.answers["/api/v1/nodes"] = NODES | {
            "nodes": [NODE | {"name": "other"}]
        }
        busy_api.refuse = lambda _method, _path: None
        terminal.expect("other")
        terminal.send("q")
    assert terminal.exitstatus == 0
