"""How cost grows: tasks a second and CPU of the dispatcher for each, as a chart.

Against queued tasks, nodes and the size of output; `python -m benchmarks growth` draws
it into `docs/charts/growth.svg`. The processes share the cores of one machine, so
with many nodes it is the machine that gets full; the CPU of the dispatcher is its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from benchmarks.crowd import grow
from benchmarks.deep import cancel, fill
from benchmarks.measure import Row, count, cpu_s, occupy, throughput, until
from tests.support.agents import Agent, running, submit, until_nodes

CHART = Path(__file__).parent.parent / "docs" / "charts" / "growth.svg"
QUEUES = (1_000, 10_000, 100_000, 1_000_000)
NODES = (1, 3, 10, 30, 100)
OUTPUTS = (1, 1_000, 10_000, 100_000)  #: bytes
TASKS = 2_000
WIDTH, HEIGHT, MARGIN = 300, 190, 44


class QueueSample(NamedTuple):
    """What was measured at one size."""

    size: int
    rate: float  #: tasks a second
    cpu_us: float  #: of the dispatcher, for each task


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure all three, and draw the chart."""
    curves: dict[str, list[QueueSample]] = {}
    for name, sizes, measure in (
        ("tasks queued", QUEUES[:3] if quick else QUEUES, _queued),
        ("nodes", NODES[:3] if quick else NODES, _nodes),
        ("bytes of output", OUTPUTS, _read_output),
    ):
        points = curves[name] = []
        for size in sizes:
            point = measure(folder / f"{name.split()[0]}{size}", size)
            points.append(point)
            cost = f"{point.cpu_us:.0f} us"
            yield f"{size} {name}; dispatcher", f"{point.rate:.0f}/s", cost, "", ""
    CHART.write_text(chart(curves))
    yield f"drawn: {CHART.name}", "", "", "", ""


def _queued(folder: Path, size: int) -> QueueSample:
    with running(folder, "head", extra=("--slots", "2")) as (head,):
        until_nodes(head, 1)
        throughput(head, "true", TASKS)  # Launchers start with the first task.
        blocks = occupy(head, 2)
        fill(head, size)
        cancel(head, blocks)
        point = _running(head, size, min(size - TASKS // 4, TASKS))
        head.process.kill()
    return point


def _running(head: Agent, size: int, tasks: int) -> QueueSample:
    """Measure while what waits is worked off."""
    done, used_s = count(head, "completed"), cpu_s(head.process.pid)
    began_s = time.perf_counter()
    until("some have ended", lambda: count(head, "completed") >= done + tasks)
    took_s = time.perf_counter() - began_s
    ended = count(head, "completed") - done
    used_s = cpu_s(head.process.pid) - used_s
    return QueueSample(size, ended / took_s, used_s / ended * 1e6)


def _nodes(folder: Path, size: int) -> QueueSample:
    agents: list[Agent] = []
    try:
        head = grow(folder, agents, size)
        _wake(head, agents)
        return _through(head, size, "true")
    finally:
        for agent in agents:
            agent.process.kill()
            agent.process.wait()


def _wake(head: Agent, agents: list[Agent]) -> None:
    """Have each node run a task, one after the other.

    Its launcher starts with its first task. That a hundred do so at once on two
    cores keeps agents from being heard for so long that dispatchers are replaced.
    """
    for agent in agents:
        task_id = submit(head, "true", requires={"node": agent.state.name})
        status, task = head.call("GET", f"/api/v1/tasks/{task_id}?wait=60")
        assert status == HTTPStatus.OK, task
        assert task["status"] == "completed", task


def _read_output(folder: Path, size: int) -> QueueSample:
    with running(folder, "head", extra=("--slots", "2")) as (head,):
        until_nodes(head, 1)
        return _through(head, size, f"head -c {size} /dev/zero")


def _through(head: Agent, size: int, command: str) -> QueueSample:
    throughput(head, command, TASKS // 2)  # Launchers start with the first task.
    used_s = cpu_s(head.process.pid)
    rate = throughput(head, command, TASKS)
    return QueueSample(size, rate, (cpu_s(head.process.pid) - used_s) / TASKS * 1e6)


def chart(curves: dict[str, list[QueueSample]]) -> str:
    """Return an SVG: a row for the rate, a row for the CPU, a column for each curve."""
    width, height = WIDTH * len(curves), HEIGHT * 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for column, (name, points) in enumerate(curves.items()):
        for row, (title, values) in enumerate(
            (
                ("tasks/s", [point.rate for point in points]),
                ("CPU a task, µs", [point.cpu_us for point in points]),
            )
        ):
            sizes = [point.size for point in points]
            place = f"translate({column * WIDTH} {row * HEIGHT})"
            parts.append(f'<g transform="{place}">')
            parts += _panel(f"{title}, by {name}", sizes, values)
            parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, sizes: list[int], values: list[float]) -> Iterator[str]:
    """Yield one small chart; sizes are a tenfold or so apart, so evenly spaced."""
    step = (WIDTH - 2 * MARGIN) / max(1, len(sizes) - 1)
    top, bottom = MARGIN * 0.7, HEIGHT - MARGIN * 0.7
    places = [
        (MARGIN + step * n, bottom - (bottom - top) * value / max(values) * 0.9)
        for n, value in enumerate(values)
    ]
    yield f'<text x="{MARGIN}" y="16" font-weight="bold">{title}</text>'
    yield (
        f'<path d="M{MARGIN} {top}V{bottom}H{WIDTH - MARGIN}" fill="none"'
        ' stroke="#888"/>'
    )
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
    yield f'<polyline points="{line}" fill="none" stroke="#2a6fb0" stroke-width="2"/>'
    for (x, y), size, value in zip(places, sizes, values, strict=True):
        yield f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="#2a6fb0"/>'
        yield _label(x, y - 7, f"{value:.0f}")
        yield _label(x, bottom + 14, f"{size:,}")


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{text}</text>'
