"""Where the outputs lie that tasks declared: at the nodes that ran them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from octaskly.agent.view import MeshView
from octaskly.core.merge import TaskRecord
from octaskly.core.model import AttemptId, NodeId, TaskId
from octaskly.errors import NodeNotFound, OutputNotFound
from octaskly.ports import OutputPlace

Captured = Callable[[TaskId, AttemptId, str], Path]
"""Returns the file of an output that this node captured."""


class Outputs:
    """The captured outputs of the mesh.

    Args:
        task: Returns a task by what clients call it.
        view: Who is in the mesh.
        node_id: This node.
        captured: Where its own lie.
    """

    def __init__(
        self,
        task: Callable[[str], Awaitable[TaskRecord]],
        view: MeshView,
        node_id: NodeId,
        captured: Captured,
    ) -> None:
        self._task = task
        self._view = view
        self._node_id = node_id
        self._captured = captured

    async def place(self, ref: str, path: str) -> OutputPlace:
        """Return where a declared output lies."""
        record = await self._task(ref)
        attempt = record.chosen
        outputs = attempt.outcome.outputs if attempt and attempt.outcome else ()
        size = next((o.size_bytes for o in outputs if o.path == path), None)
        if attempt is None or size is None:
            raise OutputNotFound(
                "Output not found",
                field="path",
                hint="only declared outputs that existed at the end are kept",
            )
        local = None
        if attempt.node == self._node_id:
            local = self._captured(record.id, attempt.id, path)
        urls = () if local else self._view.lan_urls(attempt.node)
        if local is None and not urls:
            name = self._view.name_of(attempt.node)
            raise NodeNotFound(f"node {name}, which has this output, is gone")
        return OutputPlace(
            node=attempt.node,
            task=record.id,
            attempt=attempt.id,
            path=path,
            size_bytes=size,
            local=local,
            lan_urls=urls,
        )

    def local(self, task: str, attempt: AttemptId, path: str) -> Path:
        """Return the file of an output that this node captured."""
        return self._captured(TaskId(task), attempt, path)
