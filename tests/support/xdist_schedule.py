"""Assignment of test files to processes under pytest-xdist, as in `make test`.

Most tests wait: for agents, browsers, shells. Some only compute. So the last process of
several is the quiet one. It runs computing tests first, in the core time that the
others leave, and then takes any file. The others take waiting tests first, then the
computing ones that are left.

Tests that want the machine for themselves have a run of their own, `-n 2 -m alone`. The
quiet process takes computing tests alone there.
"""

from __future__ import annotations

import functools
import os
from typing import Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

QUIET_FROM: Final = 2  #: number of processes from which one is quiet
OWN: Final = os.getpriority(os.PRIO_PROCESS, 0)  #: niceness of the run
GIVING_WAY: Final = 19  #: the highest
COMPUTES: Final = (
    "tests/simulation/",
    "tests/property/",
    "tests/docs/test_site.py",
    "tests/unit/",
)
EARLY: Final = (
    *("tests/simulation/", "tests/property/", "tests/docs/test_site.py"),
    "tests/cli/test_service_system.py",
    "tests/integration/agent/test_openapi.py",
    *("tests/browser/", "tests/cli/test_service.py", "tests/attack/test_by_uid.py"),
    *("tests/mesh/", "tests/docs/"),
)
"""Long files with few tests, the longest first; the last would run alone at the end."""

APART: Final = ("tests/simulation/", "tests/property/")
"""Files whose tests are assigned one by one, because some take long and share nothing.

More files would cost time, since each unit of work is compared with all others.
"""


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
    """Assigns files, or single tests, each to the process that suits it best."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        self._are_others_alone = str(config.option.markexpr).startswith("alone")

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(APART):
            return nodeid
        return str(super()._split_scope(nodeid))

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
            is_over = self._are_others_alone or not can_lower_niceness()
            return quiet if quiet or is_over else names
        return names


@functools.cache
def _turn(name: str) -> tuple[bool, int]:
    """Return a unit's sort key; of equal ones, xdist puts the larger first."""
    early = (n for n, prefix in enumerate(EARLY) if name.startswith(prefix))
    return only_computes(name), next(early, len(EARLY))
