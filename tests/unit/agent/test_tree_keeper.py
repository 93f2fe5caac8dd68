"""Trees of unfinished tasks are kept at the nodes that have them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.agent.tree_keeper import ASKED_TREES_MAX, TreeKeeper
from octaskly.core.effects import PublishMeshState
from octaskly.core.model.ids import Address
from octaskly.core.model.nodes import NodeState, Role, RosterEntry
from octaskly.core.model.task_options import BlobRef
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import Roster
from octaskly.ports import RETENTION_S, DurableStore
from octaskly.runner.files.blob_fetcher import BlobFetcher, BlobSource, Holder
from octaskly.system.log import Logger
from tests.support.builders import epoch, node_id

ME, OTHER = node_id("a"), node_id("b")


class TaskTrees:
    """The store: one page of trees for each state."""

    def __init__(self, queued: set[BlobRef], running: set[BlobRef]) -> None:
        self._trees = {TaskState.QUEUED: queued, TaskState.RUNNING: running}

    async def read_trees(
        self, state: TaskState, after: int, _limit: int
    ) -> tuple[frozenset[BlobRef], int]:
        some = sorted(self._trees[state], key=lambda tree: tree.sha256)
        page = some[after : after + 1]
        return frozenset(page), after + 1 if after + 1 < len(some) else 0


class Fetches:
    """The fetcher: what it was asked for."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(1)
        self.held_here: list[tuple[str, float]] = []
        self.asked: list[tuple[Holder, list[str]]] = []

    def find_blob(self, tree: BlobRef) -> BlobSource:
        return BlobSource(tree, ())

    def fetch_tree(self, source: BlobSource, *, keep_s: float) -> list[str]:
        self.held_here.append((source.blob.sha256, keep_s))
        return []

    def ask_to_hold(self, holder: Holder, trees: Sequence[BlobRef]) -> list[str]:
        self.asked.append((holder, [tree.sha256 for tree in trees]))
        return []


def view() -> MeshView:
    made = MeshView(ME, {ME: "ana", OTHER: "ben"})
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
    made.on_published(PublishMeshState(current, ME, True, Roster(current, 1, members)))
    return made


async def test_each_holder_is_asked_to_keep_what_unfinished_tasks_need() -> None:
    """By node, whatever the page in which a tree was read; by name or by id."""
    mine = BlobRef(sha256="1" * 64, node="ana")
    theirs = BlobRef(sha256="2" * 64, node=OTHER)
    more = BlobRef(sha256="3" * 64, node=OTHER)
    fetches = Fetches()
    keeper = TreeKeeper(
        cast("DurableStore", TaskTrees({mine, theirs}, {theirs, more})),
        view(),
        cast("BlobFetcher", fetches),
        cast("Logger", None),  # Nothing is logged.
    )

    await keeper.keep_needed_trees()

    assert fetches.held_here == [(mine.sha256, RETENTION_S)]
    ((holder, asked),) = fetches.asked
    assert holder == Holder(OTHER, ("https://10.0.0.1:3443",))
    assert sorted(asked) == [theirs.sha256, more.sha256]


async def test_many_trees_are_asked_for_in_bounded_requests() -> None:
    """A body may have 1 MiB."""
    count = ASKED_TREES_MAX + 1
    trees = {BlobRef(sha256=f"{number:064}", node=OTHER) for number in range(count)}
    fetches = Fetches()
    keeper = TreeKeeper(
        cast("DurableStore", TaskTrees(trees, set())),
        view(),
        cast("BlobFetcher", fetches),
        cast("Logger", None),  # Nothing is logged.
    )

    await keeper.keep_needed_trees()

    sizes = [len(asked) for _, asked in fetches.asked]
    assert sizes == [ASKED_TREES_MAX, 1]
    assert len({name for _, asked in fetches.asked for name in asked}) == count
