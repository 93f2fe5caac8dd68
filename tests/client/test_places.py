"""Addresses of the mesh: where a client looks, and its errors for wrong settings."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import octaskly
from octaskly.trust import MeshTls, NodeKey, TokenSigner, load_secret
from tests.client.kinds import Open
from tests.support.agents import Agent

needs_no_installed_agent = pytest.mark.skipif(
    Path("/run/octaskly").exists(), reason="an agent is installed on this machine"
)


@pytest.fixture
def token(agents: list[Agent]) -> str:
    """A token for programs."""
    _, made = agents[0].call("POST", "/api/v1/tokens", {"role": "client"})
    return str(made["token"])


@pytest.fixture
def ca(agents: list[Agent], tmp_path: Path) -> Path:
    """The CA of the mesh, as `octaskly ca` prints it."""
    secret = load_secret(agents[0].state.parent / "mesh.key")
    path = tmp_path / "ca.pem"
    path.write_text(MeshTls(secret, NodeKey.generate()).ca_pem())
    return path


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sockets of a user who has no agent yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "run" / "octaskly"
    folder.mkdir(parents=True)
    return folder


def lan_url(agent: Agent) -> str:
    """Return the HTTPS address of an agent on this machine."""
    port = agent.ready()["lan_url"].rpartition(":")[2]
    return f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """Answer each connection with these bytes, and hang up; yield HOST:PORT."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join()


@needs_no_installed_agent
def test_client_uses_the_only_agent_of_this_machine(
    agents: list[Agent], runtime: Path, open_client: Open
) -> None:
    """The client needs no argument and no configuration."""
    (runtime / "ash.sock").symlink_to(agents[0].ready()["socket"])

    assert open_client().run("true").status == "completed"


@needs_no_installed_agent
def test_error_names_several_agents(
    agents: list[Agent], runtime: Path, open_client: Open
) -> None:
    """A guess would run commands on the wrong mesh; the name selects one."""
    for agent in agents:
        name = agent.state.name
        (runtime / f"{name}.sock").symlink_to(agent.ready()["socket"])

    with pytest.raises(octaskly.SeveralAgents, match="ash, birch, cedar") as caught:
        open_client().nodes()
    assert caught.value.hint == "octaskly.Client(node='ash')"
    assert len(open_client(node="birch").nodes()) == 3


@needs_no_installed_agent
def test_error_without_an_agent_names_the_start_command(
    runtime: Path, open_client: Open
) -> None:
    """At once, because there is nothing to wait for."""
    with pytest.raises(octaskly.Unreachable, match="no Octaskly agent") as caught:
        open_client().nodes()
    assert "octaskly service install" in (caught.value.hint or "")
    with pytest.raises(octaskly.Unreachable, match="no agent named 'oak'"):
        open_client(node="oak").nodes()
    with pytest.raises(octaskly.Unreachable, match="with the state folder"):
        open_client(state_dir=runtime).nodes()


def test_socket_path_may_exceed_the_limit_of_the_kernel(
    agents: list[Agent], tmp_path: Path, open_client: Open
) -> None:
    """The client reaches it through its folder."""
    folder = tmp_path / "a" / ("long" * 40)
    folder.mkdir(parents=True)
    (folder / "s.sock").symlink_to(agents[0].ready()["socket"])
    description = f'{{"name": "ash", "socket": "{folder / "s.sock"}"}}'
    (folder / "agent.json").write_text(description)

    assert len(open_client(state_dir=folder).nodes()) == 3


def test_url_and_token_reach_a_node_of_the_lan(
    agents: list[Agent],
    token: str,
    ca: Path,
    open_client: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From arguments or the environment; the mesh's CA proves the node's identity."""
    given = open_client(lan_url(agents[1]), token=token, ca=ca)
    assert given.run("echo there").stdout == "there\n"

    monkeypatch.setenv("OCTASKLY_URL", agents[0].ready()["api_url"])
    monkeypatch.setenv("OCTASKLY_TOKEN", token)
    assert open_client().run("echo here").stdout == "here\n"


def test_foreign_certificate_is_refused(
    agents: list[Agent], token: str, tmp_path: Path, open_client: Open
) -> None:
    """No stranger gets the token; the hint names the command for the CA."""
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)

    for ca in (stranger, None):
        mesh = open_client(lan_url(agents[0]), token=token, ca=ca)
        with pytest.raises(octaskly.ConfigError, match="is not trusted here") as caught:
            mesh.nodes()
        assert "octaskly ca" in (caught.value.hint or "")
    with pytest.raises(octaskly.ConfigError, match="not a readable CA"):
        open_client(lan_url(agents[0]), token=token, ca=tmp_path / "none").nodes()


def test_bad_token_is_reported(
    agents: list[Agent], ca: Path, open_client: Open
) -> None:
    """Missing, foreign or expired; the hint makes one."""
    tokens = TokenSigner(load_secret(agents[0].state.parent / "mesh.key"))
    past_s = time.time() - 3600
    old = tokens.sign_token(
        subject="a", role="admin", expires_s=60, now_s=past_s, jti="1"
    )
    hints = {}
    for token in (None, "x.y.z", old):
        mesh = open_client(agents[0].ready()["api_url"], token=token)
        with pytest.raises(octaskly.Unauthorized) as caught:
            mesh.submit("true")
        hints[token] = (caught.value.hint or "").splitlines()

    assert hints[old][0].startswith("the token has expired; ")
    assert {lines[-1] for lines in hints.values()} == {
        "token=    from `octaskly token create --role client` on a node"
    }
    viewer = tokens.sign_token(
        subject="v", role="viewer", expires_s=60, now_s=time.time(), jti="2"
    )
    mesh = open_client(agents[0].ready()["api_url"], token=viewer)
    with pytest.raises(octaskly.Forbidden):
        mesh.submit("true")
    assert len(mesh.nodes()) == 3


def test_wrong_port_is_recognised(agents: list[Agent], open_client: Open) -> None:
    """No server, TLS to a plain port, and plain HTTP to a TLS port."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        free = bound.getsockname()[1]
    http_port = agents[0].ready()["api_url"].rpartition(":")[2]
    https_port = lan_url(agents[0]).rpartition(":")[2]

    with pytest.raises(octaskly.Unreachable, match="no agent answers"):
        open_client(f"http://127.0.0.1:{free}").nodes()
    with pytest.raises(octaskly.ConfigError, match="does not speak TLS"):
        open_client(f"https://127.0.0.1:{http_port}").nodes()
    with pytest.raises(octaskly.ReplyLost) as caught:
        open_client(f"http://127.0.0.1:{https_port}", retry_timeout_s=0.2).nodes()
    assert "https://NODE:3443" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n<html",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html",
        b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"a":"\xff\xff"}',
        b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["404", "page", "no text", "redirect"],
)
def test_another_http_server_is_not_taken_for_a_node(
    data: bytes, open_client: Open
) -> None:
    """Port 3000 belongs to many programs."""
    with answering(data) as place:
        mesh = open_client(f"http://{place}", token="t", retry_timeout_s=0.2)
        with pytest.raises(octaskly.NotOctaskly, match=place):
            mesh.nodes()


def test_server_without_http_is_not_taken_for_a_node(open_client: Open) -> None:
    """Its answer is never taken for a node's, and the token goes nowhere else."""
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as place:
        mesh = open_client(f"http://{place}", token="t", retry_timeout_s=0.2)
        with pytest.raises(octaskly.ReplyLost):
            mesh.nodes()


@pytest.mark.parametrize(
    ("place", "settings", "what"),
    [
        ("http://192.168.1.20:3000", {}, "unencrypted"),
        ("http://node:3000", {}, "unencrypted"),
        ("ftp://localhost", {}, "not an http:// or https:// URL"),
        ("localhost:3000", {}, "not an http:// or https:// URL"),
        ("http://localhost:x", {}, "not a number"),
        ("http://me:secret@localhost:x", {}, "not a number"),
        ("http://me:secret@[x", {}, "no valid host"),
        ("ftp://me:secret@localhost", {}, "not an http:// or https:// URL"),
        ("http://me:secret@192.168.1.20", {}, "more than a host and a port"),
        ("http://localhost:3000/api", {}, "more than a host and a port"),
        ("http://me:secret@localhost", {}, "'localhost' contains more than"),
        ("http://localhost", {"token": "a\nb"}, "contains an invalid character"),
        ("http://localhost", {"node": "ash"}, "cannot be used with an agent"),
        (None, {"token": "t"}, "needs a URL"),
    ],
)
def test_impossible_address_is_refused_before_any_request(
    place: str | None, settings: dict[str, str], what: str, open_client: Open
) -> None:
    """No token is sent to it."""
    with pytest.raises(octaskly.ConfigError, match=what) as caught:
        open_client(place, **settings)
    assert "secret" not in f"{caught.value}{caught.value.hint}"


def test_import_of_the_package_is_cheap() -> None:
    """Names load on use; an unknown one raises the usual error."""
    program = (
        "import sys, octaskly\n"
        "print([m for m in sys.modules if m.startswith('octaskly.')])\n"
        "octaskly.Client\n"
        "print([m for m in ('aiohttp', 'asyncio', 'click') if m in sys.modules])\n"
        "print({'Client', 'AsyncClient'} <= set(dir(octaskly)))\n"
        "octaskly.Server\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.stdout == "[]\n[]\nTrue\n"
    assert "module 'octaskly' has no attribute 'Server'" in done.stderr
