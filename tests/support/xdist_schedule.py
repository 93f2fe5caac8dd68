"""Assignment of test files to processes under pytest-xdist, as in `make test`.

Most tests wait: for agents, browsers, shells. Some only compute. So the last process of
three or more is the quiet one. It runs computing tests first, in the core time that the
others leave, and then takes any file. The others take waiting tests first, then the
computing ones that are left.
"""

from __future__ import annotations

import os
from typing import Final

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

QUIET_FROM: Final = 3  #: number of processes from which one is quiet
OWN: Final = os.getpriority(os.PRIO_PROCESS, 0)  #: niceness of the run
GIVING_WAY: Final = 19  #: the highest
COMPUTES: Final = (
    "tests/simulation/",
    "tests/property/",
    "tests/unit/",
    "tests/docs/test_site.py",
)
EARLY: Final = ("tests/simulation/", "tests/mesh/", "tests/browser/")
"""Long files with few tests; started last, they would run alone at the end."""


def is_quiet(worker: str, count: int) -> bool:
    """Return True if this process, of so many, gives way to the others."""
    return count >= QUIET_FROM and worker == f"gw{count - 1}"


def set_niceness(name: str) -> None:
    """Lower the priority of a computing test, if this is the quiet process."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if is_quiet(worker, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))):
        niceness = GIVING_WAY if only_computes(name) else OWN
        if os.getpriority(os.PRIO_PROCESS, 0) != niceness:
            os.setpriority(os.PRIO_PROCESS, 0, niceness)


def can_lower_niceness() -> bool:
    """Return True if this process may lower its niceness again, as root may."""
    os.setpriority(os.PRIO_PROCESS, 0, OWN + 1)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, OWN)
    except PermissionError:
        return False  # This process only hands out tests, so it may as well be nicer.
    return True


def only_computes(name: str) -> bool:
    """Return True if a file, or a test in it, waits for nothing but a core."""
    return name.startswith(COMPUTES)


class QuietWorkerSchedule(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Assigns whole files, each to the process that suits it best."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        name = min(self._open_to(node), key=_turn, default=None)
        if name is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(name, last=False)
        super()._assign_work_unit(node)

    def _open_to(self, node: WorkerController) -> list[str]:
        names = list(self.workqueue)
        if is_quiet(node.gateway.id, self.numnodes):
            quiet = [name for name in names if only_computes(name)]
            return quiet if quiet or not can_lower_niceness() else names
        return names


def _turn(name: str) -> tuple[bool, bool]:
    """Return a file's sort key; of equal ones, xdist puts the larger first."""
    return only_computes(name), not name.startswith(EARLY)
