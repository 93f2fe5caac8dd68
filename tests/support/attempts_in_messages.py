"""The attempts that messages between dispatcher and workers are about, one by one."""

from __future__ import annotations

from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.protocol.messages import (
    Message,
    PackedMessage,
    RangeResults,
    RangeResultsOk,
    Results,
    ResultsOk,
)

RESULT_REPORTS = (Results, RangeResults)
RESULT_ACKS = (ResultsOk, RangeResultsOk)


def reported_keys(message: Message) -> list[tuple[TaskId, AttemptId]]:
    """Return the attempts whose ends a worker reports."""
    match message:
        case Results(reports):
            return [(report.task, report.attempt) for report in reports]
        case RangeResults(items):
            return [key for each in items for key in each.members.attempt_keys()]
        case _:
            return []


def acknowledged_keys(
    message: Message | PackedMessage,
) -> list[tuple[TaskId, AttemptId]]:
    """Return the attempts whose results a worker may forget."""
    match message:
        case ResultsOk(items):
            return list(items)
        case RangeResultsOk(members):
            return [key for each in members for key in each.attempt_keys()]
        case _:
            return []
