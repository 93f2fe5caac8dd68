"""The inputs of unfinished tasks: kept at their nodes, and copied to the standbys.

A node that needs room deletes files that were not used for an hour. So the dispatcher
reads from the log which trees and files unfinished tasks name, and asks their holders
to keep them; so with the outputs of ended tasks that others get. The next dispatcher
reads the same at its start, and learns the sizes of the trees.

The node that a task names may be switched off while the task waits. So the dispatcher
and each standby also keep the copies that they have themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from math import inf
from typing import Final, TypeVar, TypeVarTuple

from msgspec.structs import replace

from octaskly.agent.files.tree_sizer import TREES_MAX
from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.nodes import NodeState, Role
from octaskly.core.model.task_options import BlobRef, InputBlob, InputTree
from octaskly.core.model.tasks import TaskState
from octaskly.errors import OctasklyError, OutputNotFound, StoreError
from octaskly.files.captured_tree import CapturedTree
from octaskly.files.manifest import Manifest
from octaskly.ports.files import (
    KEPT_OUTPUTS_MAX,
    RETENTION_S,
    AttemptOutputs,
    FileQuotaExceeded,
)
from octaskly.ports.gateway import OutputLocation
from octaskly.ports.store import NeededFiles
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderUnreachable,
)
from octaskly.runner.files.output_copies import OutputCopies
from octaskly.store import Store
from octaskly.system.log import Logger

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")

PERIOD_S: Final = RETENTION_S / 4  #: so that a failover in between loses nothing
SIZE_ALL_S_MAX: Final = PERIOD_S / 3  #: for the sizes of all trees
OUTPUTS_PERIOD_S: Final = 60.0  #: the same while tasks need outputs of others
CHECK_S_MIN: Final = 10.0  #: between two reads of the log
PAGE_TASKS: Final = 5000  #: per read of the store, some 10 ms
ASKED_INPUTS_MAX: Final = 1000  #: of one request, which may have 1 MiB

FetchBlob = Callable[[BlobSource, Callable[[], bool]], list[str]]
"""Fetches a blob or a tree while it is needed; returns a text for each failure."""

LocateOutputs = Callable[[str], Awaitable[Sequence[OutputLocation]]]
"""Returns the locations of a task's outputs; raises OctasklyError if there are none."""

SizeTrees = Callable[[Iterable[InputTree], float | None], Awaitable[None]]
"""Passes the sizes of trees on to the core; waits for at most so many seconds."""


class TreeKeeper:
    """Keeps inputs while tasks wait for them; implements `ports.TreeKeeper`.

    Args:
        store: Has the unfinished tasks.
        view: Has the members of the mesh.
        fetcher: Fetches files.
        copies: Copies outputs.
        size_trees: Passes the sizes of trees on to the core.
        locate_outputs: Finds the outputs of tasks.
        log: For failures.
    """

    def __init__(
        self,
        store: Store,
        view: MeshView,
        fetcher: BlobFetcher,
        copies: OutputCopies,
        size_trees: SizeTrees,
        locate_outputs: LocateOutputs,
        log: Logger,
    ) -> None:
        self._store, self._view, self._size_trees = store, view, size_trees
        self._locate_outputs = locate_outputs
        self._fetcher, self._copies, self._log = fetcher, copies, log
        self._inputs_due_s = 0.0  #: when to ask that inputs are kept
        self._outputs_due_s = inf  #: when to look whose outputs are needed
        self._has_news = asyncio.Event()  #: one of these is due earlier
        self._kept_outputs: dict[str, float] = {}  #: by task: when that was asked for

    def note_epoch_start(self) -> None:
        """Note that this node has become dispatcher."""
        self._inputs_due_s = 0.0
        self._has_news.set()

    def note_needed_outputs(self) -> None:
        """Note that unfinished tasks may need outputs of ended ones."""
        self._outputs_due_s = 0.0
        self._has_news.set()

    async def run(self) -> None:
        """Keep what unfinished tasks need while dispatcher or standby."""
        loop = asyncio.get_running_loop()
        checked_s = -inf
        while True:
            now_s = loop.time()
            are_inputs_due = now_s >= self._inputs_due_s
            if self._has_log and now_s >= self._due_s(checked_s):
                checked_s, self._outputs_due_s = now_s, inf
                if are_inputs_due:
                    self._inputs_due_s = now_s + PERIOD_S
                await self.keep_needed_files(are_inputs_due=are_inputs_due)
            due_s = self._due_s(checked_s)
            with suppress(TimeoutError):
                # What is overdue has to wait until this node has the log again.
                async with asyncio.timeout_at(
                    due_s if due_s > now_s else now_s + CHECK_S_MIN
                ):
                    await self._has_news.wait()
            self._has_news.clear()

    @property
    def _has_log(self) -> bool:
        return self._view.role in (Role.DISPATCHER, Role.STANDBY)

    def _due_s(self, checked_s: float) -> float:
        """Return when to read the log, which was read last at a time."""
        return min(
            self._inputs_due_s, max(self._outputs_due_s, checked_s + CHECK_S_MIN)
        )

    async def keep_needed_files(self, *, are_inputs_due: bool = True) -> bool:
        """Have the holders of files keep those that unfinished tasks name.

        A standby keeps only its own copies of inputs. A follower keeps nothing: the
        dispatcher asks it for what it has to keep.

        Returns:
            False if some inputs are perhaps not kept.
        """
        if not self._has_log:
            return self._view.role is not None
        try:
            needed = await self._needed_files()
        except StoreError as error:
            self._log.warning("inputs not kept", error=str(error))
            return False
        if self._view.is_serving:
            await self._keep_outputs(needed.outputs_of)
        if not are_inputs_due:
            return True
        inputs = _inputs_to_keep(needed)
        await self._run_in_thread(self._fetcher.keep_copies, inputs)
        if not self._view.is_serving:
            return True
        are_kept = await self._keep_inputs(inputs)
        await self._size_some(needed.trees)
        return are_kept

    async def _keep_outputs(self, tasks: Collection[str]) -> None:
        """Have the outputs of tasks kept that have ended; look again for the others."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        kept = {task: self._kept_outputs.get(task, -inf) for task in tasks}
        self._kept_outputs = kept
        if not tasks:
            return
        self._outputs_due_s = min(self._outputs_due_s, now_s + OUTPUTS_PERIOD_S)
        due = [task for task, kept_s in kept.items() if kept_s + PERIOD_S <= now_s]
        with suppress(TimeoutError):
            async with asyncio.timeout(OUTPUTS_PERIOD_S):
                kept.update(dict.fromkeys(await self._hold_outputs_of(due), now_s))

    async def _hold_outputs_of(self, tasks: Iterable[str]) -> list[str]:
        """Have the outputs of tasks kept at all nodes that may have them.

        Returns:
            The tasks whose outputs are all kept, each by some node.
        """
        outputs_of: dict[str, list[AttemptOutputs]] = {}
        by_node: dict[NodeId, dict[AttemptOutputs, None]] = defaultdict(dict)
        for task in tasks:
            with suppress(OctasklyError):  # It has not ended, has none, or is unknown.
                outputs_of[task] = []
                for place in await self._locate_outputs(task):
                    outputs = AttemptOutputs(place.task, place.attempt)
                    outputs_of[task].append(outputs)
                    for holder in place.holders:
                        by_node[holder.node][outputs] = None
        held: set[AttemptOutputs] = set()
        for node, wanted in by_node.items():
            held |= await self._hold_outputs_at(node, list(wanted))
        return [task for task, each in outputs_of.items() if each and held >= {*each}]

    async def _hold_outputs_at(
        self, node: NodeId, wanted: Sequence[AttemptOutputs]
    ) -> set[AttemptOutputs]:
        """Have outputs kept by a node; return those that it has."""
        holder = Holder(node, self._view.lan_urls_of(node))
        held: set[AttemptOutputs] = set()
        for start in range(0, len(wanted), KEPT_OUTPUTS_MAX):
            some = wanted[start : start + KEPT_OUTPUTS_MAX]
            if node == self._view.node_id:
                indices = await self.hold_outputs(some)
            else:
                try:
                    indices = await self._run_in_thread(
                        self._fetcher.ask_to_hold_outputs, holder, some
                    )
                except (HolderUnreachable, HolderBusy, OutputNotFound):
                    break  # Others may have them; it is asked again.
            held |= {some[index] for index in indices}
        return held

    async def hold_outputs(self, outputs: Sequence[AttemptOutputs]) -> list[int]:
        """Keep captured outputs for `RETENTION_S`; return which are here, by index."""
        return await asyncio.to_thread(self._copies.mark_needed, outputs, RETENTION_S)

    async def _keep_inputs(self, inputs: Iterable[InputBlob]) -> bool:
        """Have inputs kept by the nodes that they name; return False if one is not."""
        are_kept = True
        by_node: dict[str, list[InputBlob]] = defaultdict(list)
        for needed in inputs:
            by_node[needed.blob.node].append(needed)
        for name, some in by_node.items():
            if self._view.find_node_id(name) == self._view.node_id:
                failures = await self.hold_inputs(some)
            else:
                failures = await self._ask(name, some)
            if failures:
                are_kept = False
                self._log.warning("inputs not kept", node=name, failures=failures[:4])
        return are_kept

    async def hold_inputs(self, inputs: Sequence[InputBlob]) -> list[str]:
        """Fetch what this node lacks of some inputs, and keep it for `RETENTION_S`."""
        failures = []
        for needed in inputs:
            try:
                failures += await self._hold_input(needed)
            except FileQuotaExceeded as error:
                node = self._view.name_of(NodeId(needed.blob.node))
                failures.append(f"the files of node {node}: {error.message}")
        return failures

    async def _hold_input(self, needed: InputBlob) -> list[str]:
        """Hold one input here.

        Raises:
            FileQuotaExceeded: there is no room for it.
        """
        fetcher = self._fetcher
        source = fetcher.find_blob(needed.blob)
        assert source is not None
        hold = fetcher.hold_tree if needed.is_tree else fetcher.hold_file
        return await self._run_in_thread(hold, source)

    async def replicate_input(self, needed: InputBlob) -> list[NodeId]:
        """Store an input here and at the standbys; return those that have it.

        Raises:
            FileQuotaExceeded: only the node that the input names has it, since this
                node has no room.
            OutputNotFound: only that node has it, for another reason.
        """
        no_room: FileQuotaExceeded | None = None
        try:
            failures = await self._hold_input(needed)
        except FileQuotaExceeded as error:
            failures, no_room = [f"dispatcher: {error.message}"], error
        standbys = [
            member
            for member in self._view.other_members()
            if member.role is Role.STANDBY and member.state is not NodeState.LOST
        ]
        async with asyncio.TaskGroup() as group:
            asked = {
                member.id: group.create_task(self._ask(member.id, [needed]))
                for member in standbys
            }
        have = [node for node, answer in asked.items() if not answer.result()]
        is_here = not failures
        if is_here:
            have.insert(0, self._view.node_id)
        failures += [each for answer in asked.values() for each in answer.result()]
        if not (is_here or set(have) - {self._view.find_node_id(needed.blob.node)}):
            if no_room is not None:
                raise type(no_room)("; ".join(failures), hint=no_room.hint)
            raise OutputNotFound("; ".join(failures))
        if failures:
            self._log.warning("input not replicated", failures=failures[:4])
        return have

    async def copy_outputs(
        self, task: TaskId, attempt: AttemptId, tree: BlobRef
    ) -> str:
        """Copy the outputs of an attempt, a tree at a node; return why that failed."""
        holder = Holder(tree.node, self._view.lan_urls_of(tree.node))
        fetch = self._copies.fetch_copy
        return await self._run_in_thread(fetch, task, attempt, holder, tree.sha256)

    async def read_manifest(self, tree: InputTree) -> Manifest:
        """Return the entries of a tree; fetch its manifest if it is not here."""
        await self._fetch(self._fetcher.fetch_blob, tree)
        return await asyncio.to_thread(self._fetcher.read_manifest, tree)

    async def fetch_tree(
        self, tree: InputTree, path: str | None = None
    ) -> CapturedTree:
        """Return a tree with a file of it, or with all of them, at this node."""
        manifest = await self.read_manifest(tree)
        if path is None:
            fetch = partial(self._fetcher.fetch_tree, keep_s=RETENTION_S)
            # Only tasks make a client send what it lends.
            await self._fetch(fetch, replace(tree, is_lent=False))
        elif (file := manifest.find_file(path)) is not None:
            content = BlobRef(sha256=file.sha256.hex(), node=tree.node)
            await self._fetch(self._fetcher.fetch_blob, content)
        store = self._fetcher.blob_store
        return CapturedTree(manifest, lambda sha256: store.file_path(sha256.hex()))

    async def _fetch(self, fetch: FetchBlob, blob: BlobRef) -> None:
        """Fetch a blob or a tree, until its reader is gone.

        Raises:
            OutputNotFound: no node has all of it, or there is no room for it here.
        """
        source = self._fetcher.find_blob(blob)
        assert source is not None
        is_over = threading.Event()
        try:
            failures = await self._run_in_thread(
                fetch, source, lambda: not is_over.is_set()
            )
        except FileQuotaExceeded as error:
            raise OutputNotFound(str(error)) from None
        finally:
            is_over.set()
        if failures:
            raise OutputNotFound("; ".join(failures))

    async def _size_some(self, trees: Iterable[InputTree]) -> None:
        """Pass on the sizes of trees, one after the other: some nodes may be gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SIZE_ALL_S_MAX):
                for tree in islice(trees, TREES_MAX):
                    await self._size_trees([tree], None)

    async def _needed_files(self) -> NeededFiles:
        trees: set[InputTree] = set()
        stdin_files: set[BlobRef] = set()
        outputs_of: set[str] = set()
        for state in (TaskState.QUEUED, TaskState.RUNNING):
            after, is_first = 0, True
            while after or is_first:
                some, after = await self._store.read_needed_files(
                    state, after, PAGE_TASKS
                )
                trees |= some.trees
                stdin_files |= some.stdin_files
                outputs_of |= some.outputs_of
                is_first = False
        return NeededFiles(
            frozenset(trees), frozenset(stdin_files), frozenset(outputs_of)
        )

    async def _ask(self, node: str, inputs: Sequence[InputBlob]) -> list[str]:
        """Ask another node to hold inputs; return its failures."""
        holder = Holder(node, self._view.lan_urls_of(node))
        failures = []
        for start in range(0, len(inputs), ASKED_INPUTS_MAX):
            some = inputs[start : start + ASKED_INPUTS_MAX]
            ask = self._fetcher.ask_to_hold
            failures += await self._run_in_thread(ask, holder, some)
        return failures

    async def _run_in_thread(
        self, function: Callable[[*_Arguments], _T], *arguments: *_Arguments
    ) -> _T:
        """Run a function that waits for a node.

        That node may wait for this one, whose other threads have to answer it.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._fetcher.threads, function, *arguments
        )


def _inputs_to_keep(needed: NeededFiles) -> list[InputBlob]:
    """Return the inputs that no client lends: it sends again what a node deleted."""
    return [
        *(InputBlob(tree, is_tree=True) for tree in needed.trees if not tree.is_lent),
        *(InputBlob(file, is_tree=False) for file in needed.stdin_files),
    ]
