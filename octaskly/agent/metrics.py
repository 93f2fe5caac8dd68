"""Gathers what this node reports of itself, at each scrape; nothing is kept for it.

What happens often is counted where it happens, in plain numbers. The library that
writes the answer is loaded with the first scrape: most nodes are never asked.
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
from octaskly.ports import StoreStats
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


class Metrics:
    """The report of one node."""

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
        """Report of the API, which reports itself through this."""
        self._api = api

    async def report(self) -> bytes:
        """Return the answer to one scrape."""
        expose = await asyncio.to_thread(_exposition)
        values = {
            **self._mesh(),
            **self._runner(),
            **self._machine(),
            **self._traffic(),
        }
        try:
            stored = await self._store.stats()
        except StoreError:
            return expose(values)  # That it cannot be read must not hide the rest.
        return expose({**values, **self._log(stored), **self._reign(stored)})

    def _mesh(self) -> Values:
        view, now_s = self._view, self._clock.now().mono_s
        values: Values = {
            "octaskly_build_info": [((__version__,), 1)],
            "octaskly_mesh_role": [((r.value,), r is view.role) for r in Role],
            "octaskly_mesh_term": view.epoch.term,
            "octaskly_mesh_dispatcher_known": view.dispatcher() is not None,
            "octaskly_mesh_peers": max(0, len(view.live) - 1),
            "octaskly_mesh_links": self._links(),
            "octaskly_mesh_failovers_total": view.failovers,
            "octaskly_mesh_refused_messages_total": [
                ((code,), count)
                for code, count in view.refused(self._node.refused_counts).items()
            ],
        }
        known = self._node.dispatcher
        heard_s = None if known is None else self._node.last_heard_s(known)
        if heard_s is not None and known != self._info.id:
            age_s = max(0, now_s - heard_s)
            return {**values, "octaskly_mesh_heartbeat_age_seconds": age_s}
        return values

    def _reign(self, stored: StoreStats) -> Values:
        """Return what only the dispatcher knows."""
        view, now = self._view, self._clock.now()
        since = view.reigns_since
        if since is None:
            return {}
        state, members = self._gateway.mesh(), view.roster
        states = [m.state for m in members.members] if members else []
        age_ms = 0 if stored.oldest_ms is None else now.wall_ms - stored.oldest_ms
        values: Values = {
            "octaskly_mesh_nodes": [((s.value,), states.count(s)) for s in NodeState],
            "octaskly_mesh_reign_start_time_seconds": since.wall_ms / 1000,
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
        if state.failover is not None:
            took_s = state.failover.duration_ms / 1000
            return {**values, "octaskly_mesh_failover_seconds": took_s}
        return values

    def _runner(self) -> Values:
        counts = self._pool.counts.complete()
        running, waiting, launchers = self._pool.usage()
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
            "octaskly_runner_launcher_deaths_total": counts.launcher_deaths,
            "octaskly_runner_kills_total": [
                ((reason,), counts.ended[end]) for reason, end in _KILLS.items()
            ],
        }

    def _machine(self) -> Values:
        load = self._gateway.load()
        return {
            "octaskly_node_cpu_usage_ratio": load.cpu_percent / 100,
            "octaskly_node_memory_bytes": self._info.memory_mb * _MIB,
            "octaskly_node_memory_used_bytes": load.memory_used_mb * _MIB,
            "octaskly_node_memory_stalled_ratio": load.stalled_percent / 100,
        }

    def _log(self, stored: StoreStats) -> Values:
        assert stored.commit_s is not None
        return {
            "octaskly_store_commit_seconds": stored.commit_s,
            "octaskly_store_committed_entries_total": stored.committed,
            "octaskly_store_backlog_entries": stored.backlog,
            "octaskly_store_log_entries": stored.log_entries,
            "octaskly_store_bytes": stored.disk_bytes,
            "octaskly_store_disk_free_bytes": stored.free_bytes,
            "octaskly_store_writable": self._store.is_room(),
        }

    def _traffic(self) -> Values:
        api = self._api
        assert api is not None
        return {
            "octaskly_api_requests_total": [
                ((*_split(action), f"{hundreds}xx"), count)
                for (action, hundreds), count in api.traffic.answered.items()
            ],
            "octaskly_api_request_seconds": [
                (_split(action), tally) for action, tally in api.traffic.took_s.items()
            ],
            "octaskly_api_connections": api.connections,
            "octaskly_api_streams": api.streams.open,
            "octaskly_api_rate_limited_total": api.meter.refused,
        }


def _split(action: str) -> tuple[str, str]:
    method, _, route = action.partition(" ")
    return method, route


def _exposition() -> Callable[[Values], bytes]:
    """Return what writes the answer; takes 50 ms the first time, so in a thread."""
    from octaskly.metrics.exposition import expose  # noqa: PLC0415

    return expose
