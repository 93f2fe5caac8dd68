"""Explanations of waiting tasks, for each node, in true words."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import Answer
from octaskly.core.events import ReprioritizeRequested
from octaskly.core.log.merge import DEPENDENCY_FAILED_PREFIX, TaskRecord
from octaskly.core.model.arrays import ArrayProgress, split_member_id
from octaskly.core.model.ids import Moment, task_name
from octaskly.core.model.nodes import NodeInfo, NodeState, Pressure, RosterEntry
from octaskly.core.model.task_options import (
    After,
    ArraySpec,
    Requirements,
    Retry,
    TaskOptions,
)
from octaskly.core.model.tasks import (
    Attempt,
    AttemptState,
    EndReason,
    OutputFile,
    TaskSpec,
    TaskState,
)
from octaskly.core.replies import QueuedAhead, TaskExplanation, Unplaceable
from octaskly.core.scheduling.matching import RESERVE_AFTER_S
from tests.support.builders import (
    attempt,
    draft,
    moment,
    node_id,
    node_info,
    outcome,
    released,
    spec,
)
from tests.support.dispatcher import LATE, submission
from tests.support.dispatcher_with_workers import (
    DispatcherWithWorkers,
    array_draft,
    draft_requiring,
    roster_line,
)

A, B = node_info("a", 2), node_info("b", 2)
SSD = Requirements(labels=(("disk", "ssd"),))


def asking(requires: Requirements | None = None) -> TaskSpec:
    """Return a task that the store has, but that is not in hand."""
    return replace(spec("t", ord=999), options=TaskOptions(requires=requires))


def explained(
    mesh: DispatcherWithWorkers,
    what: TaskSpec | TaskRecord | str,
    *members: RosterEntry,
    at: float = 0.0,
) -> TaskExplanation:
    """Return the explanation of a task, or of the one with this command."""
    if isinstance(what, str):
        tasks = mesh.dispatch._queue.tasks._tasks.values()
        what = next(task.spec for task in tasks if task.spec.command == what)
    record = TaskRecord(id=what.id, spec=what) if isinstance(what, TaskSpec) else what
    names = {line.id: line.name for line in members}
    return mesh.dispatch.explainer.explain_task(record, members, moment(at), names)


def reasons(explanation: TaskExplanation) -> list[tuple[str, str]]:
    """Return all reasons with their codes."""
    return [
        (why.code, why.text)
        for verdict in explanation.rejections
        for why in verdict.reasons
    ]


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        (Requirements(cpus=4), ("cpus", "needs 4 cpus, has 2")),
        (Requirements(memory_mb=9), ("memory", "needs 9 MB of memory, has 0")),
        (Requirements(gpus=1), ("gpus", "needs 1 GPU, has no GPU")),
        (SSD, ("label", "lacks label disk=ssd")),
        (Requirements(node="ana"), ("node", "is not ana")),
        (Requirements(os="darwin"), ("os", "runs linux, not darwin")),
        (Requirements(arch="arm64"), ("arch", "is x86_64, not arm64")),
        (
            Requirements(python="3.9"),
            ("python", "has no Python 3.9 for calls (has none)"),
        ),
    ],
)
def test_a_permanent_lack_of_a_node_is_named(
    requires: Requirements, reason: tuple[str, str]
) -> None:
    """Each has a code that programs can read."""
    assert reasons(
        explained(DispatcherWithWorkers(B), asking(requires), roster_line(B))
    ) == [reason]


def test_a_label_with_another_value_is_shown() -> None:
    """This is the most likely mistake."""
    hdd = node_info("b", 2, labels=(("disk", "hdd"),))

    explanation = explained(DispatcherWithWorkers(hdd), asking(SSD), roster_line(hdd))

    assert reasons(explanation) == [("label", "lacks label disk=ssd (has disk=hdd)")]
    assert explanation.summary == "no node has label disk=ssd"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (roster_line(B, NodeState.LOST), ("lost", "is lost")),
        (roster_line(B, NodeState.DRAINING), ("draining", "is draining")),
        (roster_line(B, NodeState.PAUSED), ("paused", "is paused")),
        (roster_line(B, strain=Pressure.DISK), ("disk_short", "is short of disk")),
        (
            roster_line(B, strain=Pressure.MEMORY),
            ("memory_short", "is short of memory"),
        ),
        (
            roster_line(B, strain=Pressure.LAUNCHERS),
            ("launchers_short", "is short of launchers"),
        ),
    ],
)
def test_a_node_that_accepts_no_work_says_why(
    line: RosterEntry, reason: tuple[str, str]
) -> None:
    """Whatever the task requests."""
    assert reasons(explained(DispatcherWithWorkers(B), asking(), line)) == [reason]


def test_all_obstacles_are_reported() -> None:
    """A person could otherwise resume a node in vain."""
    explanation = explained(
        DispatcherWithWorkers(B),
        asking(Requirements(cpus=4)),
        roster_line(B, NodeState.PAUSED),
    )

    assert [code for code, _ in reasons(explanation)] == ["paused", "cpus"]


def test_the_only_suitable_node_is_named_with_its_obstacle() -> None:
    """A task for one node needs no explanation of all the others."""
    line = (roster_line(B, NodeState.DRAINING), roster_line(node_info("c", 2)))

    explanation = explained(
        DispatcherWithWorkers(B), asking(Requirements(node="b")), *line
    )

    assert explanation.summary == "b is draining, and no other node could run it"


@pytest.mark.parametrize(
    ("requires", "summary"),
    [
        (Requirements(cpus=999), "no node has 999 CPUs; largest is 8 (ana-desk)"),
        (Requirements(memory_mb=9), "no node has 9 MB of memory; largest is 4 MB (b)"),
        (Requirements(gpus=2), "no node has 2 GPUs; largest is 1 (b)"),
        (Requirements(node="c"), "no node is called c"),
        (Requirements(os="darwin"), "no node runs darwin"),
        (Requirements(arch="arm64"), "no node is arm64"),
        (Requirements(python="3.9"), "no node has Python 3.9 for calls"),
        (Requirements(cpus=8, gpus=1), "no node meets all requirements"),
    ],
)
def test_a_lack_on_all_nodes_is_one_line(requires: Requirements, summary: str) -> None:
    """It includes the nearest value."""
    ana = node_info("ana-desk", 8)
    own = node_info("b", 2, memory_mb=4, gpus=("0",))
    mesh = DispatcherWithWorkers(ana, own)

    explanation = explained(mesh, asking(requires), roster_line(ana), roster_line(own))

    assert explanation.summary == summary


def test_lost_nodes_do_not_count_as_suitable() -> None:
    """Nothing runs there, and they may never come back."""
    big = node_info("big", 64)

    explanation = explained(
        DispatcherWithWorkers(B),
        asking(Requirements(cpus=32)),
        roster_line(B),
        roster_line(big, NodeState.LOST),
    )

    assert explanation.summary == "no node has 32 CPUs; largest is 2 (b)"


def test_a_lost_node_that_was_requested_by_name_is_not_unknown() -> None:
    """It may come back, unlike a name that never existed."""
    gone = node_info("gone", 2)

    explanation = explained(
        DispatcherWithWorkers(B),
        asking(Requirements(node="gone")),
        roster_line(B),
        roster_line(gone, NodeState.LOST),
    )

    assert explanation.summary == "gone is lost"


def test_slots_in_use_are_reported() -> None:
    """The usual reason."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(draft("one"), draft("two"), draft("three"))

    explanation = explained(mesh, "three", roster_line(B))

    assert reasons(explanation) == [("slots", "all 2 slots are busy")]
    assert explanation.summary == (
        "b, which could run it, has no free capacity; it is next in the queue"
    )


def test_granted_resources_are_reported() -> None:
    """They exist, but are not free."""
    big = node_info("b", 4, memory_mb=100, gpus=("0",))
    mesh = DispatcherWithWorkers(big)
    mesh.ask(draft_requiring("first", Requirements(cpus=3, memory_mb=80, gpus=1)))
    mesh.ask(draft_requiring("next", Requirements(cpus=2, memory_mb=50, gpus=1)))

    assert reasons(explained(mesh, "next", roster_line(big))) == [
        ("slots", "needs 2 free slots, has 1"),
        ("memory_granted", "needs 50 MB of memory, has 20 free"),
        ("gpus_granted", "needs 1 GPU, has 0 free"),
    ]


@pytest.mark.parametrize("priority", [None, 5])
def test_a_reserved_worker_is_reported_to_both_tasks(priority: int | None) -> None:
    """To the task with the reservation, and to the one that was passed over."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(draft("t0"), draft("t1"))
    mesh.ask(draft_requiring("pair", Requirements(cpus=2)))
    tasks = mesh.dispatch._queue.tasks._tasks.values()
    pair = next(task for task in tasks if task.spec.command == "pair")
    name = pair.spec.id
    if priority is not None:
        change = ReprioritizeRequested(9, pair.record, priority)
        mesh.dispatch.on_reprioritize_requested(change, moment())
        mesh.commit()
    late = RESERVE_AFTER_S + 1
    mesh.ask(draft("later"), at=late)
    mesh.end("t0", at=late)

    later = explained(mesh, "later", roster_line(B), at=late)

    assert reasons(later) == [("reserved", f"is reserved for {name}")]
    assert explained(mesh, "pair", roster_line(B), at=late).summary == (
        "b is reserved for it until enough of its capacity is free"
    )


def test_a_task_far_back_in_the_queue_waits_for_its_turn() -> None:
    """Tasks that only the store has are at least counted."""
    mesh = DispatcherWithWorkers(node_info("b", 2))

    explanation = explained(mesh, asking(), roster_line(B))

    assert explanation.state is TaskState.QUEUED
    assert explanation.summary == "it is next in the queue"


def test_what_comes_before_a_task_is_named() -> None:
    """First by priority and age, then those that take turns with it."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(array_draft("long", 9), by="ann")
    mesh.ask(array_draft("short", 9), by="bo")
    mesh.ask(draft("one"), draft("two"), draft("three"), by="cy")
    mesh.ask(replace(draft("urgent"), priority=1), by="cy")
    mesh.ask(replace(draft("last"), priority=-1), by="cy")
    ann, bo = (
        task_name(each.spec.id)
        for each in mesh.dispatch._queue.tasks._tasks.values()
        if each.spec.array is not None
    )
    prefix = "b, which could run it, has no free capacity; "

    summaries = {
        name: explained(mesh, name, roster_line(B)).summary.removeprefix(prefix)
        for name in ("urgent", "one", "three", "last")
    }

    assert summaries == {
        "urgent": "it is next in the queue",
        "one": (
            "1 task comes first, and it takes turns with"
            f" array {bo} of bo and array {ann} of ann"
        ),
        "three": (
            "3 tasks come first, and it takes turns with"
            f" array {bo} of bo and array {ann} of ann"
        ),
        "last": f"4 tasks, array {bo} of bo and array {ann} of ann come first",
    }
    (first, *_) = explained(mesh, "three", roster_line(B)).ahead
    assert first == QueuedAhead("cy", None, 3, is_exact=True, takes_turns=False)


def test_a_missing_input_is_named() -> None:
    """For the node that lacked it."""
    mesh = DispatcherWithWorkers(B, node_info("c", 2))
    mesh.ask(draft("one"))
    where = mesh.where("one")
    mesh.ask(*(draft(f"busy{n}") for n in range(3)))
    mesh.end("one", how=released(EndReason.INPUTS, "input data.csv"))

    explanation = explained(mesh, "one", roster_line(node_info(where, 2)))

    assert reasons(explanation) == [("input", "lacks input data.csv")]


def test_a_task_for_which_no_node_has_room_waits_and_says_so() -> None:
    """It does not fail, because there is room again once others have ended."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(draft("one"))
    mesh.end("one", how=released(EndReason.ROOM, "space for its files on b (quota)"))

    explanation = explained(mesh, "one", roster_line(B))

    assert explanation.state is TaskState.QUEUED
    assert explanation.summary == (
        "no node that could run it has space for its files on b (quota); the next"
        " attempt starts in 10 s"
    )
    assert [code for code, _ in reasons(explanation)] == ["resting"]


def test_a_task_waits_for_room_if_its_other_node_is_lost() -> None:
    """It does not fail: the node without room is asked again."""
    mesh = DispatcherWithWorkers(B, node_info("c", 2))
    mesh.dispatch.on_time(moment(LATE))
    mesh.ask(draft("one"))
    mesh.ask(*(draft(f"busy{n}") for n in range(3)))
    full = node_id(mesh.where("one"))
    mesh.end("one", how=released(EndReason.ROOM, "space for its files"))
    (other,) = {B.id, node_id("c")} - {full}

    mesh.dispatch.on_worker_down(other, moment(LATE))

    explanation = explained(mesh, "one", roster_line(node_info(full, 2)))
    assert explanation.state is TaskState.QUEUED
    assert "has space for its files; the next attempt" in explanation.summary


def test_a_task_goes_first_to_nodes_that_may_have_room() -> None:
    """At once, and the full one is asked again only after them."""
    mesh = DispatcherWithWorkers(B, node_info("c", 2))
    mesh.ask(draft("one"))
    first = mesh.where("one")
    mesh.end("one", how=released(EndReason.ROOM, "space for its files"))

    second = mesh.where("one")

    assert {first, second} == {B.id, node_info("c", 2).id}


def test_a_task_in_backoff_shows_its_next_start() -> None:
    """It failed, and is retried."""
    mesh = DispatcherWithWorkers(B)
    options = TaskOptions(retry=Retry(retries=2))
    mesh.ask(replace(draft("once"), options=options))
    mesh.end("once", how=outcome(AttemptState.FAILED))

    explanation = explained(mesh, "once", roster_line(B))

    assert explanation.summary.startswith("its last attempt failed")
    assert [code for code, _ in reasons(explanation)] == ["resting"]


@pytest.mark.parametrize(
    ("parents", "text"),
    [
        (["task-001-00000001"], "task-001-00000001"),
        (["task-001-00000001", "x~0123"], "at least one of task-001-00000001 and x"),
        (list("abcd"), "at least one of a, b, c and 1 more"),
        (["p"] * 1000, "at least one of p, p, p and 997 more"),
    ],
)
def test_a_dependent_task_names_its_parents(parents: list[str], text: str) -> None:
    """As clients name them, up to a limit; some of them may have ended."""
    options = TaskOptions(after=After(tasks=tuple(parents)))

    explanation = explained(
        DispatcherWithWorkers(B), replace(spec(), options=options), roster_line(B)
    )

    assert explanation.summary == f"it waits for {text}"
    assert reasons(explanation) == [
        ("parents", f"does not get it yet, because it waits for {text}")
    ]


def test_all_obstacles_of_a_dependent_task_are_reported() -> None:
    """A person could otherwise wait for its parents in vain."""
    options = TaskOptions(after=After(tasks=("p",)), requires=SSD)
    task = replace(spec(), options=options)

    explanation = explained(
        DispatcherWithWorkers(B), task, roster_line(B, NodeState.PAUSED)
    )

    assert explanation.summary == "it waits for p, and no node has label disk=ssd"
    assert [code for code, _ in reasons(explanation)] == ["paused", "label", "parents"]


def test_a_running_task_shows_only_its_node() -> None:
    """So does one that waits on its worker."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(draft("one"))

    assert explained(mesh, "one", roster_line(B)) == TaskExplanation(
        TaskState.RUNNING, "it runs on b"
    )


SSD_B = node_info("b", 2, labels=(("disk", "ssd"),))
SSD_C = node_info("c", 2, labels=(("disk", "ssd"),))


@pytest.mark.parametrize(
    ("requires", "nodes", "text"),
    [
        (None, [B], "b is the only node"),
        (
            None,
            [B, SSD_C],
            "of 2 nodes, b had the lowest load per slot when the task was assigned",
        ),
        (SSD, [SSD_B, A], "no other node has what it requires: label disk=ssd"),
        (
            SSD,
            [SSD_B, SSD_C, A],
            (
                "of 2 nodes that have label disk=ssd,"
                " b had the lowest load per slot when the task was assigned"
            ),
        ),
    ],
)
def test_a_placement_is_explained_by_the_alternatives(
    requires: Requirements | None, nodes: list[NodeInfo], text: str
) -> None:
    """After the end, too; a waiting task was placed nowhere."""
    own = asking(requires)
    ended = Attempt(
        id=attempt(),
        node=B.id,
        state=AttemptState.OK,
        outcome=outcome(),
        decided_term=1,
    )
    record = TaskRecord(id=own.id, spec=own, attempts=(ended,))
    waiting = TaskRecord(id=own.id, spec=own)
    members = [roster_line(each) for each in nodes]

    explaining = DispatcherWithWorkers(*nodes).dispatch.explainer

    names = {line.id: line.name for line in members}
    assert explaining.explain_placement(record, members, Moment(0.0, 0), names) == text
    assert explaining.explain_placement(waiting, members, Moment(0.0, 0), names) == ""


def test_a_task_on_a_paused_node_is_reported_as_frozen() -> None:
    """It counts as running, but makes no progress."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(draft("one"))
    paused = replace(roster_line(B), state=NodeState.PAUSED)

    assert explained(mesh, "one", paused).summary == "it runs on b, which is paused"


def test_an_array_explains_its_waiting_members() -> None:
    """Whether some run or not; all members request the same."""
    array = TaskOptions(array=ArraySpec(count=9), requires=Requirements(cpus=4))
    own = replace(spec(), options=array)
    some = TaskRecord(id=own.id, spec=own, progress=ArrayProgress(6, 2, 1))

    explanation = explained(DispatcherWithWorkers(B), some, roster_line(B))

    assert explanation.state is TaskState.RUNNING
    assert (
        explanation.summary
        == "6 of 9 members are queued: no node has 4 CPUs; largest is 2 (b)"
    )


def test_an_array_whose_members_all_back_off_shows_the_next_start() -> None:
    """None of its members is next in the queue, although a node is idle."""
    mesh = DispatcherWithWorkers(B)
    array = array_draft("bad", 2)
    assert array.options is not None
    retried = replace(array.options, retry=Retry(retries=2))
    mesh.ask(replace(array, options=retried))
    for number in range(2):
        mesh.end(f"bad {number}", how=outcome(AttemptState.FAILED))
    task, _ = split_member_id(next(iter(mesh.dispatch._queue.tasks._tasks))) or ("", 0)
    own = replace(spec(task), options=retried)
    record = TaskRecord(own.id, own, progress=ArrayProgress(queued=2))

    explanation = explained(mesh, record, roster_line(B))

    assert explanation.summary.startswith(
        "2 of 2 members are queued: its last attempt failed; the next one starts in"
    )
    assert [code for code, _ in reasons(explanation)] == ["resting"]


def test_an_array_that_fills_the_mesh_has_no_obstacle() -> None:
    """It runs as well as it can; that no node has room would sound like a fault."""
    mesh = DispatcherWithWorkers(B)
    mesh.ask(draft("one"), draft("two"))
    own = replace(spec(), options=TaskOptions(array=ArraySpec(count=9)))
    some = TaskRecord(id=own.id, spec=own, progress=ArrayProgress(6, 2, 1))

    assert explained(mesh, some, roster_line(B)) == TaskExplanation(
        TaskState.RUNNING,
        "2 of 9 members are running, 6 wait for a free slot",
    )


def test_a_node_that_left_is_named() -> None:
    """The roster no longer contains it."""
    ended = Attempt(
        id=attempt(),
        node=B.id,
        state=AttemptState.OK,
        outcome=outcome(),
        decided_term=1,
    )
    record = TaskRecord(id=spec().id, spec=spec(), attempts=(ended,))
    explaining, names = DispatcherWithWorkers(A).dispatch.explainer, {B.id: "ben"}

    explanation = explaining.explain_task(record, [roster_line(A)], moment(), names)

    assert explanation.summary == "it completed on ben"
    placement = explaining.explain_placement(
        record, [roster_line(A)], Moment(0.0, 0), names
    )
    assert (
        placement
        == "of 2 nodes, ben had the lowest load per slot when the task was assigned"
    )


def test_an_ended_task_is_explained_from_the_store() -> None:
    """It no longer waits."""
    record = TaskRecord(id=spec().id, spec=spec(), cancelled_by="ana")

    assert explained(
        DispatcherWithWorkers(B), record, roster_line(B)
    ) == TaskExplanation(TaskState.CANCELLED, "it was cancelled")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (AttemptState.CANCELLED, "it was cancelled on b"),
        (AttemptState.RUNNING, "it was cancelled on b"),
        (AttemptState.RELEASED, "it was cancelled"),
    ],
)
def test_a_task_cancelled_in_backoff_names_no_node(
    state: AttemptState, text: str
) -> None:
    """The node of its last attempt had no part in it."""
    run = Attempt(id=attempt(), node=B.id, state=state)
    record = TaskRecord(id=spec().id, spec=spec(), attempts=(run,), cancelled_by="ana")

    assert explained(DispatcherWithWorkers(B), record, roster_line(B)).summary == text


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (ArrayProgress(0, 0, 4, 2), "it failed: 2 of 6 members did"),
        (
            ArrayProgress(0, 0, 0, 3, 47),
            "it failed: 3 of 50 members did, 47 were cancelled",
        ),
        (
            ArrayProgress(0, 0, 0, 1, 1),
            "it failed: 1 of 2 members did, 1 was cancelled",
        ),
        (ArrayProgress(0, 0, 9, 0, 1), "it was cancelled: 1 of 10 members was"),
        (ArrayProgress(0, 0, 0, 0, 3), "it was cancelled"),
        (ArrayProgress(0, 0, 3), "it completed"),
    ],
)
def test_an_ended_array_shows_how_many_members_did_not_complete(
    progress: ArrayProgress, text: str
) -> None:
    """Also where the rest was cancelled."""
    array = ArraySpec(count=progress.total, max_fails=2)
    own = replace(spec(), options=TaskOptions(array=array))
    record = TaskRecord(id=own.id, spec=own, progress=progress)

    assert explained(DispatcherWithWorkers(B), record, roster_line(B)).summary == text


def test_a_task_that_can_never_run_is_explained() -> None:
    """A rule cancelled it, not a person."""
    record = TaskRecord(
        id=spec().id, spec=spec(), cancelled_by=f"{DEPENDENCY_FAILED_PREFIX}p"
    )

    explanation = explained(DispatcherWithWorkers(B), record, roster_line(B))

    assert explanation.summary == "it was cancelled, because p did not end as required"


@pytest.mark.parametrize(
    ("reason", "code", "signal", "detail", "text"),
    [
        (EndReason.EXIT, 3, None, "", "exit code 3"),
        (EndReason.EXIT, 127, None, "", "exit code 127 (command not found)"),
        (EndReason.SIGNAL, 137, 9, "", "signal 9"),
        (EndReason.TIMEOUT, 124, None, "", "timeout"),
        (
            EndReason.EXIT,
            126,
            None,
            "cwd x does not exist on b",
            "exit code 126 (cannot be executed): cwd x does not exist on b",
        ),
        (
            EndReason.EXIT,
            3,
            None,
            "output a was not kept: no space",
            "exit code 3: output a was not kept: no space",
        ),
        (EndReason.SIGNAL, 137, 9, "limit memory_mb", "signal 9: limit memory_mb"),
        (EndReason.TIMEOUT, 124, None, "not kept", "timeout: not kept"),
        (EndReason.LIMIT, 137, 9, "memory_mb: over 64", "memory_mb: over 64"),
    ],
)
def test_a_failed_task_is_explained(
    reason: EndReason, code: int, signal: int | None, detail: str, text: str
) -> None:
    """With the most informative words."""
    end = outcome(AttemptState.FAILED, reason, detail=detail)
    end = replace(end, exit_code=code, signal=signal)
    run = Attempt(id=attempt(), node=B.id, state=end.state, outcome=end, decided_term=1)
    record = TaskRecord(id=spec().id, spec=spec(), attempts=(run,))

    assert (
        explained(DispatcherWithWorkers(B), record, roster_line(B)).summary
        == f"it failed on b: {text}"
    )


@pytest.mark.parametrize(
    ("detail", "lacking", "text"),
    [
        ("output a was not kept: no space", "a", "output a was not kept: no space"),
        ("", "a", "it did not make a"),
        ("", "abcde", "it did not make a, b, c and 2 more"),
    ],
)
def test_a_completed_task_says_what_it_lacks(
    detail: str, lacking: str, text: str
) -> None:
    """Its state does not change because of a missing output."""
    outputs = (OutputFile("there", 5), *(OutputFile(path, None) for path in lacking))
    end = replace(outcome(AttemptState.OK), detail=detail, outputs=outputs)
    run = Attempt(id=attempt(), node=B.id, state=end.state, outcome=end, decided_term=1)
    record = TaskRecord(id=spec().id, spec=spec(), attempts=(run,))

    explanation = explained(DispatcherWithWorkers(B), record, roster_line(B))

    assert explanation.summary == f"it completed on b; {text}"


def test_a_task_without_its_inputs_failed_on_no_node() -> None:
    """The last node tried had no more part in it than the others."""
    end = replace(
        outcome(AttemptState.FAILED, EndReason.INPUTS),
        detail="inputs a.txt, b.txt are on no node",
    )
    run = Attempt(id=attempt(), node=B.id, state=end.state, outcome=end, decided_term=1)
    record = TaskRecord(id=spec().id, spec=spec(), attempts=(run,))

    explanation = explained(DispatcherWithWorkers(B), record, roster_line(B))

    assert explanation.summary == "it failed: inputs a.txt, b.txt are on no node"


def test_a_fail_fast_task_that_fits_no_node_is_refused() -> None:
    """Nothing of its batch is accepted; other tasks wait for a future node."""
    mesh = DispatcherWithWorkers(B)
    huge = draft_requiring("huge", Requirements(cpus=999))
    hasty = replace(huge, is_fail_fast=True)

    refused = mesh.dispatch.on_submitted(submission(draft("one"), hasty), moment())

    why = "no node has 999 CPUs; largest is 2 (b)"
    assert refused == [Answer(1, Unplaceable(1, why))]
    fits = replace(draft_requiring("fits", Requirements(cpus=2)), is_fail_fast=True)
    assert mesh.ask(huge, fits) == ["fits"]
