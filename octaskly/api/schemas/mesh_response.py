"""JSON of the mesh, its nodes, statistics and health."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from octaskly.api.problems import timestamp
from octaskly.api.schemas.task_response import at
from octaskly.config.units import host_and_port
from octaskly.core.change_feed import NodeEvent
from octaskly.core.model.ids import NodeId, TaskId, task_name
from octaskly.core.model.nodes import RosterEntry
from octaskly.core.model.tasks import TaskState
from octaskly.ports.files import StorageUsage
from octaskly.ports.gateway import Health, MeshStats, ReplicationState
from octaskly.rest import mesh as rest

_MIB = 1 << 20


def nodes(
    members: Sequence[RosterEntry],
    seen_ms: Callable[[NodeId], int | None],
    joined_ms: Mapping[NodeId, int],
    state: ReplicationState,
    names: Mapping[NodeId, str],
) -> rest.NodePage:
    """Return the nodes of the mesh, and its replication state."""
    return rest.NodePage(
        nodes=[node(m, seen_ms(m.id), joined_ms.get(m.id)) for m in members],
        total=len(members),
        **_safety(state, names),
    )


def storage(
    name: str, usage: StorageUsage, uptime_s: float, offset: int, limit: int
) -> rest.Storage:
    """Return what takes up space on a node, with a page of the items."""
    items = [
        rest.StoredItem(
            kind=item.kind,
            bytes=item.size_bytes,
            files=item.file_count,
            sha256=item.sha256,
            task=item.task and task_name(TaskId(item.task)),
            kept_until=timestamp(int(item.kept_until_s * 1000)),
        )
        for item in usage.items[offset : offset + limit]
    ]
    return rest.Storage(
        name=name,
        files_bytes=usage.files_bytes,
        files_quota_bytes=usage.files_quota_bytes,
        outputs_bytes=usage.outputs_bytes,
        logs_bytes=usage.logs_bytes,
        output_quota_bytes=usage.output_quota_bytes,
        free_bytes=usage.free_bytes,
        disk_bytes=usage.disk_bytes,
        uptime_seconds=int(uptime_s),
        items=items,
        total=len(usage.items),
        returned=len(items),
        limit=limit,
        offset=offset,
    )


def _safety(state: ReplicationState, names: Mapping[NodeId, str]) -> dict[str, Any]:
    """Return the dispatcher's epoch, the standbys and the last failover."""
    epoch, failover = state.epoch, state.last_takeover
    return {
        "term": epoch.term,
        "epoch": rest.Epoch(term=epoch.term, node=epoch.node),
        "replicas": state.replicas,
        "standbys": [
            rest.Standby(
                name=names.get(standby.node, standby.node),
                id=standby.node,
                state="level" if standby.is_in_sync else "joining",
                lag=standby.lag,
            )
            for standby in state.standbys
        ],
        "last_failover": failover
        and rest.Failover(
            at=at(failover.at_ms),
            duration_ms=failover.duration_ms,
            reason=failover.reason,
        ),
    }


def node(
    member: RosterEntry, seen_ms: int | None, joined_ms: int | None
) -> rest.NodeInfo:
    """Return one member."""
    load = member.load
    return rest.NodeInfo(
        name=member.name,
        id=member.id,
        role=member.role,
        state=member.state,
        short_of=member.pressure,
        addresses=[host_and_port(*item) for item in member.addresses],
        lan_port=member.lan_port,
        slots=member.slots,
        running=member.running,
        load=rest.Load(
            cpu_percent=load.cpu_percent,
            load1=load.load1,
            memory_used_mb=load.memory_used_mb,
            process_mb=load.process_mb,
            stalled_percent=load.stalled_percent,
            disk_free_mb=load.disk_free_mb,
        ),
        memory_mb=member.memory_mb,
        labels=dict(member.labels),
        os=member.os or None,
        arch=member.arch or None,
        cpus=member.cpus or None,
        gpus=list(member.gpus),
        pythons=list(member.pythons),
        version=member.version,
        last_seen=at(seen_ms),
        joined_at=at(joined_ms),
        visitor=member.leaves_ms is not None,
        leaves_at=at(member.leaves_ms),
        invited_by=member.invited_by or None,
    )


def node_event(news: NodeEvent) -> rest.NodeEvent:
    """Return the state of a node for the event stream."""
    member = news.member
    return rest.NodeEvent(
        name=member.name,
        id=member.id,
        role=member.role,
        state="gone" if news.is_gone else member.state,
        slots=member.slots,
        version=member.version,
    )


def stats(numbers: MeshStats, names: Mapping[NodeId, str]) -> rest.Stats:
    """Return statistics of the mesh and of the dispatcher's machine."""
    counts = {state.value: numbers.counts.get(state, 0) for state in TaskState}
    return rest.Stats(
        workers=rest.Workers(
            total=numbers.workers_total,
            active=numbers.workers_active,
            idle=numbers.workers_idle,
        ),
        tasks=rest.Counts(**counts),
        last_hour=rest.LastHour(failed=numbers.failed_last_hour),
        system=rest.System(
            uptime_seconds=int(numbers.uptime_s),
            memory_usage_mb=numbers.memory_mb,
            cpu_usage_percent=round(numbers.cpu_percent, 1),
        ),
        database=rest.Database(
            total_tasks=sum(counts.values()),
            disk_size_mb=-(-numbers.disk_bytes // _MIB),
        ),
        mesh=rest.MeshDetail(
            **_safety(numbers.replication, names),
            reign_seconds=int(numbers.dispatching_s),
            refused=dict(numbers.refused_counts),
        ),
    )


def health(
    state: Health, version: str, build: str, now_ms: int
) -> rest.Healthy | rest.Unhealthy:
    """Return the health of this node.

    An unhealthy body has its text in `message` and `error`, as in the reference.
    """
    uptime_s = int(state.uptime_s)
    if state.is_healthy:
        warnings = list(state.warnings) or UNSET
        return rest.Healthy(
            version=version, build=build, uptime_seconds=uptime_s, warnings=warnings
        )
    message = state.message or "this node cannot serve"
    return rest.Unhealthy(
        version=version,
        uptime_seconds=uptime_s,
        message=message,
        error=message,
        timestamp=timestamp(now_ms),
    )
