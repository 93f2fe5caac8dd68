"""What clients ask of a dispatcher: the way in for their requests.

A node that does not reign says so, and the API asks elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import Answer, Effect
from octaskly.core.events import (
    BarrierAsked,
    CancelRequested,
    ExplainAsked,
    ForgetAsked,
    NamesAsked,
    RecordAsked,
    TasksNotified,
    TasksSubmitted,
)
from octaskly.core.machines import Machines
from octaskly.core.model import Moment
from octaskly.core.replies import NotHere
from octaskly.core.verdicts import Explanation

Question = (
    NamesAsked
    | TasksSubmitted
    | CancelRequested
    | BarrierAsked
    | ExplainAsked
    | ForgetAsked
    | RecordAsked
    | TasksNotified
)


class Questions:
    """Which part of a reign answers what."""

    def __init__(self, machines: Machines) -> None:
        self._registry = machines.registry
        self._election = machines.election
        self._completeness = machines.completeness
        self._dispatch = machines.dispatch
        self._clerk = machines.clerk

    def on_asked(self, event: Question, now: Moment) -> list[Effect]:
        """Pass a request on while this node reigns."""
        if isinstance(event, TasksNotified):
            return self._dispatch.on_notified(event, now)
        if not self._dispatch.is_reigning:
            return [Answer(event.ticket, NotHere())]
        match event:
            case TasksSubmitted():
                return self._dispatch.on_submitted(event, now)
            case CancelRequested():
                return self._dispatch.on_cancel(event, now)
            case RecordAsked():
                may_write = self._dispatch.is_accepting
                return self._clerk.on_asked(event, now, may_write=may_write)
            case ForgetAsked():
                self._dispatch.retention.on_asked(event, now)
            case BarrierAsked(ticket):
                self._completeness.ask(ticket, now)
                self._election.pulse.hasten()
            case NamesAsked(ticket, suffixes):
                return [Answer(ticket, self._dispatch.named(suffixes))]
            case ExplainAsked(ticket):
                return [Answer(ticket, self._explain(event, now))]
        return []

    def _explain(self, event: ExplainAsked, now: Moment) -> Explanation:
        roster = self._registry.roster
        members = () if roster is None else roster.members
        explaining = self._dispatch.explaining
        names = {**dict(event.names), **{m.id: m.name for m in members}}
        told = explaining.explain(event.record, members, now, names)
        placement = explaining.placement(event.record, members, names)
        return replace(told, placement=placement)
