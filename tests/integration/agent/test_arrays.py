"""Arrays on a whole agent: submission, runs, cancels and repetitions."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from octaskly.core.model import placeholders
from tests.support.agents import (
    TASKS,
    WAIT_S_MAX,
    Agent,
    finished,
    replicas,
    running,
    start,
    submit,
    until,
    until_nodes,
)
from tests.support.sse_client import stream

ARRAYS = "/api/v1/arrays"
MEMBERS = 400  #: of an array that stops after the first hundred
STATES = ("queued", "running", "completed", "failed", "cancelled")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("arrays"), "ash") as (agent,):
        until_nodes(agent, 1)
        yield agent


def ended(agent: Agent, array: str) -> dict[str, Any]:
    """Wait for the end of an array and return it."""
    return finished(agent, array, ARRAYS)


def counts(body: dict[str, Any]) -> dict[str, int]:
    return {state: body["array"][state] for state in STATES if body["array"][state]}


def test_each_number_of_a_range_is_a_member(agent: Agent) -> None:
    """One line in lists; members are tasks of their own."""
    before = agent.call("GET", TASKS)[1]["total"]
    array = submit(
        agent,
        'echo {} "$OCTASKLY_ITEM" "$OCTASKLY_INDEX"; test {} -ne 5',
        array={"range": "1-9:2"},
    )

    body = ended(agent, array)

    assert body["status"] == "failed"
    assert counts(body) == {"completed": 4, "failed": 1}
    assert body["array"]["total"] == 5
    (failed,) = body["failed_members"]
    members = [agent.call("GET", f"{TASKS}/{array}.{n}")[1] for n in range(1, 10, 2)]
    assert body["started_at"] == min(member["started_at"] for member in members)
    assert body["completed_at"] == max(member["completed_at"] for member in members)
    assert body["duration_ms"] >= 0
    assert body["queue_ms"] >= 0
    assert (failed["id"], failed["index"], failed["item"]) == (f"{array}.5", 5, "5")
    assert failed["exit_code"] == 1
    assert agent.call("GET", f"{TASKS}/{array}.3")[1]["stdout"] == "3 3 3\n"
    assert agent.call("GET", f"{TASKS}/{array}.2")[0] == 404
    assert agent.call("GET", TASKS)[1]["total"] == before + 1
    page = agent.call("GET", f"{TASKS}?array={array}&status=completed&limit=2&offset=2")
    assert [task["id"] for task in page[1]["tasks"]] == [f"{array}.7", f"{array}.9"]
    assert page[1]["total"] == 4


def test_an_item_is_one_word_and_only_failed_members_are_repeated(agent: Agent) -> None:
    """A space or a quote in an item reaches the command as one argument."""
    items = ["a b", "c'd; exit 3", "$HOME", ""]
    array = submit(
        agent,
        'test {} != "$OCTASKLY_ITEM" || test {} = "a b"',
        id="mine",
        array={"items": items, "max_fails": 9},
    )

    body = ended(agent, array)

    assert counts(body) == {"completed": 1, "failed": 3}
    assert [member["item"] for member in body["failed_members"]] == items[1:]
    status, repeated = agent.call("POST", f"{ARRAYS}/{array}/retry")
    assert status == 201
    assert agent.call("POST", f"{TASKS}/{array}/retry")[1]["id"] == repeated["id"]
    body = ended(agent, repeated["id"])
    assert counts(body) == {"failed": 3}
    assert agent.call("GET", f"{TASKS}/{repeated['id']}")[1]["retry_of"] == "mine"
    assert agent.call("GET", f"{TASKS}/mine.0")[1]["status"] == "completed"


@pytest.mark.parametrize(
    ("query", "indexes"),
    [("?order=number", [1, 3, 5, 7]), ("", [1, 3, 5, 7]), ("?offset=2", [5, 7])],
)
def test_results_of_all_members_come_in_one_stream(
    agent: Agent, query: str, indexes: list[int]
) -> None:
    """The end and the exact output of each member; then the end of the array."""
    array = submit(
        agent,
        "printf '\\377'; echo {} >&2; test {} -ne 5",
        array={"range": "1-7:2"},
    )
    with stream(agent, f"{ARRAYS}/{array}/results{query}") as events:
        *results, end = events

    assert end.name == "end"
    assert (end.data["id"], end.data["status"]) == (array, "failed")
    assert {event.name for event in results} == {"result"}
    received = [event.data for event in results]
    if "number" not in query:
        received.sort(key=lambda result: result["index"])
    assert [result["index"] for result in received] == indexes
    assert [result["id"] for result in received] == [f"{array}.{n}" for n in indexes]
    assert [result["position"] for result in received] == [n // 2 for n in indexes]
    assert {b64decode(result["stdout"]) for result in received} == {b"\xff"}
    assert [b64decode(r["stderr"]) for r in received] == [b"%d\n" % n for n in indexes]
    codes = {r["index"]: (r["status"], r["exit_code"]) for r in received}
    assert codes[5] == ("failed", 1)
    assert codes[7] == ("completed", 0)


@pytest.mark.parametrize("order", ["end", "number"])
def test_only_a_member_cancelled_by_itself_has_a_result_without_a_start(
    agent: Agent, order: str
) -> None:
    """Those that waited when the array was cancelled have none."""
    array = submit(agent, "true", array={"range": "1-3"}, requires={"node": "elm"})
    for target in (f"{array}.2", array):
        assert agent.call("DELETE", f"{TASKS}/{target}")[0] == 200

    with stream(agent, f"{ARRAYS}/{array}/results?order={order}") as events:
        result, end = events

    assert end.name == "end"
    found = result.data
    assert (found["index"], found["status"]) == (2, "cancelled")
    assert (found["attempt"], found["exit_code"], found["stdout"]) == (None, None, None)


def test_only_arrays_have_results(agent: Agent) -> None:
    """A task has its own route, and unknown arrays are refused."""
    task = submit(agent, "true")

    assert agent.call("GET", f"{ARRAYS}/{task}/results")[0] == 404
    assert agent.call("GET", f"{ARRAYS}/task-999/results")[0] == 404
    status, body = agent.call("GET", f"{ARRAYS}/{task}/results?order=size")
    assert (status, body["field"]) == (400, "order")


def test_placeholders_are_replaced_in_commands_and_paths(agent: Agent) -> None:
    """A path stays in the worker directory, whatever the items are."""
    items = ["x/a b.c", "d.e"]
    array = submit(
        agent,
        "echo {#} > {/.}.out",
        outputs=["{/.}.out"],
        array={"items": items},
    )

    assert counts(ended(agent, array)) == {"completed": 2}
    shown = [agent.call("GET", f"{TASKS}/{array}.{n}")[1] for n in range(2)]
    assert [task["command"] for task in shown] == [
        "echo 1 > 'a b'.out",
        "echo 2 > d.out",
    ]
    assert [task["outputs"] for task in shown] == [
        [{"path": "a b.out", "bytes": 2, "files": None}],
        [{"path": "d.out", "bytes": 2, "files": None}],
    ]


@pytest.mark.parametrize(
    ("path", "item"),
    [
        *(("{//}", "ab"), ("{//}", "/x"), ("{/}", "a/.."), ("{.}", ".x")),
        *(("{}", "../x"), (".{}", "./x"), ("{}", "/etc/x"), ("x/{}", "../../x")),
        *(("{}", "a/../../b"), ("{}", "./."), ("{}", f"a/{'x' * 300}")),
    ],
)
def test_a_placeholder_never_leads_upwards(agent: Agent, path: str, item: str) -> None:
    """It may stand for folders, but not for the parent folder."""
    body = {"command": "true", "outputs": [path], "array": {"items": [item]}}
    status, answer = agent.call("POST", TASKS, body)

    assert status == 400
    filled = placeholders.fill_placeholders(path, item, 0)[:80]
    assert f"{path!r} becomes {filled!r}, which" in answer["hint"]


def test_a_placeholder_may_stand_for_folders(agent: Agent) -> None:
    """As in `--out {.}.mp4`, for files of several folders."""
    array = submit(
        agent,
        "mkdir -p made/{//}; echo {#} > made/{.}.out",
        outputs=["made/{.}.out", "made/{//}/{/.}.out", "{//}/none/"],
        array={"items": ["./clips/a.mov", "b.mov"]},
    )

    ended(agent, array)
    shown = [agent.call("GET", f"{TASKS}/{array}.{n}")[1] for n in range(2)]
    assert [task["outputs"] for task in shown] == [
        [
            {"path": "made/clips/a.out", "bytes": 2, "files": None},
            {"path": "clips/none", "bytes": None, "files": None},
        ],
        [
            {"path": "made/b.out", "bytes": 2, "files": None},
            {"path": "none", "bytes": None, "files": None},
        ],
    ]
    assert [task["outputs_missing"] for task in shown] == [["clips/none"], ["none"]]


def test_cancelled_members_are_repeated_with_failed_ones(agent: Agent) -> None:
    """Members that never started have no row of their own, but are not forgotten."""
    array = submit(
        agent,
        "test {} -ne 1 || exit 1; test {} -lt 3 || sleep 1000",
        array={"range": "0-499"},
    )
    first = {"completed": 2, "failed": 1}
    until(lambda: first.items() <= shown(agent, array).items(), "the first have ended")
    assert agent.call("DELETE", f"{ARRAYS}/{array}?force=true")[0] == 200
    body = ended(agent, array)
    assert counts(body) == {"completed": 2, "failed": 1, "cancelled": 497}

    status, repeated = agent.call("POST", f"{ARRAYS}/{array}/retry")

    assert status == 201
    assert agent.call("DELETE", f"{ARRAYS}/{repeated['id']}?force=true")[0] == 200
    assert ended(agent, repeated["id"])["array"]["total"] == 498
    status, member = agent.call("GET", f"{TASKS}/{repeated['id']}.0")
    assert status == 200, member
    assert member["command"].startswith("test 1 -ne 1 ")
    # The log has no fact of the last one, as it never started.
    status, member = agent.call("GET", f"{TASKS}/{repeated['id']}.497")
    assert status == 200, member
    assert member["command"].startswith("test 499 -ne 1 ")


def test_a_long_range_is_repeated_without_a_list_of_members(
    agent: Agent,
) -> None:
    """It is 409 only if some members in the middle are completed."""
    array = submit(
        agent,
        "true",
        array={"range": "5-1999999:2", "max_fails": 3},
        requires={"labels": {"nobody": "has"}},
    )
    assert agent.call("DELETE", f"{ARRAYS}/{array}")[0] == 200

    status, repeated = agent.call("POST", f"{ARRAYS}/{array}/retry")
    body = agent.call("GET", f"{ARRAYS}/{repeated['id']}")[1]
    agent.call("DELETE", f"{ARRAYS}/{repeated['id']}")

    assert status == 201
    assert body["array"]["range"] == "5-1999999:2"
    assert body["array"]["queued"] == 999_998
    assert body["array"]["max_fails"] == 3


def test_an_array_without_failures_cannot_be_repeated(agent: Agent) -> None:
    """Nor can a task by the route of arrays."""
    array = submit(agent, "true", array={"range": "0-2"})
    assert counts(ended(agent, array)) == {"completed": 3}

    status, body = agent.call("POST", f"{ARRAYS}/{array}/retry")

    assert (status, body["error"]) == (409, "Nothing to retry")
    task = submit(agent, "true")
    assert agent.call("GET", f"{ARRAYS}/{task}")[0] == 404
    assert agent.call("POST", f"{ARRAYS}/{task}/retry")[0] == 404


def test_a_cancelled_member_is_explained_as_cancelled(agent: Agent) -> None:
    """Not like the waiting members of its array."""
    array = submit(agent, "true", array={"range": "0-2"}, requires={"gpus": 1000})
    assert agent.call("DELETE", f"{TASKS}/{array}.1")[0] == 200

    _, waiting = agent.call("GET", f"{TASKS}/{array}.2/explain")
    _, cancelled = agent.call("GET", f"{TASKS}/{array}.1/explain")

    assert agent.call("DELETE", f"{ARRAYS}/{array}")[0] == 200
    assert waiting["status"] == "queued"
    assert waiting["summary"].startswith("2 of 3 members are queued: ")
    received = (cancelled["status"], cancelled["summary"])
    assert received == ("cancelled", "it was cancelled")


def test_too_many_failures_cancel_waiting_members(agent: Agent) -> None:
    """A million members that would all fail cost a few attempts."""
    array = submit(agent, "false", array={"range": "1-1000000", "max_fails": 3})

    body = ended(agent, array)

    assert body["status"] == "failed"
    assert body["array"]["failed"] > 3
    assert body["array"]["failed"] + body["array"]["cancelled"] == 1_000_000
    assert agent.call("GET", f"{TASKS}/{array}.777777")[1]["status"] == "cancelled"


def test_too_many_failures_cancel_retries(agent: Agent) -> None:
    """All members have started once, so only retries are left."""
    array = submit(agent, "false", retries=1, array={"range": "1-100", "max_fails": 3})

    body = ended(agent, array)

    assert body["status"] == "failed"
    assert 3 < body["array"]["failed"] < 100
    assert body["array"]["failed"] + body["array"]["cancelled"] == 100


def test_cancelling_an_array_spares_running_members_unless_forced(agent: Agent) -> None:
    """One request cancels all waiting ones; the counts are exact at each moment."""
    before = agent.call("GET", "/api/v1/stats")[1]["tasks"]
    array = submit(agent, "sleep 1000", array={"range": "1-1000"})
    path = f"{ARRAYS}/{array}"
    until(lambda: agent.call("GET", path)[1]["status"] == "running", "it runs")
    why = agent.call("GET", f"{TASKS}/{array}.998/explain")[1]
    assert (why["id"], why["status"]) == (f"{array}.998", "queued")
    assert "of 1000 members" in why["summary"]  # One or more of them run.
    assert agent.call("DELETE", f"{TASKS}/{array}.999")[0] == 200
    stats = agent.call("GET", "/api/v1/stats")[1]["tasks"]
    assert sum(stats.values()) == sum(before.values()) + 1000

    assert agent.call("DELETE", f"{ARRAYS}/{array}")[0] == 200

    body = agent.call("GET", f"{ARRAYS}/{array}")[1]
    slots = body["array"]["running"]
    assert body["status"] == "running"
    assert counts(body) == {"running": slots, "cancelled": 1000 - slots}
    assert (
        agent.call("DELETE", f"{ARRAYS}/{array}")[0] == 200
    )  # The same request again.
    assert agent.call("DELETE", f"{ARRAYS}/{array}?force=true")[0] == 200
    body = ended(agent, array)
    assert body["status"] == "cancelled"
    assert counts(body) == {"cancelled": 1000}
    assert agent.call("DELETE", f"{ARRAYS}/{array}")[0] == 200


@pytest.mark.parametrize(
    ("array", "field", "hint"),
    [
        ({"range": "9-1"}, "range", "9-1 is reversed"),
        ({"range": "1-1000000000"}, "range", "has 1000000000 members"),
        ({"range": "999999999-1000000000"}, "range", "1000000000 is too large"),
        ({"range": "1-9:0"}, "range", "the step is 0"),
        ({"range": "one-two"}, "range", "is not a range"),
        ({"items": []}, "items", "there are 0 items"),
        ({"items": ["x", "y" * (1 << 20)]}, "items[1]", "the item has 1048576 bytes"),
        ({"items": ["x" * 65_000] * 80}, "items", "the items take 5200480 bytes"),
        ({"items": ["a\0b"]}, "items[0]", "NUL"),
        ({"items": ["a"], "range": "1-2"}, None, "exactly one of `range` and `items`"),
        ({}, None, "exactly one of `range` and `items`"),
        ({"range": "1-2", "max_fails": -1}, "max_fails", "0 to 10000000"),
        ({"range": "1-2", "most": 1}, "most", "unknown field"),
    ],
)
def test_an_invalid_array_is_refused(
    agent: Agent, array: object, field: str | None, hint: str
) -> None:
    """The answer names the field; nothing of the request is accepted."""
    before = agent.call("GET", TASKS)[1]["total"]
    batch = [{"command": "true"}, {"command": "echo {}", "array": array}]

    status, body = agent.call("POST", TASKS, batch)

    assert status == 400
    assert body["field"] == ("$[1].array" if field is None else f"$[1].array.{field}")
    assert hint in body["hint"]
    assert agent.call("GET", TASKS)[1]["total"] == before


def test_the_id_of_an_array_is_no_name_of_a_member(agent: Agent) -> None:
    """The log would take it for a member, and keep nothing; a task may have it."""
    body = {"command": "true", "id": "release-v1.2"}

    refused = agent.call("POST", TASKS, {**body, "array": {"range": "0-3"}})
    single = agent.call("POST", TASKS, body)

    assert (refused[0], refused[1]["field"]) == (400, "$.id")
    assert "would be a member of an array" in refused[1]["hint"]
    assert single[0] == 201
    assert finished(agent, "release-v1.2")["status"] == "completed"


def test_the_command_of_each_member_has_the_limit_of_a_task(agent: Agent) -> None:
    """A short command and a long item can make a very long one."""
    array = {"items": ["short", "x" * 30_000]}

    status, body = agent.call("POST", TASKS, {"command": "{} {} {}", "array": array})

    assert (status, body["field"]) == (400, "$.command")
    assert "for the longest member the command has 90002 bytes" in body["hint"]


def test_tasks_and_arrays_may_be_each_other_s_parents(
    agent: Agent, tmp_path: Path
) -> None:
    """A parent array must end completely; a member is refused, it may never start."""
    first = submit(agent, f"while ! [ -e {tmp_path}/go ]; do sleep 0.05; done")
    array = submit(agent, "echo {}", array={"range": "0-3"}, after=[first])
    last = submit(agent, "echo done", after=[array])

    why = agent.call("GET", f"{TASKS}/{array}.2/explain")[1]
    status, body = agent.call(
        "POST", TASKS, {"command": "true", "after": [f"{array}.2"]}
    )

    assert (why["status"], why["summary"]) == ("queued", f"it waits for {first}")
    assert (status, body["field"]) == (400, "$.after[0]")
    assert "is a member of an array" in body["hint"]
    (tmp_path / "go").touch()
    assert counts(ended(agent, array)) == {"completed": 4}
    assert agent.call("GET", f"{TASKS}/{last}?wait=30")[1]["status"] == "completed"
    failed = submit(agent, "false")
    array = submit(agent, "echo {}", array={"range": "0-3"}, after=[failed])
    assert counts(ended(agent, array)) == {"cancelled": 4}


def test_members_have_the_requirements_of_their_array(agent: Agent) -> None:
    """No node has the label, so all wait, and each has the reason."""
    array = submit(
        agent,
        "echo {}",
        array={"range": "0-999999"},
        requires={"labels": {"room": "none"}},
    )

    whole = agent.call("GET", f"{TASKS}/{array}/explain")[1]
    member = agent.call("GET", f"{TASKS}/{array}.7/explain")[1]

    assert whole["status"] == member["status"] == "queued"
    assert "room" in whole["summary"]
    assert member["summary"] == whole["summary"]
    assert agent.call("DELETE", f"{ARRAYS}/{array}")[0] == 200
    assert counts(ended(agent, array)) == {"cancelled": 1_000_000}


def test_each_member_has_its_own_files(agent: Agent) -> None:
    """A path may contain the item, as long as it stays in its folder."""
    array = submit(
        agent,
        "mkdir -p frames && echo {} > frames/$OCTASKLY_ITEM.txt",
        outputs=["frames/{}.txt"],
        array={"items": ["a b", "..c"]},
    )
    assert counts(ended(agent, array)) == {"completed": 2}
    task = agent.call("GET", f"{TASKS}/{array}.0")[1]
    assert task["outputs"] == [{"path": "frames/a b.txt", "bytes": 4, "files": None}]

    for item in ("../b", "a/../../b", "x" * 252):
        members = {"items": ["fine", item]}
        body = {"command": "true", "inputs": ["frames/{}.txt"], "array": members}
        status, answer = agent.call("POST", TASKS, body)
        assert (status, answer["field"]) == (400, "$.array.items[1]")
        path = f"frames/{item}.txt"[:80]
        assert f"'frames/{{}}.txt' becomes {path!r}" in answer["hint"]


def test_an_array_continues_after_a_restart(tmp_path: Path) -> None:
    """Ended members do not run again, and waiting members come from disk."""
    ran, gate = tmp_path / "ran", tmp_path / "gate"
    ran.mkdir()
    agent = start(tmp_path, "ash")
    try:
        until_nodes(agent, 1)
        command = (
            f"echo >> {ran}/{{}}; test {{}} -lt 50 || test -e {gate} || sleep 1000"
        )
        array = submit(agent, command, array={"range": "0-199"})
        # On a busy machine a member may be given back, and wait behind later ones.
        until(lambda: ended_so_far(agent, array) >= 40, "the first have ended")
        answers = [agent.call("GET", f"{TASKS}/{array}.{n}") for n in range(50)]
        done = [n for n, (_, of) in enumerate(answers) if of["status"] == "completed"]
        agent.process.kill()
        agent.process.wait()
        gate.touch()
        agent = start(tmp_path, "ash")
        until_nodes(agent, 1)
        body = ended(agent, array)
    finally:
        agent.stop()

    assert counts(body) == {"completed": 200}
    assert {path.name for path in ran.iterdir()} == {str(n) for n in range(200)}
    assert len(done) >= 40
    assert all((ran / str(n)).read_text() == "\n" for n in done)


def test_an_array_survives_its_dispatcher(tmp_path: Path) -> None:
    """The next one continues with the unfinished members, and runs no other.

    A reader of their output gets each once, in its position.
    """
    ran = tmp_path / "ran"
    ran.mkdir()
    with running(tmp_path, "ash", "elm", "oak", extra=("--slots", "1")) as agents:
        until_nodes(agents[0], 3)
        until(lambda: replicas(agents[0]) == 3, "two standbys are in sync")
        nodes = agents[0].call("GET", "/api/v1/nodes")[1]["nodes"]
        names = {node["role"]: node["name"] for node in nodes}
        head = next(a for a in agents if a.state.name == names["dispatcher"])
        witness = next(a for a in agents if a is not head)
        command = f"echo >> {ran}/{{}}; echo {{}}"
        items = "".join(f"{number}\n" for number in range(MEMBERS))
        (tmp_path / "items").write_text(items)
        reader = mapping(witness, command, tmp_path / "items")
        array = until(lambda: newest(witness), "it is handed in")
        until(lambda: ended_so_far(witness, array) >= 100, "some have ended")
        done = ended_so_far(witness, array)
        # Its answer waits until a standby has these ends, too.
        safe = {"command": "true", "durability": "strict"}
        assert head.call("POST", TASKS, safe)[0] == 201
        head.process.kill()
        head.process.wait()

        body = ended(witness, array)
        printed, _ = reader.communicate(timeout=WAIT_S_MAX)

    assert counts(body) == {"completed": MEMBERS}
    assert (reader.returncode, printed.decode()) == (0, items)
    assert {path.name for path in ran.iterdir()} == {str(n) for n in range(MEMBERS)}
    twice = [path for path in ran.iterdir() if path.read_text() != "\n"]
    assert len(twice) <= MEMBERS - done


def mapping(agent: Agent, command: str, items: Path) -> subprocess.Popen[bytes]:
    """Start `octaskly map -k` with the items of a file."""
    program = [sys.executable, "-m", "octaskly", "--state-dir", str(agent.state)]
    with items.open() as stdin:
        return subprocess.Popen(
            [*program, "map", "-k", command], stdin=stdin, stdout=subprocess.PIPE
        )


def newest(agent: Agent) -> str | None:
    status, body = agent.call("GET", TASKS)
    return str(body["tasks"][-1]["id"]) if status == 200 and body["tasks"] else None


def shown(agent: Agent, array: str) -> dict[str, int]:
    """Return the current number of members in each state."""
    return counts(agent.call("GET", f"{ARRAYS}/{array}")[1])


def ended_so_far(agent: Agent, array: str) -> int:
    status, body = agent.call("GET", f"{ARRAYS}/{array}")
    return int(body["array"]["completed"]) if status == 200 else 0


def gated(gates: Path) -> str:
    """Return a command that runs until a file with the name of the task exists."""
    return f'until [ -e "{gates}/$0$OCTASKLY_INDEX" ]; do sleep 0.05; done'


def test_a_single_task_gets_the_next_free_slot_of_an_array(tmp_path: Path) -> None:
    """`explain` says so, and a higher priority puts the array first again."""
    gates = tmp_path / "gates"
    gates.mkdir()
    with running(tmp_path, "solo", extra=("--slots", "2")) as (agent,):
        until_nodes(agent, 1)
        wait = f"sh -c {quote(gated(gates))}"
        array = submit(agent, f"{wait} member", array={"range": "0-4999"})

        def count_running() -> int:
            shown = agent.call("GET", f"{TASKS}/{array}")[1]
            return int(shown["array"]["running"])

        def state_of(task: str) -> str:
            return str(agent.call("GET", f"{TASKS}/{task}")[1]["status"])

        until(lambda: count_running() == 2, "two members run")
        single = submit(agent, f"{wait} single")
        _, why = agent.call("GET", f"{TASKS}/{single}/explain")
        assert why["summary"].endswith("; it is next in the queue")
        _, why = agent.call("GET", f"{TASKS}/{array}/explain")
        assert why["summary"].endswith("; it takes turns with 1 task")

        (gates / "member0").touch()
        until(lambda: state_of(single) == "running", "the single task runs")
        assert (count_running(), state_of(f"{array}.2")) == (1, "queued")

        later = submit(agent, f"{wait} later")
        path = f"{TASKS}/{array}/reprioritize"
        assert agent.call("POST", path, {"priority": 1})[0] == 200
        _, why = agent.call("GET", f"{TASKS}/{later}/explain")
        assert why["summary"].endswith(f"; array {array} comes first")
        (gates / "single").touch()
        until(lambda: state_of(f"{array}.2") == "running", "the array goes first")
        assert state_of(later) == "queued"
        status, _ = agent.call("DELETE", f"{TASKS}/{array}?force=true")
        assert status == 200
        (gates / "later").touch()
        assert finished(agent, later)["exit_code"] == 0


def test_a_task_that_no_message_holds_is_refused(agent: Agent) -> None:
    """Each part is within its limit; no standby would ever get it."""
    body = {
        "command": "true",
        "array": {"items": ["y" * 65_000] * 60},
        "stdin": "s" * (1 << 20),
        "env": {f"V{number}": "e" * 100_000 for number in range(10)},
    }

    status, answer = agent.call("POST", TASKS, body)

    assert (status, answer["field"]) == (400, "$")
    assert "bytes in all; at most 5242880 are allowed" in answer["hint"]
