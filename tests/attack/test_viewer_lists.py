"""A viewer who asks for long lists of long commands, against a running agent.

The lists are as expensive as clients can make them: 1000 rows, each of a command of
64 KiB. S3 of the attacks: eight such requests took 2 GB, and twenty deposed the
dispatcher.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.agents import (
    TASKS,
    Agent,
    memory_mb,
    request,
    reset_peak,
    running,
    until,
)

ROWS = 1000
BATCH = 250
COMMAND = "true " + "x" * 65_531  #: the longest that is accepted
NOWHERE = {"labels": {"there": "is-none"}}  #: so that no task runs
PAGE_BYTES_MAX = 2 << 20
GROWTH_MB_MAX = 100
AT_ONCE = 20
ROUNDS = 3
IN_PROGRESS_MAX = 4


pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Answer:
    """One answer over the loopback port."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Outsider:
    """A program on this machine that has a token and nothing else."""

    port: int
    token: str

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        return self.send(method, path, data)

    def send(self, method: str, path: str, data: bytes | None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Authorization": f"Bearer {self.token}"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        with contextlib.closing(connection):
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def list_all(self) -> Answer:
        return self.ask("GET", f"{TASKS}?limit={ROWS}")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with 1000 tasks of the longest command, which wait."""
    with running(tmp_path_factory.mktemp("lists"), "solo") as (agent,):
        batch = [{"command": COMMAND, "requires": NOWHERE}] * BATCH
        with contextlib.closing(agent.connection()) as connection:

            def is_accepted() -> bool:
                return request(connection, "POST", TASKS, batch)[0] == 201

            for _ in range(ROWS // BATCH):
                until(is_accepted, "the agent accepts a batch")
        yield agent


def outsider(agent: Agent, role: str, subject: str) -> Outsider:
    status, issued = agent.call(
        "POST", "/api/v1/tokens", {"role": role, "subject": subject}
    )
    assert status == 201, issued
    port = int(str(agent.ready()["api_url"]).rpartition(":")[2])
    return Outsider(port, issued["token"])


def epoch_of(answer: Answer) -> tuple[str, str]:
    return answer.headers["Octaskly-Dispatcher"], answer.headers["Octaskly-Epoch"]


def test_a_page_of_the_longest_commands_has_all_its_rows_below_2_mib(
    loaded: Agent,
) -> None:
    """Clients add `limit` to `offset`, so no row may be left out."""
    found = outsider(loaded, "viewer", "eve").list_all()

    assert found.status == 200
    assert len(found.body) < PAGE_BYTES_MAX
    page = found.json
    assert page["returned"] == len(page["tasks"]) == ROWS <= page["total"]
    assert {row["command_truncated"] for row in page["tasks"]} == {True}
    assert {row["command"] for row in page["tasks"]} == {COMMAND[:1024]}


def test_ls_shows_tasks_of_cut_commands(loaded: Agent) -> None:
    """A command that is cut ends in an ellipsis."""
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "octaskly", "--state-dir", str(loaded.state)),
            *("ls", "--status", "queued", "--oldest", "--limit", "3"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert shown.count(f"{COMMAND[:1024]}…") == 3


def test_the_whole_command_is_in_the_task_itself(loaded: Agent) -> None:
    """Only lists are cut."""
    viewer = outsider(loaded, "viewer", "eve")
    (row,) = viewer.ask("GET", f"{TASKS}?limit=1").json["tasks"]

    task = viewer.ask("GET", f"{TASKS}/{row['id']}").json

    assert task["command"] == COMMAND
    assert "command_truncated" not in task


def test_twenty_long_lists_at_once_take_little_memory_and_depose_nobody(
    loaded: Agent,
) -> None:
    """Others go on: their submissions are accepted in the same epoch."""
    viewer = outsider(loaded, "viewer", "eve")
    client = outsider(loaded, "client", "bob")
    before = client.ask("GET", f"{TASKS}?limit=1")
    begin_mb = memory_mb(loaded, "VmRSS")
    reset_peak(loaded)
    answers: list[Answer] = []
    submissions: list[Answer] = []
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(ROUNDS):
            asked = [threads.submit(viewer.list_all) for _ in range(AT_ONCE)]
            submissions.append(
                client.ask("POST", TASKS, {"command": "true", "requires": NOWHERE})
            )
            answers += [each.result() for each in asked]

    statuses = Counter(answer.status for answer in answers)
    assert statuses[200] >= ROUNDS * IN_PROGRESS_MAX
    assert statuses[200] + statuses[429] == len(answers), statuses
    assert [answer.status for answer in submissions] == [201] * ROUNDS
    assert memory_mb(loaded, "VmHWM") - begin_mb < GROWTH_MB_MAX
    after = client.ask("GET", f"{TASKS}?limit=1")
    assert epoch_of(before) == epoch_of(after)


def test_a_client_has_four_expensive_requests_in_progress(loaded: Agent) -> None:
    """The refusal says whose they are, and when to come again; others get theirs.

    A request is in progress until its answer is read, and these read nothing.
    """
    viewer = outsider(loaded, "viewer", "eve")
    other = outsider(loaded, "viewer", "mallory")
    with contextlib.ExitStack() as opened:
        for _ in range(IN_PROGRESS_MAX):
            connection = opened.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", viewer.port))
            connection.sendall(
                f"GET {TASKS}?limit={ROWS} HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {viewer.token}\r\n\r\n".encode()
            )
            assert connection.recv(1)  # The answer has begun.

        refused = viewer.list_all()
        short, others = viewer.ask("GET", f"{TASKS}?limit=10"), other.list_all()

    assert refused.status == 429
    assert refused.json["error"] == "Too many expensive requests"
    assert "'eve'" in refused.json["hint"]
    assert refused.headers["Retry-After"] == "1"
    assert (short.status, others.status) == (200, 200)
    until(lambda: viewer.list_all().status == 200, "they have ended")


def test_a_list_counts_by_its_rows_in_the_rate_limit(loaded: Agent) -> None:
    """`/stats` counts once, and a list of 1000 as a hundred such requests."""
    viewer = outsider(loaded, "viewer", "eve")

    left = [
        int(viewer.ask("GET", path).headers["RateLimit-Remaining"])
        for path in ("/api/v1/stats", f"{TASKS}?limit={ROWS}", "/api/v1/stats")
    ]

    assert [left[0] - left[1], left[1] - left[2]] == [100, 1]
