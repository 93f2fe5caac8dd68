"""The `JoinService` port: admits machines, and moves this node to another mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from octaskly.config.agent import AgentConfig
from octaskly.config.paths import Paths
from octaskly.config.value_types import HostAndPort, InvalidValue, ListOf
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.tasks import TaskState
from octaskly.errors import ConfigError, MeshNotEmpty, OnlyCopy, TrustError
from octaskly.joining import change_mesh
from octaskly.joining.change_mesh import replace_mesh_secret
from octaskly.joining.invites import InviteServer
from octaskly.joining.join_requests import WaitingMachines
from octaskly.ports.gateway import Gateway
from octaskly.ports.join_service import (
    IssuedInvite,
    JoinStatus,
    VisitorInvite,
    WaitingMachine,
)
from octaskly.ports.store import Clock
from octaskly.ports.tokens import Principal
from octaskly.store import Store
from octaskly.system.listening_sockets import WILDCARD_ADDRESSES
from octaskly.system.log import Logger
from octaskly.trust import MeshSecret, MeshTls, NodeKey, SecretFile
from octaskly.trust.mesh_secret import parse_secret

UNFINISHED: Final = (TaskState.QUEUED, TaskState.RUNNING)


@dataclass(frozen=True, slots=True)
class MeshChangeCallbacks:
    """Callbacks that run when this node joins another mesh or leaves its mesh."""

    on_mesh_joined: Callable[[tuple[tuple[str, int], ...]], None]
    """Called with addresses of members, after the new mesh's secret was stored."""
    on_mesh_left: Callable[[], None]  #: stops the node and deletes its mesh state


class AgentJoinService:
    """The join service of a member, or of a node that is in no mesh yet.

    Args:
        config: The settings.
        name: The name of this node in the mesh.
        key: The key of this node.
        gateway: Knows the members of the mesh.
        store: The log of this node.
        invites: Serves invites; None on a node without a mesh.
        waiting_machines: Finds machines that ask to join; None without a mesh.
        mesh_changes: Called when this node joins another mesh or leaves its mesh.
        log: Receives log events.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        name: str,
        key: NodeKey,
        gateway: Gateway,
        store: Store,
        invites: InviteServer | None,
        waiting_machines: WaitingMachines | None,
        mesh_changes: MeshChangeCallbacks,
        log: Logger,
    ) -> None:
        self._config = config
        self._name = name
        self._key = key
        self._gateway = gateway
        self._store = store
        self._invites = invites
        self._waiting_machines = waiting_machines
        self._mesh_changes = mesh_changes
        self._log = log

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start to accept invites; the task group owns their listener."""
        assert self._invites is not None, "only a member of a mesh can invite"
        self._invites.start(tasks)

    async def close(self) -> None:
        """Revoke all open invites and stop looking for machines."""
        if self._invites is not None:
            await self._invites.close()
        if self._waiting_machines is not None:
            self._waiting_machines.close()

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Use these addresses of this machine for invites from now on."""
        if self._invites is not None:
            self._invites.set_addresses(addresses)

    async def join_status(self) -> JoinStatus:
        """Return the mesh, the members and the task count that this node knows."""
        roster = self._gateway.roster()
        own = self._gateway.node_id
        return JoinStatus(
            name=self._name,
            node_id=own,
            node_key=self._key.public_bytes(),
            mesh=self._gateway.mesh_id,
            interfaces=self._config.options.interfaces,
            members=tuple(
                member.name
                for member in (roster.members if roster else ())
                if member.id != own
            ),
            tasks=sum((await self._store.read_stats()).counts.values()),
        )

    async def open_invite(
        self, ttl_s: int, visitor_stay_s: int | None = None, *, principal: Principal
    ) -> IssuedInvite:
        """Open an invite."""
        assert self._invites is not None, "the API refuses this without a mesh"
        return await self._invites.open_invite(
            ttl_s, visitor_stay_s, invited_by=principal.subject
        )

    def list_visitor_invites(self) -> Sequence[VisitorInvite]:
        """Return the latest invites for visitors, oldest first."""
        return () if self._invites is None else self._invites.list_visitor_invites()

    def revoke_invite(self, slot: int) -> None:
        """End an open invite for a visitor."""
        if self._invites is not None:
            self._invites.revoke_invite(slot)

    async def list_join_requests(self) -> Sequence[WaitingMachine]:
        """Look for machines that ask to join, and return them."""
        assert self._waiting_machines is not None, "the API refuses this without a mesh"
        return await self._waiting_machines.discover_machines()

    async def approve_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Admit the waiting machine that has this name and shows these words."""
        del principal
        assert self._waiting_machines is not None, "the API refuses this without a mesh"
        return await self._waiting_machines.approve_join(name, words)

    async def refuse_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Refuse the waiting machine that has this name and shows these words."""
        del principal
        assert self._waiting_machines is not None, "the API refuses this without a mesh"
        return await self._waiting_machines.refuse_join(name, words)

    async def join_mesh(
        self,
        secret_text: str,
        seeds: Sequence[str],
        *,
        force: bool,
        principal: Principal,
    ) -> None:
        """Join another mesh and leave this one."""
        secret, dialled = _parse_secret(secret_text), _parse_seeds(seeds)
        own = await self.join_status()
        if own.node_id in secret.revoked:
            raise ConfigError(
                "this node was revoked and cannot join with the same node id",
                hint="octaskly leave    creates a new id; then join again",
            )
        if secret.mesh_id == own.mesh:
            await self._adopt_renewed_secret(secret)
            self._mesh_changes.on_mesh_joined(dialled)
            return
        if not force and (own.members or own.tasks):
            raise MeshNotEmpty(
                f"{own.tasks} tasks and {len(own.members)} other nodes would be "
                "abandoned",
                hint="set `force` to join nevertheless",
            )
        paths = self._config.paths
        has_one = own.mesh is not None
        # Read the file again: the secret may have been renewed since the start.
        old = SecretFile(paths.secret, paths.state).load() if has_one else None
        replace_mesh_secret(paths, secret, old)
        self._log.info(
            "joining a mesh",
            mesh=secret.mesh_id,
            left=own.mesh,
            subject=principal.subject,
        )
        self._mesh_changes.on_mesh_joined(dialled)

    async def leave_mesh(self, *, force: bool, principal: Principal) -> None:
        """Leave this mesh for good: stop the node and delete its mesh state."""
        lost = await self._data_loss_reason()
        if lost and not force:
            raise OnlyCopy(f"{self._name} may have the only copy of tasks: {lost}")
        await asyncio.to_thread(change_mesh.mark_leaving, self._config.paths)
        self._log.warning(
            "leaving the mesh",
            mesh=self._gateway.mesh_id,
            subject=principal.subject,
            lost=lost,
        )
        self._mesh_changes.on_mesh_left()

    async def _data_loss_reason(self) -> str | None:
        """Return why tasks may be lost if this node leaves; None: no task can be."""
        counts = (await self._store.read_stats()).counts
        dispatcher = self._gateway.dispatcher()
        if not sum(counts.values()):
            return None
        if dispatcher is None:
            return (
                "there is no dispatcher, so it is unknown which copies other nodes have"
            )
        unfinished = sum(counts.get(state, 0) for state in UNFINISHED)
        if not unfinished or not dispatcher.is_self:
            return None
        mesh = self._gateway.replication_state()
        if mesh.replicas == 1:
            return f"{unfinished} wait or run, and no standby keeps copies"
        if mesh.is_merging:
            return f"{unfinished} wait or run, and standbys lack some of them yet"
        return None

    async def _adopt_renewed_secret(self, secret: MeshSecret) -> None:
        """Store a renewed secret of this node's own mesh if it is newer."""
        keyring = SecretFile(self._config.paths.secret, self._config.paths.state)
        before = keyring.load()
        if secret.keys.rank <= before.keys.rank:
            raise ConfigError(f"this node is already in the mesh {secret.mesh_id}")
        try:
            await asyncio.to_thread(
                keyring.update_secret, lambda kept: kept.merged_with(secret)
            )
        except TrustError as error:
            raise ConfigError(error.message, hint=error.hint) from error
        self._log.info("renewed mesh secret adopted", generation=secret.generation)


def build_member_join_service(
    config: AgentConfig,
    secret: MeshSecret,
    key: NodeKey,
    trust: MeshTls,
    *,
    node: NodeInfo,
    gateway: Gateway,
    store: Store,
    clock: Clock,
    log: Logger,
    mesh_changes: MeshChangeCallbacks,
) -> AgentJoinService:
    """Return the join service of a member."""
    interfaces = config.options.interfaces
    keyring = partial(_read_keyring, config.paths)
    return AgentJoinService(
        config=config,
        name=node.name,
        key=key,
        gateway=gateway,
        store=store,
        invites=InviteServer(
            node=node,
            node_key=key.public_bytes(),
            mesh_id=secret.mesh_id,
            secret_text=keyring,
            grant_visit=partial(_grant_visit, trust, clock),
            addresses=node.addresses if interfaces else WILDCARD_ADDRESSES,
            interfaces=interfaces,
            clock=clock,
            log=log,
        ),
        waiting_machines=WaitingMachines(
            node=node,
            node_key=key.public_bytes(),
            secret_text=keyring,
            interfaces=interfaces,
            clock=clock,
            log=log,
        ),
        mesh_changes=mesh_changes,
        log=log,
    )


def _read_keyring(paths: Paths) -> str:
    # Read the file again: the secret may have been renewed since the start.
    return SecretFile(paths.secret, paths.state).load().to_text()


def _grant_visit(
    trust: MeshTls, clock: Clock, visitor_key: bytes, stay_s: int, invited_by: str
) -> str:
    now_ms = clock.now().wall_ms
    return trust.grant_visit(visitor_key, now_ms, stay_s, invited_by).to_text()


def _parse_secret(secret_text: str) -> MeshSecret:
    try:
        return parse_secret(secret_text)
    except TrustError as error:
        raise ConfigError(
            f"this is not a mesh secret: {error.message}", field="keyring"
        ) from None


def _parse_seeds(texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    try:
        seeds: tuple[tuple[str, int], ...] = ListOf(HostAndPort()).parse_flag(
            tuple(texts)
        )
    except InvalidValue as error:
        raise ConfigError(str(error), field="seeds") from None
    return seeds
