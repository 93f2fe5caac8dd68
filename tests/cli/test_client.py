"""The client as a library: what scripts may rely on."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.api.problems import CONNECTION_LOST, NOT_DURABLE
from octaskly.client import Client, Draft, Refused, ReplyLost, Unreachable
from octaskly.client.connection import OPEN_ERRORS, connect_unix
from tests.cli.stand_in import Api, serving


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def client(api: Api, tmp_path: Path) -> Iterator[Client]:
    with serving(api, tmp_path / "s"), Client.at_socket(tmp_path / "s") as client:
        yield client


def lose_next(api: Api) -> None:
    """Let the node close the connection instead of answering, once."""

    def lose(_method: str, _path: str) -> tuple[int, dict[str, str]]:
        api.refuse = lambda _method, _path: None
        return 0, {}

    api.refuse = lose


def test_a_task_comes_back_with_types(client: Client) -> None:
    """Submit, wait, read: the whole of what most scripts do."""
    [task] = client.submit([Draft(command="echo hi; exit 2")])

    ended = client.task(task.id, wait_s=20)

    assert (ended.status, ended.exit_code, ended.stdout) == ("failed", 2, "hi\n")
    assert ended.is_final
    assert not task.is_final


def test_a_client_waits_its_turn_at_the_door_of_a_busy_node(tmp_path: Path) -> None:
    """As many calls as may wait are there already, and nobody takes them yet."""
    path = tmp_path / "s"
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(socket.socket(socket.AF_UNIX))
        node.bind(str(path))
        node.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))
        second = stack.enter_context(socket.socket(socket.AF_UNIX))
        second.settimeout(0.05)
        with pytest.raises(BlockingIOError):
            connect_unix(second, path)
        second.settimeout(30)
        takes = threading.Timer(0.1, lambda: stack.enter_context(node.accept()[0]))
        takes.start()

        connect_unix(second, path)

        takes.join()
        assert second.getpeername() == str(path)


def test_exact_output_is_asked_for_in_another_encoding(
    client: Client, api: Api
) -> None:
    """JSON cannot carry any byte; an older node can do no better than text."""
    [task] = client.submit([Draft(command=r"printf 'a\377b'")])
    exact = client.task(task.id, wait_s=20, exact=True)
    api.knows_base64 = False
    text = client.task(task.id, exact=True)

    assert exact.output_bytes("stdout") == b"a\xffb"
    assert text.output_bytes("stdout") == "a\ufffdb".encode()


def test_logs_are_events_with_ids(client: Client) -> None:
    """The id of one gets what follows it; another request may come at any time."""
    [task] = client.submit([Draft(command="echo out; echo err >&2")])
    logs = client.logs(task.id, follow=True)
    first = next(logs)
    assert (first.kind, first.data["offset"]) == ("stdout", 0)
    logs.close()

    rest = list(client.logs(task.id, last_id=first.id))
    assert [event.kind for event in rest] == ["stderr", "end"]
    assert rest[-1].data["status"] == "completed"


@pytest.mark.parametrize("text", [b"event: stdout\ndata: {\n\n", b"event: end\nda"])
def test_a_stream_that_breaks_is_an_answer_lost(
    client: Client, api: Api, text: bytes
) -> None:
    """Never the end of the output."""
    [task] = client.submit([Draft(command="true")])
    api.logs = text

    with pytest.raises(ReplyLost):
        list(client.logs(task.id))


def test_requests_share_a_connection(client: Client, api: Api) -> None:
    """Opening one for each request would cost more than the request."""
    client.nodes()
    first = client._connection.sock
    client.stats()

    assert client._connection.sock is first


def test_reading_is_repeated_over_a_connection_gone_stale(
    client: Client, api: Api
) -> None:
    """A node closes idle connections; who only reads need not hear of that."""
    client.nodes()
    lose_next(api)

    assert client.nodes().total == 1
    assert api.requests == ["GET /api/v1/nodes"] * 3


def test_writing_is_not_repeated(client: Client, api: Api) -> None:
    """The node may have acted on it before the connection ended."""
    client.nodes()
    lose_next(api)

    with pytest.raises(ReplyLost):
        client.submit([Draft(command="true")])
    assert api.requests[1:] == ["POST /api/v1/tasks"]


def test_a_pause_that_the_node_asks_for_is_kept(client: Client, api: Api) -> None:
    """503 with Retry-After means: nothing was done, ask again."""
    told: list[Refused] = []
    answers = [(503, {"Retry-After": "0.1"})] * 2
    api.refuse = lambda _method, _path: answers.pop() if answers else None
    client._on_wait = told.append

    assert client.nodes().total == 1
    assert [error.status for error in told] == [503]


@pytest.mark.parametrize("text", OPEN_ERRORS)
def test_a_submission_that_may_be_in_the_log_is_repeated_by_its_key_only(
    client: Client, api: Api, text: str
) -> None:
    """Without a key, handing in again could make it two tasks."""
    assert text in (CONNECTION_LOST, NOT_DURABLE)
    answers = [(503, {"Retry-After": "0.1"})] * 2
    api.refuse = lambda _method, _path: answers.pop() if answers else None
    api.refusal = text

    with pytest.raises(Refused, match=text):
        client.submit([Draft(command="true")])
    assert len(client.submit([Draft(command="true")], idempotency_key="k")) == 1
    assert api.requests == ["POST /api/v1/tasks"] * 3


def test_an_unavailable_node_without_a_pause_is_an_error(
    client: Client, api: Api
) -> None:
    """Nothing says that asking again would help."""
    api.refuse = lambda _method, _path: (503, {})

    with pytest.raises(Refused) as caught:
        client.nodes()
    assert (caught.value.status, caught.value.hint) == (503, "the test said so")
    assert len(api.requests) == 1


def test_an_interrupted_request_leaves_no_answer_behind(
    client: Client, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request must not read the answer of the one before."""

    def interrupt(_self: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.nodes()

    assert client.stats()["workers"]["total"] == 3


def test_nobody_there_is_told_from_a_lost_answer(tmp_path: Path) -> None:
    """Only what was not sent may be sent again without thought."""
    with Client.at_socket(tmp_path / "none") as client, pytest.raises(Unreachable):
        client.nodes()


def test_the_newest_task_of_none_is_none(client: Client) -> None:
    """An empty list has no last element."""
    assert client.newest() is None
