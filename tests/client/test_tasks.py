"""Submitting, waiting, cancelling: the calls of most programs, with both clients."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Unpack

import pytest

import octaskly


def test_command_runs_and_returns_its_result(client: octaskly.Client) -> None:
    """As from subprocess.run: exit code and output, exact even if it is not text."""
    ended = client.run(r"printf 'a\377b'; echo why >&2; exit 3")

    assert (ended.status, ended.exit_code) == ("failed", 3)
    assert (ended.stdout, ended.stderr) == ("a\ufffdb", "why\n")
    assert ended.output_bytes("stdout") == b"a\xffb"


def test_failure_raises_an_error_if_requested(client: octaskly.Client) -> None:
    """It holds the task, its outcome, and the last line of stderr."""
    with pytest.raises(octaskly.TaskFailed, match="exit code 4: no such") as caught:
        client.run("echo no such >&2; exit 4", check=True)

    assert caught.value.task.exit_code == 4


def test_wait_deadline_raises_an_error_and_the_task_goes_on(
    client: octaskly.Client,
) -> None:
    """A deadline belongs to the caller; `timeout` belongs to the task."""
    task = client.submit("sleep 30")
    with pytest.raises(octaskly.TimedOut, match="has not ended within"):
        client.wait(task, deadline_s=0.2)

    assert not client.task(task).is_final
    client.cancel(task, force=True)
    assert client.wait(task).status == "cancelled"


def test_leaving_a_run_cancels_its_task(client: octaskly.Client) -> None:
    """As subprocess.run kills its child: no other program knows of the task."""
    with pytest.raises(octaskly.TimedOut):
        client.run("sleep 30", name="left", deadline_s=3.0)
    [left] = [task for task in client.tasks() if task.name == "left"][-1:]
    assert client.wait(left).status == "cancelled"


def test_all_task_options_reach_the_node(client: octaskly.Client) -> None:
    """Each keyword is the field of the API that has its name."""
    parent = client.submit("true")
    asked: octaskly.TaskFields = {
        "timeout": 60,
        "outputs": ["made"],
        "name": "everything",
        "labels": {"for": "tests"},
        "call": "greet('hello')",
        "env": {"GREETING": "hello"},
        "workdir": "scratch",
        "stdin": b"\xff\x00",
        "grace": 2,
        "limits": {"file_mb": 5},
        "notify_url": "http://localhost:1/",
        "priority": 3,
        "requires": {"os": "linux", "cpus": 1},
        "fail_fast": True,
        "retries": 1,
        "retry_on": [7, "lost"],
        "after": [parent],
        "on": "any",
        "visitors": "with-env",
        "visitors_min": 60,
    }
    untold = {"cwd", "needs", "inputs", "includes_ignored", "id", "same_folder"}
    untold |= {"outputs_of"}
    assert set(asked) | untold == octaskly.TaskFields.__optional_keys__

    task = client.run("echo $GREETING; cat; echo made > made", check=True, **asked)

    assert task.output_bytes("stdout") == b"hello\n\xff\x00"
    assert b"".join(client.output(task, "made")) == b"made\n"
    shown = {key: getattr(task, key) for key in asked if hasattr(task, key)}
    told: dict[str, Any] = {key: asked[key] for key in shown}  # type: ignore[literal-required]
    told["after"] = [parent.id]
    told["visitors"] = True
    told["outputs"] = [octaskly.Output(path="made", bytes=5)]
    told["limits"] = octaskly.ResourceLimits(file_mb=5)
    told["requires"] = octaskly.Requirements(os="linux", cpus=1)
    assert shown == told


def test_many_tasks_are_submitted_at_once_and_yielded_as_they_end(
    client: octaskly.Client, tmp_path: Path
) -> None:
    """In one request, all or none; waiting takes one stream."""
    drafts: list[octaskly.Draft | str]
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    drafts = [octaskly.Draft(command=wait, name="slow"), "echo quick"]
    slow, quick = client.submit_many(drafts)
    ending = client.as_ended([slow, quick, quick.id])
    ended = [next(ending)]
    (tmp_path / "go").touch()
    ended += ending

    assert [task.id for task in ended] == [quick.id, slow.id]
    assert [task.stdout for task in ended] == ["quick\n", ""]
    assert client.submit_many([]) == []
    with pytest.raises(octaskly.Invalid) as caught:
        client.submit_many(["true", ""])
    assert caught.value.field == "$[1].command"


def test_same_idempotency_key_makes_one_task(
    client: octaskly.Client,
) -> None:
    """So a program that is restarted submits nothing twice."""
    key = f"key-{client.submit('true').id}"

    assert (
        client.submit("true", idempotency_key=key).id
        == client.submit("true", idempotency_key=key).id
    )


def test_empty_idempotency_key_is_refused(client: octaskly.Client) -> None:
    """It comes from an unset variable; a repeated request would make two tasks."""
    with pytest.raises(octaskly.Invalid) as one:
        client.submit("true", idempotency_key="")
    with pytest.raises(octaskly.Invalid) as many:
        client.submit_many(["true"], idempotency_key="")

    assert one.value.field == many.value.field == "Idempotency-Key"


def test_a_waiting_task_gets_another_priority(client: octaskly.Client) -> None:
    """One that has ended does not."""
    waiting = client.submit("true", requires={"labels": {"no": "node"}})
    ended = client.run("true")

    client.reprioritize(waiting, -7)
    with pytest.raises(octaskly.Conflict, match="it has ended: completed"):
        client.reprioritize(ended.id, 7)

    assert client.task(waiting.id).priority == -7
    client.cancel(waiting)


def test_a_command_that_was_not_sent_is_unknown(client: octaskly.Client) -> None:
    """It is None, as any field that the node leaves out; not an empty command."""
    task = client.submit("true", requires={"labels": {"moon": "yes"}})

    assert client.task(task).command == "true"
    assert client.cancel(task).command is None
    members = client.results(client.array("echo", "1-2"))
    assert [member.command for member in members] == [None, None]


def test_one_parent_may_be_given_alone(client: octaskly.Client) -> None:
    """The task or its id, without a list."""
    parent = client.run("echo one > made", outputs="made")

    assert client.task(client.submit("true", after=parent)).after == [parent.id]
    assert client.task(client.submit("true", after=parent.id)).after == [parent.id]
    assert client.run("cat made", outputs_of=parent).stdout == "one\n"
    assert client.run("cat made", outputs_of=iter([parent.id])).stdout == "one\n"


def test_ended_task_is_retried(client: octaskly.Client) -> None:
    """As a new task, which names the original."""
    ended = client.run("true")

    again = client.retry(ended)

    assert again.retry_of == ended.id
    assert client.explain(client.wait(again)).summary.startswith("it completed on")


def test_mesh_state_is_typed(client: octaskly.Client) -> None:
    """Nodes and numbers are values with names, not bare dicts."""
    nodes, stats = client.nodes(), client.stats()

    assert [node.role for node in nodes] == ["dispatcher", "standby", "standby"]
    assert {node.name for node in nodes} == {"ash", "birch", "cedar"}
    assert (stats.workers.total, len(stats.mesh.standbys)) == (3, 2)


def test_tasks_are_found_by_name_and_labels(client: octaskly.Client) -> None:
    """By name, labels and text, page by page, in one iterator."""
    name = f"found {client.submit('true').id}"
    ids = [
        client.submit(f"true {n}", name=name, labels={"n": str(n % 2)}).id
        for n in range(3)
    ]

    def found(**wanted: Unpack[octaskly.TaskFilter]) -> list[str]:
        return [task.id for task in client.tasks(**wanted)]

    assert found(name=name) == ids
    assert found(name=name, newest=True) == ids[::-1]
    assert found(text=name, labels={"n": "0"}) == [ids[0], ids[2]]
    assert found(name="nobody is called that") == []
    assert found(newest=True)[:3] == ids[::-1]
    with pytest.raises(octaskly.Invalid):
        found(name="a\ud800")
    with pytest.raises(octaskly.Invalid):
        found(labels={"n": "\ud800"})


def test_list_is_whole_while_its_tasks_stop_matching(client: octaskly.Client) -> None:
    """As the caller cancels each task that it gets."""
    drafts = [octaskly.Draft(command="true", requires={"gpus": 99})] * 1100
    wanted = [task.id for task in client.submit_many(drafts)]
    cancelled = []

    for task in client.tasks(status="queued"):
        client.cancel(task)
        cancelled.append(task.id)

    assert cancelled == wanted


def test_task_is_found_by_any_text_in_its_command(
    client: octaskly.Client,
) -> None:
    """Scripts have lines and tabs."""
    task = client.submit("true 'found in\n\ttwo lines'", name="👩\u200d🚀")

    found = client.tasks(text="in\n\ttwo", name="👩\u200d🚀", newest=True)

    assert task.id in [one.id for one in found]


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in vars(kind).items()
        if callable(method) and (not name.startswith("_") or name == "__init__")
    }


def test_both_clients_have_the_same_methods() -> None:
    """Same methods, same parameters, same order."""
    blocking, awaited = public(octaskly.Client), public(octaskly.AsyncClient)

    assert list(blocking) == list(awaited)
    for name, signature in blocking.items():
        assert signature.parameters == awaited[name].parameters, name
