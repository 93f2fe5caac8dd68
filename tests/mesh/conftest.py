"""Labs of network namespaces for tests that need several hosts."""

import contextlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.mesh.lab import Lab
from tests.mesh.netns import missing
from tests.support.figures import FIGURE, FIGURES

MakeLab = Callable[[int], Lab]

HAS_FAILED = pytest.StashKey[bool]()
KEEP = "LAB_KEEP"


@pytest.fixture(scope="session")
def _may_make_labs() -> None:
    """Skip if namespaces cannot be made; if they are required, fail."""
    reason = missing()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record for `make_lab` that its test has failed, and report its figures."""
    report = yield
    if report.when == "call":
        item.stash[HAS_FAILED] = report.failed
        report.user_properties += [(FIGURE, line) for line in FIGURES]
        FIGURES.clear()
    return report


@pytest.fixture
def make_lab(request: pytest.FixtureRequest, _may_make_labs: None) -> Iterator[MakeLab]:
    """Make labs of so many hosts, which end after the test.

    For a failed test, the logs are printed. `LAB_KEEP` names a folder that keeps all
    files.
    """
    made: list[Lab] = []

    def make(hosts: int) -> Lab:
        made.append(labs.enter_context(Lab(hosts)))
        return made[-1]

    with contextlib.ExitStack() as labs:
        yield make
        if request.node.stash.get(HAS_FAILED, False):
            for lab in made:
                lab.show_logs()
                if folder := os.environ.get(KEEP):
                    shutil.copytree(
                        *(lab.folder, Path(folder) / lab.folder.name),
                        ignore=shutil.ignore_patterns("*.sock"),
                    )
