"""What changes on this node when it reigns, follows somebody, or does neither.

The election says what is so; dispatch, replication and the worker are made to go by it
here, in one place, at the end of each step.
"""

from __future__ import annotations

from msgspec.structs import replace

from octaskly.core.effects import Advertise, Effect
from octaskly.core.election.phases import Attachment, Campaigning, Claiming, Following
from octaskly.core.membership.address_book import DialScope
from octaskly.core.model.ids import DispatcherEpoch, Moment
from octaskly.core.node.components import Components


class RoleChange:
    """The reign and the attachment that the other machines go by."""

    def __init__(self, components: Components) -> None:
        self._own_info = components.settings.node
        self._me = self._own_info.id
        self._journal = components.journal
        self._peer_table = components.peer_table
        self._address_book = components.peer_table.address_book
        self._mdns_schedule = components.mdns_schedule
        self._roster_builder = components.roster_builder
        self._candidacy = components.candidacy
        self._election = components.election
        self._replication = components.replication
        self._standby = components.standby
        self._catch_up = components.catch_up
        self._dispatcher = components.dispatcher
        self._worker = components.worker
        self._dispatcher_epoch: DispatcherEpoch | None = None
        self._attachment: Attachment | None = None

    def apply_role(self, now: Moment) -> list[Effect]:
        """Make dispatch and worker go by what the election says now."""
        effects: list[Effect] = []
        if self._election.loss.was_silent:
            # It may have given up this standby meanwhile, whoever is followed next.
            self._standby.mark_behind()
        dispatcher_epoch, attachment = (
            self._election.dispatcher_epoch,
            self._election.attachment,
        )
        if dispatcher_epoch is not self._dispatcher_epoch:
            effects += self._change_dispatcher_epoch(dispatcher_epoch, now)
        if attachment is not self._attachment and attachment != self._attachment:
            effects += self._change_attachment(attachment, now)
        self._address_book.dial_scope = self._dial_scope()
        return effects

    def _dial_scope(self) -> DialScope:
        """Return whom this node dials, beside whom the election names."""
        if self._dispatcher_epoch is not None:
            return DialScope.EVERYBODY
        has_dispatcher = self._attachment is not None or self._is_mass_succession
        return DialScope.NOBODY if has_dispatcher else DialScope.FIRST_RANKED

    @property
    def _is_mass_succession(self) -> bool:
        """Whether a crowd lost its dispatcher, and all go down the roster at once."""
        phase = self._election.phase
        is_succeeding = isinstance(phase, Following | Campaigning | Claiming)
        return is_succeeding and self._candidacy.successor_ratio > 1.0

    def _change_attachment(
        self, attachment: Attachment | None, now: Moment
    ) -> list[Effect]:
        """Let the worker serve another dispatcher, or none; look for one then."""
        effects: list[Effect] = []
        if self._attachment is not None:
            effects += self._worker.detach(now)
        self._attachment = attachment
        if self._dispatcher_epoch is None and attachment is not None:
            effects += self._mdns_schedule.stop()
        elif not self._mdns_schedule.is_browsing:
            effects += self._mdns_schedule.start(
                now, is_delayed=self._is_mass_succession
            )
        if attachment is not None:
            effects += self._worker.attach(attachment.dispatcher, attachment.epoch, now)
        return effects

    def _change_dispatcher_epoch(
        self, dispatcher_epoch: DispatcherEpoch | None, now: Moment
    ) -> list[Effect]:
        """End the reign that was, and begin the one that is."""
        effects: list[Effect] = []
        if self._dispatcher_epoch is not None:
            self._dispatcher.stop_dispatching()
            self._replication.stop_replicating(now)
            self._journal.close_stream()
        self._dispatcher_epoch = dispatcher_epoch
        if dispatcher_epoch is None:
            return [*effects, Advertise(is_dispatcher=False, term=0)]
        self._roster_builder.mark_members_lost(now)
        self._journal.open_stream(dispatcher_epoch.stream)
        expects_members = bool(
            self._peer_table.peers
        ) or self._roster_builder.expects_others(
            self._me, self._election.loss.dispatcher
        )
        self._replication.start_replicating(
            dispatcher_epoch, now, expects_standbys=expects_members
        )
        self._standby.check_ack_guarantee(now)
        roster, in_sync_epoch = self._roster_builder.roster, self._standby.in_sync_epoch
        self._catch_up.start_catch_up(
            dispatcher_epoch.epoch, roster, in_sync_epoch, now.mono_s
        )
        if not self._catch_up.has_read_all:
            self._dispatcher.reconciler.delay_read(now)
        effects += self._dispatcher.start_dispatching(
            dispatcher_epoch.epoch, dispatcher_epoch.stream, now
        )
        effects += self._register_workers(now)
        if self._candidacy.is_withdrawn:
            self._dispatcher.pause_accepting()
        effects.append(Advertise(is_dispatcher=True, term=dispatcher_epoch.epoch.term))
        return effects + self._dial_absent_members(now)

    def _dial_absent_members(self, now: Moment) -> list[Effect]:
        """Dial whoever was in the mesh and is not connected.

        A crowd that has seen the dispatcher's process end dials down the roster itself.
        """
        effects: list[Effect] = []
        roster, was_silent = self._roster_builder.roster, self._election.loss.was_silent
        is_awaited = self._candidacy.successor_ratio > 1.0 and not was_silent
        for member in () if roster is None else roster.members:
            if member.id in self._peer_table.peers:
                continue
            if is_awaited:
                self._address_book.dial_node_later(member.id, member.addresses, now)
            else:
                effects += self._address_book.dial_node(
                    member.id, member.addresses, now
                )
        return effects

    def _register_workers(self, now: Moment) -> list[Effect]:
        """Count on who is here, before all have told what they run.

        Else a task that shall fail fast would be refused for a moment.
        """
        effects: list[Effect] = []
        views = self._peer_table.peers.values()
        for info in (self._own_info, *(view.info for view in views)):
            name = self._roster_builder.assign_name(info.id, info.name)
            effects += self._dispatcher.on_worker_up(replace(info, name=name), now)
        return effects
