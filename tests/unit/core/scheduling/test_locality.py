"""Locality: tasks with many bytes run on the free node that lacks the fewest."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from octaskly.core.dispatcher.step import worker_messages
from octaskly.core.effects import Effect, Send
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import Moment, NodeId
from octaskly.core.model.task_options import InputTree, Requirements, TaskOptions
from octaskly.core.model.tasks import AttemptState, OutputFile
from octaskly.core.model.tree_sizes import (
    HELD_MAX,
    WEIGHED_MAX,
    NeededBytes,
    SizedPath,
    TreeSizes,
    blob_key,
    outputs_name,
)
from octaskly.core.protocol.messages import Assign, HeldBlobs, Results
from octaskly.core.scheduling.locality import (
    TREE_ENTRIES_MAX,
    WORTH_BYTES,
    Holdings,
    InputBytes,
    Locality,
)
from tests.support.builders import draft, moment, node_id, node_info, outcome, spec
from tests.support.dispatcher import deliver_results
from tests.support.dispatcher_with_workers import DispatcherWithWorkers, roster_line

MB = 1_000_000
A, B, C = map(node_id, "abc")
TREE = "ab" * 32
CLIP, OTHER_CLIP = 17, 18
SIZES = TreeSizes([SizedPath("clip", CLIP, 100 * MB), SizedPath("/", 0, MB)])


def with_tree(
    command: str, *folders: str, requires: Requirements | None = None, node: str = "x"
) -> TaskDraft:
    tree = InputTree(sha256=TREE, node=node, folders=folders)
    options = TaskOptions(is_scratch=True, tree=tree, requires=requires)
    return replace(draft(command), options=options)


def three_nodes(sizes: TreeSizes = SIZES) -> DispatcherWithWorkers:
    """Return nodes with two slots each, a being the usual choice."""
    mesh = DispatcherWithWorkers(*(node_info(name, 2) for name in "abc"))
    mesh.dispatch.add_tree(TREE, sizes)
    return mesh


def places(mesh: DispatcherWithWorkers, *drafts: TaskDraft) -> str:
    mesh.ask(*drafts)
    return "".join(
        mesh.where(one.command) for one in drafts if one.command in mesh.live
    )


# --- Sizes of a tree.


def test_small_files_of_a_folder_count_together() -> None:
    """The same content counts once, wherever it is in the tree."""
    sizes = TreeSizes(
        [
            SizedPath("all/", 0, 10),
            SizedPath("items/x/big", 5, 1000),
            SizedPath("items/x/copy", 5, 1000),
            SizedPath("items/x/deep/", 0, 20),
            SizedPath("items/xy/big", 6, 3000),
        ]
    )

    assert sizes.needed() == NeededBytes(4030, 30, ((6, 3000), (5, 1000)))
    assert sizes.needed(["all", "items/x"]) == NeededBytes(1030, 30, ((5, 1000),))
    assert sizes.needed(["items/none"]) == NeededBytes(0, 0, ())


def test_only_the_largest_files_count_alone() -> None:
    """Each placement looks at them, for each node."""
    sizes = TreeSizes(SizedPath(f"f{n}", n + 1, n + 1) for n in range(WEIGHED_MAX + 2))

    needed = sizes.needed()

    assert len(needed.blobs) == WEIGHED_MAX
    assert needed.rest == 1 + 2
    assert needed.total == needed.rest + sum(size for _, size in needed.blobs)


# --- Reports of workers.


def test_holdings_are_bounded_by_node() -> None:
    """A node that reports too many loses its oldest ones, and no other node does."""
    holdings = Holdings()
    holdings.add(A, [1])
    holdings.add(B, range(1, HELD_MAX + 2))

    assert list(holdings.nodes_with(1)) == [A]
    assert list(holdings.nodes_with(2)) == [B]
    assert len(holdings) == 1 + HELD_MAX


def test_a_node_that_leaves_holds_nothing() -> None:
    """Nothing of it stays in memory."""
    holdings = Holdings()
    holdings.add(A, [1, 2])
    holdings.add(B, [2])

    holdings.drop_node(A)
    holdings.remove(C, [2])

    assert (len(holdings), list(holdings.nodes_with(2))) == (1, [B])
    assert holdings._nodes.keys() == {2}


def test_trees_are_bounded_by_their_entries() -> None:
    """The oldest makes room; one that is too large is not kept at all."""
    locality = Locality()
    half = TreeSizes(
        SizedPath(f"f{n}", n + 1, MB) for n in range(TREE_ENTRIES_MAX // 2)
    )
    locality.add_tree("1" * 64, half)
    locality.add_tree("2" * 64, half)
    locality.add_tree(
        "3" * 64,
        TreeSizes(SizedPath(f"f{n}", 0, 1) for n in range(TREE_ENTRIES_MAX + 1)),
    )

    assert list(locality._trees) == ["2" * 64]
    assert locality._entry_count == len(half) + 1


# --- Placement.


def test_a_task_runs_where_its_bytes_are() -> None:
    """Though another node is less loaded."""
    mesh = three_nodes()
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))
    mesh.ask(draft("plain"))
    assert mesh.where("plain") == "a"

    assert places(mesh, with_tree("one"), with_tree("two")) == "cc"


def test_no_task_waits_for_its_bytes() -> None:
    """When the node that has them is busy, the next one is as good as any."""
    mesh = three_nodes()
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))
    tasks = [with_tree(f"t{n}") for n in range(6)]

    assert sorted(places(mesh, *tasks)) == [*"aabbcc"]


def test_few_missing_bytes_do_not_matter() -> None:
    """Up to 8 MiB, the least loaded node wins as usual."""
    mesh = three_nodes(TreeSizes([SizedPath("f", CLIP, WORTH_BYTES)]))
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))

    assert places(mesh, with_tree("one")) == "a"


def test_the_usual_node_stays_if_it_lacks_little() -> None:
    """A node that lacks nothing takes no task from one that lacks 8 MiB."""
    sizes = [SizedPath("big", CLIP, 100 * MB), SizedPath("small", OTHER_CLIP, MB)]
    mesh = three_nodes(TreeSizes(sizes))
    mesh.dispatch.on_held_blobs(A, HeldBlobs((CLIP,)))
    mesh.dispatch.on_held_blobs(B, HeldBlobs((CLIP, OTHER_CLIP)))

    assert places(mesh, with_tree("one"), with_tree("two")) == "ab"


def test_the_fewest_missing_bytes_win() -> None:
    """Of several nodes that have a part."""
    sizes = [SizedPath("big", CLIP, 100 * MB), SizedPath("mid", OTHER_CLIP, 60 * MB)]
    mesh = three_nodes(TreeSizes(sizes))
    mesh.dispatch.on_held_blobs(B, HeldBlobs((OTHER_CLIP,)))
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))

    assert places(mesh, *(with_tree(f"t{n}") for n in range(4))) == "ccbb"


def test_many_small_files_are_where_the_tree_is() -> None:
    """At a node that used the whole tree, and at the one that it was sent to."""
    small = TreeSizes([SizedPath("src/", 0, 50 * MB)])
    mesh = three_nodes(small)
    mesh.dispatch.on_held_blobs(C, HeldBlobs((blob_key(TREE),)))

    assert places(mesh, with_tree("used")) == "c"
    assert places(three_nodes(small), with_tree("sent", node="b")) == "b"


def test_a_lent_tree_is_near_its_client() -> None:
    """The node that the client lends it to has it, as do those that fetched it."""
    lent = InputTree(sha256=TREE, node="b", is_lent=True)
    options = TaskOptions(is_scratch=True, tree=lent)
    tasks = [replace(draft(f"t{n}"), options=options) for n in range(4)]
    mesh = three_nodes()
    mesh.dispatch.on_held_blobs(B, HeldBlobs((CLIP,)))
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))

    assert places(mesh, *tasks) == "bbcc"
    assert mesh.dispatch._step.locality.input_bytes(options) == InputBytes(
        101 * MB, {B: 101 * MB, C: 100 * MB}
    )


def test_each_member_of_an_array_counts_its_own_files() -> None:
    """They name folders of one tree."""
    sizes = [
        SizedPath("items/1/clip", CLIP, 100 * MB),
        SizedPath("items/2/clip", OTHER_CLIP, 100 * MB),
    ]
    mesh = three_nodes(TreeSizes(sizes))
    mesh.dispatch.on_held_blobs(B, HeldBlobs((OTHER_CLIP,)))
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))

    assert places(mesh, with_tree("1", "items/1"), with_tree("2", "items/2")) == "cb"


def test_requirements_come_before_bytes() -> None:
    """A node that cannot run it gets nothing; of the others, the nearest one."""
    mesh = DispatcherWithWorkers(
        node_info("a", 2, memory_mb=10),
        node_info("b", 2, memory_mb=10),
        node_info("c", 2),
    )
    mesh.dispatch.add_tree(TREE, SIZES)
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP, blob_key(TREE))))
    mesh.dispatch.on_held_blobs(B, HeldBlobs((CLIP,)))

    assert places(mesh, with_tree("heavy", requires=Requirements(memory_mb=5))) == "b"


def test_bytes_change_no_order() -> None:
    """An older task gets the last free slot, though a later one has its bytes there."""
    mesh = DispatcherWithWorkers(node_info("a", 1))
    mesh.dispatch.add_tree(TREE, SIZES)
    mesh.dispatch.on_held_blobs(A, HeldBlobs((CLIP, blob_key(TREE))))
    mesh.ask(draft("busy"))
    mesh.ask(draft("older"), with_tree("later"))

    assert mesh.end("busy") == ["older"]
    assert mesh.end("older") == ["later"]


def test_prefetched_tasks_are_placed_as_usual() -> None:
    """Without a free slot, bytes do not matter: no task waits for them."""
    mesh = DispatcherWithWorkers(node_info("a", 1), node_info("b", 1))
    mesh.dispatch.add_tree(TREE, SIZES)
    for node in (A, B):
        deliver_results(mesh.dispatch, node, Results((), 3), moment())
    mesh.dispatch.on_held_blobs(B, HeldBlobs((CLIP,)))

    assert places(mesh, *(with_tree(f"t{n}") for n in range(4))) == "baab"


def test_a_node_that_reports_again_has_only_what_it_says() -> None:
    """A report after a new link replaces all earlier ones."""
    mesh = three_nodes()
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))
    mesh.dispatch.on_worker_down(C, moment())
    mesh.dispatch.on_held_blobs(B, HeldBlobs((CLIP,)))
    mesh.dispatch.on_held_blobs(B, HeldBlobs((), (CLIP,)))

    assert len(mesh.dispatch._step.locality.holdings) == 0
    assert places(mesh, with_tree("one")) == "a"


def test_a_task_after_another_runs_where_its_outputs_are() -> None:
    """They need not move."""
    mesh = three_nodes()
    mesh.ask(draft("first"))
    mesh.ask(replace(draft("split"), outputs=("raw",)))
    parent = mesh.live["split"][0]
    assert mesh.where("split") == "b"
    files = (OutputFile("raw", 50 * MB, 3),)
    mesh.end("first")
    mesh.end("split", how=replace(outcome(AttemptState.OK), outputs=files))
    join = TaskOptions(is_scratch=True, outputs_of=(parent,))

    assert places(mesh, replace(draft("join"), options=join)) == "b"


def test_a_copy_of_outputs_counts_as_they_do() -> None:
    """Its node reports it by the name of the attempt."""
    mesh = three_nodes()
    mesh.ask(draft("first"))
    mesh.ask(replace(draft("split"), outputs=("raw",)))
    parent, attempt, _ = mesh.live["split"]
    files = (OutputFile("raw", 50 * MB, 3),)
    mesh.end("first")
    mesh.end("split", how=replace(outcome(AttemptState.OK), outputs=files))
    mesh.dispatch.on_held_blobs(
        C, HeldBlobs((blob_key(outputs_name(parent, attempt)),))
    )
    inputs = mesh.dispatch._step.locality.input_bytes(
        TaskOptions(is_scratch=True, outputs_of=(parent,))
    )

    assert inputs is not None
    assert inputs.held == {B: 50 * MB, C: 50 * MB}


def test_an_explanation_says_that_bytes_decided() -> None:
    """It has what the node lacked then, not what it lacks now."""
    mesh = three_nodes()
    mesh.dispatch.on_held_blobs(C, HeldBlobs((CLIP,)))
    mesh.ask(with_tree("one"), draft("plain"))
    mesh.dispatch.on_held_blobs(C, HeldBlobs((), (CLIP,)))
    lines = [roster_line(node_info(name, 2)) for name in "abc"]
    names = {NodeId(name): name for name in "abc"}

    def placement(command: str) -> str:
        task = mesh.dispatch._queue.tasks._tasks[mesh.live[command][0]]
        record = TaskRecord(task.spec.id, task.spec)
        return mesh.dispatch.explainer.explain_placement(
            record, lines, Moment(0.0, 0), names
        )

    assert placement("one") == (
        "of 3 nodes, c had a free slot and lacked the fewest bytes of its files:"
        " 1 of 101 MB"
    )
    assert placement("plain").endswith(
        "the lowest load per slot when the task was assigned"
    )


# --- What workers are told.


def assigned(effects: Iterable[Effect]) -> list[Assign]:
    sent = (each.messages for each in effects if isinstance(each, Send))
    return [m for messages in sent for m in messages if isinstance(m, Assign)]


def test_a_worker_is_told_who_has_most_of_a_tree() -> None:
    """Those with the most bytes first; nothing about tasks without files."""
    locality = Locality()
    locality.add_tree(TREE, SIZES)
    locality.holdings.add(B, [blob_key(TREE)])
    locality.holdings.add(C, [CLIP])
    task = replace(spec(), options=with_tree("one").options)

    assert locality.holders_of(task) == ((blob_key(TREE), (C, B)),)
    assert locality.holders_of(spec()) == ()
    assert Locality().holders_of(task) == ()


def test_holders_go_with_the_assignment() -> None:
    """Each blob once, however many tasks need it."""
    mesh = three_nodes()
    mesh.dispatch.on_held_blobs(C, HeldBlobs((blob_key(TREE),)))
    mesh.ask(with_tree("one"))
    item = (mesh.live["one"][1], replace(spec("t"), options=with_tree("t").options))
    step = mesh.dispatch._step

    effects = worker_messages(
        step.epoch, {}, {A: [item, item]}, {}, 1 << 20, step.locality.holders_of
    )

    assert [message.holders for message in assigned(effects)] == [
        ((blob_key(TREE), (C,)),)
    ]
