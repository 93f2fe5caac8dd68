"""Lets machines in, and moves this node into another mesh: the `Admissions` port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from octaskly.config.agent import AgentConfig
from octaskly.config.value_types import Many, Peer, Unusable
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.tasks import TaskState
from octaskly.errors import ConfigError, OnlyCopy, TrustError, WouldLeave
from octaskly.joining import state_folder
from octaskly.joining.invites import Invites
from octaskly.joining.join_requests import Requests
from octaskly.joining.state_folder import take_over
from octaskly.ports import (
    Clock,
    Gateway,
    Invite,
    Log,
    Membership,
    Principal,
    Request,
)
from octaskly.system.listeners import EVERYWHERE
from octaskly.system.log import Logger
from octaskly.trust import Keyring, MeshSecret, NodeKey
from octaskly.trust.mesh_secret import parse

UNFINISHED: Final = (TaskState.QUEUED, TaskState.RUNNING)


@dataclass(frozen=True, slots=True)
class Moves:
    """Who is told that this node shall be in another mesh, or in none."""

    entered: Callable[[tuple[tuple[str, int], ...]], None]
    """The secret of another mesh is in place; this is where its members may be."""
    left: Callable[[], None]  #: it shall stop, and forget this mesh


class AgentAdmissions:
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
        store: Log,
        invites: Invites | None,
        waiting: Requests | None,
        moves: Moves,
        log: Logger,
    ) -> None:
        self._config = config
        self._name = name
        self._key = key
        self._gateway = gateway
        self._store = store
        self._invites = invites
        self._waiting = waiting
        self._moves = moves
        self._log = log

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Allow invites; the group owns their listener."""
        assert self._invites is not None, "only members invite"
        self._invites.start(tasks)

    async def close(self) -> None:
        """Burn all invites."""
        if self._invites is not None:
            await self._invites.close()
        if self._waiting is not None:
            self._waiting.close()

    async def membership(self) -> Membership:
        """Return where this node stands."""
        roster = self._gateway.roster()
        own = self._gateway.node_id
        return Membership(
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
            tasks=sum((await self._store.stats()).counts.values()),
        )

    async def invite(self, ttl_s: int, *, principal: Principal) -> Invite:
        """Open an invite."""
        del principal
        assert self._invites is not None, "the gate keeps others out"
        return await self._invites.open(ttl_s)

    async def requests(self) -> Sequence[Request]:
        """Look for machines that want in, and return those that wait."""
        assert self._waiting is not None, "the gate keeps others out"
        return await self._waiting.look()

    async def approve(self, name: str, words: str, *, principal: Principal) -> Request:
        """Let a machine in that waits, is called so and shows these words."""
        del principal
        assert self._waiting is not None, "the gate keeps others out"
        return await self._waiting.approve(name, words)

    async def refuse(self, name: str, words: str, *, principal: Principal) -> Request:
        """Send a machine away that waits, is called so and shows these words."""
        del principal
        assert self._waiting is not None, "the gate keeps others out"
        return await self._waiting.refuse(name, words)

    async def enter(
        self,
        keyring: str,
        seeds: Sequence[str],
        *,
        force: bool,
        principal: Principal,
    ) -> None:
        """Become a member of another mesh, and leave this one."""
        secret, dialled = _secret(keyring), _seeds(seeds)
        own = await self.membership()
        if own.node_id in secret.denied:
            raise ConfigError(
                "this node was revoked: with its id it cannot come back",
                hint="octaskly leave    gives it a new one; then join again",
            )
        if secret.mesh_id == own.mesh:
            await self._catch_up(secret)
            self._moves.entered(dialled)
            return
        if not force and (own.members or own.tasks):
            raise WouldLeave(
                f"{own.tasks} tasks and {len(own.members)} other nodes "
                "would be left behind",
                hint="force says that this is wanted",
            )
        paths = self._config.paths
        has_one = own.mesh is not None
        # What is on disk counts: it may have been renewed since the start.
        old = Keyring(paths.secret, paths.state).load() if has_one else None
        take_over(paths, secret, old)
        self._log.info(
            "entering a mesh",
            mesh=secret.mesh_id,
            left=own.mesh,
            subject=principal.subject,
        )
        self._moves.entered(dialled)

    async def leave(self, *, force: bool, principal: Principal) -> None:
        """Leave this mesh for good; the node stops, and forgets it."""
        lost = await self._only_here()
        if lost and not force:
            raise OnlyCopy(f"{self._name} may have the only copy of tasks: {lost}")
        await asyncio.to_thread(state_folder.begin, self._config.paths)
        self._log.warning(
            "leaving the mesh",
            mesh=self._gateway.mesh_id,
            subject=principal.subject,
            lost=lost,
        )
        self._moves.left()

    async def _only_here(self) -> str | None:
        """Return why tasks may be lost with this node, None if none can be."""
        counts = (await self._store.stats()).counts
        dispatcher = self._gateway.dispatcher()
        if not sum(counts.values()):
            return None
        if dispatcher is None:
            return "there is no dispatcher, so nobody knows what others have"
        unfinished = sum(counts.get(state, 0) for state in UNFINISHED)
        if not unfinished or not dispatcher.is_self:
            return None
        mesh = self._gateway.mesh()
        if mesh.replicas == 1:
            return f"{unfinished} wait or run, and no standby keeps copies"
        if mesh.is_ahead:
            return f"{unfinished} wait or run, and standbys lack some of them yet"
        return None

    async def _catch_up(self, secret: MeshSecret) -> None:
        """Take a renewed secret of this node's own mesh, which it missed."""
        keyring = Keyring(self._config.paths.secret, self._config.paths.state)
        before = keyring.load()
        if secret.keys.rank <= before.keys.rank:
            raise ConfigError(f"this node is in the mesh {secret.mesh_id} already")
        try:
            await asyncio.to_thread(keyring.change, lambda kept: kept.joined(secret))
        except TrustError as error:
            raise ConfigError(str(error), hint=error.hint) from error
        self._log.info("came back to the mesh", generation=secret.generation)


def admissions_of_member(
    config: AgentConfig,
    secret: MeshSecret,
    key: NodeKey,
    *,
    node: NodeInfo,
    gateway: Gateway,
    store: Log,
    clock: Clock,
    log: Logger,
    moves: Moves,
) -> AgentAdmissions:
    """Return the admissions of a member, with its invites."""
    interfaces = config.options.interfaces

    def keyring() -> str:
        # What is on disk counts: the secret may have been renewed since the start.
        return Keyring(config.paths.secret, config.paths.state).load().lines()

    return AgentAdmissions(
        config=config,
        name=node.name,
        key=key,
        gateway=gateway,
        store=store,
        invites=Invites(
            node=node,
            node_key=key.public_bytes(),
            mesh_id=secret.mesh_id,
            keyring=keyring,
            addresses=node.addresses if interfaces else EVERYWHERE,
            interfaces=interfaces,
            clock=clock,
            log=log,
        ),
        waiting=Requests(
            node=node,
            node_key=key.public_bytes(),
            keyring=keyring,
            interfaces=interfaces,
            clock=clock,
            log=log,
        ),
        moves=moves,
        log=log,
    )


def _secret(keyring: str) -> MeshSecret:
    try:
        return parse(keyring)
    except TrustError as error:
        raise ConfigError(f"the keyring is none: {error}", field="keyring") from None


def _seeds(texts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    try:
        seeds: tuple[tuple[str, int], ...] = Many(Peer()).of_flag(tuple(texts))
    except Unusable as error:
        raise ConfigError(str(error), field="seeds") from None
    return seeds
