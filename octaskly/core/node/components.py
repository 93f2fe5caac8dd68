"""The state machines of one node, each with the few others that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.election.candidacy import Candidacy, LogVersions
from octaskly.core.election.claims import ClaimHandlers
from octaskly.core.election.election import Election
from octaskly.core.election.heartbeats import Heartbeats
from octaskly.core.election.timeouts import Timeouts
from octaskly.core.election.transfer import DispatcherTransfer
from octaskly.core.events import SavedState
from octaskly.core.key_rotation.rotation import KeyRotation
from octaskly.core.membership.mdns_schedule import MdnsSchedule
from octaskly.core.membership.membership import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.node.announcements import (
    MeshStatePublisher,
    RosterSender,
    SelfDescription,
)
from octaskly.core.node.availability import AvailabilityControl, DiskFailureHandler
from octaskly.core.node.connections import LinkPolicy
from octaskly.core.node.log_receiver import LogReceiver
from octaskly.core.node.message_checks import MessageValidator
from octaskly.core.node.self_fencing import SelfFencing
from octaskly.core.node.shutdown import Shutdown
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.catch_up import CatchUp
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replication.standby import Standby
from octaskly.core.worker.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """One of each."""

    timers: TimerHeap
    journal: Journal
    peer_table: PeerTable
    mdns_schedule: MdnsSchedule
    roster_builder: RosterBuilder
    anti_entropy: AntiEntropy
    log_versions: LogVersions
    candidacy: Candidacy
    election: Election
    timeouts: Timeouts
    claim_handlers: ClaimHandlers
    dispatcher_transfer: DispatcherTransfer
    replication: Replication
    standby: Standby
    catch_up: CatchUp
    dispatcher: Dispatcher
    worker: Worker
    rotation: KeyRotation
    message_validator: MessageValidator
    self_fencing: SelfFencing
    self_description: SelfDescription
    roster_sender: RosterSender
    mesh_state_publisher: MeshStatePublisher
    link_policy: LinkPolicy
    log_receiver: LogReceiver
    shutdown: Shutdown
    disk_failure_handler: DiskFailureHandler
    availability_control: AvailabilityControl


def build_components(settings: Settings, saved: SavedState) -> Components:
    """Build the machines of a node that starts with what it had saved."""
    timing, me = settings.timing, settings.node.id
    timers = TimerHeap()
    journal = Journal(saved)
    peers = PeerTable(settings, saved, timers)
    roster = RosterBuilder(saved.names, peers)
    anti_entropy = AntiEntropy(journal)
    standby = Standby(journal, anti_entropy, timing.replication_wait_s)
    replication = Replication(settings, journal, peers, timers)
    versions = LogVersions(settings, journal, peers)
    candidacy = Candidacy(settings, journal, peers, versions)
    heartbeats = Heartbeats(settings, journal, peers, replication, timers)
    election = Election(settings, saved, journal, peers, candidacy, heartbeats)
    transfer = DispatcherTransfer(timing, journal, peers, election, replication)
    dispatcher = Dispatcher(settings, journal, replication, saved.sequence, timers)
    rotation = KeyRotation(
        settings, peers, roster, journal.record_table, saved.keys, timers
    )
    worker = Worker(
        settings, saved.reports, timers, saved.hold, is_revoked=rotation.is_revoked
    )
    description = SelfDescription(settings, journal, candidacy, election, worker)
    return Components(
        timers=timers,
        journal=journal,
        peer_table=peers,
        mdns_schedule=MdnsSchedule(timers),
        roster_builder=roster,
        anti_entropy=anti_entropy,
        log_versions=versions,
        candidacy=candidacy,
        election=election,
        timeouts=Timeouts(settings, peers, candidacy, election, timers),
        claim_handlers=ClaimHandlers(
            settings, journal, peers, anti_entropy, candidacy, election
        ),
        dispatcher_transfer=transfer,
        replication=replication,
        standby=standby,
        catch_up=CatchUp(journal, peers, anti_entropy, timing.suspicion_timeout_s),
        dispatcher=dispatcher,
        worker=worker,
        rotation=rotation,
        message_validator=MessageValidator(me, journal, peers),
        self_fencing=SelfFencing(timing, election, transfer, dispatcher, timers),
        self_description=description,
        roster_sender=RosterSender(description, peers, roster, dispatcher),
        mesh_state_publisher=MeshStatePublisher(
            me, saved.name or settings.node.name, journal, roster
        ),
        link_policy=LinkPolicy(settings, peers, roster, election),
        log_receiver=LogReceiver(journal, anti_entropy, standby, dispatcher),
        shutdown=Shutdown(timing, journal, election, transfer, worker, timers),
        disk_failure_handler=DiskFailureHandler(
            candidacy, election, transfer, dispatcher, timers
        ),
        availability_control=AvailabilityControl(journal, worker),
    )
