"""The nodes that a member asks for files: who may have them, and in which order."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial

from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.core.model.nodes import NodeInfo, RosterEntry
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource
from octaskly.runner.blobs.holder_connection import Holder


class BlobHolders:
    """Names other live nodes with their URLs.

    Args:
        gateway: Knows the members and the dispatcher.
        own: This node.
    """

    def __init__(self, gateway: AgentGateway, own: NodeInfo) -> None:
        self._gateway, self._view, self._own = gateway, gateway.view, own

    def of_blob(self, first: str, known: Sequence[NodeId]) -> list[Holder]:
        """Return the other nodes: known holders, the named one, and the rest.

        In random order otherwise, so that not all nodes ask the same one first. The
        named node is among them even if it is not in the mesh now: it may come
        back if it is known, and the error names it.
        """
        others = self._view.other_members()
        secrets.SystemRandom().shuffle(others)
        others.sort(
            key=lambda member: (
                member.id not in known,
                first not in (member.id, member.name),
            )
        )
        holders = [
            self._holder(member, is_named=first in (member.id, member.name))
            for member in others
        ]
        is_known = any(holder.is_named for holder in holders)
        if is_known or first in (self._own.id, self._own.name):
            return holders
        is_unknown = self._view.find_node_id(first) is None
        absent = Holder(self.name_of(first), (), is_named=True, is_unknown=is_unknown)
        return [absent, *holders]

    def name_of(self, node: str) -> str:
        """Return the name of a node by its id; a name stays as it is."""
        return self._view.name_of(NodeId(node))

    def of_copies(self, task: TaskId, attempt: AttemptId) -> list[Holder]:
        """Return the other nodes, those first where a copy of outputs belongs."""
        return [
            self._holder(member)
            for member in self._view.copy_holders(task, attempt)
            if member.id != self._own.id
        ]

    def others(self) -> list[Holder]:
        """Return the other nodes."""
        return [self._holder(member) for member in self._view.other_members()]

    def find_outputs(
        self, fetcher: BlobFetcher, task: str
    ) -> list[tuple[str, BlobSource]]:
        """Return the trees of a task's outputs, as the dispatcher knows them. Blocks.

        Raises:
            OutputNotFound: there are none, or no node could be asked.
        """
        return [
            (owner, BlobSource(tree, partial(self.of_blob, tree.node, ())))
            for owner, tree in fetcher.find_output_trees(self._dispatcher, task)
        ]

    def _dispatcher(self) -> Holder | None:
        view = self._gateway.dispatcher()
        if view is None:
            return None
        urls = view.lan_urls or self._gateway.api_urls_of(view.node)
        return Holder(self._view.name_of(view.node), urls)

    def _holder(self, member: RosterEntry, *, is_named: bool = False) -> Holder:
        urls = self._gateway.api_urls_of(member.id)
        return Holder(member.name, urls, is_named=is_named)
