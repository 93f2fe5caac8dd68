"""A viewer who reads long outputs and tasks over as many connections as it gets.

They are as long as clients can make them, and the viewer takes its answers slowly.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.attack.test_viewer_lists import (
    COMMAND,
    GROWTH_MB_MAX,
    NOWHERE,
    outsider,
)
from tests.support.agents import (
    TASKS,
    Agent,
    finished,
    memory_mb,
    reset_peak,
    running,
    submit,
    until,
    until_nodes,
)

STREAMS = 32
POLLS = 60  #: fewer than one user may have before they show a token
MEMBERS = 8
BEGUN = 4  #: streams that get results at the same time
LONG_OUTPUT = "head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2"
PATHS = [f"{number:05}{'x' * 95}" for number in range(10_000)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("outputs"), "solo") as (started,):
        until_nodes(started, 1)
        yield started


def open_slowly(agent: Agent, token: str, path: str) -> socket.socket:
    """Ask for a path, and take nothing of the answer yet."""
    port = int(str(agent.ready()["api_url"]).rpartition(":")[2])
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    return connection


def has_a_result(connection: socket.socket) -> bool:
    """Return True if the beginning of a result has arrived; leave it there."""
    with contextlib.suppress(BlockingIOError):
        peeked = connection.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return b"event: result" in peeked
    return False


def test_slow_readers_of_the_results_of_an_array_take_little_memory(
    agent: Agent,
) -> None:
    """Results are read in the order of the requests, and lists after them."""
    array = submit(agent, LONG_OUTPUT, array={"range": f"1-{MEMBERS}"})
    finished(agent, array)
    viewer = outsider(agent, "viewer", "eve")
    begin_mb = memory_mb(agent, "VmRSS")
    reset_peak(agent)

    with contextlib.ExitStack() as held:
        path = f"/api/v1/arrays/{array}/results"
        opened = [
            held.enter_context(open_slowly(agent, viewer.token, path))
            for _ in range(STREAMS)
        ]
        until(lambda: sum(map(has_a_result, opened)) >= BEGUN, "some get results")
        listed = [agent.call("GET", f"{TASKS}?limit=1")[0] for _ in range(5)]

    assert listed == [200] * 5
    assert memory_mb(agent, "VmHWM") - begin_mb < GROWTH_MB_MAX


def test_long_polls_for_a_long_task_take_little_memory(agent: Agent) -> None:
    """Each keeps what it needs to notice the end."""
    task = submit(
        agent, COMMAND, requires=NOWHERE, inputs=PATHS, outputs=PATHS, stdin="x" * 10**6
    )
    token = outsider(agent, "viewer", "eve").token
    begin_mb = memory_mb(agent, "VmRSS")
    reset_peak(agent)

    with contextlib.ExitStack() as held:
        opened = [
            held.enter_context(open_slowly(agent, token, f"{TASKS}/{task}?wait=300"))
            for _ in range(POLLS)
        ]
        read = [agent.call("GET", f"{TASKS}/{task}")[0] for _ in range(5)]
        status, _ = agent.call("DELETE", f"{TASKS}/{task}")
        ends = {connection.recv(12) for connection in opened}

    assert read == [200] * 5
    assert status == 200
    assert ends <= {b"HTTP/1.1 200", b"HTTP/1.1 429"}  # The task is a long answer.
    assert memory_mb(agent, "VmHWM") - begin_mb < GROWTH_MB_MAX
