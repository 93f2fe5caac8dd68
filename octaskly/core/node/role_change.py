"""What changes on this node when it reigns, follows somebody, or does neither.

The election says what is so; dispatch, replication and the worker are made to go by it
here, in one place, at the end of each step.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import Advertise, Effect
from octaskly.core.election.phases import Attachment, Following, Succeeding, TakingOver
from octaskly.core.membership.address_book import Circle
from octaskly.core.model.ids import Moment, Reign
from octaskly.core.node.components import Machines


class Allegiance:
    """The reign and the attachment that the other machines go by."""

    def __init__(self, machines: Machines) -> None:
        self._own = machines.settings.node
        self._me = self._own.id
        self._journal = machines.journal
        self._members = machines.members
        self._hints = machines.members.hints
        self._browsing = machines.browsing
        self._registry = machines.registry
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._replication = machines.replication
        self._standby = machines.standby
        self._completeness = machines.completeness
        self._dispatch = machines.dispatch
        self._worker = machines.worker
        self._reign: Reign | None = None
        self._attachment: Attachment | None = None

    def reconcile(self, now: Moment) -> list[Effect]:
        """Make dispatch and worker go by what the election says now."""
        effects: list[Effect] = []
        if self._election.loss.was_silent:
            # It may have given up this standby meanwhile, whoever is followed next.
            self._standby.fall_behind()
        reign, attachment = self._election.reign, self._election.attachment
        if reign is not self._reign:
            effects += self._change_reign(reign, now)
        if attachment is not self._attachment and attachment != self._attachment:
            effects += self._change_attachment(attachment, now)
        self._hints.circle = self._circle()
        return effects

    def _circle(self) -> Circle:
        """Return whom this node dials, beside whom the election names."""
        if self._reign is not None:
            return Circle.ALL
        is_led = self._attachment is not None or self._is_bereft
        return Circle.NONE if is_led else Circle.FEW

    @property
    def _is_bereft(self) -> bool:
        """Whether a crowd lost its dispatcher, and all go down the roster at once."""
        phase = self._election.phase
        is_losing = isinstance(phase, Following | Succeeding | TakingOver)
        return is_losing and self._candidacy.crowding_in_line > 1.0

    def _change_attachment(
        self, attachment: Attachment | None, now: Moment
    ) -> list[Effect]:
        """Let the worker serve another dispatcher, or none; look for one then."""
        effects: list[Effect] = []
        if self._attachment is not None:
            effects += self._worker.detach(now)
        self._attachment = attachment
        if self._reign is None and attachment is not None:
            effects += self._browsing.stop()
        elif not self._browsing.is_on:
            effects += self._browsing.start(now, is_patient=self._is_bereft)
        if attachment is not None:
            effects += self._worker.attach(attachment.dispatcher, attachment.epoch, now)
        return effects

    def _change_reign(self, reign: Reign | None, now: Moment) -> list[Effect]:
        """End the reign that was, and begin the one that is."""
        effects: list[Effect] = []
        if self._reign is not None:
            self._dispatch.end()
            self._replication.end(now)
            self._journal.close_stream()
        self._reign = reign
        if reign is None:
            return [*effects, Advertise(is_dispatcher=False, term=0)]
        self._registry.begin(now)
        self._journal.open_stream(reign.stream)
        is_expecting = bool(self._members.peers) or self._registry.expects_others(
            self._me, self._election.loss.dispatcher
        )
        self._replication.begin(reign, now, is_expecting=is_expecting)
        self._standby.judge(now)
        roster, level = self._registry.roster, self._standby.epoch
        self._completeness.begin(reign.epoch, roster, level, now.mono_s)
        if not self._completeness.has_read_all:
            self._dispatch.adoption.hold(now)
        effects += self._dispatch.begin(reign.epoch, reign.stream, now)
        effects += self._know_workers(now)
        if self._candidacy.is_withdrawn:
            self._dispatch.pause_accepting()
        effects.append(Advertise(is_dispatcher=True, term=reign.epoch.term))
        return effects + self._meet_all(now)

    def _meet_all(self, now: Moment) -> list[Effect]:
        """Dial whoever was in the mesh and is not connected.

        A crowd that has seen the dispatcher's process end dials down the roster itself.
        """
        effects: list[Effect] = []
        roster, was_silent = self._registry.roster, self._election.loss.was_silent
        is_awaited = self._candidacy.crowding_in_line > 1.0 and not was_silent
        for member in () if roster is None else roster.members:
            if member.id in self._members.peers:
                continue
            if is_awaited:
                self._hints.dial_later(member.id, member.addresses, now)
            else:
                effects += self._hints.dial(member.id, member.addresses, now)
        return effects

    def _know_workers(self, now: Moment) -> list[Effect]:
        """Count on who is here, before all have told what they run.

        Else a task that shall fail fast would be refused for a moment.
        """
        effects: list[Effect] = []
        views = self._members.peers.values()
        for info in (self._own, *(view.info for view in views)):
            name = self._registry.name_of(info.id, info.name)
            effects += self._dispatch.on_worker_up(replace(info, name=name), now)
        return effects
