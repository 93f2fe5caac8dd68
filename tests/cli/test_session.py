"""Requests of commands over a real socket, and their retries."""

from __future__ import annotations

import _thread
import contextlib
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octaskly.api.problems import CONNECTION_LOST, NOT_DURABLE
from octaskly.cli.output.render import exit_code_of
from octaskly.client import Refused, ReplyLost, Session, Unreachable
from octaskly.client.endpoint import Endpoint
from octaskly.client.errors import NoAnswer, NotOctaskly
from octaskly.client.flows import rest_calls
from octaskly.client.flows.request_flow import UNKNOWN_OUTCOME_ERRORS
from octaskly.client.flows.rest_calls import NODES, STATS, TOKENS, Call
from octaskly.client.http_connection import HttpConnection
from octaskly.client.unix_socket import connect_unix
from octaskly.rest.mesh import NodePage
from tests.cli.stand_in import Api, serving
from tests.support.agents import until

ONCE = rest_calls.post_once(TOKENS, {"role": "viewer", "expires_s": 60})


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def notices() -> list[Refused]:
    """The session's messages about waits."""
    return []


@pytest.fixture
def session(api: Api, tmp_path: Path, notices: list[Refused]) -> Iterator[Session]:
    place = Endpoint(path=tmp_path / "s")
    with (
        serving(api, tmp_path / "s"),
        Session(place, on_wait=notices.append) as session,
    ):
        yield session


def nodes(session: Session) -> NodePage:
    return session.send_and_decode(Call("GET", NODES), NodePage)


def lose_next(api: Api) -> None:
    """Let the node close the connection instead of answering, once."""

    def lose(_method: str, _path: str) -> tuple[int, dict[str, str]]:
        api.refuse = lambda _method, _path: None
        return 0, {}

    api.refuse = lose


def test_requests_share_a_connection(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection for each request would cost more than the request."""
    nodes(session)
    monkeypatch.setattr(http.client.HTTPConnection, "connect", None)
    monkeypatch.setattr("octaskly.client.http_connection.connect_unix", None)

    assert (
        session.send_and_decode(Call("GET", STATS), dict[str, Any])["workers"]["total"]
        == 3
    )


def test_a_request_without_an_answer_is_repeated(session: Session, api: Api) -> None:
    """A node closes idle connections, and agents restart; users need not know."""
    nodes(session)
    lose_next(api)

    assert nodes(session).total == 1
    assert api.requests == ["GET /api/v1/nodes"] * 3
    assert session.reconnect_count == 1


def test_a_request_that_is_not_idempotent_is_not_repeated(
    session: Session, api: Api
) -> None:
    """The node may have acted on it before the connection ended."""
    lose_next(api)

    with pytest.raises(ReplyLost) as lost:
        session.send(ONCE)
    assert len(api.requests) == 1
    assert "whether it was accepted" in str(lost.value.hint)


def test_a_lost_answer_to_a_read_does_not_mention_submissions(
    session: Session, api: Api
) -> None:
    """`octaskly ls` at a wrong port once got the hint to use `octaskly ls`."""
    lose_next(api)

    with pytest.raises(ReplyLost) as lost:
        session.send(Call("GET", STATS, is_unrepeatable=True))
    assert lost.value.hint is None


def test_a_stopped_agent_counts_as_unreachable(tmp_path: Path) -> None:
    """The kernel accepts its connections; scripts rely on the exit code."""
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "stopped.sock"))
        stopped.listen()
        connection = HttpConnection.at_socket(tmp_path / "stopped.sock")
        with pytest.raises(NoAnswer, match="did not answer within 0 s") as silent:
            connection.request(Call("GET", STATS), 0.05)

    assert exit_code_of(silent.value) == 5


def test_a_pause_that_the_node_requests_is_kept(
    session: Session, api: Api, notices: list[Refused]
) -> None:
    """503 with Retry-After: nothing was done, try again. It is printed once."""
    answers = [(503, {"Retry-After": "0.1"})] * 2
    api.refuse = lambda _method, _path: answers.pop() if answers else None

    session.send(ONCE)

    assert [error.status for error in notices] == [503]
    assert len(api.requests) == 3


@pytest.mark.parametrize("text", UNKNOWN_OUTCOME_ERRORS)
def test_an_ambiguous_refusal_is_repeated_only_if_idempotent(
    session: Session, api: Api, text: str
) -> None:
    """The request may be in the log; a key, or its kind, makes it idempotent."""
    assert text in (CONNECTION_LOST, NOT_DURABLE)
    answers = [(503, {"Retry-After": "0.1"})] * 2
    api.refuse = lambda _method, _path: answers.pop() if answers else None
    api.refusal = text

    with pytest.raises(Refused, match=text):
        session.send(ONCE)
    assert nodes(session).total == 1
    assert len(api.requests) == 3


def test_an_unavailable_node_without_a_pause_is_an_error(
    session: Session, api: Api
) -> None:
    """No answer promises that another try helps."""
    api.refuse = lambda _method, _path: (503, {})

    with pytest.raises(Refused) as caught:
        nodes(session)
    assert (caught.value.status, caught.value.hint) == (503, "the test said so")
    assert len(api.requests) == 1


def test_an_interrupted_request_leaves_no_answer_behind(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request must not read the previous answer."""

    def interrupt(_self: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", interrupt)
    with pytest.raises(KeyboardInterrupt):
        nodes(session)

    assert (
        session.send_and_decode(Call("GET", STATS), dict[str, Any])["workers"]["total"]
        == 3
    )


def test_ctrl_c_just_before_the_wait_is_handled(tmp_path: Path) -> None:
    """The signal arrives an instant too early to wake the wait."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()

        def interrupt() -> None:
            with silent.accept()[0] as caller:
                assert caller.recv(1)
                until(main_thread_waits, "the client waits for its answer")
                _thread.interrupt_main()

                assert caller.recv(1 << 16)
                assert (
                    caller.recv(1) == b""
                )  # The client left without waiting for the end.

        node = threading.Thread(target=interrupt)
        node.start()
        with pytest.raises(KeyboardInterrupt):
            nodes(Session.at_socket(tmp_path / "s"))
        node.join()


def main_thread_waits() -> bool:
    stat = Path(f"/proc/self/task/{os.getpid()}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def test_ctrl_c_during_garbage_collection_is_handled(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python closes forgotten objects then, and drops exceptions."""
    close = http.client.HTTPResponse.close

    def interrupted(answer: http.client.HTTPResponse) -> None:
        monkeypatch.undo()
        _thread.interrupt_main()
        close(answer)

    monkeypatch.setattr(http.client.HTTPResponse, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        [nodes(session) for _ in range(2)]


def test_an_unreachable_node_is_reported_at_once(tmp_path: Path) -> None:
    """An unsent request differs from a lost answer."""
    with Session.at_socket(tmp_path / "none") as session, pytest.raises(Unreachable):
        nodes(session)


def test_a_client_waits_in_the_backlog_of_a_busy_node(tmp_path: Path) -> None:
    """The queue of connections is full, and the node accepts none yet."""
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(socket.socket(socket.AF_UNIX))
        node.bind(str(path))
        node.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))
        with pytest.raises(BlockingIOError):
            connect_unix(path, timeout_s=0.05)
        takes = threading.Timer(0.1, lambda: stack.enter_context(node.accept()[0]))
        takes.start()

        second = stack.enter_context(connect_unix(path, timeout_s=30))

        takes.join()
        assert second.getpeername() == str(path)


def test_an_answer_of_another_program_is_an_error(session: Session, api: Api) -> None:
    """No traceback."""
    api.answers[NODES] = b"<html>"

    with pytest.raises(NotOctaskly, match="not Octaskly's API"):
        session.decode(session.send(Call("GET", NODES)), NodePage)
