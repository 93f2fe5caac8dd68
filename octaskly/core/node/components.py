"""The state machines of one node, side by side; `node` says who acts when."""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.dispatcher.dispatcher import Dispatcher
from octaskly.core.dispatcher.records import RecordWriter
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
from octaskly.core.node.message_checks import MessageValidator
from octaskly.core.node.self_fencing import SelfFencing
from octaskly.core.replication.anti_entropy import AntiEntropy
from octaskly.core.replication.catch_up import CatchUp
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replication.standby import Standby
from octaskly.core.worker.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """One of each."""

    settings: Settings
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
    record_writer: RecordWriter
    self_fencing: SelfFencing
    worker: Worker
    message_validator: MessageValidator
    rotation: KeyRotation


def build_components(settings: Settings, saved: SavedState) -> Components:
    """Build the machines of a node that starts with what it had saved."""
    journal = Journal(saved)
    peer_table = PeerTable(settings, saved)
    anti_entropy = AntiEntropy(journal)
    replication = Replication(settings, journal, peer_table)
    log_versions = LogVersions(settings, journal, peer_table)
    candidacy = Candidacy(settings, journal, peer_table, log_versions)
    heartbeats = Heartbeats(settings, journal, peer_table, replication)
    election = Election(settings, saved, journal, peer_table, candidacy, heartbeats)
    dispatcher_transfer = DispatcherTransfer(
        settings.timing, journal, peer_table, election, replication
    )
    dispatcher = Dispatcher(settings, journal, replication, saved.sequence)
    roster_builder = RosterBuilder(saved.names, peer_table)
    rotation = KeyRotation(
        settings, peer_table, roster_builder, journal.record_table, saved.keys
    )
    worker = Worker(
        *(settings, saved.reports, saved.hold), is_revoked=rotation.is_revoked
    )
    return Components(
        settings=settings,
        journal=journal,
        peer_table=peer_table,
        mdns_schedule=MdnsSchedule(),
        roster_builder=roster_builder,
        anti_entropy=anti_entropy,
        log_versions=log_versions,
        candidacy=candidacy,
        election=election,
        timeouts=Timeouts(settings, peer_table, candidacy, election),
        claim_handlers=ClaimHandlers(
            settings, journal, peer_table, anti_entropy, candidacy, election
        ),
        dispatcher_transfer=dispatcher_transfer,
        replication=replication,
        standby=Standby(journal, anti_entropy, settings.timing.replication_wait_s),
        catch_up=CatchUp(
            *(journal, peer_table, anti_entropy, settings.timing.suspicion_timeout_s)
        ),
        dispatcher=dispatcher,
        record_writer=dispatcher.record_writer,
        self_fencing=SelfFencing(
            *(settings.timing, peer_table, candidacy, election),
            *(dispatcher_transfer, dispatcher),
        ),
        worker=worker,
        message_validator=MessageValidator(settings.node.id, journal, peer_table),
        rotation=rotation,
    )
