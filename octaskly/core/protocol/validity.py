"""Validity checks of single values in messages from peers.

Each function checks one value by itself. `node.message_checks` checks that a message
fits its sender, the term and this node's log.
"""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.log import mesh_records
from octaskly.core.log.facts import (
    MESH_FACTS,
    RANGE_FACTS,
    Decided,
    Fact,
    Finished,
    MembersAssigned,
    MembersSucceeded,
    Recorded,
    Reprioritized,
    Submitted,
)
from octaskly.core.log.merge import TaskRow, facts_of
from octaskly.core.log.range_facts import are_valid_times, members_of
from octaskly.core.model import arrays
from octaskly.core.model.ids import VectorItems
from octaskly.core.model.nodes import NodeInfo, RosterEntry
from octaskly.core.model.task_options import is_stdin_freed
from octaskly.core.model.tasks import Outcome, TaskSpec, TaskState
from octaskly.core.protocol.messages import RangeReport, Report


def is_valid_pending_fact(fact: Fact) -> bool:
    """Return True if the fact may wait for its task: it is not the submission."""
    return not isinstance(
        fact, (Submitted, *MESH_FACTS, *RANGE_FACTS)
    ) and is_valid_fact(fact)


def is_valid_fact(fact: Fact) -> bool:
    """Return True if a correct node could have written this fact."""
    match fact:
        case Submitted(spec):
            return is_valid_spec(spec)
        case Finished(outcome=outcome):
            return is_valid_outcome(outcome)
        case Decided(state=state):
            return state in (TaskState.COMPLETED, TaskState.FAILED)
        case MembersAssigned():
            return arrays.are_valid_members(members_of(fact))
        case MembersSucceeded():
            return are_valid_times(fact) and arrays.are_valid_members(members_of(fact))
        case Recorded():
            return mesh_records.is_valid_record(fact)
        case Reprioritized(task=task):
            return arrays.array_of(task) is None  # It is of the array.
        case _:
            return True


def is_valid_report(report: Report) -> bool:
    """Return True if a correct worker could send this report."""
    spec = report.spec
    if spec is not None and not (spec.id == report.task and is_valid_attempt(spec)):
        return False
    return is_valid_outcome(report.outcome)


def is_valid_spec(spec: TaskSpec) -> bool:
    """Return True if an array's numbers are in bounds, and stdin is here or freed."""
    options = spec.options
    if options is None:
        return True
    has_both = bool(options.stdin) and is_stdin_freed(options)
    is_array_valid = options.array is None or (
        arrays.is_valid_array(options.array) and arrays.array_of(spec.id) is None
    )
    return is_array_valid and not has_both


def is_valid_attempt(spec: TaskSpec) -> bool:
    """Return True if a correct dispatcher could assign this task to a worker."""
    return is_valid_spec(spec) and not is_stdin_freed(spec.options)


def is_assignable_range(members: arrays.MemberRange) -> bool:
    """Return True if a correct dispatcher could assign these members to a worker."""
    return is_valid_attempt(members.array) and arrays.is_valid_range(members)


def is_valid_range_report(report: RangeReport) -> bool:
    """Return True if a correct worker could send this report."""
    has_all = len(report.successes) == len(report.members.offsets)
    return has_all and arrays.are_valid_members(report.members)


def is_valid_outcome(outcome: Outcome) -> bool:
    """Return True if the state is not live, as a live one would block the task."""
    return not outcome.state.is_live


def is_valid_row(row: TaskRow) -> bool:
    """Return True if this row could be the join of facts.

    An attempt and its outcome must have the same state. A live attempt has no outcome.
    """
    record, change = row.record, row.record.reprioritized
    if change is not None and change.task != record.id:
        return False
    if record.spec is not None and record.spec.id != record.id:
        return False
    return all(map(is_valid_fact, facts_of(record))) and all(
        one.state is one.outcome.state if one.outcome else one.state.is_live
        for one in record.attempts
    )


def is_valid_vector(vector: VectorItems) -> bool:
    """Return True if no stream is 0; streams that this node does not know are valid."""
    return all(stream for stream, _ in vector)


def is_valid_node(node: NodeInfo | RosterEntry) -> bool:
    """Return True if the texts in a node's description are printable."""
    hosts = (one if isinstance(one, str) else one.host for one in node.addresses)
    boot = node.boot if isinstance(node, NodeInfo) else ""
    return are_printable((node.name, node.version, boot, *hosts))


def are_printable(texts: Iterable[str]) -> bool:
    """Return True if all texts consist of printable characters."""
    return all(map(str.isprintable, texts))
