"""The metrics of this node, collected at each scrape.

Frequent events are counted in plain numbers where they happen. The exposition library
is loaded by the first scrape, because most nodes are never scraped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octaskly import __version__
from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.api import ApiServer
from octaskly.core.model.nodes import NodeInfo, NodeState, Role
from octaskly.core.model.tasks import AttemptState, EndReason, TaskState
from octaskly.core.node.node import Node
from octaskly.errors import StoreError
from octaskly.metrics.table import Values
from octaskly.ports.store import StoreStats
from octaskly.runner.pool.pool import Pool
from octaskly.store import Store
from octaskly.system.clock import SystemClock

_MIB = 1 << 20
_OUTCOMES = {AttemptState.OK: "completed"}
_KILLS = {
    "cancelled": (AttemptState.CANCELLED, EndReason.CANCELLED),
    "timeout": (AttemptState.FAILED, EndReason.TIMEOUT),
    "limit": (AttemptState.FAILED, EndReason.LIMIT),
}


class MetricsReport:
    """Collects the metrics of one node."""

    def __init__(
        self,
        node: Node,
        gateway: AgentGateway,
        *,
        store: Store,
        pool: Pool,
        links: Callable[[], int],
        clock: SystemClock,
        info: NodeInfo,
    ) -> None:
        self._node = node
        self._gateway = gateway
        self._view = gateway.view
        self._store = store
        self._pool = pool
        self._links = links
        self._clock = clock
        self._info = info
        self._api: ApiServer | None = None

    def connect(self, api: ApiServer) -> None:
        """Set the API, which serves these metrics and has metrics of its own."""
        self._api = api

    async def render_report(self) -> bytes:
        """Return the answer to one scrape."""
        expose = await asyncio.to_thread(_load_exposition)
        values = {
            **self._mesh_values(),
            **self._runner_values(),
            **self._machine_values(),
            **self._api_values(),
        }
        try:
            stored = await self._store.read_stats()
        except StoreError:
            return expose(values)  # Report the other metrics.
        return expose(
            {
                **values,
                **self._files_values(),
                **self._store_values(stored),
                **self._dispatcher_values(stored),
            }
        )

    def _mesh_values(self) -> Values:
        view, now_s = self._view, self._clock.now().mono_s
        values: Values = {
            "octaskly_build_info": [((__version__,), 1)],
            "octaskly_mesh_role": [((r.value,), r is view.role) for r in Role],
            "octaskly_mesh_term": view.epoch.term,
            "octaskly_mesh_dispatcher_known": view.dispatcher() is not None,
            "octaskly_mesh_peers": max(0, len(view.live_members) - 1),
            "octaskly_mesh_links": self._links(),
            "octaskly_mesh_failovers_total": view.takeovers,
            "octaskly_mesh_refused_messages_total": [
                ((code,), count)
                for code, count in view.refused_counts(
                    self._node.refused_counts
                ).items()
            ],
        }
        known = self._node.dispatcher
        heard_s = None if known is None else self._node.last_heard_s(known)
        if heard_s is not None and known != self._info.id:
            age_s = max(0, now_s - heard_s)
            return {**values, "octaskly_mesh_heartbeat_age_seconds": age_s}
        return values

    def _dispatcher_values(self, stored: StoreStats) -> Values:
        """Return the metrics that only a dispatcher has."""
        view, now = self._view, self._clock.now()
        since = view.dispatching_since
        if since is None:
            return {}
        state, members = self._gateway.replication_state(), view.roster
        states = [m.state for m in members.members] if members else []
        age_ms = 0 if stored.oldest_ms is None else now.wall_ms - stored.oldest_ms
        values: Values = {
            "octaskly_mesh_nodes": [((s.value,), states.count(s)) for s in NodeState],
            "octaskly_mesh_epoch_start_time_seconds": since.wall_ms / 1000,
            "octaskly_queue_tasks": [
                ((s.value,), stored.counts.get(s, 0)) for s in TaskState
            ],
            "octaskly_queue_oldest_age_seconds": max(0, age_ms) / 1000,
            "octaskly_task_ended_total": [
                ((s.value,), n)
                for s, n in self._node.ended_counts.items()
                if s.is_final
            ],
            "octaskly_store_replicas": state.replicas,
            "octaskly_store_standby_lag_entries": max(
                (standby.lag for standby in state.standbys), default=0
            ),
        }
        if state.last_takeover is not None:
            took_s = state.last_takeover.duration_ms / 1000
            return {**values, "octaskly_mesh_failover_seconds": took_s}
        return values

    def _runner_values(self) -> Values:
        counts = self._pool.attempt_stats.flush()
        running, waiting, launchers = self._pool.count_attempts()
        return {
            "octaskly_task_attempts_ended_total": [
                ((_OUTCOMES.get(state, state.name.lower()), reason.value), count)
                for (state, reason), count in counts.ended.items()
            ],
            "octaskly_task_run_seconds": counts.run_s,
            "octaskly_task_queue_seconds": counts.queue_s,
            "octaskly_runner_slots": self._info.slots,
            "octaskly_runner_running": running,
            "octaskly_runner_waiting": waiting,
            "octaskly_runner_launchers": launchers,
            "octaskly_runner_launcher_crashes_total": counts.launcher_crashes,
            "octaskly_runner_kills_total": [
                ((reason,), counts.ended[end]) for reason, end in _KILLS.items()
            ],
        }

    def _machine_values(self) -> Values:
        load = self._gateway.last_load()
        return {
            "octaskly_node_cpu_usage_ratio": load.cpu_percent / 100,
            "octaskly_node_memory_bytes": self._info.memory_mb * _MIB,
            "octaskly_node_memory_used_bytes": load.memory_used_mb * _MIB,
            "octaskly_node_memory_stalled_ratio": load.stalled_percent / 100,
        }

    def _files_values(self) -> Values:
        used = self._pool.recorder.store_usage()
        return {
            "octaskly_files_bytes": [((each.store,), each.used_bytes) for each in used],
            "octaskly_files_quota_bytes": [
                ((each.store,), each.quota_bytes) for each in used
            ],
        }

    def _store_values(self, stored: StoreStats) -> Values:
        assert stored.commit_s is not None
        return {
            "octaskly_store_commit_seconds": stored.commit_s,
            "octaskly_store_committed_entries_total": stored.committed_entries,
            "octaskly_store_backlog_entries": stored.queued_entries,
            "octaskly_store_log_entries": stored.log_entries,
            "octaskly_store_bytes": stored.disk_bytes,
            "octaskly_store_disk_free_bytes": stored.free_bytes,
            "octaskly_store_writable": self._store.has_disk_room(),
        }

    def _api_values(self) -> Values:
        api = self._api
        assert api is not None
        return {
            "octaskly_api_requests_total": [
                ((*_split_action(action), f"{hundreds}xx"), count)
                for (
                    action,
                    hundreds,
                ), count in api.request_metrics.response_counts.items()
            ],
            "octaskly_api_request_seconds": [
                (_split_action(action), tally)
                for action, tally in api.request_metrics.durations_s.items()
            ],
            "octaskly_api_connections": api.connection_count,
            "octaskly_api_streams": api.streams.count,
            "octaskly_api_rate_limited_total": api.rate_limiter.refused_count,
        }


def _split_action(action: str) -> tuple[str, str]:
    method, _, route = action.partition(" ")
    return method, route


def _load_exposition() -> Callable[[Values], bytes]:
    """Return the renderer. The first import takes 50 ms, so it runs in a thread."""
    from octaskly.metrics.exposition import render_metrics  # noqa: PLC0415

    return render_metrics
