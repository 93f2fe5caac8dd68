"""Files that a client sends to a node, one by one."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import sha256
from http.client import HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from octaskly.runner.blobs.blob_index import BOOT_NAME
from tests.support.agents import Agent, meshed, until

FILES = "/api/v1/files"
BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def files_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    folder = tmp_path_factory.mktemp("files")
    with meshed(folder, "ash", "birch", extra=("--files-quota", "16MiB")) as agents:
        yield agents


def send(
    agent: Agent,
    data: bytes,
    *,
    name: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Upload a file to an agent; return status and answer."""
    path = f"{FILES}/{name or sha256(data).hexdigest()}"
    with closing(agent.connection()) as connection:
        connection.request(
            "POST", path, data, {"Content-Type": BYTES, **(headers or {})}
        )
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def test_a_file_is_uploaded_once(files_mesh: list[Agent]) -> None:
    """A client may ask whether it exists, and delete it when no task needs it."""
    name = sha256(b"once").hexdigest()
    assert files_mesh[0].call("GET", f"{FILES}/{name}")[0] == 404
    assert send(files_mesh[0], b"once")[0] == 201
    assert send(files_mesh[0], b"once")[0] == 200
    status, body = files_mesh[0].call("GET", f"{FILES}/{name}")
    assert (status, body["bytes"]) == (200, 4)
    assert files_mesh[0].call("DELETE", f"{FILES}/{name}")[0] == 204


def test_an_invalid_file_is_refused_with_a_reason(files_mesh: list[Agent]) -> None:
    """And the node keeps no part of it."""
    agent = files_mesh[0]
    other = sha256(b"other").hexdigest()
    folder = agent.state / "files"  #: made for the first uploaded file
    before = {place.name for place in folder.glob("*")}

    status, body = send(agent, b"data", name=other)
    assert (status, body["field"]) == (400, "sha256")
    assert send(agent, b"data", name="0" * 63)[0] == 400
    assert send(agent, b"data", headers={"Content-Type": "text/plain"})[0] == 415
    status, body = send(agent, bytes(17 << 20))
    assert (status, body["error"]) == (507, "File larger than the quota")
    assert "--files-quota" in body["hint"]
    assert {place.name for place in folder.glob("*")} <= before | {BOOT_NAME}


def test_a_client_cannot_read_a_file_back(files_mesh: list[Agent]) -> None:
    """Only nodes can; without the right to submit there is no upload either."""
    name = send(files_mesh[0], b"secret")[1]["sha256"]
    assert files_mesh[0].call("GET", f"/internal/v1/files/{name}")[0] == 401
    viewer = files_mesh[0].call("POST", "/api/v1/tokens", {"role": "viewer"})[1][
        "token"
    ]
    headers = {"Authorization": f"Bearer {viewer}"}
    with closing(_loopback(files_mesh[0])) as connection:
        for method in ("GET", "POST", "DELETE"):
            connection.request(
                method, f"{FILES}/{name}", headers={**headers, "Content-Type": BYTES}
            )
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 403


def test_a_long_file_arrives_from_the_lan(files_mesh: list[Agent]) -> None:
    """In one request, or continued after the client was interrupted in the first."""
    agent, data = files_mesh[1], os.urandom(12 << 20)
    name = sha256(data).hexdigest()

    def arrived_bytes() -> int:
        answer = agent.call("POST", f"{FILES}/missing", {"sha256": [name]})[1]
        return int(answer["arrived"].get(name, 0))

    def place(first: int) -> dict[str, str]:
        return {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}

    def send_rest() -> bool:
        first = arrived_bytes()
        reply, body = send_over_lan(agent, data[first:], name, place(first))
        assert reply.status in (201, 409), body  # The first may not be over yet.
        assert reply.headers["Connection"] == "close"
        return reply.status == 201

    with closing(begin_over_lan(agent, len(data), name, place(0))) as connection:
        connection.send(data[: 2 << 20])
        until(lambda: arrived_bytes() >= 1 << 20, "some of it is there")
    until(send_rest, "the rest is there")
    assert agent.call("GET", f"{FILES}/{name}")[1]["bytes"] == len(data)
    assert agent.call("DELETE", f"{FILES}/{name}")[0] == 204


def test_a_long_file_that_is_another_one_is_refused(files_mesh: list[Agent]) -> None:
    """The client reads the reason, and nothing of the file stays."""
    agent, name = files_mesh[1], sha256(b"another").hexdigest()
    reply, body = send_over_lan(agent, bytes(9 << 20), name)
    assert (reply.status, body["field"]) == (400, "sha256")
    assert not list((agent.state / "files").glob(f"{name}*"))


def begin_over_lan(
    agent: Agent, size_bytes: int, name: str, headers: Mapping[str, str]
) -> HTTPSConnection:
    """Send the header of an upload to the LAN port of an agent."""
    place = urlsplit(agent.ready()["lan_url"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = HTTPSConnection(str(place.hostname), place.port, context=context)
    token = agent.call("POST", "/api/v1/tokens", {"role": "client"})[1]["token"]
    connection.putrequest("POST", f"{FILES}/{name}")
    usual = {
        "Content-Type": BYTES,
        "Content-Length": str(size_bytes),
        "Authorization": f"Bearer {token}",
    }
    for key, value in {**usual, **headers}.items():
        connection.putheader(key, value)
    connection.endheaders()
    return connection


def send_over_lan(
    agent: Agent, data: bytes, name: str, headers: Mapping[str, str] | None = None
) -> tuple[HTTPResponse, Any]:
    """Upload a file to the LAN port of an agent; return response and body."""
    with closing(begin_over_lan(agent, len(data), name, headers or {})) as connection:
        connection.send(data)
        reply = connection.getresponse()
        return reply, json.loads(reply.read())


def _loopback(agent: Agent) -> Any:
    import http.client

    place = urlsplit(agent.ready()["api_url"])
    return http.client.HTTPConnection(str(place.hostname), place.port)


def test_a_file_is_uploaded_in_pieces(files_mesh: list[Agent]) -> None:
    """The answers say how much has arrived; a piece that cannot be added is refused."""
    agent, data = files_mesh[0], os.urandom(5000)
    name = sha256(data).hexdigest()

    def send_piece(start: int, end: int, total: int = 5000) -> tuple[int, Any]:
        place = {"Content-Range": f"bytes {start}-{end - 1}/{total}"}
        return send(agent, data[start:end], name=name, headers=place)

    status, body = send_piece(0, 2000)
    assert (status, body["arrived"], body["bytes"]) == (202, 2000, 5000)
    asked = {"sha256": [name]}
    assert agent.call("POST", f"{FILES}/missing", asked)[1]["arrived"] == {name: 2000}
    status, body = send_piece(3000, 4000)
    assert (status, body["error"]) == (409, "Piece out of order")
    status, body = send_piece(2000, 5000, total=4000)
    assert (status, body["field"]) == (400, "Content-Range")
    assert send_piece(2000, 5000)[0] == 201
    assert agent.call("POST", f"{FILES}/missing", asked)[1]["missing"] == []
