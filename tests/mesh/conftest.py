"""Labs of network namespaces for tests that need several hosts."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.mesh.lab import Lab
from tests.mesh.netns import missing

MakeLab = Callable[[int], Lab]


@pytest.fixture(scope="session")
def _may_make_labs() -> None:
    """Skip where namespaces cannot be made; where they must be, fail."""
    reason = missing()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def make_lab(_may_make_labs: None) -> Iterator[MakeLab]:
    """Make labs of so many hosts; they are gone after the test."""
    with contextlib.ExitStack() as labs:
        yield lambda hosts: labs.enter_context(Lab(hosts))
