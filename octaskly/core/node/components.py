"""Components and handlers of one node: each gets only the components that it uses."""

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
from octaskly.core.membership.peer_table import PeerTable
from octaskly.core.membership.roster import RosterBuilder
from octaskly.core.model.component_signals import Outbox
from octaskly.core.model.settings import Settings
from octaskly.core.model.timer_heap import TimerHeap
from octaskly.core.node.announcements import (
    MeshStatePublisher,
    RosterSender,
    SelfDescription,
)
from octaskly.core.node.availability import (
    AvailabilityControl,
    FailureHandler,
    PauseFencing,
)
from octaskly.core.node.connections import (
    Connections,
    LinkPolicy,
    PeerLoss,
    RevocationEnforcer,
)
from octaskly.core.node.log_receiver import LogReceiver, QueueReader
from octaskly.core.node.message_checks import MessageValidator
from octaskly.core.node.role_change import DispatcherRole, WorkerAttachment
from octaskly.core.node.shutdown import Shutdown
from octaskly.core.node.visitors import Visitors
from octaskly.core.node.worker_messages import WorkerMessages
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.not_found_rule import NotFoundRule
from octaskly.core.replication.replication import Replication
from octaskly.core.replication.standby_appends import Standby
from octaskly.core.worker.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The components of a node."""

    timers: TimerHeap
    outbox: Outbox
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
    not_found_rule: NotFoundRule
    dispatcher: Dispatcher
    worker: Worker
    rotation: KeyRotation
    message_validator: MessageValidator


def build_components(settings: Settings, saved: SavedState) -> Components:
    """Build the components of a node from its settings and saved state."""
    timing = settings.timing
    timers, outbox = TimerHeap(), Outbox()
    journal = Journal(saved, outbox)
    peers = PeerTable(settings, saved, timers, outbox)
    roster = RosterBuilder(saved.names, peers)
    anti_entropy = AntiEntropy(journal, outbox, peers.peers)
    replication = Replication(settings, journal, peers, timers)
    versions = LogVersions(settings, journal, peers)
    candidacy = Candidacy(settings, journal, peers, versions)
    heartbeats = Heartbeats(settings, journal, peers, timers)
    election = Election(settings, saved, journal, peers, candidacy, heartbeats, outbox)
    records, keys = journal.record_table, saved.keys
    rotation = KeyRotation(settings, peers, roster, records, keys, timers)
    is_revoked = rotation.is_revoked
    reports, hold = saved.reports, saved.hold
    not_found = NotFoundRule(journal, peers, anti_entropy, timing.suspicion_timeout_s)
    is_complete = not_found.is_complete
    return Components(
        timers=timers,
        outbox=outbox,
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
        dispatcher_transfer=DispatcherTransfer(
            timing, journal, peers, election, replication
        ),
        replication=replication,
        standby=Standby(journal, anti_entropy),
        not_found_rule=not_found,
        dispatcher=Dispatcher(
            settings, journal, replication, saved.sequence, timers, is_complete
        ),
        worker=Worker(settings, reports, timers, outbox, hold, is_revoked=is_revoked),
        rotation=rotation,
        message_validator=MessageValidator(settings.node.id, journal, peers),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """The handlers, which use several components and have little state of their own."""

    connections: Connections
    revocation_enforcer: RevocationEnforcer
    link_policy: LinkPolicy
    log_receiver: LogReceiver
    queue_reader: QueueReader
    self_description: SelfDescription
    roster_sender: RosterSender
    mesh_state_publisher: MeshStatePublisher
    pause_fencing: PauseFencing
    failure_handler: FailureHandler
    availability_control: AvailabilityControl
    shutdown: Shutdown
    worker_messages: WorkerMessages
    dispatcher_role: DispatcherRole
    worker_attachment: WorkerAttachment
    visitors: Visitors


def build_handlers(
    settings: Settings, components: Components, given_name: str
) -> Handlers:
    """Build the handlers of a node, whose name in the mesh is `given_name`."""
    c, timing = components, settings.timing
    timers, outbox, roster = c.timers, c.outbox, c.roster_builder
    peers, election, dispatcher = c.peer_table, c.election, c.dispatcher
    transfer, validator = c.dispatcher_transfer, c.message_validator
    description = SelfDescription(settings, c.journal, c.candidacy, election, c.worker)
    link_policy = LinkPolicy(settings, peers, roster, election)
    connections = Connections(
        peers, validator, c.rotation, c.claim_handlers, _build_peer_loss(c), link_policy
    )
    visitors = _build_visitors(settings, c)
    fencing = PauseFencing(timing, election, transfer, dispatcher, timers, outbox)
    worker_messages = _build_worker_messages(settings, c, fencing)
    return Handlers(
        connections=connections,
        revocation_enforcer=RevocationEnforcer(
            c.rotation, connections, peers.address_book, election, c.worker
        ),
        link_policy=link_policy,
        log_receiver=_build_log_receiver(c),
        queue_reader=_build_queue_reader(c),
        self_description=description,
        roster_sender=RosterSender(
            description, peers, roster, dispatcher, visitors, timers
        ),
        mesh_state_publisher=MeshStatePublisher(
            settings.node.id, given_name, c.journal, roster
        ),
        pause_fencing=fencing,
        failure_handler=FailureHandler(
            c.candidacy, election, transfer, dispatcher, timers, outbox
        ),
        availability_control=AvailabilityControl(c.journal, c.worker),
        shutdown=Shutdown(timing, c.journal, election, transfer, c.worker, timers),
        worker_messages=worker_messages,
        dispatcher_role=_build_dispatcher_role(
            settings, c, worker_messages, link_policy
        ),
        worker_attachment=WorkerAttachment(election, c.worker, c.mdns_schedule),
        visitors=visitors,
    )


def _build_visitors(settings: Settings, c: Components) -> Visitors:
    return Visitors(
        settings.node,
        peer_table=c.peer_table,
        roster_builder=c.roster_builder,
        election=c.election,
        dispatcher_transfer=c.dispatcher_transfer,
        dispatcher=c.dispatcher,
        rotation=c.rotation,
        validator=c.message_validator,
        timers=c.timers,
    )


def _build_log_receiver(c: Components) -> LogReceiver:
    return LogReceiver(
        c.journal,
        c.anti_entropy,
        c.standby,
        c.dispatcher,
        c.election,
        c.claim_handlers,
        c.message_validator,
    )


def _build_queue_reader(c: Components) -> QueueReader:
    return QueueReader(
        journal=c.journal,
        peer_table=c.peer_table,
        anti_entropy=c.anti_entropy,
        not_found_rule=c.not_found_rule,
        dispatcher=c.dispatcher,
    )


def _build_worker_messages(
    settings: Settings, c: Components, fencing: PauseFencing
) -> WorkerMessages:
    return WorkerMessages(
        own_info=settings.node,
        peer_table=c.peer_table,
        roster_builder=c.roster_builder,
        election=c.election,
        dispatcher_transfer=c.dispatcher_transfer,
        not_found_rule=c.not_found_rule,
        dispatcher=c.dispatcher,
        pause_fencing=fencing,
    )


def _build_peer_loss(c: Components) -> PeerLoss:
    return PeerLoss(
        address_book=c.peer_table.address_book,
        roster_builder=c.roster_builder,
        election=c.election,
        timeouts=c.timeouts,
        anti_entropy=c.anti_entropy,
        replication=c.replication,
        not_found_rule=c.not_found_rule,
        dispatcher=c.dispatcher,
    )


def _build_dispatcher_role(
    settings: Settings,
    c: Components,
    worker_messages: WorkerMessages,
    link_policy: LinkPolicy,
) -> DispatcherRole:
    return DispatcherRole(
        own_info=settings.node,
        journal=c.journal,
        peer_table=c.peer_table,
        roster_builder=c.roster_builder,
        election=c.election,
        replication=c.replication,
        not_found_rule=c.not_found_rule,
        dispatcher=c.dispatcher,
        worker_messages=worker_messages,
        link_policy=link_policy,
    )
