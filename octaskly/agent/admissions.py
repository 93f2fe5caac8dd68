"""Lets machines in, and moves this node into another mesh: the `JoinService` port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from octaskly.config.agent import AgentConfig
from octaskly.config.value_types import HostAndPort, InvalidValue, ListOf
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.tasks import TaskState
from octaskly.errors import ConfigError, MeshNotEmpty, OnlyCopy, TrustError
from octaskly.joining import state_folder
from octaskly.joining.invites import InviteServer
from octaskly.joining.join_requests import WaitingMachines
from octaskly.joining.state_folder import replace_mesh_secret
from octaskly.ports import (
    Clock,
    DurableStore,
    Gateway,
    IssuedInvite,
    JoinStatus,
    Principal,
    WaitingMachine,
)
from octaskly.system.listeners import WILDCARD_ADDRESSES
from octaskly.system.log import Logger
from octaskly.trust import MeshSecret, NodeKey, SecretFile
from octaskly.trust.mesh_secret import parse_secret

UNFINISHED: Final = (TaskState.QUEUED, TaskState.RUNNING)


@dataclass(frozen=True, slots=True)
class MeshChangeCallbacks:
    """Who is told that this node shall be in another mesh, or in none."""

    on_mesh_joined: Callable[[tuple[tuple[str, int], ...]], None]
    """The secret of another mesh is in place; this is where its members may be."""
    on_mesh_left: Callable[[], None]  #: it shall stop, and forget this mesh


class AgentJoinService:
    """Of a member, or of a node that is in no mesh yet.

    Args:
        config: The settings.
        name: Of this node in the mesh.
        key: Of this node.
        gateway: Who else is in it.
        store: Its log.
        invites: Of a member.
        waiting: At a member, who wants in.
        moves: Told that this node shall be in another mesh, or in none.
        log: Where events go.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        name: str,
        key: NodeKey,
        gateway: Gateway,
        store: DurableStore,
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
        """Allow invites; the group owns their listener."""
        assert self._invites is not None, "only members invite"
        self._invites.start(tasks)

    async def close(self) -> None:
        """Burn all invites."""
        if self._invites is not None:
            await self._invites.close()
        if self._waiting_machines is not None:
            self._waiting_machines.close()

    async def join_status(self) -> JoinStatus:
        """Return where this node stands."""
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

    async def open_invite(self, ttl_s: int, *, principal: Principal) -> IssuedInvite:
        """Open an invite."""
        del principal
        assert self._invites is not None, "the gate keeps others out"
        return await self._invites.open_invite(ttl_s)

    async def list_join_requests(self) -> Sequence[WaitingMachine]:
        """Look for machines that want in, and return those that wait."""
        assert self._waiting_machines is not None, "the gate keeps others out"
        return await self._waiting_machines.discover_machines()

    async def approve_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Let a machine in that waits, is called so and shows these words."""
        del principal
        assert self._waiting_machines is not None, "the gate keeps others out"
        return await self._waiting_machines.approve_join(name, words)

    async def refuse_join(
        self, name: str, words: str, *, principal: Principal
    ) -> WaitingMachine:
        """Send a machine away that waits, is called so and shows these words."""
        del principal
        assert self._waiting_machines is not None, "the gate keeps others out"
        return await self._waiting_machines.refuse_join(name, words)

    async def join_mesh(
        self,
        secret_text: str,
        seeds: Sequence[str],
        *,
        force: bool,
        principal: Principal,
    ) -> None:
        """Become a member of another mesh, and leave this one."""
        secret, dialled = _parse_secret(secret_text), _parse_seeds(seeds)
        own = await self.join_status()
        if own.node_id in secret.revoked:
            raise ConfigError(
                "this node was revoked: with its id it cannot come back",
                hint="octaskly leave    gives it a new one; then join again",
            )
        if secret.mesh_id == own.mesh:
            await self._adopt_renewed_secret(secret)
            self._mesh_changes.on_mesh_joined(dialled)
            return
        if not force and (own.members or own.tasks):
            raise MeshNotEmpty(
                f"{own.tasks} tasks and {len(own.members)} other nodes "
                "would be left behind",
                hint="force says that this is wanted",
            )
        paths = self._config.paths
        has_one = own.mesh is not None
        # What is on disk counts: it may have been renewed since the start.
        old = SecretFile(paths.secret, paths.state).load() if has_one else None
        replace_mesh_secret(paths, secret, old)
        self._log.info(
            "joining another mesh",
            mesh=secret.mesh_id,
            left=own.mesh,
            subject=principal.subject,
        )
        self._mesh_changes.on_mesh_joined(dialled)

    async def leave_mesh(self, *, force: bool, principal: Principal) -> None:
        """Leave this mesh for good; the node stops, and forgets it."""
        lost = await self._data_loss_reason()
        if lost and not force:
            raise OnlyCopy(f"{self._name} may have the only copy of tasks: {lost}")
        await asyncio.to_thread(state_folder.mark_leaving, self._config.paths)
        self._log.warning(
            "leaving the mesh",
            mesh=self._gateway.mesh_id,
            subject=principal.subject,
            lost=lost,
        )
        self._mesh_changes.on_mesh_left()

    async def _data_loss_reason(self) -> str | None:
        """Return why tasks may be lost with this node, None if none can be."""
        counts = (await self._store.read_stats()).counts
        dispatcher = self._gateway.dispatcher()
        if not sum(counts.values()):
            return None
        if dispatcher is None:
            return "there is no dispatcher, so nobody knows what others have"
        unfinished = sum(counts.get(state, 0) for state in UNFINISHED)
        if not unfinished or not dispatcher.is_self:
            return None
        mesh = self._gateway.replication_state()
        if mesh.replicas == 1:
            return f"{unfinished} wait or run, and no standby keeps copies"
        if mesh.has_rows_ahead:
            return f"{unfinished} wait or run, and standbys lack some of them yet"
        return None

    async def _adopt_renewed_secret(self, secret: MeshSecret) -> None:
        """Take a renewed secret of this node's own mesh, which it missed."""
        keyring = SecretFile(self._config.paths.secret, self._config.paths.state)
        before = keyring.load()
        if secret.keys.rank <= before.keys.rank:
            raise ConfigError(f"this node is in the mesh {secret.mesh_id} already")
        try:
            await asyncio.to_thread(
                keyring.update_secret, lambda kept: kept.merged_with(secret)
            )
        except TrustError as error:
            raise ConfigError(str(error), hint=error.hint) from error
        self._log.info("renewed mesh secret adopted", generation=secret.generation)


def build_member_join_service(
    config: AgentConfig,
    secret: MeshSecret,
    key: NodeKey,
    *,
    node: NodeInfo,
    gateway: Gateway,
    store: DurableStore,
    clock: Clock,
    log: Logger,
    mesh_changes: MeshChangeCallbacks,
) -> AgentJoinService:
    """Return the admissions of a member, with its invites."""
    interfaces = config.options.interfaces

    def keyring() -> str:
        # What is on disk counts: the secret may have been renewed since the start.
        return SecretFile(config.paths.secret, config.paths.state).load().to_text()

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


def _parse_secret(secret_text: str) -> MeshSecret:
    try:
        return parse_secret(secret_text)
    except TrustError as error:
        raise ConfigError(f"the keyring is none: {error}", field="keyring") from None


def _parse_seeds(texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    try:
        seeds: tuple[tuple[str, int], ...] = ListOf(HostAndPort()).parse_flag(
            tuple(texts)
        )
    except InvalidValue as error:
        raise ConfigError(str(error), field="seeds") from None
    return seeds
