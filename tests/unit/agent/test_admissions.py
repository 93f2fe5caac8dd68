"""Leaving the mesh without losing tasks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from octaskly.agent.join_service import AgentJoinService
from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import StandbyView
from octaskly.core.model.tasks import TaskState
from octaskly.errors import OnlyCopy
from octaskly.ports.gateway import ReplicationState
from tests.support.builders import epoch

IN_SYNC = (StandbyView(NodeId("b"), is_in_sync=True, lag=0),)


async def leave(mesh: ReplicationState, state: TaskState) -> None:
    """Leave as the dispatcher with one task; any later step is an error."""

    async def stats() -> Any:
        return SimpleNamespace(counts={state: 1})

    def mesh_of() -> ReplicationState:
        return mesh

    known: Any = SimpleNamespace(
        dispatcher=lambda: SimpleNamespace(is_self=True), replication_state=mesh_of
    )
    store: Any = SimpleNamespace(read_stats=stats)
    nothing: Any = None
    desk = AgentJoinService(
        config=nothing,
        name="ash",
        key=nothing,
        gateway=known,
        store=store,
        invites=None,
        waiting_machines=None,
        mesh_changes=nothing,
        log=nothing,
    )
    await desk.leave_mesh(force=False, principal=nothing)


@pytest.mark.parametrize(
    ("mesh", "why"),
    [
        (ReplicationState(epoch=epoch()), "no standby keeps copies"),
        (
            ReplicationState(epoch=epoch(), standbys=IN_SYNC, is_merging=True),
            "standbys lack some of them yet",
        ),
    ],
)
def test_a_node_with_the_only_copy_of_a_task_does_not_leave(
    mesh: ReplicationState, why: str
) -> None:
    """It may know tasks that the log of its standbys does not contain."""
    with pytest.raises(OnlyCopy, match=f"1 wait or run, and {why}"):
        asyncio.run(leave(mesh, TaskState.QUEUED))


@pytest.mark.parametrize(
    ("mesh", "state"),
    [
        (ReplicationState(epoch=epoch(), standbys=IN_SYNC), TaskState.QUEUED),
        (ReplicationState(epoch=epoch()), TaskState.COMPLETED),
    ],
)
def test_a_node_whose_tasks_have_other_copies_may_leave(
    mesh: ReplicationState, state: TaskState
) -> None:
    """A node without unfinished tasks may leave, too."""
    with pytest.raises(AttributeError, match="paths"):  # Next it forgets the mesh.
        asyncio.run(leave(mesh, state))
