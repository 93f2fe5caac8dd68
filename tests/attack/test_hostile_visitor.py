"""What a visitor sends on its link to harm the member at the other end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.api.http.authentication import PRINCIPAL_HEADER
from octaskly.api.http.file_sender import FETCHERS_MAX, FETCHES_PER_VISITOR_MAX
from octaskly.api.http.handler_types import Access
from octaskly.api.http.node_client import HOP_HEADER
from octaskly.api.routes.table import ROUTES
from octaskly.core.model.field_types import TIME_MS_MAX
from octaskly.core.model.ids import TaskId
from octaskly.core.model.keyring_state import OUTDATED_REASON, VISIT_ENDED_REASON
from octaskly.core.model.nodes import NodeState
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome
from octaskly.core.protocol.messages import (
    PROTOCOL_PREFIX,
    Assign,
    Heartbeat,
    Leave,
    Reattach,
    Redirect,
    Report,
    Results,
)
from octaskly.core.protocol.visitor_rules import (
    MESSAGES_BURST,
    TIME_UP_REASON,
)
from octaskly.mesh.links.duplicates import DUPLICATE_ID
from octaskly.trust import MeshTls, NodeKey, generate_secret, load_secret
from tests.attack.test_connections import new_token
from tests.attack.test_each_route import PARTS
from tests.support.agents import (
    TASKS,
    Agent,
    finished,
    meshed,
    request,
    running,
    store_file,
    submit,
    until,
)
from tests.support.frames import length_prefixed
from tests.support.hostile_visitor import HostileVisitor
from tests.support.sample_messages import ATTEMPT

PRINCIPAL = "admin eve"  #: as a member states who asks
INPUT_BYTES = 16 << 20  #: more than waits in the buffers of a connection
EMPTY_FRAME = length_prefixed(b"\x90")


def path_of(pattern: str) -> str:
    """Return a path of a route."""
    for name, value in PARTS.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern.replace("{", "").replace("}", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("visited")


@pytest.fixture(scope="module")
def agent(folder: Path) -> Iterator[Agent]:
    with running(folder, "ash") as (agent,):
        yield agent


def test_a_visitor_cannot_make_a_member_change_its_id(
    folder: Path, agent: Agent
) -> None:
    """It says that the member's id is in use, as a member would of a copied folder."""
    with HostileVisitor(folder, agent).linked() as link:
        link.send(Leave(DUPLICATE_ID))
        link.hear_all()

    assert finished(agent, submit(agent, "true"))["status"] == "completed"
    log = agent.log()
    assert f"reason={DUPLICATE_ID!r}" in log or DUPLICATE_ID in log
    assert "node id renewed" not in log


def test_frames_without_a_message_close_the_link(folder: Path, agent: Agent) -> None:
    """They would cost time without counting against the visitor's messages."""
    with HostileVisitor(folder, agent).linked() as link:
        link.send_bytes(EMPTY_FRAME)
        reason = link.farewell()

    assert reason == "protocol: a frame without a message"


def test_no_token_and_no_statement_opens_a_route_to_a_visitor(
    folder: Path, agent: Agent
) -> None:
    """It has stolen the token of an admin, and says that it forwards for one."""
    visitor = HostileVisitor(folder, agent)
    token = new_token(agent, "admin", "eve")
    headers = {
        "Authorization": f"Bearer {token}",
        PRINCIPAL_HEADER: PRINCIPAL,
        HOP_HEADER: "1",
    }
    denied = [route for route in ROUTES if not route.allows_visitors]

    answers = {
        (route.method, route.path): visitor.ask(
            route.method, path_of(route.path), headers
        )[0]
        for route in denied
    }

    assert {key for key, status in answers.items() if status != 403} == set()
    assert len(answers) == len(denied) > 0


def test_a_visitor_is_out_once_the_secret_is_renewed(tmp_path: Path) -> None:
    """Its link ends at once, and its certificate opens none and no route."""
    with running(tmp_path, "ash") as (agent,):
        finished(agent, submit(agent, "true"))
        visitor = HostileVisitor(tmp_path, agent)
        with visitor.linked() as link:
            link.expect(Heartbeat)
            assert agent.call("POST", "/api/v1/rotation?now=true")[0] == 202
            assert link.farewell() == OUTDATED_REASON
        until(lambda: _is_settled(agent), "the old secret has ended")

        with contextlib.suppress(OSError), visitor.linked() as link:
            assert link.hear_all() == []
        with pytest.raises(OSError):  # An alert, or a closed connection.
            visitor.ask("GET", f"/internal/v1/files/{'0' * 64}")


def test_an_admin_ends_the_visit_of_one_visitor(tmp_path: Path) -> None:
    """No member admits it again; other visitors, tokens and the secret stay."""
    with meshed(tmp_path, "ash", "elm") as (dispatcher, follower):
        token = new_token(dispatcher, "admin", "eve")
        ended = HostileVisitor(tmp_path, dispatcher)
        other = HostileVisitor(tmp_path, dispatcher)
        with other.linked() as kept, ended.linked() as link:
            link.attach()
            until(lambda: ended.node_id in _listed(follower), "it is a visitor")
            path = f"/api/v1/nodes/{ended.node_id}"
            assert follower.call("POST", f"{path}/revoke")[0] == 409
            status, shown = follower.call("POST", f"{path}/end-visit")
            reason = link.farewell()
            kept.attach()
            until(lambda: other.node_id in _listed(follower), "the other one stays")
        again = []
        for member in (dispatcher, follower):
            ended.agent = member
            with ended.linked() as link:
                again.append(link.farewell())
        answer = ended.ask("GET", f"/internal/v1/files/{'0' * 64}?pieces=0")
        rotation = follower.call("GET", "/api/v1/rotation")[1]
        until(lambda: "end-visit" in _audited_actions(follower), "it is audited")
        with contextlib.closing(dispatcher.connection()) as connection:
            by_token = request(connection, "GET", "/api/v1/tokens", token=token)

    assert (status, shown["id"]) == (200, ended.node_id)
    assert [reason, *again] == [VISIT_ENDED_REASON] * 3
    assert (answer[0], b"visit was ended" in answer[1]) == (403, True)
    assert (rotation["phase"], rotation["newest"], rotation["revoked"]) == (
        "settled",
        1,
        [],
    )
    assert by_token[0] == 200


def test_an_ended_visit_stays_ended_after_a_restart(tmp_path: Path) -> None:
    """Also of a visitor that was away; what is no visitor has no visit."""
    with running(tmp_path, "ash") as (agent,):
        finished(agent, submit(agent, "true"))
        visitor = HostileVisitor(tmp_path, agent)
        statuses = [
            agent.call("POST", f"/api/v1/nodes/{name}/end-visit")[0]
            for name in (visitor.node_id, visitor.node_id, "visitor-unknown", "ash")
        ]
    with running(tmp_path, "ash") as (agent,):
        visitor.agent = agent
        with visitor.linked() as link:
            reason = link.farewell()

    assert statuses == [200, 200, 404, 404]
    assert reason == VISIT_ENDED_REASON


@pytest.mark.parametrize(
    "lies",
    [
        {"version": 99, "version_min": 99},
        {"version": 0, "version_min": 0},
        {"version": 1, "version_min": 2},
    ],
    ids=str,
)
def test_a_visitor_that_lies_about_its_version_is_refused(
    folder: Path, agent: Agent, lies: dict[str, int]
) -> None:
    """No version that it names lets it skip the table of messages."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked(replace(visitor.hello(), **lies)) as link:
        heard = link.hear_all()

    assert not any(isinstance(message, Heartbeat) for message in heard)
    assert "version" in next(m.reason for m in heard if isinstance(m, Leave))


def test_a_newer_version_opens_no_message_to_a_visitor(
    folder: Path, agent: Agent
) -> None:
    """Of a newer member, messages that are not known here are skipped."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked(replace(visitor.hello(), version=99)) as link:
        link.expect(Heartbeat)
        link.send_bytes(length_prefixed(b"\x91\x91\x7f"))
        reason = link.farewell()

    assert "may not pass" in reason


def test_a_certificate_ends_on_a_link_and_on_an_open_connection(
    folder: Path, agent: Agent
) -> None:
    """It was valid when both were opened."""
    visitor = HostileVisitor(folder, agent, stay_s=3)
    path = f"/internal/v1/files/{'0' * 64}?pieces=0"

    with visitor.connection() as kept, visitor.linked() as link:
        link.expect(Heartbeat)
        before = visitor.ask("GET", path, connection=kept)
        reason = link.farewell()
        after = visitor.ask("GET", path, connection=kept)

    assert (reason, before[0], after[0]) == (TIME_UP_REASON, 403, 403)
    assert b"time of this visitor is up" not in before[1]
    assert b"time of this visitor is up" in after[1]


def test_a_visitor_of_another_mesh_is_no_visitor_here(
    folder: Path, agent: Agent
) -> None:
    """Each mesh signs for its own; a machine may visit two of them."""
    visitor = HostileVisitor(folder, agent, secret=generate_secret())

    with contextlib.suppress(OSError), visitor.linked() as link:
        assert link.hear_all() == []
    with pytest.raises(OSError):  # An alert, or a closed connection.
        visitor.ask("GET", "/health")


def test_two_programs_with_one_certificate_have_one_link(
    folder: Path, agent: Agent
) -> None:
    """The later one replaces the earlier one."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked() as first:
        first.expect(Heartbeat)
        with visitor.linked() as second:
            second.expect(Heartbeat)
            assert first.farewell() != ""
            _, listed = agent.call("GET", "/api/v1/nodes")

    assert sum(node["visitor"] for node in listed["nodes"]) <= 1
    assert finished(agent, submit(agent, "true"))["status"] == "completed"


@pytest.mark.parametrize("wall_ms", [0, TIME_MS_MAX - 1])
def test_the_clock_of_a_visitor_moves_no_time_of_the_mesh(
    folder: Path, agent: Agent, wall_ms: int
) -> None:
    """Whatever it says, tasks get their times from the clocks of members."""
    visitor = HostileVisitor(folder, agent)

    with visitor.linked(replace(visitor.hello(), wall_ms=wall_ms)) as link:
        link.expect(Heartbeat)
        done = finished(agent, submit(agent, "true"))

    at = datetime.fromisoformat(done["completed_at"])
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_visitor_at_a_member_that_is_not_dispatcher_gets_nothing_there(
    tmp_path: Path,
) -> None:
    """It is sent to the dispatcher; all else has no effect, also during a failover."""
    with meshed(tmp_path, "ash", "elm") as (dispatcher, follower):
        task = submit(dispatcher, "sleep 600")
        visitor = HostileVisitor(tmp_path, follower)
        done = Outcome(state=AttemptState.OK, reason=EndReason.EXIT, exit_code=0)
        lie = Results((Report(task=TaskId(task), attempt=ATTEMPT, outcome=done),), 2)
        with visitor.linked() as link:
            link.expect(Redirect)
            link.send(Reattach((), 2, NodeState.READY), lie)
            answers = {
                (route.method, route.path): visitor.ask(
                    route.method, path_of(route.path)
                )[0]
                for route in ROUTES
                if route.access is not Access.PUBLIC
            }
            dispatcher.process.kill()
            empty = [Results((), 2)] * 64
            with contextlib.suppress(OSError):
                for _ in range(int(MESSAGES_BURST) // 64 + 8):
                    link.send(*empty)
            reason = link.farewell()

        until(lambda: _is_dispatcher(follower), "the follower is dispatcher")
        shown = follower.call("GET", f"{TASKS}/{task}")[1]
        assert finished(follower, submit(follower, "true"))["status"] == "completed"

    assert reason in ("", f"{PROTOCOL_PREFIX}flood")
    assert set(answers.values()) <= {403, 503}
    assert {k for k, status in answers.items() if status == 503} == {
        (r.method, r.path) for r in ROUTES if r.allows_visitors
    }
    assert shown["status"] in ("running", "queued")


def _is_dispatcher(agent: Agent) -> bool:
    status, listed = agent.call("GET", "/api/v1/nodes")
    roles = {node["id"]: node["role"] for node in listed.get("nodes", ())}
    return status == 200 and roles.get(agent.ready()["node_id"]) == "dispatcher"


def test_a_visitor_may_ask_more_often_than_a_stranger(tmp_path: Path) -> None:
    """A task that ends each second needs several requests, for inputs and outputs."""
    with running(tmp_path, "ash", extra=("--rate-stranger", "1")) as (agent,):
        finished(agent, submit(agent, "true"))
        visitor = HostileVisitor(tmp_path, agent)
        path = f"/internal/v1/files/{'0' * 64}?pieces=0"

        with visitor.connection() as kept:
            answers = [visitor.ask("GET", path, connection=kept)[0] for _ in range(5)]

    assert answers == [403] * 5


def test_slow_downloads_of_a_visitor_keep_no_file_from_members(tmp_path: Path) -> None:
    """It asks for its input on many connections, and reads nothing."""
    with running(tmp_path, "ash", extra=("--slots", "1")) as (agent,):
        member = MeshTls(load_secret(tmp_path / "mesh.key"), NodeKey.generate())
        submit(agent, "sleep 600")
        file = store_file(agent, bytes(INPUT_BYTES))
        visitor = HostileVisitor(tmp_path, agent)
        with visitor.linked() as link, contextlib.ExitStack() as slow:
            link.attach()
            submit(agent, "cat", visitors=True, timeout=60, stdin_file=file)
            link.expect(Assign)
            path = f"/internal/v1/files/{file['sha256']}?pieces=0"
            asking = [
                slow.enter_context(visitor.connection())
                for _ in range(2 * FETCHERS_MAX)
            ]
            for connection in asking:
                connection.request("GET", path)
            statuses = [
                connection.getresponse().status
                for connection in asking[:FETCHES_PER_VISITOR_MAX]
            ]
            with visitor.connection(member.lan_client_context()) as own:
                own.request("GET", path)
                statuses.append(own.getresponse().status)

    assert statuses == [200] * (FETCHES_PER_VISITOR_MAX + 1)


def _audited_actions(agent: Agent) -> list[str]:
    """Return the last part of each action; entries are written after the answer."""
    entries = agent.call("GET", "/api/v1/audit")[1]["entries"]
    return [entry["action"].rpartition("/")[2] for entry in entries]


def _listed(agent: Agent) -> set[str]:
    return {node["id"] for node in agent.call("GET", "/api/v1/nodes")[1]["nodes"]}


def _is_settled(agent: Agent) -> bool:
    return bool(agent.call("GET", "/api/v1/rotation")[1]["phase"] == "settled")
