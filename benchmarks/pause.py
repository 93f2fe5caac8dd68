"""How soon a node that is paused uses no processor any more, whatever its tasks do.

Started as `python -m benchmarks.pause agent ...` an agent finds no cgroups, as where it
may make none; the package itself has no switch for that.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from benchmarks.measure import Row, p95_row, until
from octaskly.cli import main
from octaskly.runner.processes import cgroup
from octaskly.trust import create_secret_file
from tests.integration.runner.test_pause import BURNERS
from tests.support.agents import Agent, launch, submit, until_nodes
from tests.support.pooling import processes_with, token

STILL_S = 1.0
WATCH_S = 3.0  #: from the request on


def figures(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Pause nodes again and again while their tasks burn all that there is."""
    rounds = 3 if quick else 20
    create_secret_file(folder / "mesh.key")
    for name, program in (("paused", "octaskly"), ("without cgroups", __name__)):
        extra = ("--name", "solo", "--slots", str(len(BURNERS)))
        state = folder / name.partition(" ")[0]
        agent = launch(state, folder / "mesh.key", *extra, program=program)
        try:
            samples = list(_pauses(agent, rounds))
        finally:
            agent.stop()
        yield p95_row(f"{name}: last use of a processor", samples, STILL_S)


def _pauses(agent: Agent, rounds: int) -> Iterator[float]:
    """Tell for each pause how long after the request a task used a processor."""
    until_nodes(agent, 1)
    word = token()
    tasks = [submit(agent, text.format(word)) for text in BURNERS.values()]
    until("all run", lambda: len(_used(word)) > len(BURNERS))
    for _ in range(rounds):
        before = _used(word)
        until("they burn", lambda: _used(word) != before)  # noqa: B023
        yield _last_use_s(agent, word)
        assert agent.call("POST", "/api/v1/nodes/solo/unpause")[0] == 200
    for task in tasks:
        agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")
    until("all are gone", lambda: not processes_with(word))


def _last_use_s(agent: Agent, word: str) -> float:
    last_s, before = 0.0, _used(word)
    began_s = time.perf_counter()
    assert agent.call("POST", "/api/v1/nodes/solo/pause")[0] == 200
    looked_s = 0.0
    while looked_s < WATCH_S:
        seen = _used(word)
        looked_s = time.perf_counter() - began_s
        if seen != before:
            last_s, before = looked_s, seen
    return last_s


def _used(word: str) -> dict[int, int]:
    """Return what each process with this word used, in nanoseconds of a processor."""
    found = {}
    for pid in processes_with(word):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            text = Path(f"/proc/{pid}/schedstat").read_text()
            found[pid] = int(text.split()[0])
    return found


if __name__ == "__main__":
    with mock.patch.object(cgroup, "own_group_folder", return_value=None):
        sys.exit(main())
