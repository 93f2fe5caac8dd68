"""The mesh secret of a running agent: stores, applies and sends it.

The core decides each step and never sees a secret. A change is on disk before it is
in use, and in use before the core continues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.core.events import Event
from octaskly.core.model.ids import NodeId
from octaskly.core.model.keyring_state import (
    ChangeKeyring,
    KeyringChanged,
    KeyringTransfer,
    MergeKeyring,
    RotateRequested,
    RotationNotStarted,
    RotationPhase,
    SendKeyring,
)
from octaskly.core.model.settings import URGENT_STEP_S, Timing
from octaskly.core.node.node import Node
from octaskly.core.protocol.messages import Message
from octaskly.errors import OctasklyError, RotationRefused
from octaskly.ports.key_rotation import RotationProgress
from octaskly.ports.store import Clock
from octaskly.ports.tokens import Principal
from octaskly.system.log import Logger
from octaskly.trust import MeshSecret, SecretFile
from octaskly.trust.mesh_secret import generate_generation, parse_secret

SecretChange = Callable[[MeshSecret], MeshSecret]
ROTATION_REPLY_S = 10.0  #: a slower write of the secret counts as failed


class MeshSecretHolder:
    """Holds the mesh secret; nothing else in an agent changes it.

    Args:
        secret_file: The file of the secret.
        secret: The secret as it was loaded.
        own_id: The id of this node.
        clock: The clock for the rotation phases.
        timing: The lengths of the phases.
        log: Receives log events.
    """

    def __init__(
        self,
        secret_file: SecretFile,
        secret: MeshSecret,
        own_id: NodeId,
        clock: Clock,
        timing: Timing,
        log: Logger,
    ) -> None:
        self.secret = secret  #: in use
        self.has_missed_rotation = False
        self._secret_file = secret_file
        self._own_id = own_id
        self._clock = clock
        self._timing = timing
        self._log = log
        self._change_lock = asyncio.Lock()
        self._was_copy_warned = False

    def connect(
        self,
        *,
        node: Node,
        pending_requests: PendingRequests,
        post: Callable[[Event], None],
        send: Callable[[NodeId, Sequence[Message]], None],
        tasks: asyncio.TaskGroup,
        prepare_tls: Callable[[MeshSecret], Callable[[], None]],
        secret_listeners: Sequence[Callable[[MeshSecret], None]],
    ) -> None:
        """Set the components that the holder uses. Call this before the first step.

        Args:
            node: The core, which knows the state of the rotation.
            pending_requests: Sends requests to the core.
            post: Posts an event to the core.
            send: Sends messages to a connected peer.
            tasks: Owns the tasks that write the secret file.
            prepare_tls: Called with each new secret, in a thread; returns what puts
                its certificates in use.
            secret_listeners: Called with each new secret, to use it from then on.
        """
        self._rotation = node.rotation
        self._pending_requests = pending_requests
        self._post = post
        self._send = send
        self._tasks = tasks
        self._prepare_tls = prepare_tls
        self._secret_listeners = secret_listeners

    # --- Effects of the core.

    def change_keyring(self, effect: ChangeKeyring) -> None:
        """Apply one step of a rotation to the secret file."""
        now_ms = self._clock.now().wall_ms
        self._tasks.create_task(
            self._change_secret(
                lambda s: s.with_change(effect, generate_generation(), now_ms)
            )
        )

    def send_keyring(self, effect: SendKeyring) -> None:
        """Send the secret to a peer, on a mutually authenticated link."""
        self._send(effect.peer, (KeyringTransfer(self.secret.to_text()),))

    def merge_keyring(self, effect: MergeKeyring) -> None:
        """Merge the secret that a peer has sent."""
        now_ms, me = self._clock.now().wall_ms, self._own_id
        self._tasks.create_task(
            self._change_secret(
                lambda s: s.merged_with_received(
                    parse_secret(effect.text), generate_generation(), now_ms, own_id=me
                )
            )
        )

    async def _change_secret(self, change: SecretChange) -> None:
        async with self._change_lock:
            try:
                # Merge: another agent with the same file may have a newer secret.
                after = await asyncio.to_thread(
                    self._secret_file.update_secret,
                    lambda kept: change(kept.merged_with(self.secret)),
                )
            except (OctasklyError, OSError) as error:
                self._post(KeyringChanged(self.secret.keys, failure=str(error)))
                return
            if after != self.secret:
                use_tls = await asyncio.to_thread(self._prepare_tls, after)
                self.secret = after
                use_tls()
                for use in self._secret_listeners:
                    use(after)
                self._warn_of_copy()
            self._post(KeyringChanged(after.keys))

    def _warn_of_copy(self) -> None:
        """Log once that the secret is now kept in the state folder."""
        if self._was_copy_warned or not self._secret_file.copy_path.exists():
            return
        self._was_copy_warned = True
        self._log.warning(
            "mesh secret kept in the state folder",
            file=str(self._secret_file.copy_path),
            cause=f"{self._secret_file.path} cannot be written",
            hint="the copy now takes precedence; copy it to that file when you can",
        )

    # --- Missed rotations.

    def on_retirement_proofs(self, proofs: Sequence[str]) -> None:
        """Handle another node's proofs that generations of the secret are retired.

        Only a node that had a generation can make its proof, so a stranger cannot.
        """
        secret = self.secret
        is_over = secret.retirement_proof(secret.newest) in proofs
        if self.has_missed_rotation or self._rotation.is_revoked or not is_over:
            return
        self.has_missed_rotation = True
        self._log.error(
            "key rotation missed",
            cause=f"generation {secret.newest} was retired while this node was away",
            hint=self.rejoin_hint,
        )

    @property
    def rejoin_hint(self) -> str:
        """The commands by which a node that missed a rotation joins again."""
        return "octaskly invite    on a member, then here: octaskly join CODE"

    def lost_membership_reason(self) -> str | None:
        """Return why this node is not a member any more, or None if it is one."""
        if self._rotation.is_revoked:
            return "this node was revoked; `octaskly leave --force`, then join"
        if self.has_missed_rotation:
            return f"the mesh has rotated its secret; {self.rejoin_hint}"
        return None

    # --- The `KeyRotationControl` port.

    def rotation_progress(self) -> RotationProgress:
        """Return the phase of the newest generation and the nodes that lack it."""
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
        return RotationProgress(
            keys=keys,
            due_ms=None
            if lasts_s is None
            else keys.phase_since_ms + int(lasts_s * 1000),
            confirmed=tuple(sorted(rotation.confirmed_nodes())),
            unconfirmed=tuple(sorted(rotation.awaited_nodes())),
        )

    def is_node_refused(self, node: NodeId) -> bool:
        """Return True if links to this node are refused at the moment."""
        return self._rotation.link_refusal(node) is not None

    async def start_rotation(
        self, *, principal: Principal, is_urgent: bool
    ) -> RotationProgress:
        """Start to renew the secret."""
        return await self._request_rotation(None, principal, is_urgent=is_urgent)

    async def revoke_node(
        self, node: NodeId, *, principal: Principal
    ) -> RotationProgress:
        """Renew the secret at once, without this node."""
        return await self._request_rotation(node, principal, is_urgent=True)

    async def _request_rotation(
        self, node: NodeId | None, principal: Principal, *, is_urgent: bool
    ) -> RotationProgress:
        try:
            async with asyncio.timeout(ROTATION_REPLY_S):
                reply = await self._pending_requests.send_request(
                    lambda ticket: RotateRequested(
                        ticket, node, principal.subject, is_urgent
                    )
                )
        except TimeoutError:
            raise RotationRefused(
                "the new secret cannot be written to the disk",
                hint="octaskly rotate --status",
            ) from None
        if isinstance(reply, RotationNotStarted):
            raise RotationRefused(reply.reason, hint="octaskly rotate --status")
        return self.rotation_progress()
