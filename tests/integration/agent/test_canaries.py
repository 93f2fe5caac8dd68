"""Secrets never appear where others can read (threat 20)."""

from __future__ import annotations

import base64
import contextlib
import http.client
from pathlib import Path

import psutil

from octaskly.trust import load_secret
from tests.support.agents import (
    UNFORKED,
    Agent,
    finished,
    request,
    running,
    submit,
    until_nodes,
)


def _shown(agent: Agent, folder: Path) -> dict[str, bytes]:
    """Return everything that other users, backups and log readers can see."""
    process = psutil.Process(agent.process.pid)
    lines = []
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # It has ended meanwhile.
            lines.append(each.cmdline())
    assert lines
    files = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # It was deleted meanwhile.
            if path.is_file():
                files[str(path)] = path.read_bytes()
    return files | {
        "process list": repr(lines).encode(),
        "answers": repr(
            [
                agent.call("GET", f"/api/v1/{what}")
                for what in ("tasks", "nodes", "stats")
            ]
        ).encode(),
    }


def test_no_secret_is_readable_by_others(tmp_path: Path) -> None:
    """Neither the mesh secret, nor keys derived from it, nor a token in use."""
    # A fork shows the words of its server.
    extra = ("--log-level", "debug")
    with running(tmp_path, "solo", extra=extra, prefix=UNFORKED) as (agent,):
        until_nodes(agent, 1)
        _, made = agent.call("POST", "/api/v1/tokens", {"role": "client"})
        token = str(made["token"])
        port = int(str(agent.ready()["api_url"]).rpartition(":")[2])
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port)
        ) as client:
            for given, status in ((token, 200), (token + "x", 401)):
                assert request(client, "GET", "/api/v1/tasks", token=given)[0] == status
        finished(agent, submit(agent, "env; cat /proc/$PPID/cmdline"))
        shown = _shown(agent, tmp_path)

    secret = load_secret(tmp_path / "mesh.key")
    key = secret.token_key(secret.generation)
    text = (tmp_path / "mesh.key").read_text().split()[-1]
    canaries = {
        "secret": text.encode(),
        "core of the secret": text[8:32].encode(),
        "key of tokens": key,
        "the same, as text": key.hex().encode(),
        "the same, in base64": base64.b64encode(key).rstrip(b"="),
        "token": token.encode(),
        "signature": token.rpartition(".")[2].encode(),
    }
    found = [
        (place, what)
        for place, data in shown.items()
        for what, canary in canaries.items()
        if canary in data
    ]

    assert len(shown) > 6
    assert {place for place, _ in found} <= {str(tmp_path / "mesh.key")}
