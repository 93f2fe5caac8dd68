"""Trees of files that travel with tasks, between real agents."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from octaskly.client.command_session import Session
from octaskly.client.flows.files import (
    SentTree,
    TreeContents,
    replicate_tree,
    upload_file,
    upload_tree,
)
from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.errors import MeshError
from octaskly.files.manifest import (
    TreeFile,
    TreeLink,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.ports.files import AttemptOutputs
from octaskly.runner.blobs.holder_connection import Holder
from octaskly.runner.files.output_copies import PARTIAL_SUFFIX
from octaskly.runner.output.captured_folders import FETCHED_NAME
from octaskly.trust import MeshTls, NodeKey, load_secret
from tests.attack.test_viewer_lists import outsider
from tests.support.agents import (
    TASKS,
    Agent,
    finished,
    kill_agent,
    roles_of,
    running,
    submit,
    until,
    until_nodes,
)
from tests.support.pooling import supply_in

MTIME_NS = 1_500_000_000_000_000_000
TOOL = b"#!/bin/sh\necho from the tool\n"
HOSTILE = "<img src=x onerror=alert(1)>\u202egpj.exe"
OF = "is sent along, and is an output of"
BIG = bytes(range(256)) * 8192  # 2 MiB, more than a pack may hold of one content.


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Agent]]:
    folder = tmp_path_factory.mktemp("trees")
    with running(folder, "ash", "birch") as agents:
        until_nodes(agents[0], 2)
        yield agents


def send(agent: Agent, contents: dict[str, bytes], *links: TreeLink) -> SentTree:
    """Send a tree to a node; a path that ends in `+x` is an executable file."""
    manifest = make_manifest(
        [
            TreeFile(
                path.removesuffix("+x"),
                sha256(data).digest(),
                len(data),
                MTIME_NS,
                path.endswith("+x"),
            )
            for path, data in contents.items()
        ],
        links,
        ["empty"],
    )
    encoded = encode_manifest(manifest)
    name = content_digest(encoded)
    by_digest = {content_digest(data): data for data in (*contents.values(), encoded)}
    sizes = {digest: len(data) for digest, data in by_digest.items()}
    tree = TreeContents(name, sizes, lambda name, at: iter([by_digest[name][at:]]))
    with Session.at_socket(agent.ready()["socket"]) as session:
        return session.run(upload_tree(session.requests, tree))


def get_raw(agent: Agent, path: str) -> tuple[int, bytes]:
    """Return status and body of a response."""
    with closing(agent.connection()) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def nodes_of(agent: Agent) -> list[dict[str, Any]]:
    return list(agent.call("GET", "/api/v1/nodes")[1]["nodes"])


def lost_nodes(agent: Agent) -> set[str]:
    return {node["name"] for node in nodes_of(agent) if node["state"] == "lost"}


def run_with(agent: Agent, tree: SentTree, command: str, **more: object) -> str:
    source = {"sha256": tree.sha256, "node": tree.node}
    return submit(agent, command, tree=source, workdir="scratch", **more)


def test_a_tree_is_in_the_folder_of_a_task_on_another_node(
    agents: list[Agent],
) -> None:
    """Contents small and large, modes, times, links and empty folders."""
    # No other test has sent these to the nodes.
    tool, big = TOOL + b"# own\n", BIG + b"own"
    contents = {"src/tool+x": tool, "data/big": big, "data/copy": big, "none": b""}
    tree = send(agents[0], contents, TreeLink("link", "src/tool"))
    command = (
        "./link; sha256sum < data/big; cmp data/big data/copy; stat -c %s none;"
        " stat -c '%Y %a' src/tool none; ls -d empty; echo more >> src/tool"
    )

    ended = finished(
        agents[0], run_with(agents[0], tree, command, requires={"node": "birch"})
    )

    assert ended["stdout"].splitlines() == [
        "from the tool",
        f"{sha256(big).hexdigest()}  -",
        "0",
        "1500000000 755",
        "1500000000 644",
        "empty",
    ], ended
    assert ended["status"] == "completed"
    assert tree.bytes_sent == len(tool) + len(big)


def test_files_of_a_task_are_listed_in_pages_and_downloaded(
    agents: list[Agent],
) -> None:
    """By any node, whoever has them; contents are only for those who may run tasks."""
    contents = {"src/tool+x": TOOL, "data/big": BIG, HOSTILE: b"x", "none": b""}
    tree = send(agents[1], contents, TreeLink("link", "src/tool"))
    command = f"mkdir -p out/{quote(HOSTILE)}; ./link > out/{quote(HOSTILE)}/said"
    task = run_with(agents[1], tree, command, outputs=["out"])
    finished(agents[0], task)
    viewer, client = (outsider(agents[0], role, role) for role in ("viewer", "client"))
    of_task = f"{TASKS}/{task}"

    first = viewer.ask("GET", f"{of_task}/tree?limit=2").json
    rest = viewer.ask("GET", f"{of_task}/tree?limit=10&offset=2").json
    outputs = viewer.ask("GET", f"{of_task}/outputs").json
    refused = [
        viewer.ask("GET", f"{of_task}/{path}").status
        for path in ("tree.tar", "tree/src/tool")
    ]
    tar = client.ask("GET", f"{of_task}/tree.tar")
    big = client.ask("GET", f"{of_task}/tree/data/big")
    folder = client.ask("GET", f"{of_task}/tree/src")

    assert first["total"] == rest["total"] == 6
    assert first["bytes"] == len(BIG) + len(TOOL) + 1
    listed = first["entries"] + rest["entries"]
    assert [(one["path"], one["kind"]) for one in listed] == [
        (HOSTILE, "file"),
        ("data/big", "file"),
        ("empty", "folder"),
        ("link", "link"),
        ("none", "file"),
        ("src/tool", "file"),
    ]
    assert rest["entries"][-1] == {
        "path": "src/tool",
        "kind": "file",
        "bytes": len(TOOL),
        "modified_at": "2017-07-14T02:40:00Z",
        "executable": True,
        "target": None,
    }
    assert [one["path"] for one in outputs["entries"]] == [f"out/{HOSTILE}/said"]
    assert refused == [403, 403]
    with tarfile.open(fileobj=io.BytesIO(tar.body)) as opened:
        assert opened.getnames() == [one["path"] for one in listed]
    assert big.body == BIG
    assert (folder.status, folder.json["field"]) == (404, "path")


def test_files_that_were_never_sent_or_are_gone_are_said_to_be(
    agents: list[Agent],
) -> None:
    """The error says how long they are kept."""
    plain = submit(agents[0], "true")
    nowhere = run_with(agents[0], SentTree("0" * 64, "birch", 0, 0), "true")

    for task, hint in ((plain, "no files were sent"), (nowhere, "about an hour")):
        finished(agents[0], task)
        status, body = agents[0].call("GET", f"{TASKS}/{task}/tree")

        assert (status, body["error"]) == (404, "File not found")
        assert hint in body["hint"]


def test_a_node_tells_the_digest_of_a_file_that_it_gets(agents: list[Agent]) -> None:
    """A browser cannot hash a file piece by piece."""
    connection = agents[1].connection()
    with contextlib.closing(connection):
        connection.request("POST", "/api/v1/files", body=BIG)
        answer = connection.getresponse()
        stored = json.loads(answer.read())
    again = agents[1].call("GET", f"/api/v1/files/{stored['sha256']}")

    assert answer.status == 201
    assert stored["sha256"] == content_digest(BIG)
    assert again == (200, stored)


def test_a_task_that_changes_its_files_changes_no_other_task(
    agents: list[Agent],
) -> None:
    """Tasks get copies; a link to the stored file let one write into the next one's."""
    tree = send(agents[0], {"data": b"right\n"})
    for node in ("ash", "birch"):
        first = run_with(
            agents[0],
            tree,
            "chmod u+w data; echo wrong > data",
            requires={"node": node},
        )
        assert finished(agents[0], first)["status"] == "completed"
        second = run_with(agents[0], tree, "cat data", requires={"node": node})

        assert finished(agents[0], second)["stdout"] == "right\n"


def test_a_task_may_name_folders_of_a_tree(agents: list[Agent]) -> None:
    """Only their files are fetched and placed; in an array, those of the item."""
    a, b = (sha256(item).hexdigest() for item in (b"a", b"b"))
    contents = {
        "all/common": b"common",
        f"items/{a}/own": b"of a",
        f"items/{b}/deep/own": b"of b",
    }
    tree = send(agents[0], contents)
    source = {
        "sha256": tree.sha256,
        "node": tree.node,
        "folders": ["all", "items/{sha256}"],
        "lent": False,
    }

    array = submit(
        agents[0],
        "cat common */own own; find . -type f | wc -l",
        tree=source,
        workdir="scratch",
        array={"items": ["a", "b"]},
    )
    finished(agents[0], array)
    outputs = [
        agents[0].call("GET", f"/api/v1/tasks/{array}.{number}")[1]["stdout"]
        for number in (0, 1)
    ]

    assert outputs == ["commonof a2\n", "commonof b2\n"]
    shown = agents[0].call("GET", f"/api/v1/tasks/{array}")[1]
    assert shown["tree"] == source


@pytest.mark.parametrize(
    "folders",
    [["../x"], ["/etc"], [""], ["a"] * 9, ["a" * 129], ["{sha256}/{sha256}"], "a"],
    ids=str,
)
def test_folders_that_are_none_are_refused(
    agents: list[Agent], folders: list[str]
) -> None:
    """Before the task is accepted."""
    tree = {"sha256": "0" * 64, "node": "ash", "folders": folders}
    task = {"command": "true", "workdir": "scratch", "tree": tree}

    status, body = agents[0].call("POST", "/api/v1/tasks", task)

    assert status == 400
    assert body["field"].startswith("$.tree.folders"), body


def test_only_what_a_node_lacks_is_sent(agents: list[Agent]) -> None:
    """A second run sends the changed file and the list of files."""
    contents = {f"file{number}": f"{number}".encode() for number in range(200)}
    first = send(agents[0], contents)
    second = send(agents[0], {**contents, "file7": b"changed"})
    third = send(agents[0], contents)

    assert (first.files_sent, second.files_sent, third.files_sent) == (200, 1, 0)
    assert second.bytes_sent == len(b"changed")


def test_a_tree_that_no_node_has_ends_the_task_with_a_reason(
    agents: list[Agent],
) -> None:
    """It names the node that was asked."""
    nowhere = SentTree("0" * 64, "ash", 0, 0)
    ended = finished(agents[0], run_with(agents[0], nowhere, "true"))

    assert (ended["status"], ended["reason"]) == ("failed", "inputs")
    assert "ash" in ended["detail"]


def test_any_node_that_has_the_files_sends_them(tmp_path: Path) -> None:
    """The node that got them from the client may be gone."""
    with running(tmp_path, "ash", "birch", "cedar") as (ash, birch, cedar):
        until_nodes(ash, 3)
        tree = send(cedar, {"data": b"bytes", "big": BIG})
        command = "cat data; sha256sum < big"
        first = run_with(ash, tree, command, requires={"node": "birch"})
        assert finished(ash, first)["status"] == "completed"
        kill_agent(cedar)
        until(lambda: lost_nodes(ash) == {"cedar"}, "cedar is lost, and nobody else")
        until(lambda: set(roles_of(ash)) >= {"ash", "birch"}, "there is a dispatcher")

        second = run_with(ash, tree, command, requires={"node": "ash"})

        ended = finished(ash, second)
        assert ended["status"] == "completed", ended
        assert ended["stdout"] == finished(ash, first)["stdout"]
        assert birch.process.poll() is None


def test_a_node_deletes_a_copy_that_has_become_wrong(agents: list[Agent]) -> None:
    """When another node finds it wrong; a copy that is right stays."""
    ash, birch = agents
    data = os.urandom(5 << 20)  # Two pieces.
    tree = send(ash, {"data": data, "right": b"bytes"})
    place = ash.state / "files" / content_digest(data)
    place.chmod(0o600)
    with place.open("r+b") as file:
        file.write(b"wrong")

    ended = finished(ash, run_with(ash, tree, "true", requires={"node": "birch"}))

    assert (ended["status"], ended["reason"]) == ("failed", "inputs")
    assert ended["detail"] == (
        "the files of node ash: it is nowhere (ash: its bytes were wrong)"
    )
    assert explained(ash, ended["id"])["inputs"]["present_bytes"] == 0
    assert not place.exists()
    assert (ash.state / "files" / sha256(b"bytes").hexdigest()).exists()
    assert not (birch.state / "files" / content_digest(data)).exists()
    assert birch.log().count("node sent wrong bytes of a file") == 1


def test_a_replicated_tree_survives_the_machine_that_sent_it(tmp_path: Path) -> None:
    """It is at the dispatcher and its standbys, and at no other node."""
    with running(tmp_path, "ash", "birch", "cedar", "doug") as agents:
        until_nodes(agents[0], 4)
        until(lambda: "dispatcher" in roles_of(agents[0]).values(), "a dispatcher")
        roles = roles_of(agents[0])
        sender = next(one for one in agents if roles[one.state.name] == "worker")
        with Session.at_socket(sender.ready()["socket"]) as session:
            tree = send(sender, {"data": b"bytes", "big": BIG})
            nodes = session.run(replicate_tree(session.requests, tree))
        asked = next(one for one in agents if one is not sender)
        ids = {node["id"]: node["name"] for node in nodes_of(asked)}
        kill_agent(sender)
        until(lambda: sender.state.name in lost_nodes(asked), "the sender is lost")

        ended = finished(asked, run_with(asked, tree, "cat data; wc -c < big"))

        assert ended["stdout"] == f"bytes{len(BIG)}\n"
        assert {roles[ids[node]] for node in nodes} == {"dispatcher", "standby"}


def explained(agent: Agent, task: str) -> dict[str, Any]:
    return dict(agent.call("GET", f"/api/v1/tasks/{task}/explain")[1])


def placed_on(agent: Agent, tree: SentTree) -> str:
    ended = finished(agent, run_with(agent, tree, "true"))
    assert ended["status"] == "completed", ended
    return str(ended["worker_id"])


def test_a_task_runs_where_its_bytes_are(agents: list[Agent]) -> None:
    """And `explain` says where they came from."""
    big = random.Random(22).randbytes(10 << 20)
    tree = send(agents[0], {"big": big, "small": b"of ash"})
    asked = agents[1]  # Either of the two is the dispatcher; the other is asked by it.
    first = run_with(asked, tree, "true", requires={"node": "birch"})
    finished(asked, first)
    assert explained(asked, first)["inputs"] == {
        "node": "birch",
        "bytes": len(big) + 6,
        "present_bytes": 0,
        "sent": [{"node": "ash", "bytes": len(big) + 6}],
        "awaited": None,
    }
    # The least loaded node with the lowest id is the usual choice.
    ids = {node["name"]: node["id"] for node in nodes_of(asked)}
    _, other = sorted(ids, key=lambda name: ids[name])
    other_agent = next(one for one in agents if one.state.name == other)
    unique = random.Random(23).randbytes(10 << 20)
    held = send(other_agent, {"big": unique, "small": b"of it"})

    until(lambda: placed_on(asked, held) == other, "the node with the bytes is chosen")

    again = run_with(asked, tree, "true", requires={"node": "birch"})
    finished(asked, again)
    shown = explained(asked, again)["inputs"]
    assert (shown["present_bytes"], shown["sent"]) == (len(big) + 6, [])


def test_a_tree_that_nobody_has_is_not_replicated(agents: list[Agent]) -> None:
    """The error names the nodes that were asked."""
    nowhere = SentTree("0" * 64, "birch", 0, 0)
    with (
        Session.at_socket(agents[0].ready()["socket"]) as session,
        pytest.raises(MeshError, match=r"could not store the files: .* birch"),
    ):
        session.run(replicate_tree(session.requests, nowhere))


def test_a_task_reads_a_file_of_any_size_as_stdin(agents: list[Agent]) -> None:
    """From its start in each attempt; also under the name /dev/stdin."""
    big = BIG * 8  # 16 MiB, where `stdin` of the request may have 1 MiB.
    name = content_digest(big)
    with Session.at_socket(agents[0].ready()["socket"]) as session:
        stored = session.run(upload_file(session.requests, name, big))
    source = {"sha256": name, "node": stored.node}
    for node in ("ash", "birch"):
        task = submit(
            agents[0],
            "head -c 3 >/dev/null; [ $OCTASKLY_ATTEMPT = 2 ] || exit 1;"
            " cat | wc -c; sha256sum /dev/stdin",
            stdin_file=source,
            requires={"node": node},
            retries=1,
        )
        ended = finished(agents[0], task)

        rest, whole = ended["stdout"].split(maxsplit=1)
        assert int(rest) == len(big) - 3, ended
        assert whole.split()[0] == name


def test_stdin_is_given_once(agents: list[Agent]) -> None:
    """The error names the field."""
    source = {"sha256": "0" * 64, "node": "ash"}
    status, body = agents[0].call(
        "POST",
        "/api/v1/tasks",
        {"command": "cat", "stdin": "text", "stdin_file": source},
    )

    assert (status, body["field"]) == (400, "$.stdin_file")


def test_outputs_can_be_fetched_when_their_worker_is_gone(tmp_path: Path) -> None:
    """Another node has copied them; byte for byte the same archive."""
    with running(tmp_path, "ash", "birch", "cedar") as agents:
        until_nodes(agents[0], 3)
        roles = roles_of(agents[0])
        worker = next(one for one in agents if roles[one.state.name] != "dispatcher")
        asked = next(one for one in agents if one is not worker)
        task = submit(
            asked,
            "mkdir -p out/empty; echo text > out/file; ln -s file out/link;"
            " head -c 3000000 /dev/urandom > out/big; chmod +x out/big",
            outputs=["out"],
            requires={"node": worker.state.name},
        )
        assert finished(asked, task)["status"] == "completed"
        before = get_raw(asked, f"/api/v1/tasks/{task}/outputs.tar")
        others = [one for one in agents if one is not worker]
        until(
            # The folder of an attempt has this name once its copy is whole.
            lambda: any(
                place.suffix != PARTIAL_SUFFIX
                for one in others
                for place in (one.state / "outputs" / task).glob("*")
            ),
            "another node has a copy",
        )
        kill_agent(worker)
        until(lambda: worker.state.name in lost_nodes(asked), "the worker is lost")

        after = get_raw(asked, f"/api/v1/tasks/{task}/outputs.tar")
        one = get_raw(asked, f"/api/v1/tasks/{task}/outputs/out/file")
        after_it = {"outputs_of": [task], "workdir": "scratch"}
        join = submit(asked, "cat out/file; wc -c < out/big", **after_it)
        joined = finished(asked, join)

    assert (before[0], after[0]) == (200, 200)
    assert after[1] == before[1]
    home = tmp_path / "home"
    home.mkdir()
    tar = subprocess.run(
        ["tar", "xf", "-"], input=after[1], cwd=home, capture_output=True, check=True
    )
    assert (tar.stderr, (home / "out" / "file").read_text()) == (b"", "text\n")
    assert one == (200, b"text\n")
    assert joined["stdout"] == "text\n3000000\n", joined


def make_outputs(agent: Agent, node: str, command: str, *outputs: str) -> str:
    """Run a task that leaves outputs on a node; return its id."""
    task = submit(
        agent,
        command,
        outputs=list(outputs),
        workdir="scratch",
        requires={"node": node},
    )
    assert finished(agent, task)["status"] == "completed"
    return task


def test_a_task_gets_the_outputs_of_others(agents: list[Agent]) -> None:
    """From any node, with those of other tasks and the files that were sent along."""
    made = make_outputs(
        agents[0],
        "birch",
        "mkdir -p raw/deep; head -c 3000000 /dev/zero > raw/big; echo x > raw/deep/x;"
        " chmod +x raw/deep/x; ln -s deep/x raw/link; mkdir raw/empty",
        "raw",
    )
    other = make_outputs(agents[0], "ash", "echo of ash > ash.txt", "*.txt")
    tree = send(agents[0], {"sent": b"sent\n"})
    source = {"sha256": tree.sha256, "node": tree.node}
    command = "cat sent ash.txt; stat -c '%n %s %a' raw/big raw/link raw/deep/x; ls raw"
    tasks = [
        submit(
            agents[1],
            command,
            outputs_of=[made, other],
            tree=source,
            workdir="scratch",
            requires={"node": node},
        )
        for node in ("ash", "birch")
    ]

    for task in tasks:
        ended = finished(agents[0], task)
        assert ended["stdout"].splitlines() == [
            "sent",
            "of ash",
            "raw/big 3000000 644",
            "raw/link 6 777",
            "raw/deep/x 2 755",
            *("big", "deep", "empty", "link"),
        ], ended
        assert (ended["outputs_of"], ended["after"]) == ([made, other], [made, other])
    at_ash, at_birch = (explained(agents[0], task)["inputs"] for task in tasks)
    # A second copy of what the other node made may be there by now.
    sent_to_ash, sent_to_birch = (
        {one["node"]: one["bytes"] for one in inputs["sent"]}
        for inputs in (at_ash, at_birch)
    )
    assert sent_to_ash in ({}, {"birch": 3_000_002})
    assert sent_to_birch["ash"] in (len("sent\n"), len("of ash\nsent\n"))
    for inputs, sent in ((at_ash, sent_to_ash), (at_birch, sent_to_birch)):
        assert inputs["bytes"] == 3_000_002 + len("of ash\nsent\n")
        assert inputs["present_bytes"] == inputs["bytes"] - sum(sent.values())


def test_outputs_count_as_fetched_if_the_client_leaves_with_the_last_byte(
    agents: list[Agent],
) -> None:
    """As `octaskly fetch` does; then they may make room for others."""
    made = [make_outputs(agents[0], "ash", "echo x > made", "made") for _ in range(5)]
    for task in made:
        with closing(agents[0].connection()) as connection:
            connection.request("GET", f"{TASKS}/{task}/outputs.tar")
            answer = connection.getresponse()
            answer.read(int(answer.headers["Content-Length"]))

    for task in made:
        [folder] = (agents[0].state / "outputs").glob(f"{task}*/*")
        until((folder / FETCHED_NAME).exists, f"{task} counts as fetched")


def test_a_node_says_which_outputs_it_holds(
    agents: list[Agent], tmp_path: Path
) -> None:
    """The dispatcher asks for those that unfinished tasks get, many at once."""
    task = make_outputs(agents[0], "ash", "echo 1 > x", "x")
    [folder] = (agents[0].state / "outputs").glob(f"{task}*/*-*-*-*")
    term, stream, seq, n = map(int, folder.name.split("-"))
    outputs = [
        AttemptOutputs(
            TaskId(folder.parent.name), AttemptId(term, StreamId(stream), seq, number)
        )
        for number in (n + 1, n)
    ]
    secret = load_secret(agents[0].state.parent / "mesh.key")
    trust = MeshTls(secret, NodeKey.generate())
    fetcher = supply_in(tmp_path, trust.lan_client_context)

    held = fetcher.ask_to_hold_outputs(
        Holder("ash", (agents[0].ready()["lan_url"],)), outputs
    )
    fetcher.close()

    assert held == [1]


def test_a_task_gets_the_outputs_of_all_members_of_an_array(
    agents: list[Agent],
) -> None:
    """It waits for all of them."""
    array = submit(
        agents[0],
        "sleep 0.2; echo {} > frame-{}.png",
        outputs=["frame-*.png"],
        workdir="scratch",
        array={"range": "0-3"},
    )
    task = submit(agents[0], "cat frame-*", outputs_of=[array], workdir="scratch")

    ended = finished(agents[0], task)

    assert ended["stdout"].split() == [*"0123"], ended


def test_outputs_of_too_many_members_are_refused(agents: list[Agent]) -> None:
    """Else the task failed only when the array had ended."""
    never = {"outputs": ["x"], "workdir": "scratch", "requires": {"node": "elm"}}
    refused = 1001
    for count in (1000, refused):
        array = {"range": f"1-{count}"}
        known = submit(agents[0], "true", **never, array=array)
        child = {"command": "true", "workdir": "scratch"}
        own = {"id": f"own-{count}", "command": "true", "array": array, **never}
        for body, field in (
            ({**child, "outputs_of": [known]}, "$.outputs_of[0]"),
            ([own, {**child, "outputs_of": [own["id"]]}], "$[1].outputs_of[0]"),
        ):
            status, answer = agents[0].call("POST", "/api/v1/tasks", body)
            if count == refused:
                assert (status, answer["field"]) == (400, field), answer
                assert "1001 members" in answer["hint"]
            else:
                assert status == 201, answer


def test_a_sent_file_with_the_path_of_an_output_is_refused(
    agents: list[Agent],
) -> None:
    """Before the parent has run, or after it; the task is not accepted."""
    tree = send(agents[0], {"x": b"sent", "y/z": b"sent"})
    source = {"sha256": tree.sha256, "node": tree.node}
    never = {"workdir": "scratch", "requires": {"node": "elm"}}
    waiting = submit(agents[0], "true", outputs=["new", "x"], **never)
    ended = make_outputs(agents[0], "birch", "echo longer > x", "x")
    parent = {"command": "true", "id": "parent", "outputs": ["y/z/new"], **never}
    child = {"command": "true", "tree": source, "workdir": "scratch"}
    batches: list[tuple[Any, str, str]] = [
        ({**child, "outputs_of": [waiting]}, "$.outputs_of[0]", f"'x' {OF} {waiting}"),
        ({**child, "outputs_of": [ended]}, "$.outputs_of[0]", f"'x' {OF} {ended}"),
        (
            [parent, {**child, "outputs_of": ["parent"]}],
            "$[1].outputs_of[0]",
            f"'y/z' {OF} parent",
        ),
    ]

    for batch, field, hint in batches:
        status, refusal = agents[0].call("POST", TASKS, batch)

        assert status == 400, refusal
        assert refusal["error"] == "Two inputs have the same path"
        assert refusal["field"] == field
        assert refusal["hint"] == (
            f"{hint}: send it to another place, as with --in PATH=DEST"
        )


@pytest.mark.parametrize("kind", ["tree", "file"])
def test_an_input_at_a_node_that_never_was_is_refused_at_once(
    agents: list[Agent], kind: str
) -> None:
    """Each node says that it has no such file, and that no such node can come back."""
    asked = {"sha256": "f" * 64, "node": "elm", "kind": kind}

    status, refusal = agents[0].call("POST", "/api/v1/files/replicate", asked)

    assert status == 404, refusal
    assert refusal["error"] == "File not found"
    assert refusal["hint"].count("elm: there is no such node; not at") == 2


def test_only_the_worker_compares_what_may_be_the_same(agents: list[Agent]) -> None:
    """Folders, globs and files of one size; its message names both."""
    tree = send(agents[0], {"d/x": b"1\n", "y": b"1\n"})
    same = make_outputs(agents[0], "ash", "mkdir d; echo 1 | tee d/x > y", "d", "y")
    other = make_outputs(agents[0], "birch", "mkdir d; echo 2 > d/x", "d/*")

    ends = [
        finished(agents[0], run_with(agents[0], tree, "cat d/x", outputs_of=[parent]))
        for parent in (same, other)
    ]

    assert [(end["status"], end["reason"]) for end in ends] == [
        ("completed", "exit"),
        ("failed", "inputs"),
    ]
    assert ends[0]["stdout"] == "1\n"
    assert ends[1]["detail"] == (
        f"'d/x' is not the same in what was sent along and in the outputs of {other}"
    )


@pytest.mark.parametrize(
    ("sent", "needed", "named"),
    [
        ("near/f", "near/f", "near/f"),
        ("near/new", "near", "near/new"),
        ("near", "near/f", "near/f"),
    ],
)
def test_a_sent_file_is_not_written_to_the_own_files_of_a_node(
    agents: list[Agent], sent: str, needed: str, named: str
) -> None:
    """A needed folder is a link to them."""
    on_birch = {"requires": {"node": "birch"}}
    finished(
        agents[0],
        submit(agents[0], "mkdir -p near; echo old > near/f", **on_birch),
    )
    tree = send(agents[0], {sent: b"new\n"})

    end = finished(
        agents[0], run_with(agents[0], tree, "true", inputs=[needed], **on_birch)
    )

    assert (end["status"], end["reason"]) == ("failed", "inputs")
    assert end["detail"] == (
        f"{named!r} is sent to the task's folder, and is also needed from the folder of"
        " the node"
    )
    left = finished(agents[0], submit(agents[0], "cat near/*", **on_birch))
    assert left["stdout"] == "old\n"


def test_outputs_that_are_not_there_end_the_task_with_a_reason(
    agents: list[Agent],
) -> None:
    """Of a task that failed, has none, or whose outputs collide."""
    failed = submit(agents[0], "exit 1", outputs=["x"], workdir="scratch")
    none = make_outputs(agents[0], "ash", "true")
    one = make_outputs(agents[0], "ash", "echo 1 > x", "x")
    two = make_outputs(agents[0], "birch", "echo 2 > x", "x")
    members = {"array": {"range": "5-6"}, "workdir": "scratch"}
    array = submit(agents[0], "echo {} > x", outputs=["x"], **members)
    ends = [
        finished(agents[0], submit(agents[0], "true", outputs_of=o, workdir="scratch"))
        for o in ([failed], [none], [one, two], [array])
    ]

    assert [(end["status"], end["reason"]) for end in ends] == [
        ("cancelled", "cancelled"),
        ("failed", "inputs"),
        ("failed", "inputs"),
        ("failed", "inputs"),
    ]
    assert ends[1]["detail"] == f"the outputs of {none}: it ended without outputs"
    assert ends[2]["detail"] == (
        f"'x' is not the same in the outputs of {one} and in the outputs of {two}"
    )
    assert ends[3]["detail"] == (
        f"'x' is not the same in the outputs of {array}.5 and in the outputs of"
        f" {array}.6"
    )
    status, body = agents[0].call(
        "POST",
        "/api/v1/tasks",
        {"command": "true", "outputs_of": ["nothing"], "workdir": "scratch"},
    )
    assert (status, body["field"]) == (400, "$.outputs_of[0]")
    assert body["hint"] == "no task is called nothing"
