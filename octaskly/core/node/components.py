"""The state machines of one node, side by side; `node` says who acts when."""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.dispatcher.dispatcher import Dispatch
from octaskly.core.dispatcher.records import Clerk
from octaskly.core.election.candidacy import Candidacy, Versions
from octaskly.core.election.claims import Claims
from octaskly.core.election.election import Election
from octaskly.core.election.heartbeats import Pulse
from octaskly.core.election.timeouts import Watch
from octaskly.core.election.transfer import HandOver
from octaskly.core.events import Saved
from octaskly.core.key_rotation.rotation import Rotation
from octaskly.core.membership.mdns_schedule import Browsing
from octaskly.core.membership.membership import Membership
from octaskly.core.membership.roster import Registry
from octaskly.core.model.settings import Settings
from octaskly.core.node.message_checks import Vetting
from octaskly.core.node.self_fencing import Doubt
from octaskly.core.replication.anti_entropy import Exchange
from octaskly.core.replication.catch_up import Completeness
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.replication import Replication
from octaskly.core.replication.standby import Standby
from octaskly.core.worker.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """One of each."""

    settings: Settings
    journal: Journal
    members: Membership
    browsing: Browsing
    registry: Registry
    exchange: Exchange
    versions: Versions
    candidacy: Candidacy
    election: Election
    watch: Watch
    claims: Claims
    handover: HandOver
    replication: Replication
    standby: Standby
    completeness: Completeness
    dispatch: Dispatch
    clerk: Clerk
    doubt: Doubt
    worker: Worker
    vetting: Vetting
    rotation: Rotation


def assemble(settings: Settings, saved: Saved) -> Machines:
    """Build the machines of a node that starts with what it had saved."""
    journal = Journal(saved)
    members = Membership(settings, saved)
    exchange = Exchange(journal)
    replication = Replication(settings, journal, members)
    versions = Versions(settings, journal, members)
    candidacy = Candidacy(settings, journal, members, versions)
    pulse = Pulse(settings, journal, members, replication)
    election = Election(settings, saved, journal, members, candidacy, pulse)
    handover = HandOver(settings.timing, journal, members, election, replication)
    dispatch = Dispatch(settings, journal, replication, saved.sequence)
    registry = Registry(saved.names, members)
    rotation = Rotation(settings, members, registry, journal.book, saved.keys)
    worker = Worker(
        *(settings, saved.reports, saved.hold), is_revoked=rotation.is_revoked
    )
    return Machines(
        settings=settings,
        journal=journal,
        members=members,
        browsing=Browsing(),
        registry=registry,
        exchange=exchange,
        versions=versions,
        candidacy=candidacy,
        election=election,
        watch=Watch(settings, members, candidacy, election),
        claims=Claims(settings, journal, members, exchange, candidacy, election),
        handover=handover,
        replication=replication,
        standby=Standby(journal, exchange, settings.timing.solo_s),
        completeness=Completeness(
            *(journal, members, exchange, settings.timing.silence_s)
        ),
        dispatch=dispatch,
        clerk=dispatch.clerk,
        doubt=Doubt(
            *(settings.timing, members, candidacy, election),
            *(handover, dispatch),
        ),
        worker=worker,
        vetting=Vetting(settings.node.id, journal, members),
        rotation=rotation,
    )
