"""What clients ask of a dispatcher: the way in for their requests.

A node that does not reign says so, and the API asks elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import Answer, Effect
from octaskly.core.events import (
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

Question = (
    NamesAsked
    | TasksSubmitted
    | CancelRequested
    | ExplainAsked
    | ForgetAsked
    | RecordAsked
    | TasksNotified
)


class Questions:
    """Which part of a reign answers what."""

    def __init__(self, machines: Machines) -> None:
        self._registry = machines.registry
        self._dispatch = machines.dispatch
        self._clerk = machines.clerk

    def on_asked(self, event: Question, now: Moment) -> list[Effect]:
        """Pass a request on while this node reigns."""
        if isinstance(event, TasksNotified):
            return self._dispatch.on_notified(event, now)
        if not self._dispatch.is_reigning:
            return [Answer(event.ticket, NotHere())]
        if isinstance(event, NamesAsked):
            return [Answer(event.ticket, self._dispatch.named(event.suffixes))]
        if isinstance(event, TasksSubmitted):
            return self._dispatch.on_submitted(event, now)
        if isinstance(event, ExplainAsked):
            roster = self._registry.roster
            members = () if roster is None else roster.members
            explaining = self._dispatch.explaining
            names = {**dict(event.names), **{m.id: m.name for m in members}}
            told = explaining.explain(event.record, members, now, names)
            placement = explaining.placement(event.record, members, names)
            told = replace(told, placement=placement)
            return [Answer(event.ticket, told)]
        if isinstance(event, ForgetAsked):
            self._dispatch.retention.on_asked(event, now)
            return []
        if isinstance(event, RecordAsked):
            may_write = self._dispatch.is_accepting
            return self._clerk.on_asked(event, now, may_write=may_write)
        return self._dispatch.on_cancel(event, now)
