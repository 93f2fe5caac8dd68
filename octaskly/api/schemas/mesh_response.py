"""The mesh, its nodes and its health as the JSON of the API reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from octaskly.api.schemas.task_response import Json, at
from octaskly.config.units import host_and_port
from octaskly.core.change_feed import NodeEvent
from octaskly.core.model.ids import NodeId
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import RosterEntry
from octaskly.ports import Health, MeshStats, ReplicationState

_MIB = 1 << 20


def nodes(
    members: Sequence[RosterEntry],
    seen_ms: Callable[[NodeId], int | None],
    joined_ms: Mapping[NodeId, int],
    state: ReplicationState,
    names: Mapping[NodeId, str],
) -> Json:
    """Return the members of the mesh, and how safe it is."""
    return {
        "nodes": [node(m, seen_ms(m.id), joined_ms.get(m.id)) for m in members],
        "total": len(members),
        **mesh(state, names),
    }


def mesh(state: ReplicationState, names: Mapping[NodeId, str]) -> Json:
    """Return who reigns, who keeps copies, and when another node did both last."""
    epoch, failover = state.epoch, state.last_takeover
    return {
        "term": epoch.term,
        "epoch": {"term": epoch.term, "node": epoch.node},
        "replicas": state.replicas,
        "standbys": [
            {
                "name": names.get(standby.node, standby.node),
                "id": standby.node,
                "state": "level" if standby.is_in_sync else "joining",
                "lag": standby.lag,
            }
            for standby in state.standbys
        ],
        "last_failover": failover
        and {
            "at": at(failover.at_ms),
            "duration_ms": failover.duration_ms,
            "reason": failover.reason,
        },
    }


def node(member: RosterEntry, seen_ms: int | None, joined_ms: int | None) -> Json:
    """Return one member."""
    load = member.load
    return {
        "name": member.name,
        "id": member.id,
        "role": member.role.value,
        "state": member.state.value,
        "short_of": member.pressure and member.pressure.value,
        "addresses": [host_and_port(*item) for item in member.addresses],
        "lan_port": member.lan_port,
        "slots": member.slots,
        "running": member.running,
        "load": {
            "cpu_percent": load.cpu_percent,
            "load1": load.load1,
            "memory_used_mb": load.memory_used_mb,
            "process_mb": load.process_mb,
            "stalled_percent": load.stalled_percent,
        },
        "memory_mb": member.memory_mb,
        "labels": dict(member.labels),
        "os": member.os or None,
        "arch": member.arch or None,
        "cpus": member.cpus or None,
        "gpus": list(member.gpus),
        "version": member.version,
        "last_seen": at(seen_ms),
        "joined_at": at(joined_ms),
    }


def node_news(news: NodeEvent) -> Json:
    """Return how a node is now."""
    member = news.member
    return {
        "name": member.name,
        "id": member.id,
        "role": member.role.value,
        "state": "gone" if news.is_gone else member.state.value,
        "slots": member.slots,
        "version": member.version,
    }


def stats(numbers: MeshStats, names: Mapping[NodeId, str]) -> Json:
    """Return counts of the mesh and the state of the dispatcher's machine."""
    counts = {state.value: numbers.counts.get(state, 0) for state in TaskState}
    return {
        "workers": {
            "total": numbers.workers_total,
            "active": numbers.workers_active,
            "idle": numbers.workers_idle,
        },
        "tasks": counts,
        "system": {
            "uptime_seconds": int(numbers.uptime_s),
            "memory_usage_mb": numbers.memory_mb,
            "cpu_usage_percent": round(numbers.cpu_percent, 1),
        },
        "database": {
            "total_tasks": sum(counts.values()),
            "disk_size_mb": -(-numbers.disk_bytes // _MIB),
        },
        "mesh": {
            **mesh(numbers.replication, names),
            "reign_seconds": int(numbers.dispatching_s),
            "refused": dict(numbers.refused_counts),
        },
    }


def health(state: Health, version: str, now_ms: int) -> Json:
    """Return whether this node can serve, in both wordings of the reference."""
    body: Json = {
        "status": "healthy" if state.is_healthy else "unhealthy",
        "version": version,
        "uptime_seconds": int(state.uptime_s),
    }
    if not state.is_healthy:
        message = state.message or "this node cannot serve"
        body |= {"message": message, "error": message, "timestamp": at(now_ms)}
    return body
