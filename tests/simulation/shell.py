"""The agent's shell in the simulation: it performs the effects of nodes.

Each effect goes to its owner: the network, the storage, the commands, the clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octaskly.core.effects import (
    Answer,
    Append,
    ApplyRecords,
    Browse,
    Dial,
    Disconnect,
    Effect,
    LoadLive,
    LoadQueued,
    LoadTasks,
    LoadUnblocked,
    LogLine,
    MergeRows,
    NumberedWrite,
    PlanFloor,
    Save,
    SavePeer,
    Send,
    ServePull,
    Spool,
    StageRows,
    Start,
    Stop,
    Stopped,
    Unspool,
)
from octaskly.core.events import PeerHint, PeersDiscovered
from octaskly.core.log.facts import Recorded
from octaskly.core.node.node import Node
from tests.simulation.machine import Machine
from tests.simulation.storage import read

if TYPE_CHECKING:
    from tests.simulation.world import World


class Shell:
    """Performs the effects of all nodes, in order."""

    def __init__(self, world: World) -> None:
        self._world = world

    def perform_all(self, machine: Machine, node: Node, effects: list[Effect]) -> None:
        """Perform the effects of one step of a node."""
        number, send = 0, self._world.network.send
        for effect in effects:
            # As in the agent, a stopped node performs no more effects.
            is_alive = machine.node is node
            if isinstance(effect, Send):  # Most effects.
                if is_alive:
                    send(machine.id, effect.peer, effect.messages)
                continue
            if isinstance(effect, NumberedWrite):
                assert effect.number >= number, f"appends out of order: {effects}"
                number = effect.number
            if is_alive:
                self.perform(machine, node, effect)

    def perform(self, machine: Machine, node: Node, effect: Effect) -> None:
        """Perform one effect other than `Send`."""
        world = self._world
        match effect:
            case Append() | StageRows() | MergeRows() | Save():
                world.storage.write(machine, effect)
            case Dial(peer, addresses):
                world.network.dial(machine.id, peer, addresses)
            case Disconnect(peer, reason):
                world.network.disconnect(machine.id, peer, reason)
            case Answer(ticket, reply):
                world.clients.answer(machine, ticket, reply)
            case ApplyRecords(some):
                self._learn(machine, some)
            case Start(items):
                world.commands.run(machine, node, items)
            case Stop(items, reason):
                world.commands.kill(machine, items, reason)
            case Stopped():
                machine.has_stopped = True
                world.at(0.0, lambda: world.on_stopped(machine.id))
            case _:
                self._perform_store(machine, effect)

    def _learn(self, machine: Machine, some: tuple[Recorded, ...]) -> None:
        """Apply the records that are on a process's disk."""
        for record in some:
            key = (record.kind, record.key)
            assert key in machine.disk.notes, f"{machine.id}: {key} is on no disk"
            machine.learnt[key] = record

    def _perform_store(self, machine: Machine, effect: Effect) -> None:
        world, disk = self._world, machine.disk
        match effect:
            case LogLine():
                # No node lies here, but old frames that arrive again may look like
                # lies.
                assert (
                    effect.event != "link to peer refused" or world.network.repeats
                ), effect
                machine.notes.append((world.time_s, effect))
            case ServePull():
                world.later(
                    machine,
                    world.random.uniform(0.001, 0.01),
                    lambda: world.storage.serve(machine, effect),
                )
            case (
                LoadQueued() | LoadLive() | LoadTasks() | LoadUnblocked() | PlanFloor()
            ):
                draw = world.late if isinstance(effect, LoadUnblocked) else world.random
                world.later(
                    machine,
                    draw.uniform(0.001, 0.01),
                    lambda: world.feed(machine, read(disk, effect)),
                )
            case Unspool(items):
                disk.forget(items)
                world.storage.commit_soon(machine)
            case Spool(reports):
                disk.keep(reports)
                world.storage.commit_soon(machine)
            case SavePeer(peer, _, addresses):
                disk.peers[peer] = addresses
            case Browse(is_wanted):
                self._browse(machine, is_wanted=is_wanted)
            case _:
                pass

    def _browse(self, machine: Machine, *, is_wanted: bool) -> None:
        network = self._world.network
        machine.is_browsing = is_wanted
        if not is_wanted or not network.has_multicast:
            return
        for other in self._world.machines.values():
            if other is machine or other.node is None:
                continue
            if network.is_cut(machine.id, other.id):
                continue
            self._advertise(other, machine)
            if other.is_browsing:
                self._advertise(machine, other)

    def _advertise(self, seen: Machine, by: Machine) -> None:
        is_dispatcher = seen.node is not None and seen.node.is_dispatcher
        advert = PeerHint(seen.id, (seen.address,), is_dispatcher=is_dispatcher)
        world = self._world
        delay_s = world.random.uniform(0.02, 0.3)
        world.later(by, delay_s, lambda: world.feed(by, PeersDiscovered((advert,))))
