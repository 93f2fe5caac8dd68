"""Keeps the mesh secret of a running agent: on disk, in use, and shared with peers.

What is done is decided by the core, which never sees a secret. A change is on disk
before it is in use, and in use before the core goes on from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from octaskly.agent.gateway.pending_requests import Tickets
from octaskly.core.events import Event
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.model.ids import NodeId
from octaskly.core.model.keys import (
    ChangeKeyring,
    KeyringChanged,
    KeyringStep,
    KeyringTransfer,
    MergeKeyring,
    RotateRequested,
    RotationNotStarted,
    RotationPhase,
    SendKeyring,
)
from octaskly.core.model.settings import URGENT_STEP_S, Timing
from octaskly.core.protocol.messages import Message
from octaskly.errors import OctasklyError, RotationRefused
from octaskly.ports import Clock, Principal, RotationView
from octaskly.system.log import Logger
from octaskly.trust import Keyring, MeshSecret
from octaskly.trust.mesh_secret import fresh, parse

Change = Callable[[MeshSecret], MeshSecret]
ANSWER_S = 10.0  #: a disk that takes longer does not keep a secret


class Keeper:
    """The one place of an agent that changes the secret.

    Args:
        keyring: Where it lies.
        secret: As it was loaded.
        me: This node.
        clock: For the times of its phases.
        timing: How long they take.
        log: Where events go.
    """

    def __init__(
        self,
        keyring: Keyring,
        secret: MeshSecret,
        me: NodeId,
        clock: Clock,
        timing: Timing,
        log: Logger,
    ) -> None:
        self.secret = secret  #: in use
        self.is_left_behind = False
        self._keyring = keyring
        self._me = me
        self._clock = clock
        self._timing = timing
        self._log = log
        self._turn = asyncio.Lock()
        self._is_copy_told = False

    def connect(
        self,
        *,
        rotation: KeyRotation,
        tickets: Tickets,
        post: Callable[[Event], None],
        send: Callable[[NodeId, Sequence[Message]], None],
        tasks: asyncio.TaskGroup,
        users: Sequence[Callable[[MeshSecret], None]],
    ) -> None:
        """Give the keeper the parts that it works with; before the first step.

        Args:
            rotation: What the core knows.
            tickets: For requests that wait for the core.
            post: Takes events for the core.
            send: Sends to a connected peer.
            tasks: Owns what takes time.
            users: Each uses the secret that it is given, for what comes from then on.
        """
        self._rotation = rotation
        self._tickets = tickets
        self._post = post
        self._send = send
        self._tasks = tasks
        self._users = users

    # --- What the core asks for.

    def change(self, effect: ChangeKeyring) -> None:
        """Take a step of a rotation."""
        now_ms, revoked = self._clock.now().wall_ms, effect.revoked
        steps: dict[KeyringStep, Change] = {
            KeyringStep.RENEW: lambda s: s.renewed(
                fresh(), now_ms, revoked=revoked, is_urgent=effect.is_urgent
            ),
            KeyringStep.SWITCH: lambda s: s.switched(now_ms),
            KeyringStep.SETTLE: lambda s: s.settled(now_ms),
            KeyringStep.REVOKE: lambda s: s.denying(
                () if revoked is None else (revoked,)
            ),
        }
        self._tasks.create_task(self._do(steps[effect.step]))

    def give(self, effect: SendKeyring) -> None:
        """Send the keyring to a peer, on a link that both sides have proven."""
        self._send(effect.peer, (KeyringTransfer(self.secret.lines()),))

    def take(self, effect: MergeKeyring) -> None:
        """Join what a peer gave."""
        now_ms, me = self._clock.now().wall_ms, self._me
        self._tasks.create_task(
            self._do(lambda s: s.taking(parse(effect.text), fresh(), now_ms, me=me))
        )

    async def _do(self, change: Change) -> None:
        async with self._turn:
            try:
                # Another agent with the same file may be ahead, or this one.
                after = await asyncio.to_thread(
                    self._keyring.change, lambda kept: change(kept.joined(self.secret))
                )
            except (OctasklyError, OSError) as error:
                self._post(KeyringChanged(self.secret.keys, failure=str(error)))
                return
            if after != self.secret:
                self.secret = after
                for use in self._users:
                    use(after)
                self._tell_of_copy()
            self._post(KeyringChanged(after.keys))

    def _tell_of_copy(self) -> None:
        """Say once that the secret file is not the place of the secret any more."""
        if self._is_copy_told or not self._keyring.copy.exists():
            return
        self._is_copy_told = True
        self._log.warning(
            "mesh secret kept in the state folder",
            file=str(self._keyring.copy),
            cause=f"{self._keyring.path} cannot be written",
            hint="from now on it counts before that file; copy it there when you can",
        )

    # --- What others see of it.

    def sighted(self, proofs: Sequence[str]) -> None:
        """A node of this mesh shows which generations are over.

        What it shows can be made only by who had them, so it is no stranger's word.
        """
        secret = self.secret
        is_over = secret.end_proof(secret.newest) in proofs
        if self.is_left_behind or self._rotation.is_revoked or not is_over:
            return
        self.is_left_behind = True
        self._log.error(
            "the mesh has renewed its secret without this node",
            cause=f"generation {secret.newest} is over, and this node was away",
            hint=self.way_back,
        )

    @property
    def way_back(self) -> str:
        """How a node that was left behind comes back."""
        return "octaskly invite    on a member, then here: octaskly join CODE"

    def trouble(self) -> str | None:
        """Return why this node is in the mesh no more, None if it is."""
        if self._rotation.is_revoked:
            return "this node was revoked; `octaskly leave --force`, then join"
        if self.is_left_behind:
            return f"the mesh has renewed its secret; {self.way_back}"
        return None

    # --- The `Rotations` port.

    def view(self) -> RotationView:
        """Return how far the newest generation has come."""
        rotation, timing = self._rotation, self._timing
        keys = rotation.keyring
        lasts_s = {
            RotationPhase.SPREADING: URGENT_STEP_S
            if keys.is_urgent
            else timing.rotation_spread_s,
            RotationPhase.SWITCHED: URGENT_STEP_S
            if keys.is_urgent
            else timing.old_secret_s,
        }.get(keys.phase)
        return RotationView(
            keys=keys,
            due_ms=None
            if lasts_s is None
            else keys.phase_since_ms + int(lasts_s * 1000),
            confirmed=tuple(sorted(rotation.confirmed_nodes())),
            awaited=tuple(sorted(rotation.awaited_nodes())),
            is_revoked=rotation.is_revoked,
            is_left_behind=self.is_left_behind,
        )

    def refuses(self, node: NodeId) -> bool:
        """Whether a node may not act for others now."""
        return self._rotation.link_refusal(node) is not None

    async def rotate(self, *, principal: Principal, is_urgent: bool) -> RotationView:
        """Begin to renew the secret."""
        return await self._ask(None, principal, is_urgent=is_urgent)

    async def revoke(self, node: NodeId, *, principal: Principal) -> RotationView:
        """Renew the secret at once, without this node."""
        return await self._ask(node, principal, is_urgent=True)

    async def _ask(
        self, node: NodeId | None, principal: Principal, *, is_urgent: bool
    ) -> RotationView:
        try:
            async with asyncio.timeout(ANSWER_S):
                reply = await self._tickets.ask(
                    lambda ticket: RotateRequested(
                        ticket, node, principal.subject, is_urgent
                    )
                )
        except TimeoutError:
            raise RotationRefused(
                "the disk does not take the new secret", hint="octaskly rotate --status"
            ) from None
        if isinstance(reply, RotationNotStarted):
            raise RotationRefused(reply.reason, hint="octaskly rotate --status")
        return self.view()
