"""Files of waiting tasks: nodes keep them in a full store, and do not wait for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256

import pytest

from octaskly.client.command_session import Session
from octaskly.client.flows.files import (
    TreeContents,
    prepare_lending,
    upload_file,
)
from octaskly.errors import OctasklyError
from octaskly.files.manifest import (
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.trust import create_secret_file
from tests.mesh import moved_clock
from tests.support.agents import (
    TASKS,
    Agent,
    ending,
    finished,
    launch,
    store_file,
    submit,
    until,
    until_nodes,
)

FILE_BYTES = 3_000_000  #: two of them fit into a store, three do not
QUOTA = "8MiB"
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    """Two agents with short waits; both are of one user, whose clock they have."""
    folder = tmp_path_factory.mktemp("waiting")
    secret = folder / "mesh.key"
    create_secret_file(secret)
    agents = [
        launch(
            folder / name,
            secret,
            *("--name", name, "--files-quota", QUOTA),
            program="tests.support.hurried_agent",
        )
        for name in ("ash", "birch")
    ]
    with ending(*agents):
        until_nodes(agents[0], len(agents))
        yield agents


def expiry_s(agent: Agent, sha256: str) -> float:
    """Return until when an agent keeps a file."""
    return (agent.state / "files" / sha256).stat().st_mtime


def test_room_is_made_of_files_that_no_waiting_task_needs(agents: list[Agent]) -> None:
    """Although the file of the waiting task was used before the other one."""
    ash = agents[0]
    gate = ash.state.parent / "gate"
    needed, unneeded, new = (os.urandom(FILE_BYTES) for _ in range(3))
    stdin = store_file(ash, needed)
    blocking = submit(ash, f"until test -e {gate}; do sleep 0.05; done")
    waiting = submit(
        ash,
        "sha256sum",
        stdin_file=stdin,
        after=[blocking],
        requires={"node": "ash"},
    )
    other = store_file(ash, unneeded)["sha256"]
    sent_until_s = expiry_s(ash, stdin["sha256"])
    moved_clock.move(ash.state.parent, 40 * MINUTE_MS)
    until(
        lambda: expiry_s(ash, stdin["sha256"]) > sent_until_s + 30 * 60,
        "the dispatcher asks to keep it",
    )
    with Session.at_socket(ash.ready()["socket"]) as session:
        name = sha256(new).hexdigest()
        with pytest.raises(OctasklyError) as early:
            session.run(upload_file(session.requests, name, new))
        moved_clock.move(ash.state.parent, 80 * MINUTE_MS)
        session.run(upload_file(session.requests, name, new))

    kept = {place.name for place in (ash.state / "files").iterdir()}
    gate.touch()
    ended = finished(ash, waiting)
    assert early.value.message == "Not enough space for the file"
    assert {stdin["sha256"], name} <= kept
    assert other not in kept
    assert ended["stdout"] == f"{stdin['sha256']}  -\n"


def test_a_task_whose_files_were_never_sent_ends_and_names_the_nodes(
    agents: list[Agent],
) -> None:
    """Once its client has been gone for long enough."""
    ash, birch = agents
    data = os.urandom(FILE_BYTES)
    file = TreeFile("data", sha256(data).digest(), len(data), 0)
    manifest = encode_manifest(make_manifest([file]))
    sizes = {content_digest(data): len(data), content_digest(manifest): len(manifest)}
    tree = TreeContents(
        content_digest(manifest), sizes, lambda _name, start: iter([manifest[start:]])
    )
    with Session.at_socket(ash.ready()["socket"]) as session:
        sent = session.run(prepare_lending(session.requests, tree))
    lent = {"sha256": sent.sha256, "node": sent.node, "lent": True}
    requires = {"node": birch.state.name}
    task = submit(ash, "true", tree=lent, workdir="scratch", requires=requires)

    ended = finished(ash, task)

    why = (
        "the files of node ash, whose client has disconnected: it is nowhere (not at"
        " ash)"
    )
    assert (ended["status"], ended["reason"]) == ("failed", "inputs")
    assert ended["detail"] == why
    _, explained = ash.call("GET", f"{TASKS}/{task}/explain")
    assert why in explained["summary"]
