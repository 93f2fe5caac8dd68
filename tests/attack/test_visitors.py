"""A hostile visitor: it has a certificate of its own and the sources of the program.

It can lie about its own tasks, and nothing else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.api.routes.table import ROUTES
from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import (
    Assign,
    Contacts,
    Heartbeat,
    Hello,
    HelloOk,
    Leave,
    Message,
    Reattach,
    Report,
    Results,
    ResultsOk,
)
from octaskly.core.protocol.visitor_rules import (
    MESSAGES_BURST,
    VISITOR_MESSAGES,
    Direction,
)
from tests.attack.test_each_route import PARTS
from tests.support.agents import Agent, finished, meshed, store_file, submit, until
from tests.support.hostile_visitor import HostileVisitor
from tests.support.sample_messages import ATTEMPT, MESSAGES, SPEC, TASK

VISITOR_ROUTES = {
    ("GET", "/internal/v1/files/{sha256}"),
    ("POST", "/internal/v1/files/pack"),
    ("GET", "/internal/v1/output-trees/{task}"),
    (
        "POST",
        r"/internal/v1/visits/outputs/{task}/{attempt:\d{1,19}-\d{1,19}-\d{1,19}-\d{1,10}}",
    ),
}
"""All that a visitor may ask, for its own tasks; a new route is denied."""
UNTOLD = {kind for kind, d in VISITOR_MESSAGES.items() if d is Direction.TO_VISITOR}
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("visited")


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[Agent]:
    """A dispatcher: the routes for visitors are refused by any other node."""
    with meshed(folder, "ash", extra=("--slots", "1")) as (agent,):
        yield agent


def path_of(pattern: str) -> str:
    """Return a path of a route."""
    for name, value in PARTS.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern.replace("{", "").replace("}", "")


def test_the_routes_for_visitors_are_declared() -> None:
    """A route is denied until it is named here, too."""
    declared = {(r.method, r.path) for r in ROUTES if r.allows_visitors}

    assert declared == VISITOR_ROUTES


def test_no_other_route_answers_a_visitor(folder: Path, agent: Agent) -> None:
    """Not even those that are open to everybody, and not with another's ids."""
    visitor = HostileVisitor(folder, agent)

    answers = {
        (route.method, route.path): visitor.ask(route.method, path_of(route.path))[0]
        for route in ROUTES
    }

    refused = {403, 400, 411}  # Those that are declared read the request first.
    assert {status for status in answers.values() if status not in refused} == set()
    wrong = {key for key, status in answers.items() if status != 403}
    assert wrong <= VISITOR_ROUTES


def test_files_of_others_are_refused(folder: Path, agent: Agent) -> None:
    """It names a file that is on the member's disk."""
    finished(agent, submit(agent, "true"))  # It is dispatcher.
    name = store_file(agent, b"some text")["sha256"]
    visitor = HostileVisitor(folder, agent)

    assert visitor.ask("GET", f"/internal/v1/files/{name}?pieces=0")[0] == 403
    body = b'{"sha256": ["%s"], "tree": ""}' % name.encode()
    assert visitor.ask("POST", "/internal/v1/files/pack", body=body)[0] == 403


@pytest.mark.parametrize(
    "message",
    [
        m
        for m in MESSAGES
        if VISITOR_MESSAGES[type(m)] in (Direction.NEITHER, Direction.TO_VISITOR)
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_message_that_it_may_not_send_closes_the_link(
    folder: Path, agent: Agent, message: Message
) -> None:
    """A claim, a log, a roster, a key: each ends the link, and changes nothing."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked() as link:
        link.send(message)
        said = link.hear(Leave)

    assert isinstance(said, Leave)
    assert "may not pass" in said.reason
    assert agent.call("GET", "/api/v1/stats")[0] == 200


def test_it_is_told_nothing_but_where_members_are(folder: Path, agent: Agent) -> None:
    """Neither the roster nor the log comes with the link."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked() as link:
        link.attach()
        contacts = link.hear(Contacts)
        link.expect(Heartbeat)

    assert isinstance(contacts, Contacts)
    told = {type(message) for message in link.heard}
    assert told <= UNTOLD | {Hello, HelloOk, Leave}


def test_a_billion_slots_are_refused(folder: Path, agent: Agent) -> None:
    """The link is closed, with the reason."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked(visitor.hello(slots=10**9)) as link:
        said = link.hear(Heartbeat)

    assert said == Leave("protocol: slots")


def test_another_nodes_id_is_refused(folder: Path, agent: Agent) -> None:
    """The id is that of the key in the certificate."""
    visitor = HostileVisitor(folder, agent)
    stolen = NodeId(agent.ready()["node_id"])

    with visitor.linked(visitor.hello(id=stolen)) as link:
        said = link.hear(Heartbeat)

    assert isinstance(said, Leave)
    assert said.reason.startswith("protocol: ")


def test_a_certificate_ends_with_its_time(folder: Path, agent: Agent) -> None:
    """Neither the link nor a file is open to it afterwards."""
    yesterday_ms = int(time.time() * 1000) - 24 * HOUR_MS
    visitor = HostileVisitor(folder, agent, begins_ms=yesterday_ms)

    with visitor.linked() as link:
        said = link.hear(Heartbeat)

    assert isinstance(said, Leave)
    assert "has ended" in said.reason
    assert visitor.ask("POST", "/internal/v1/files/pack")[0] == 403


def test_a_flood_is_cut_off(folder: Path, agent: Agent) -> None:
    """Valid messages, too many: the link is closed, and others do not notice."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked() as link, contextlib.suppress(OSError):
        link.attach()
        empty = [Results((), 2)] * 64
        for _ in range(int(MESSAGES_BURST) // 64 + 8):
            link.send(*empty)
        said = link.hear(Leave)
        assert said == Leave("protocol: flood")
    assert finished(agent, submit(agent, "true"))["status"] == "completed"


@pytest.fixture
def blocker(agent: Agent) -> Iterator[str]:
    """A running task: the member has no other slot."""
    task = submit(agent, "sleep 600")
    until(lambda: _status(agent, task) == "running", "it runs")
    yield task
    agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")


def await_queued(agent: Agent, *tasks: str) -> None:
    """Wait until tasks wait: a member may prefetch one, and then gives it back."""
    until(lambda: all(_status(agent, task) == "queued" for task in tasks), "all wait")


def test_results_of_other_tasks_have_no_effect(
    folder: Path, agent: Agent, blocker: str
) -> None:
    """It reports the end of a task that waits, of one that runs, and of none."""
    running_id = blocker
    waiting_id = submit(agent, "echo right")
    visitor = HostileVisitor(folder, agent)
    done = Outcome(state=AttemptState.OK, reason=EndReason.EXIT, exit_code=0)
    lies = [
        Report(task=replace(SPEC, id=name).id, attempt=ATTEMPT, outcome=done, spec=SPEC)
        for name in (running_id, waiting_id, TASK)
    ]

    with visitor.linked() as link:
        link.attach()
        reattach = Reattach(((ATTEMPT, SPEC),), 2, NodeState.READY)
        link.send(reattach, Results(tuple(lies), 2))
        heard = link.hear(ResultsOk)
        while isinstance(heard, ResultsOk) and len(heard.items) < len(lies):
            heard = link.hear(ResultsOk)

    assert isinstance(heard, ResultsOk)  # They are void, so it may forget them.
    assert _status(agent, running_id) == "running"
    await_queued(agent, waiting_id)
    assert agent.call("GET", f"/api/v1/tasks/{TASK}")[0] == 404
    agent.call("DELETE", f"/api/v1/tasks/{running_id}?force=true")
    assert finished(agent, waiting_id)["stdout"] == "right\n"


def test_it_gets_only_tasks_that_allow_visitors(
    folder: Path, agent: Agent, blocker: str
) -> None:
    """Of three that wait, it gets one, without what does not concern it."""
    kept = [
        submit(agent, "echo private"),
        submit(agent, "echo secret", visitors=True, env={"TOKEN": "t0p"}),
        submit(agent, "echo refused", visitors=False),
    ]
    allowed = submit(agent, "echo shared", visitors=True, name="thesis", timeout=60)
    visitor = HostileVisitor(folder, agent)

    with visitor.linked() as link:
        link.attach()
        got = link.hear(Assign)
        assert isinstance(got, Assign), got
        (attempt, spec), *others = got.items
        lie = Outcome(
            state=AttemptState.OK, reason=EndReason.EXIT, exit_code=0, stdout=b"lie\n"
        )
        link.send(Results((_report(spec.id, attempt, lie),), 2))
        ended = finished(agent, allowed)

    assert (others, spec.id, spec.submitter) == ([], allowed, "")
    assert spec.options is not None
    assert spec.options.name == ""
    assert ended["stdout"] == "lie\n"  # Of its own task it may say what it likes.
    await_queued(agent, *kept)
    for task in (blocker, *kept):
        agent.call("DELETE", f"/api/v1/tasks/{task}?force=true")


def test_a_task_that_two_visitors_lost_waits_for_a_member(
    folder: Path, agent: Agent, blocker: str
) -> None:
    """It takes a task and vanishes, again and again: the third time it gets none."""
    task = submit(agent, "echo done", visitors=True, timeout=60)

    for _ in range(2):
        visitor = HostileVisitor(folder, agent)
        with visitor.linked() as link:
            link.attach()
            assert isinstance(link.hear(Assign), Assign)
        until(lambda: _status(agent, task) == "queued", "it waits again")
    visitor = HostileVisitor(folder, agent)
    with visitor.linked() as link:
        link.attach()
        link.expect(Heartbeat)
        explained = agent.call("GET", f"/api/v1/tasks/{task}/explain")[1]
        assert not any(isinstance(message, Assign) for message in link.heard)

    reasons = _reasons(explained)
    assert any("a node without an end time" in reason for reason in reasons), explained
    agent.call("DELETE", f"/api/v1/tasks/{blocker}?force=true")
    assert finished(agent, task)["status"] == "completed"


def _reasons(explained: dict[str, object]) -> Sequence[str]:
    nodes = explained["nodes"]
    assert isinstance(nodes, list)
    return [each["message"] for node in nodes for each in node["reasons"]]


def _report(task: str, attempt: object, outcome: Outcome) -> Report:
    return Report(task=replace(SPEC, id=task).id, attempt=attempt, outcome=outcome)  # type: ignore[arg-type]


def _status(agent: Agent, task: str) -> str:
    return str(agent.call("GET", f"/api/v1/tasks/{task}")[1]["status"])
