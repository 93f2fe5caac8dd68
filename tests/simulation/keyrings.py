"""Machines with real mesh secrets, which rotation renews during faults."""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Answer, Effect
from octaskly.core.events import SavedState
from octaskly.core.model.ids import NodeId
from octaskly.core.model.keyring_state import (
    ChangeKeyring,
    KeyringChanged,
    KeyringTransfer,
    MergeKeyring,
    RotateRequested,
    SendKeyring,
)
from octaskly.core.model.settings import Timing
from octaskly.core.node.node import Node
from octaskly.core.replies import Reply
from octaskly.trust.mesh_secret import MeshSecret, parse_secret
from octaskly.trust.secret_format import SECRET_BYTES
from tests.simulation.machine import Machine
from tests.simulation.shell import Shell
from tests.simulation.world import World

FIRST = MeshSecret((bytes(range(SECRET_BYTES)),))
DISK_S = (0.001, 0.2)  #: seconds until a keyring is written
SPREAD_S, KEEP_S = 20.0, 60.0


class KeyringWorld(World):
    """A mesh whose links need a secret that both ends accept."""

    def __init__(self, seed: int, *, nodes: int = 3) -> None:
        timing = Timing(
            missing_dependency_s=60.0, rotation_spread_s=SPREAD_S, old_secret_s=KEEP_S
        )
        super().__init__(seed, nodes=nodes, timing=timing)
        self.shell = KeyringShell(self)
        self.secrets = dict.fromkeys(self.machines, FIRST)  #: keyring on each disk
        self.replies: list[Reply] = []
        self.broken: set[NodeId] = set()  #: machines whose disk refuses the keyring
        self.failures = 0

    def saved(self, machine: Machine) -> SavedState:
        """Return a machine's saved state at its start, with its keyring."""
        return replace(super().saved(machine), keys=self.secrets[machine.id].keys)

    def may_meet(self, dialler: NodeId, listener: NodeId) -> bool:
        """Return True if each end shows a generation that the other accepts."""
        mine, theirs = self.secrets[dialler], self.secrets[listener]
        fit = [
            n for n in theirs.accepted if n <= min(mine.newest, theirs.generation)
        ] or [theirs.generation]
        shown = {raw_of(theirs, max(fit))}
        offers = {raw_of(mine, n) for n in mine.accepted if n <= mine.generation}
        return bool(shown & {*mine.generations}) and bool(
            offers & {*theirs.generations}
        )

    def may_stay(self, end: NodeId, peer: NodeId) -> bool:
        """Return True if the certificate is still accepted on connection."""
        mine, theirs = self.secrets[end], self.secrets[peer]
        return bool({*mine.generations} & {*theirs.generations})

    def rotate(
        self, node: NodeId, revoked: NodeId | None = None, *, is_urgent: bool = False
    ) -> None:
        """Ask a node to rotate the secret."""
        ticket = self.clients.next_ticket()
        asked = RotateRequested(ticket, revoked, "op", is_urgent)
        self.feed(self.machines[node], asked)

    @property
    def live(self) -> list[NodeId]:
        """The running machines."""
        return [machine.id for machine in self.alive()]


class KeyringShell(Shell):
    """Performs keyring effects, too."""

    def __init__(self, world: KeyringWorld) -> None:
        super().__init__(world)
        self._keyrings = world
        self._made = 0

    def perform(self, machine: Machine, node: Node, effect: Effect) -> None:
        """Perform one effect."""
        world = self._keyrings
        match effect:
            case Answer(_, reply):
                world.replies.append(reply)
            case ChangeKeyring():
                self._change(machine, effect)
            case SendKeyring(peer):
                text = world.secrets[machine.id].to_text()
                world.network.send(machine.id, peer, (KeyringTransfer(text),))
            case MergeKeyring(_, text):
                raw, now_ms = self._fresh(), world.now(machine).wall_ms
                self._put(
                    machine,
                    lambda s: s.merged_with_received(
                        parse_secret(text), raw, now_ms, own_id=machine.id
                    ),
                )
            case _:
                super().perform(machine, node, effect)

    def _change(self, machine: Machine, change: ChangeKeyring) -> None:
        now_ms, raw = self._keyrings.now(machine).wall_ms, self._fresh()
        self._put(machine, lambda s: s.with_change(change, raw, now_ms))

    def _fresh(self) -> bytes:
        self._made += 1
        return self._made.to_bytes(SECRET_BYTES, "big")

    def _put(self, machine: Machine, change: object) -> None:
        world = self._keyrings

        def write() -> None:
            if machine.id in world.broken:
                world.failures += 1
                keys = world.secrets[machine.id].keys
                world.feed(machine, KeyringChanged(keys, failure="no room"))
                return
            after = change(world.secrets[machine.id])  # type: ignore[operator]
            world.secrets[machine.id] = after
            world.feed(machine, KeyringChanged(after.keys))

        world.later(machine, world.random.uniform(*DISK_S), write)


def raw_of(secret: MeshSecret, generation: int) -> bytes:
    """Return one generation of a secret."""
    return secret.generations[generation - secret.first_number]
