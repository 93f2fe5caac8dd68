"""A mesh of agents on the hosts of a lab, and requests to their APIs."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octaskly.trust import generate_secret
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import wait_until

FORM_S = 60.0  #: a busy machine is slow to start them
PAGE_MAX = 1000

Node = dict[str, Any]
Task = dict[str, Any]


def secret_file(folder: Path) -> Path:
    """Make a mesh secret, as `octaskly secret new > mesh.key` does."""
    path = folder / "mesh.key"
    path.touch(mode=0o600)
    path.write_text(generate_secret().to_text())
    return path


def form(lab: Lab, *, hosts: Sequence[Host] = (), slots: int = 2) -> None:
    """Start an agent on each host at once and wait until they are one mesh.

    Their secret is `mesh.key` in the folder of the lab.
    """
    hosts = hosts or lab.hosts
    secret = secret_file(lab.folder)
    options = ("--slots", str(slots))
    for host in hosts:
        host.agent("", *options, secret=secret, is_awaited=False)
    for host in hosts:
        assert host.first.description
    wait_until("one mesh", lambda: is_formed(hosts), within_s=FORM_S)


def nodes(host: Host) -> list[Node]:
    """Return the members of the mesh from a host's API; none if it does not answer."""
    answer = host.http("GET", "/api/v1/nodes")
    return list(answer.json["nodes"]) if answer.status == 200 else []


def dispatcher_of(host: Host) -> str | None:
    """Return the name of the dispatcher that a host sees."""
    names = [node["name"] for node in nodes(host) if node["role"] == "dispatcher"]
    assert len(names) < 2, names
    return names[0] if names else None


def is_formed(hosts: Sequence[Host]) -> bool:
    """Return True if all these hosts list each other and name one dispatcher.

    No other host may be ready. One of them may drain or pause.
    """
    everyone = {host.name for host in hosts}
    seen = [nodes(host) for host in hosts]
    ready = {n["name"] for each in seen for n in each if n["state"] == "ready"}
    rosters = [{n["name"] for n in each if n["state"] != "lost"} for each in seen]
    heads = {n["name"] for each in seen for n in each if n["role"] == "dispatcher"}
    is_whole = ready <= everyone and all(roster >= everyone for roster in rosters)
    return len(heads) == 1 and is_whole


def roles(lab: Lab) -> tuple[Host, list[Host]]:
    """Return the host of the dispatcher, and the others."""
    name = dispatcher_of(lab.hosts[0])
    dispatcher = next(host for host in lab.hosts if host.name == name)
    return dispatcher, [host for host in lab.hosts if host is not dispatcher]


def submit(host: Host, commands: Sequence[str]) -> list[str]:
    """Submit tasks in one request and return their ids."""
    body = [{"command": command} for command in commands]
    answer = host.http("POST", "/api/v1/tasks", json=body)
    assert answer.status == 201, answer.body
    return [task["id"] for task in answer.json]


def all_tasks(host: Host) -> list[Task]:
    """Return all tasks of the mesh, page by page."""
    tasks: list[Task] = []
    while True:
        page = _page(host, len(tasks))
        tasks += page["tasks"]
        if len(tasks) >= page["total"] or not page["tasks"]:
            return tasks


def _page(host: Host, offset: int) -> Any:
    """Return a page of tasks, once the mesh has a dispatcher."""

    def ask() -> Any:
        path = f"/api/v1/tasks?limit={PAGE_MAX}&offset={offset}"
        answer = host.http("GET", path)
        assert answer.status in (200, 503), answer.body
        return answer.json if answer.status == 200 else None

    return wait_until("a dispatcher", ask, within_s=FORM_S)


def list_tasks(host: Host, ids: Sequence[str]) -> list[Task]:
    """Return some of the tasks of the mesh, in the order of the mesh."""
    wanted = set(ids)
    return [task for task in all_tasks(host) if task["id"] in wanted]


def wait_for_completed(
    host: Host, ids: Sequence[str], *, within_s: float
) -> list[Task]:
    """Wait until tasks are completed, and return them."""
    deadline_s = time.monotonic() + within_s
    while True:
        tasks = list_tasks(host, ids)
        now = Counter(task["status"] for task in tasks)
        if now == {"completed": len(ids)}:
            return tasks
        assert time.monotonic() < deadline_s, f"of {len(ids)} tasks: {dict(now)}"
        time.sleep(0.2)
