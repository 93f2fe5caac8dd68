"""`drain`, `pause` and `resume`: requests and output."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from tests.cli.stand_in import NODE, Api


def test_each_order_is_sent_and_reported(api: Api, octaskly: Run) -> None:
    """On stderr, because no pipe needs it."""
    said = [octaskly(word, "pi 4") for word in ("drain", "pause")]

    assert api.requests == [
        f"POST /api/v1/nodes/pi%204/{word}" for word in ("drain", "pause")
    ]
    assert [done.stderr.decode() for done in said] == [
        "pi 4 is draining, 1 task still running\n",
        "pi 4 is paused, 1 task frozen\n",
    ]
    assert all((done.returncode, done.stdout) == (0, b"") for done in said)


@pytest.mark.parametrize("word", ["resume", "unpause"])
@pytest.mark.parametrize(
    ("before", "text"),
    [
        ("paused", "pi4 was paused: 1 task running again, and it accepts tasks again"),
        ("draining", "pi4 was drained; it accepts tasks again"),
        ("ready", "nothing to resume: pi4 is neither drained nor paused"),
    ],
)
def test_resume_says_what_it_ended(
    api: Api, octaskly: Run, word: str, before: str, text: str
) -> None:
    """It ends a drain and a pause, so nobody has to know which it was."""
    api.steered, api.left = before, 1

    done = octaskly(word, "pi4")

    assert (done.returncode, done.stderr.decode()) == (0, f"{text}\n")
    assert api.requests[-1] == "POST /api/v1/nodes/pi4/resume"


@pytest.mark.parametrize("word", ["drain", "resume", "pause", "unpause", "revoke"])
def test_an_order_without_a_node_is_not_sent(
    api: Api, octaskly: Run, word: str
) -> None:
    """As `octaskly drain "$HOST"` with an unset variable."""
    done = octaskly(word, "")

    assert done.returncode == 2
    assert done.stderr.startswith(b"error: invalid value for 'NODE': it is empty\n")
    assert api.requests == []


def test_an_order_with_json_prints_the_node(api: Api, octaskly: Run) -> None:
    """As in the API."""
    done = octaskly("drain", "pi4", "--json")

    assert json.loads(done.stdout)["state"] == "draining"
    assert done.stderr == b""


def test_drain_can_wait_until_nothing_runs(api: Api, octaskly: Run) -> None:
    """The next line of a script may switch the machine off."""
    api.left = 2
    done = octaskly("drain", "pi4", "--wait")

    assert done.returncode == 0
    assert done.stderr.decode() == (
        "pi4 is draining, 1 task still running\npi4 has no running tasks\n"
    )
    assert api.requests.count("GET /api/v1/nodes/pi4") == 3


def test_a_wait_for_a_drain_ends_when_it_is_undone(api: Api, octaskly: Run) -> None:
    """It would never end otherwise."""
    api.left, api.steered = 2, "ready"
    done = octaskly("drain", "pi4", "--wait")

    assert done.returncode == 1
    assert "error: pi4 accepts tasks again" in done.stderr.decode()


def test_a_wait_for_a_paused_node_is_an_error(api: Api, octaskly: Run) -> None:
    """Its frozen tasks do not end."""
    api.left, api.steered = 2, "paused"
    done = octaskly("drain", "pi4", "--wait")

    assert done.returncode == 1
    assert "error: pi4 is paused, so its tasks do not end" in done.stderr.decode()
    assert "hint: octaskly resume pi4" in done.stderr.decode()


def test_an_order_to_an_unknown_node_is_an_error(api: Api, octaskly: Run) -> None:
    """Exit code 3, and the command that lists the nodes."""
    api.refuse = lambda _method, _path: (404, {})
    api.refusal = "Worker not found"
    done = octaskly("drain", "nobody")

    assert done.returncode == 3
    assert "octaskly nodes" in done.stderr.decode()


@pytest.mark.parametrize("name", ["borrowed", "visitor-aaaaaaaaaaaaaaaa"])
def test_revoke_ends_only_the_visit_of_a_visitor(
    api: Api, octaskly: Run, name: str
) -> None:
    """By its name, or by its id if it is away; the question says what it means."""
    if name == "borrowed":
        api.answers[f"/api/v1/nodes/{name}"] = {**NODE, "name": name, "visitor": True}
    else:
        api.refuse = lambda method, _: (404, {}) if method == "GET" else None
    api.answers[f"/api/v1/nodes/{name}/end-visit"] = {"id": "visitor-a", "name": name}

    asked = octaskly("revoke", name)
    done = octaskly("revoke", name, "--yes")

    assert asked.returncode == 2
    assert f"the visit of {name} ends at once".encode() in asked.stderr
    assert b"token" not in asked.stderr
    assert (done.returncode, done.stderr.decode()) == (
        0,
        f"the visit of {name} has ended\n",
    )
    assert [r for r in api.requests if r.startswith("POST")] == [
        f"POST /api/v1/nodes/{name}/end-visit"
    ]
