"""An unpaired node: it has discovered a mesh, but has no secret to join it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import NoReturn

from octaskly import __version__
from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.agent.gateway.submissions import QueueLimits
from octaskly.agent.gateway.task_lookup import LocalFiles
from octaskly.agent.health import HealthChecks
from octaskly.agent.join_service import AgentJoinService, MeshChangeCallbacks
from octaskly.agent.node_setup import describe_agent, write_description
from octaskly.api import ApiServer, HttpTimeouts
from octaskly.config.agent import AgentConfig
from octaskly.config.defaults import PEER_PORT, SOCKET_GROUP
from octaskly.core.events import SavedState
from octaskly.core.model.nodes import NO_LOAD, NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.node.node import Node
from octaskly.errors import TrustError
from octaskly.mesh.discovery.discovery import Discovery
from octaskly.mesh.wire import WirePacker
from octaskly.ports.tokens import Principal
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import LoopbackPort
from octaskly.system.log import Logger, log_line
from octaskly.trust import NodeKey


@contextlib.asynccontextmanager
async def serve_unpaired(
    config: AgentConfig,
    loopback_port: LoopbackPort,
    clock: SystemClock,
    log: Logger,
    mesh_changes: MeshChangeCallbacks,
) -> AsyncIterator[None]:
    """Serve `/health`, `join` and `leave` while the block runs.

    Other requests get a 503 that says how to join. `mesh_changes` is called after a
    join or a leave.

    Raises:
        ConfigError: the state folder or the database cannot be used.
    """
    store = Store(config.paths.database, WirePacker(), lambda _: None, clock)
    store.open()
    try:
        async with (
            asyncio.TaskGroup() as tasks,
            _serve_local_api(
                config, loopback_port, store, clock, log, mesh_changes
            ) as node,
        ):
            discovery = Discovery(
                node=node,
                mesh_id=None,
                clock=clock,
                on_event=lambda _: None,
                on_note=partial(log_line, log),
                interfaces=config.options.interfaces,
            )
            await discovery.start(tasks)
            try:
                yield
            finally:
                await discovery.close()
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _serve_local_api(
    config: AgentConfig,
    loopback_port: LoopbackPort,
    store: Store,
    clock: SystemClock,
    log: Logger,
    mesh_changes: MeshChangeCallbacks,
) -> AsyncIterator[NodeInfo]:
    """Serve the API on loopback and the local socket; refuse every token."""
    key = NodeKey.load_or_create(config.paths.state)
    node = _node_info(config, key, clock)
    gateway = _build_gateway(node, store, clock, loopback_port.warnings)
    admissions = AgentJoinService(
        config=config,
        name=node.name,
        key=key,
        gateway=gateway,
        store=store,
        invites=None,
        waiting_machines=None,
        mesh_changes=mesh_changes,
        log=log,
    )
    described = describe_agent(config, node, mesh=None, loopback_port=loopback_port)
    api = ApiServer(
        gateway,
        verify_token=_refuse_token,
        node_name=node.name,
        clock=clock,
        identify_peer=lambda _: None,
        limits=config.options,
        timeouts=HttpTimeouts.from_options(config.options),
        admissions=admissions,
        describe_agent=lambda: described,
    )
    await api.serve_loopback(loopback_port.listeners())
    await api.serve_unix(config.paths.socket_path(node.name), group=SOCKET_GROUP)
    write_description(config, described)
    try:
        yield node
    finally:
        config.paths.description.unlink(missing_ok=True)
        await api.close()


def _node_info(config: AgentConfig, key: NodeKey, clock: SystemClock) -> NodeInfo:
    return NodeInfo(
        id=key.node_id,
        boot=clock.hex_digits(16),
        name=config.name,
        slots=config.slots,
        version=__version__,
        peer_port=config.options.peer_port or PEER_PORT,
        lan_port=0,
    )


def _build_gateway(
    node: NodeInfo, store: Store, clock: SystemClock, warnings: tuple[str, ...]
) -> AgentGateway:
    return AgentGateway(
        node_id=node.id,
        mesh_id=None,
        node=Node(Settings(node=node), SavedState()),
        queue_limits=QueueLimits(),
        store=store,
        clock=clock,
        post=lambda _: None,
        files=LocalFiles(*[_refuse_call] * len(LocalFiles._fields)),
        stream_output=_refuse_call,
        last_load=lambda: NO_LOAD,
        health_checks=HealthChecks(
            write_failure=lambda: store.write_failure,
            has_disk_room=store.has_disk_room,
            warnings=warnings,
        ),
        signer=None,
        names={},
    )


def _refuse_token(_token: str) -> Principal:
    raise TrustError("this node is in no mesh")


def _refuse_call(*_: object) -> NoReturn:
    raise TrustError("this node is in no mesh")
