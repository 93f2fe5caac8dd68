"""Trees of files for tasks, sent over the REST API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from hashlib import sha256

from octaskly.files.manifest import TreeFile, encode_manifest, make_manifest
from tests.support.agents import Agent


def send_tree(agent: Agent, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Send files to a node; return the field `tree` of tasks that get them."""
    for data in contents.values():
        _send(agent, data)
    manifest = make_manifest(
        TreeFile(path, sha256(data).digest(), len(data), 0)
        for path, data in contents.items()
    )
    return _send(agent, encode_manifest(manifest))


def _send(agent: Agent, data: bytes) -> dict[str, str]:
    path = f"/api/v1/files/{sha256(data).hexdigest()}"
    with closing(agent.connection()) as connection:
        media = {"Content-Type": "application/octet-stream"}
        connection.request("POST", path, data, media)
        stored = json.loads(connection.getresponse().read())
    return {"sha256": stored["sha256"], "node": stored["node"]}
