"""Rules for all tests: the search time of properties, and forbidden actions."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from tests.mesh.netns import isolate
from tests.support.agents import forked_starts
from tests.support.exploration import EXPLORED
from tests.support.figures import FIGURE
from tests.support.xdist_schedule import (
    QuietWorkerSchedule,
    only_computes,
    set_niceness,
)

TESTS = Path(__file__).parent

GARBAGE = 50_000  #: new objects between two garbage collections
COMPUTES_S_MAX = 900.0  #: seconds for a test that waits for nothing but a core

#: Calls on local files that return at once; blocking calls (sleep, sockets, locks,
#: databases, other processes) stays forbidden.
QUICK = ("os.", "io.")

_SLOW_MACHINE = [HealthCheck.too_slow]  # Shared machines stall, which is no finding.
# Background processes of a shell ignore Ctrl-C, and so would their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Agents of tests read no settings of the user who runs the tests.
os.environ["CONFIGURATION_DIRECTORY"] = str(TESTS)

# The same examples each time, so that a green run stays green; `make soak` searches on.
settings.register_profile(
    "dev",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=_SLOW_MACHINE,
)
settings.register_profile(
    "ci",
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=_SLOW_MACHINE,
)
settings.register_profile(
    "soak", max_examples=3000, deadline=None, suppress_health_check=_SLOW_MACHINE
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure() -> None:
    """Give each process of a run of several a network of its own, if permitted.

    Otherwise agents of one test would see those of another on the loopback.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        isolate()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests load, and none among the loaded tests later.

    A garbage collection takes a while, also in the middle of a measurement. So it is
    rare, which also saves a seventh of the time of the simulation.
    """
    gc.disable()
    gc.set_threshold(GARBAGE)
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Extend the time limit of computing tests, which yield the cores to others."""
    for item in items:
        if only_computes(item.nodeid):
            item.add_marker(pytest.mark.timeout(COMPUTES_S_MAX))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Set the quiet process's niceness before each test."""
    set_niceness(item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: Producer
) -> QuietWorkerSchedule | None:
    """Choose the process for each file, if whole files are assigned."""
    return (
        QuietWorkerSchedule(config, log)
        if config.getoption("dist") == "loadfile"
        else None
    )


@pytest.fixture(scope="session", autouse=True)
def _quick_starts_of_agents() -> Iterator[None]:
    """Fork agents from a loaded interpreter; `make soak` starts each by itself."""
    if settings.get_current_profile_name() == "soak":
        yield
        return
    with forked_starts():
        yield


@pytest.fixture(autouse=True)
def _no_network_in_unit_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pure code opens no socket; a test that does is in the wrong folder."""
    if not request.path.is_relative_to(TESTS / "unit"):
        return

    def refuse(*_arguments: object, **_options: object) -> None:
        pytest.fail("a test under tests/unit used a socket; move it to integration")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "bind", refuse)


@pytest.fixture(autouse=True)
def _no_blocking_of_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Blocking calls of our code on the event loop fail the async test."""
    function = getattr(request, "function", None)
    if not inspect.iscoroutinefunction(function):
        yield
        return
    with blockbuster_ctx(scanned_modules="octaskly") as guard:
        for name, blocking in guard.functions.items():
            if name.startswith(QUICK):
                blocking.deactivate()
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how much the tests of small scopes explored, and figures of meshes."""
    for wanted, title in ((EXPLORED, "explored in full"), (FIGURE, "figures")):
        lines = [
            f"{report.nodeid.rpartition('/')[2]}: {text}"
            for report in terminalreporter.getreports("passed")
            for name, text in report.user_properties
            if name == wanted
        ]
        if lines:
            terminalreporter.section(title)
            terminalreporter.write("\n".join([*sorted(lines), ""]))
