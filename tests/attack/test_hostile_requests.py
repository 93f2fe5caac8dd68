"""Requests that a stranger or a weak token forms so that handling them does harm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attack.test_viewer_lists import (
    GROWTH_MB_MAX,
    NOWHERE,
    epoch_of,
    outsider,
)
from tests.support.agents import (
    TASKS,
    Agent,
    memory_mb,
    reset_peak,
    running,
    until_nodes,
)

ANSWER_BYTES_MAX = 4096
BODY_COPIES = 2  #: a body is joined from the parts in which it arrived

BODY_BYTES = 31 << 20  #: a submission may have 32 MiB
BODIES = {
    "a long unknown key": b'{"' + b"a" * BODY_BYTES + b'":1}',
    "a long value": b'{"command":"x","durability":"' + b"a" * BODY_BYTES + b'"}',
    "many tasks": b"[" + b'{"command":"x"},' * (BODY_BYTES // 16) + b"{}]",
    "many paths": b'{"command":"x","inputs":[' + b'"a",' * (BODY_BYTES // 4) + b'"a"]}',
    "many escapes": b'{"command":"x","inputs":['
    + b'"\\\\",' * (BODY_BYTES // 5)
    + b'"a"]}',
    "many numbers": b'{"command":"x","retry_on":['
    + b"1," * (BODY_BYTES // 2)
    + b'"no"]}',
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("bodies"), "solo") as (started,):
        until_nodes(started, 1)
        yield started


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_no_body_takes_much_of_the_dispatcher(agent: Agent, body: bytes) -> None:
    """Whatever it holds, it is refused with a short answer."""
    client = outsider(agent, "client", "eve")
    before = epoch_of(client.ask("GET", "/api/v1/stats"))
    begin_mb = memory_mb(agent, "VmRSS")
    reset_peak(agent)

    refused = client.send("POST", TASKS, body)

    assert refused.status == 400
    assert len(refused.body) < ANSWER_BYTES_MAX
    assert memory_mb(agent, "VmHWM") - begin_mb < BODY_COPIES * 31 + GROWTH_MB_MAX
    assert epoch_of(client.ask("GET", "/api/v1/stats")) == before


PATHS = [f"{number:05}{'x' * 95}" for number in range(10_000)]
LONG_TASKS = 40
LONG_TASKS_BATCH = 8


@pytest.fixture(scope="module")
def long_tasks(agent: Agent) -> list[str]:
    """Waiting tasks with chosen ids and the longest fields."""
    ids = [f"long-{number}" for number in range(LONG_TASKS)]
    fields = {
        "command": "true",
        "requires": NOWHERE,
        "inputs": PATHS,
        "outputs": PATHS,
        "stdin": "x" * 1_000_000,
    }
    for start in range(0, LONG_TASKS, LONG_TASKS_BATCH):
        some = [{**fields, "id": one} for one in ids[start : start + LONG_TASKS_BATCH]]
        status, answer = agent.call("POST", TASKS, some)
        assert status == 201, answer
    return ids


@pytest.mark.parametrize("is_parent", [True, False], ids=["after", "id"])
def test_tasks_that_a_short_request_names_are_not_all_read(
    agent: Agent, long_tasks: list[str], *, is_parent: bool
) -> None:
    """They may be a thousand times as long as the request."""
    client = outsider(agent, "client", "eve")
    parents = {"command": "true", "requires": NOWHERE, "after": long_tasks}
    repeated = [{"command": "true", "id": one} for one in long_tasks]
    begin_mb = memory_mb(agent, "VmRSS")
    reset_peak(agent)

    answer = client.ask("POST", TASKS, parents if is_parent else repeated)

    assert answer.status == (201 if is_parent else 409)
    assert memory_mb(agent, "VmHWM") - begin_mb < GROWTH_MB_MAX
