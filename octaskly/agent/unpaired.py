"""A node without a secret that sees a mesh: it serves `/health`, and how to join."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import NoReturn

from octaskly import __version__
from octaskly.agent.admissions import AgentAdmissions, Moves
from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.agent.gateway.health import Fitness
from octaskly.agent.startup import describe, write_description
from octaskly.api import ApiServer, Site
from octaskly.config.agent import AgentConfig
from octaskly.config.defaults import API_PORT, GROUP, LOOPBACK, PEER_PORT, QUEUE_MAX
from octaskly.core.events import SavedState
from octaskly.core.model.nodes import NO_LOAD, NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.node.node import Node
from octaskly.errors import TrustError
from octaskly.mesh.discovery.discovery import Discovery
from octaskly.mesh.wire import WirePacker
from octaskly.ports import Principal
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.system.listeners import bind, port_of
from octaskly.system.load import port_holder
from octaskly.system.log import Logger, write_note
from octaskly.trust import NodeKey


@contextlib.asynccontextmanager
async def unpaired(
    config: AgentConfig,
    meshes: frozenset[str],
    clock: SystemClock,
    log: Logger,
    moves: Moves,
) -> AsyncIterator[None]:
    """Serve `/health`, and 503 with the way in, for the length of the block.

    `octaskly join` and `octaskly leave` are served too; `moves` is told of them.

    Raises:
        ConfigError: the state folder, the database or the API port cannot be used.
    """
    store = Store(config.paths.database, WirePacker(), lambda _: None, clock)
    store.open()
    try:
        async with (
            asyncio.TaskGroup() as tasks,
            _serving(config, store, clock, log, moves) as node,
        ):
            discovery = Discovery(
                node=node,
                mesh_id=None,
                clock=clock,
                on_event=lambda _: None,
                on_note=partial(write_note, log),
                interfaces=config.options.interfaces,
            )
            await discovery.start(tasks)
            try:
                log.warning(
                    "unpaired",
                    meshes=", ".join(sorted(meshes)),
                    hint="`octaskly invite` on a member, then here "
                    "`octaskly join CODE`",
                )
                yield
            finally:
                await discovery.close()
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _serving(
    config: AgentConfig,
    store: Store,
    clock: SystemClock,
    log: Logger,
    moves: Moves,
) -> AsyncIterator[NodeInfo]:
    """Serve the API on loopback and the local socket; nothing but health is open."""
    key = NodeKey.load_or_create(config.paths.state)
    node = _node_info(config, key, clock)
    gateway = _gateway(node, store, clock)
    admissions = AgentAdmissions(
        config=config,
        name=node.name,
        key=key,
        gateway=gateway,
        store=store,
        invites=None,
        waiting=None,
        moves=moves,
        log=log,
    )
    sockets = bind(
        "--api-port",
        asked=config.options.api_port,
        default=API_PORT,
        addresses=LOOPBACK,
        holder=port_holder,
    )
    described = describe(config, node, mesh=None, api_port=port_of(sockets))
    api = ApiServer(
        gateway,
        verify=_nobody,
        node_name=node.name,
        clock=clock,
        peer_node_id=lambda _: None,
        admissions=admissions,
        describe=lambda: described,
    )
    await api.serve(Site.LOOPBACK, sockets)
    await api.start_unix(config.paths.socket_of(node.name), group=GROUP)
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


def _gateway(node: NodeInfo, store: Store, clock: SystemClock) -> AgentGateway:
    return AgentGateway(
        node_id=node.id,
        mesh_id=None,
        node=Node(Settings(node=node), SavedState()),
        queue_max=QUEUE_MAX,
        store=store,
        clock=clock,
        post=lambda _: None,
        captured=_nothing,
        pieces=_nothing,
        sample=lambda: NO_LOAD,
        fitness=Fitness(failure=lambda: store.failure, is_room=store.is_room),
        signer=None,
        names={},
    )


def _nobody(_token: str) -> Principal:
    raise TrustError("this node is in no mesh")


def _nothing(*_: object) -> NoReturn:
    raise TrustError("this node is in no mesh")
