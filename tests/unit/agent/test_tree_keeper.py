"""Inputs of unfinished tasks are kept at the nodes that have them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from octaskly.agent.files import tree_keeper
from octaskly.agent.files.tree_keeper import ASKED_INPUTS_MAX, TreeKeeper
from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.effects import PublishMeshState
from octaskly.core.model.ids import Address, AttemptId, Moment, NodeId, TaskId
from octaskly.core.model.nodes import NodeState, Role, RosterEntry
from octaskly.core.model.task_options import BlobRef, InputBlob, InputTree
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Roster
from octaskly.errors import OutputNotFound
from octaskly.ports.files import (
    KEPT_OUTPUTS_MAX,
    AttemptOutputs,
    DiskFull,
    FileQuotaExceeded,
)
from octaskly.ports.gateway import OutputHolder, OutputLocation
from octaskly.ports.store import NeededFiles
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource
from octaskly.runner.blobs.holder_connection import Holder
from octaskly.runner.files.output_copies import OutputCopies
from octaskly.store import Store
from octaskly.system.log import Logger
from tests.support.agents import WAIT_S_MAX
from tests.support.builders import STREAM, epoch, node_id

ME, OTHER = node_id("a"), node_id("b")


class TaskInputs:
    """The store: one input on each page, for each state."""

    def __init__(self, queued: set[InputBlob], running: set[InputBlob]) -> None:
        self._inputs = {TaskState.QUEUED: queued, TaskState.RUNNING: running}
        self.outputs_of: set[str] = set()  #: tasks whose outputs queued ones need

    async def read_needed_files(
        self, state: TaskState, after: int, _limit: int
    ) -> tuple[NeededFiles, int]:
        some = sorted(self._inputs[state], key=lambda each: each.blob.sha256)
        page = some[after : after + 1]
        needed = NeededFiles(
            trees=frozenset(b for b, is_tree in page if isinstance(b, InputTree)),
            stdin_files=frozenset(b for b, is_tree in page if not is_tree),
            outputs_of=frozenset(self.outputs_of if state is TaskState.QUEUED else ()),
        )
        return needed, after + 1 if after + 1 < len(some) else 0


class Sizes:
    """The sizes of trees: which were asked for."""

    def __init__(self) -> None:
        self.trees: list[str] = []
        self.has_some = asyncio.Event()

    async def size(self, trees: Iterable[InputTree], _wait_s: float | None) -> None:
        self.trees += [tree.sha256 for tree in trees]
        self.has_some.set()


class Fetches:
    """The fetcher: what it was asked for."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(1)
        self.held_here: list[tuple[str, bool]] = []
        self.asked: list[tuple[Holder, list[str]]] = []
        self.failures: list[str] = []  #: of this node
        self.no_room: FileQuotaExceeded | None = None  #: at this node
        self.refusals: list[str] = []  #: of other nodes
        self.has_outputs = True  #: other nodes have those that they are asked for
        self.kept_outputs: list[tuple[str, list[str]]] = []  #: nodes with tasks
        self.kept_copies: list[str] = []  #: of this node

    def find_blob(self, blob: BlobRef) -> BlobSource:
        return BlobSource(blob, lambda: ())

    def hold_tree(self, source: BlobSource) -> list[str]:
        self.held_here.append((source.blob.sha256, True))
        if self.no_room is not None:
            raise self.no_room
        return self.failures

    def hold_file(self, source: BlobSource) -> list[str]:
        self.held_here.append((source.blob.sha256, False))
        return []

    def keep_copies(self, inputs: Iterable[InputBlob]) -> None:
        self.kept_copies += [each.blob.sha256 for each in inputs]

    def ask_to_hold_outputs(
        self, holder: Holder, outputs: Sequence[AttemptOutputs]
    ) -> list[int]:
        self.kept_outputs.append((holder.name, [str(each.task) for each in outputs]))
        return [*range(len(outputs))] if self.has_outputs else []

    def ask_to_hold(self, holder: Holder, inputs: Sequence[InputBlob]) -> list[str]:
        self.asked.append((holder, [each.blob.sha256 for each in inputs]))
        return self.refusals


def tree_at(node: str, digit: str, *, is_lent: bool = False) -> InputBlob:
    tree = InputTree(sha256=digit * 64, node=node, is_lent=is_lent)
    return InputBlob(tree, is_tree=True)


def view(me: NodeId = ME) -> MeshView:
    made = MeshView(me, {ME: "ana", OTHER: "ben"})
    members = tuple(
        RosterEntry(
            id=node,
            name=name,
            role=role,
            state=NodeState.READY,
            addresses=(Address("10.0.0.1", 7878),),
            lan_port=3443,
            slots=2,
        )
        for node, name, role in (
            (ME, "ana", Role.DISPATCHER),
            (OTHER, "ben", Role.STANDBY),
        )
    )
    current = epoch(term=2, name="a")
    roster = Roster(current, 1, members)
    made.on_published(PublishMeshState(current, ME, me == ME, roster))
    return made


def keeper_of(
    fetches: Fetches,
    store: TaskInputs | None = None,
    *,
    mesh: MeshView | None = None,
    sizes: Sizes | None = None,
    ended: Ended | None = None,
    warnings: Warnings | None = None,
) -> TreeKeeper:
    """Return a keeper that copies no outputs."""
    return TreeKeeper(
        cast("Store", store),
        mesh or view(),
        cast("BlobFetcher", fetches),
        cast("OutputCopies", None),
        (sizes or Sizes()).size,
        (ended or Ended()).locate,
        cast("Logger", warnings or Warnings()),
    )


async def test_each_holder_is_asked_to_keep_what_unfinished_tasks_need() -> None:
    """By node, whatever the page in which a tree was read; by name or by id."""
    mine, theirs, more = tree_at("ana", "1"), tree_at(OTHER, "2"), tree_at(OTHER, "3")
    stdin = InputBlob(BlobRef(sha256="4" * 64, node="ana"), is_tree=False)
    fetches = Fetches()
    keeper = keeper_of(fetches, TaskInputs({mine, theirs}, {theirs, more, stdin}))

    await keeper.keep_needed_files()

    assert sorted(fetches.held_here) == [
        (mine.blob.sha256, True),
        (stdin.blob.sha256, False),
    ]
    ((holder, asked),) = fetches.asked
    assert holder == Holder(OTHER, ("https://10.0.0.1:3443",))
    assert sorted(asked) == [theirs.blob.sha256, more.blob.sha256]


@pytest.mark.parametrize("me", [ME, OTHER], ids=["dispatcher", "standby"])
async def test_copies_are_kept_while_the_node_that_a_task_names_is_gone(
    me: NodeId,
) -> None:
    """Each node keeps its own, whatever the named node answers; a standby asks none."""
    tree, lent = tree_at("cy", "1"), tree_at("cy", "2", is_lent=True)
    stdin = InputBlob(BlobRef(sha256="3" * 64, node="cy"), is_tree=False)
    fetches, warnings = Fetches(), Warnings()
    fetches.refusals = ["cy: it is not in the mesh now"]
    keeper = keeper_of(
        fetches, TaskInputs({tree, lent}, {stdin}), mesh=view(me), warnings=warnings
    )

    assert await keeper.keep_needed_files() == (me == OTHER)

    assert sorted(fetches.kept_copies) == [tree.blob.sha256, stdin.blob.sha256]
    assert len(fetches.asked) == (me == ME)


async def test_a_standby_keeps_its_copies_unasked() -> None:
    """The dispatcher does not know what it has."""
    tree, fetches = tree_at("cy", "1"), Fetches()
    is_kept = asyncio.Event()
    loop = asyncio.get_running_loop()

    def keep_copies(inputs: Iterable[InputBlob]) -> None:
        assert [*inputs] == [tree]
        loop.call_soon_threadsafe(is_kept.set)

    fetches.keep_copies = keep_copies  # type: ignore[method-assign]
    keeper = keeper_of(fetches, TaskInputs({tree}, set()), mesh=view(OTHER))

    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(WAIT_S_MAX):
        await is_kept.wait()
    running.cancel()
    await asyncio.wait([running])


async def test_many_trees_are_asked_for_in_bounded_requests() -> None:
    """A body may have 1 MiB."""
    count = ASKED_INPUTS_MAX + 1
    trees = {
        InputBlob(InputTree(sha256=f"{number:064}", node=OTHER), is_tree=True)
        for number in range(count)
    }
    fetches = Fetches()
    keeper = keeper_of(fetches, TaskInputs(trees, set()))

    await keeper.keep_needed_files()

    sizes = [len(asked) for _, asked in fetches.asked]
    assert sizes == [ASKED_INPUTS_MAX, 1]
    assert len({name for _, asked in fetches.asked for name in asked}) == count


async def test_the_next_dispatcher_learns_the_sizes_of_trees_at_once() -> None:
    """Also of those that a client lends, which no node is asked to keep."""
    kept, lent = tree_at("ana", "1"), tree_at("ben", "2", is_lent=True)
    fetches, sizes = Fetches(), Sizes()
    keeper = keeper_of(fetches, TaskInputs({kept}, {lent}), sizes=sizes)

    running = asyncio.create_task(keeper.run())
    await sizes.has_some.wait()
    running.cancel()
    await asyncio.wait([running])

    assert sorted(sizes.trees) == [kept.blob.sha256, lent.blob.sha256]
    assert fetches.held_here == [(kept.blob.sha256, True)]
    assert fetches.asked == []


async def test_a_dispatcher_keeps_inputs_as_soon_as_its_epoch_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not look again and again whether it has."""
    monkeypatch.setattr(tree_keeper, "CHECK_S_MIN", 3600.0)
    kept = tree_at("ana", "1")
    fetches, sizes, mesh = Fetches(), Sizes(), view()
    keeper = keeper_of(fetches, TaskInputs({kept}, set()), mesh=mesh, sizes=sizes)
    mesh.on_epoch_start = keeper.note_epoch_start
    mesh.on_published(PublishMeshState(mesh.epoch, ME, False, mesh.roster))
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    assert fetches.held_here == []

    mesh.on_published(PublishMeshState(mesh.epoch, ME, True, mesh.roster))
    mesh.record_epoch_start(Moment(mono_s=1.0, wall_ms=1), None)
    async with asyncio.timeout(WAIT_S_MAX):
        await sizes.has_some.wait()
    running.cancel()
    await asyncio.wait([running])

    assert fetches.held_here == [(kept.blob.sha256, True)]


class Ended:
    """Ended tasks with outputs at the other node."""

    def __init__(self, *tasks: str) -> None:
        self.tasks = set(tasks)

    async def locate(self, task: str) -> list[OutputLocation]:
        if task not in self.tasks:
            raise OutputNotFound("it ended without outputs")
        holder = OutputHolder(node=OTHER, lan_urls=("https://10.0.0.1:3443",))
        attempt = AttemptId(1, STREAM, 1, 1)
        return [
            OutputLocation(task=TaskId(task), attempt=attempt, holders=(holder,)),
        ]


def keeper_of_outputs(needed: set[str], ended: Ended, fetches: Fetches) -> TreeKeeper:
    store = TaskInputs(set(), set())
    store.outputs_of = needed
    return keeper_of(fetches, store, ended=ended)


async def test_outputs_that_unfinished_tasks_get_are_kept() -> None:
    """Once their tasks have ended, and not again each time."""
    ended, fetches = Ended("cut"), Fetches()
    keeper = keeper_of_outputs({"cut", "split"}, ended, fetches)

    await keeper.keep_needed_files(are_inputs_due=False)
    ended.tasks = {"cut", "split", "other"}
    await keeper.keep_needed_files(are_inputs_due=False)

    assert fetches.kept_outputs == [(OTHER, ["cut"]), (OTHER, ["split"])]


async def test_outputs_that_no_node_has_kept_are_asked_for_again() -> None:
    """Their node may be starting again."""
    ended, fetches = Ended("cut"), Fetches()
    fetches.has_outputs = False
    keeper = keeper_of_outputs({"cut"}, ended, fetches)

    await keeper.keep_needed_files(are_inputs_due=False)
    await keeper.keep_needed_files(are_inputs_due=False)

    assert fetches.kept_outputs == [(OTHER, ["cut"])] * 2


async def test_the_outputs_of_many_tasks_are_kept_by_few_requests() -> None:
    """A request has a bounded number of them, not one."""
    tasks = [f"part{number}" for number in range(10_000)]
    fetches = Fetches()
    keeper = keeper_of_outputs(set(tasks), Ended(*tasks), fetches)

    await keeper.keep_needed_files(are_inputs_due=False)

    assert [len(some) for _, some in fetches.kept_outputs] == [KEPT_OUTPUTS_MAX] * 10
    assert sorted(t for _, some in fetches.kept_outputs for t in some) == sorted(tasks)


class Warnings:
    """A log that keeps what it warns of."""

    def __init__(self) -> None:
        self.texts: list[object] = []

    def warning(self, _event: str, **fields: object) -> None:
        self.texts.append(fields["failures"])


@pytest.mark.parametrize(
    ("origin", "nodes"), [("cy", [OTHER]), ("ben", None)], ids=["worker", "standby"]
)
async def test_a_dispatcher_without_room_counts_on_its_standbys(
    origin: str, nodes: list[str] | None
) -> None:
    """Two nodes must have the files: the one that they were sent to, and another."""
    fetches, warnings = Fetches(), Warnings()
    fetches.failures = ["no room"]
    keeper = keeper_of(fetches, warnings=warnings)

    if nodes is None:
        with pytest.raises(OutputNotFound, match="no room"):
            await keeper.replicate_input(tree_at(origin, "1"))
    else:
        assert await keeper.replicate_input(tree_at(origin, "1")) == nodes
        assert warnings.texts == [["no room"]]


async def test_standbys_are_asked_in_threads_that_do_not_answer_them() -> None:
    """They fetch from the dispatcher what it asks them to hold."""
    fetches, is_asked, is_answered = Fetches(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))

    def ask_to_hold(*_: object) -> list[str]:
        loop.call_soon_threadsafe(is_asked.set)
        return [] if is_answered.wait(5) else ["the dispatcher did not answer"]

    async def answer() -> None:
        await is_asked.wait()
        await asyncio.to_thread(is_answered.set)

    fetches.ask_to_hold = ask_to_hold  # type: ignore[assignment, method-assign]
    keeper = keeper_of(fetches)

    nodes, _ = await asyncio.gather(
        keeper.replicate_input(tree_at("ana", "1")),
        answer(),
    )

    assert nodes == [ME, OTHER]


async def test_an_input_that_has_no_room_anywhere_is_refused_for_that() -> None:
    """Each reason is named; a file that is not found would be another error."""
    fetches = Fetches()
    fetches.no_room = DiskFull("the disk is full", hint="free some")
    fetches.refusals = ["ben: no room either"]
    keeper = keeper_of(fetches)

    with pytest.raises(DiskFull) as caught:
        await keeper.replicate_input(tree_at("cy", "1"))

    assert caught.value.message == ("dispatcher: the disk is full; ben: no room either")
    assert caught.value.hint == "free some"
    assert await keeper.hold_inputs([tree_at("cy", "1")]) == [
        "the files of node cy: the disk is full"
    ]
