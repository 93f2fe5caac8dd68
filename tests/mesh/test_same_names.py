"""Two halves of a split that give one name to different tasks."""

from typing import Any

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.forming import FORM_S, all_tasks, dispatcher_of, form, is_formed
from tests.mesh.lab import Host
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.soak, pytest.mark.timeout(240)]

RUN_S = 30.0


def made(host: Host, token: str, key: str = "", **body: Any) -> str:
    """Submit a task and return the id in the answer."""
    headers = {"Idempotency-Key": key} if key else {}
    answer = host.http("POST", "/api/v1/tasks", json=body, token=token, headers=headers)
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def output(host: Host, task: str) -> tuple[str, str]:
    """Return a task's state and its output."""
    answer = host.http("GET", f"/api/v1/tasks/{task}?wait={RUN_S}")
    assert answer.status == 200, answer.body
    return answer.json["status"], answer.json["stdout"]


def test_both_tasks_of_one_name_are_kept(make_lab: MakeLab) -> None:
    """Each keeps its own output; a repeated request finds its own task."""
    lab = make_lab(2)
    form(lab)
    one, two = lab.hosts
    token = one.token()  # Of one client, whichever half it reaches.
    lab.split([one], [two])
    for host in lab.hosts:
        wait_until(
            f"{host.name} is dispatcher",
            lambda host=host: dispatcher_of(host) == host.name,  # type: ignore[misc]
            within_s=FORM_S,
        )
    keyed = set()
    for host in lab.hosts:
        assert made(host, token, id="deploy", command=f"echo {host.name}") == "deploy"
        assert made(host, token, id="same", command="echo same") == "same"
        keyed.add(made(host, token, key="nightly", command=f"echo keyed {host.name}"))
        assert output(host, "deploy") == ("completed", f"{host.name}\n")
    (key,) = keyed
    assert made(one, token, id="stopped", command="sleep 300") == "stopped"
    assert one.http("DELETE", "/api/v1/tasks/stopped?force=true").status == 200
    assert made(two, token, id="stopped", command="echo on") == "stopped"

    lab.join()
    wait_until("one mesh", lambda: is_formed(lab.hosts), within_s=FORM_S)

    names = ["deploy", "deploy~2", key, f"{key}~2", "same", "stopped", "stopped~2"]
    for host in lab.hosts:
        wait_until(
            "all are listed",
            lambda host=host: {t["id"] for t in all_tasks(host)} == set(names),  # type: ignore[misc]
            within_s=FORM_S,
        )
        ends = [output(host, name) for name in names]
        assert sorted(ends[:2]) == [("completed", f"{h.name}\n") for h in lab.hosts]
        assert sorted(ends[2:4]) == [
            ("completed", f"keyed {h.name}\n") for h in lab.hosts
        ]
        assert ends[4] == ("completed", "same\n")
        assert [status for status, _ in ends[5:]] == ["cancelled", "completed"]
        again = made(host, token, key="nightly", command=f"echo keyed {host.name}")
        assert output(host, again) == ("completed", f"keyed {host.name}\n")
    taken = one.http("POST", "/api/v1/tasks", json={"id": "deploy", "command": "x"})
    assert taken.status == 409
