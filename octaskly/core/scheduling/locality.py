"""Locality: which nodes have the bytes that a task needs.

All of it is soft state: reports of workers in this epoch about large blobs and whole
trees, sizes of trees, and the outputs of tasks that ended. Without it, tasks are placed
as if every node lacked everything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.task_options import TaskOptions
from octaskly.core.model.tasks import Outcome, TaskSpec
from octaskly.core.model.tree_sizes import (
    HELD_MAX,
    HOLDERS_MAX,
    HoldersByBlob,
    TreeSizes,
    blob_key,
    outputs_name,
)

WORTH_BYTES: Final = 8 << 20  #: fewer missing bytes do not matter for placement
TREE_ENTRIES_MAX: Final = 200_000  #: of all trees together, some 40 MB
PLACEMENTS_MAX: Final = 1000  #: the latest placements; for `explain`
OUTPUTS_MAX: Final = 10_000  #: ended tasks with outputs that are remembered


class Holdings:
    """The large blobs, trees and outputs of each node, as the nodes reported them."""

    def __init__(self) -> None:
        self._nodes: dict[int, dict[NodeId, None]] = {}
        self._keys: dict[NodeId, dict[int, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    def __contains__(self, node: NodeId) -> bool:
        return node in self._keys

    def add(self, node: NodeId, keys: Collection[int]) -> None:
        """Add blobs of a node; above `HELD_MAX`, its oldest ones are dropped."""
        held = self._keys.setdefault(node, {})
        for key in keys:
            held[key] = None
            self._nodes.setdefault(key, {})[node] = None
        if len(held) > HELD_MAX:
            self.remove(node, list(held)[: len(held) - HELD_MAX])

    def remove(self, node: NodeId, keys: Collection[int]) -> None:
        """Remove blobs of a node."""
        held = self._keys.get(node, {})
        for key in keys:
            if key in held:
                del held[key]
                del self._nodes[key][node]
                if not self._nodes[key]:
                    del self._nodes[key]

    def drop_node(self, node: NodeId) -> None:
        """Remove all blobs of a node."""
        self.remove(node, list(self._keys.get(node, ())))
        self._keys.pop(node, None)

    def nodes_with(self, key: int) -> Collection[NodeId]:
        """Return the nodes that have a blob."""
        return self._nodes.get(key, {}).keys()


class _Outputs(NamedTuple):
    """The outputs of a task that ended."""

    node: NodeId  #: where it ran
    size_bytes: int
    key: int  #: by which all nodes that hold them report them


class InputBytes(NamedTuple):
    """The bytes that a task needs, and which of them each node has."""

    total: int
    held: Mapping[NodeId, int]

    def missing_at(self, node: NodeId) -> int:
        """Return the bytes that a node lacks."""
        return self.total - self.held.get(node, 0)


class Placement(NamedTuple):
    """The node that got a task, and the bytes that it lacked then."""

    node: NodeId
    total: int
    missing: int


class Locality:
    """The sizes of the inputs of tasks, and the nodes that hold them."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self._trees: dict[str, TreeSizes] = {}
        self._entry_count = 0
        self._outputs: dict[TaskId, _Outputs] = {}
        self._placements: dict[TaskId, Placement] = {}

    def clear_epoch(self) -> None:
        """Drop what workers report again to the next dispatcher."""
        self.holdings = Holdings()

    def add_tree(self, sha256: str, sizes: TreeSizes) -> None:
        """Add the sizes of a tree; the oldest trees make room."""
        self._drop_tree(sha256)
        if len(sizes) > TREE_ENTRIES_MAX:
            return
        self._trees[sha256] = sizes
        self._entry_count += len(sizes) + 1
        while self._entry_count > TREE_ENTRIES_MAX:
            self._drop_tree(next(iter(self._trees)))

    def _drop_tree(self, sha256: str) -> None:
        sizes = self._trees.pop(sha256, None)
        if sizes is not None:
            self._entry_count -= len(sizes) + 1

    def note_outputs(
        self, task: TaskId, attempt: AttemptId, node: NodeId, outcome: Outcome
    ) -> None:
        """Remember where the outputs of an ended attempt are."""
        size_bytes = sum(file.size_bytes or 0 for file in outcome.outputs)
        if not size_bytes:
            return
        key = blob_key(outputs_name(task, attempt))
        self._outputs[task] = _Outputs(node, size_bytes, key)
        if len(self._outputs) > OUTPUTS_MAX:
            del self._outputs[next(iter(self._outputs))]

    def note_placement(self, spec: TaskSpec, node: NodeId) -> None:
        """Remember how many bytes a node lacked when it got a task."""
        inputs = None if spec.options is None else self.input_bytes(spec.options)
        if inputs is None:
            return
        missing = inputs.missing_at(node)
        self._placements[spec.id] = Placement(node, inputs.total, missing)
        if len(self._placements) > PLACEMENTS_MAX:
            del self._placements[next(iter(self._placements))]

    def placement_of(self, task: TaskId, node: NodeId) -> Placement | None:
        """Return what the node of a task lacked, if that mattered and is known."""
        placement = self._placements.get(task)
        return placement if placement and placement.node == node else None

    def input_bytes(self, options: TaskOptions) -> InputBytes | None:
        """Return the bytes that a task needs; None if they do not matter."""
        if options.tree is None and not options.outputs_of:
            return None
        total = 0
        held: dict[NodeId, int] = {}
        for node, size_bytes in self._tree_bytes(options):
            if node is None:
                total += size_bytes
            else:
                held[node] = held.get(node, 0) + size_bytes
        for parent in options.outputs_of:
            if (outputs := self._outputs.get(TaskId(parent))) is None:
                continue
            total += outputs.size_bytes
            copies = self.holdings.nodes_with(outputs.key)
            for node in dict.fromkeys((outputs.node, *copies)):
                held[node] = held.get(node, 0) + outputs.size_bytes
        return InputBytes(total, held) if total > WORTH_BYTES else None

    def _tree_bytes(self, options: TaskOptions) -> Iterator[tuple[NodeId | None, int]]:
        """Yield the bytes that each node has of a task's tree, for None all bytes."""
        tree = options.tree
        sizes = None if tree is None else self._trees.get(tree.sha256)
        if tree is None or sizes is None:
            return
        total, rest, blobs = sizes.needed(tree.folders)
        yield None, total
        named, holdings = NodeId(tree.node), self.holdings
        # The named node reports no tree that it never used. Of one that is lent, all
        # bytes pass it, and most clients are on its machine.
        yield named, total if tree.is_lent else rest
        for node in holdings.nodes_with(blob_key(tree.sha256)):
            if node != named:
                yield node, rest
        for key, size_bytes in blobs:
            for node in holdings.nodes_with(key):
                if node != named or not tree.is_lent:
                    yield node, size_bytes

    def holders_of(self, spec: TaskSpec) -> HoldersByBlob:
        """Return the nodes that have most of the blobs that a task needs."""
        options = spec.options
        if options is None:
            return ()
        found = []
        if options.tree is not None:
            key = blob_key(options.tree.sha256)
            held = dict.fromkeys(self.holdings.nodes_with(key), 1)
            for node, size_bytes in self._tree_bytes(options):
                if node is not None and node in self.holdings:
                    held[node] = held.get(node, 0) + size_bytes
            most = sorted(held, key=lambda node: -held[node])
            found.append((key, tuple(most[:HOLDERS_MAX])))
        if options.stdin_file is not None:
            key = blob_key(options.stdin_file.sha256)
            found.append((key, tuple(self.holdings.nodes_with(key))[:HOLDERS_MAX]))
        return tuple((key, nodes) for key, nodes in found if nodes)
