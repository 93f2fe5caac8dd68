"""Who runs which file of tests where several processes do, as in `make test`.

Most tests wait: for agents, browsers, shells. Some only compute. So the last process of
three or more is a quiet one: it runs what computes, in the time of the cores that the
others leave. These take what waits, then what the quiet one did not get to.
"""

from __future__ import annotations

import os
from typing import Final

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

QUIET_FROM: Final = 3  #: processes on
NICENESS: Final = 19
COMPUTES: Final = (
    "tests/simulation/",
    "tests/property/",
    "tests/unit/",
    "tests/docs/test_site.py",
)
EARLY: Final = ("tests/simulation/", "tests/mesh/", "tests/browser/")
"""Files that take long though their tests are few; begun last, they would end alone."""


def is_quiet(worker: str, count: int) -> bool:
    """Whether this process, of so many, gives way to the others."""
    return count >= QUIET_FROM and worker == f"gw{count - 1}"


def give_way() -> None:
    """Let the others go first, if this is the quiet process of a run."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if is_quiet(worker, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))):
        os.nice(NICENESS)


def only_computes(name: str) -> bool:
    """Whether a file, or a test in it, waits for nothing but a core."""
    return name.startswith(COMPUTES)


class Spread(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process whole files, of those left the one that suits it best."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        name = min(self._open_to(node), key=_turn, default=None)
        if name is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(name, last=False)
        super()._assign_work_unit(node)

    def _open_to(self, node: WorkerController) -> list[str]:
        if is_quiet(node.gateway.id, self.numnodes):
            return [name for name in self.workqueue if only_computes(name)]
        return list(self.workqueue)


def _turn(name: str) -> tuple[bool, bool]:
    """Return what to compare files by; of those alike, xdist puts the larger first."""
    return only_computes(name), not name.startswith(EARLY)
