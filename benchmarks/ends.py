"""What the ends of tasks cost the dispatcher: those that arrive alone, and gathered.

A hundred nodes with 16 slots each hold tasks of about a second. Nodes with more and
shorter tasks report many ends at once: the same number of ends, 64 in each message.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.deep import BULK, fill
from benchmarks.measure import Row, bound_row, count, cpu_s, occupy, until
from tests.support.agents import Agent, running, until_nodes
from tests.support.herd import Work, herd

ALONE = (100, Work(slots=16, from_s=0.5, to_s=1.5, ends_alone=True))
GATHERED = (25, Work(slots=64, from_s=0.5, to_s=1.5))
SLOTS = 1600  #: of all members, in both
SETTLED = 3  #: tasks in each slot before anything is measured
CPU_US = 130.0
SHARE = 3.0
KB = 10.0


class EndCost(NamedTuple):
    """What the dispatcher did for each end."""

    rate: float  #: tasks a second
    cpu_us: float
    written_kb: float  #: to disk


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Compare ends that arrive alone with the same number in large messages."""
    seconds = 5.0 if quick else 15.0
    gathered = _cost(folder / "gathered", *GATHERED, seconds)
    yield (
        "ends, 64 in a message: dispatcher CPU a task",
        f"{gathered.cpu_us:.0f} us",
        "1.00",
        "",
        "",
    )
    alone = _cost(folder / "alone", *ALONE, seconds)
    yield ("ends, 100 nodes of 16 slots, 1 s", f"{alone.rate:.0f}/s", "", "", "")
    yield bound_row(
        "ends, 100 nodes of 16 slots, 1 s: CPU a task", alone.cpu_us, "us", CPU_US
    )
    ratio = alone.cpu_us / gathered.cpu_us
    met = "yes" if ratio <= SHARE else "no"
    share = f"{ratio:.2f}", f"<= {SHARE:g}", met
    yield ("ends, 100 nodes of 16 slots, 1 s: by gathered", "", *share)
    yield bound_row(
        "ends, 100 nodes of 16 slots, 1 s: written a task", alone.written_kb, "kB", KB
    )


def _cost(folder: Path, members: int, work: Work, seconds: float) -> EndCost:
    """Measure a dispatcher with so many members, all of whose slots are busy."""
    with running(folder, "head", extra=("--slots", "1")) as (head,):
        until_nodes(head, 1)
        occupy(head, 1)
        fill(head, math.ceil(SLOTS * (SETTLED + 2 + 1.2 * seconds) / BULK) * BULK)
        with herd(head, members, work):
            until(
                "the members have settled",
                lambda: count(head, "completed") >= SETTLED * SLOTS,
                within_s=60,
            )
            cost = _measure(head, seconds)
            assert count(head, "queued"), "the queue ran dry"
        head.process.kill()
    return cost


def _measure(head: Agent, seconds: float) -> EndCost:
    pid = head.process.pid
    ended, used_s, written = count(head, "completed"), cpu_s(pid), _written_bytes(pid)
    began_s = time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - began_s
    used_s, written = cpu_s(pid) - used_s, _written_bytes(pid) - written
    ended = count(head, "completed") - ended
    return EndCost(ended / took_s, used_s / ended * 1e6, written / ended / 1000)


def _written_bytes(pid: int) -> int:
    """Return the bytes that a process has passed to files.

    `write_bytes` beside it counts a whole folio of the page cache, of up to 2 MB, for
    each page that is written. Sockets of asyncio do not count.
    """
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise RuntimeError("no wchar")
