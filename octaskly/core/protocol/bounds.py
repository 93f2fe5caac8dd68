"""Which values a node of ours could have made: bounds that hold at any time.

Each function looks at one value alone. Whether a message fits its sender, the term and
this node's log is for `vetting`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import astuple
from itertools import chain
from typing import Final

from octaskly.core.log import records
from octaskly.core.log.facts import (
    Assigned,
    Fact,
    Finished,
    Recorded,
    Submitted,
    TaskCancelled,
)
from octaskly.core.log.merge import TaskRow, facts_of
from octaskly.core.model import arrays
from octaskly.core.model.hlc import PRIORITY_SHIFT
from octaskly.core.model.ids import AttemptId, VectorItems
from octaskly.core.model.nodes import GPUS_MAX, LABELS_MAX, WORD_CHARS_MAX, NodeInfo
from octaskly.core.model.task_options import DEPENDENCY_ENDS, TaskOptions
from octaskly.core.model.tasks import TIME_MS_MAX, Outcome, TaskSpec
from octaskly.core.protocol.messages import Report, RosterEntry

COUNTER_MAX: Final = 1 << 62  #: of numbers that are counted on from
ORD_MAX: Final = 127 << PRIORITY_SHIFT  #: behind each place is that of another band
AMOUNT_MAX: Final = 1 << 31  #: of what one task asks for
HOSTS_MAX: Final = 64  #: addresses of a node, which tells at most 16
HOST_BYTES_MAX: Final = 128
NAME_CHARS_MAX: Final = 63  #: that a node chooses; the mesh may add its id
TITLE_CHARS_MAX: Final = 128  #: of its name in the mesh, and what else is shown of it
SUBJECT_CHARS_MAX: Final = 512
"""Of who asks for something: a token has 256, a user of a machine no more than 400."""
ATTEMPTS_MAX: Final = 1 << 31  #: of one task; also seconds that it may take
STREAMS_MAX: Final = 1 << 16  #: in a vector; each is a claim


def is_valid_fact(fact: Fact) -> bool:
    """Whether what is in a fact is in bounds; a floor has numbers of others."""
    match fact:
        case Submitted(spec):
            return is_valid_spec(spec)
        case TaskCancelled(_, by):  # Before a subject there may be how it was done.
            return len(by) <= 2 * SUBJECT_CHARS_MAX
        case Assigned(_, attempt, _):
            return is_valid_attempt(attempt)
        case Finished(_, attempt, _, outcome):
            return is_valid_attempt(attempt) and is_valid_outcome(outcome)
        case Recorded():
            return records.is_valid_record(fact)
        case _:
            return True


def is_valid_report(report: Report) -> bool:
    """Whether a worker of ours could report this."""
    is_known = is_valid_attempt(report.attempt) and is_valid_outcome(report.outcome)
    return is_known and (report.spec is None or is_valid_spec(report.spec))


def is_valid_attempt(attempt: AttemptId) -> bool:
    """Whether a dispatcher of ours could have given an attempt this name."""
    return 0 <= attempt.term < COUNTER_MAX and 0 < attempt.n < ATTEMPTS_MAX


def is_valid_spec(spec: TaskSpec) -> bool:
    """Whether times and members of a task can be counted, and its wishes met."""
    if spec.array is not None and not arrays.is_valid_array(spec.array):
        return False
    is_known = 0 <= spec.created_ms < TIME_MS_MAX and 0 <= spec.ord < ORD_MAX
    is_known = is_known and 0 <= spec.timeout_s < ATTEMPTS_MAX
    is_known = is_known and len(spec.submitter) <= SUBJECT_CHARS_MAX
    return is_known and (spec.options is None or are_valid_options(spec.options))


def are_valid_options(options: TaskOptions) -> bool:
    """Whether a task asks for amounts that can be, and waits for ends that are known.

    Who keeps the log reckons with both, and would find neither in its tables.
    """
    requirements, bounds, retry = options.requires, options.limits, options.retry
    numbers = [options.grace_s or 0]
    if requirements is not None:
        numbers += (requirements.cpus, requirements.memory_mb, requirements.gpus)
    if bounds is not None:
        numbers += astuple(bounds)
    if retry is not None:
        numbers.append(retry.retries)
    is_bounded = all(0 <= number < AMOUNT_MAX for number in numbers)
    return is_bounded and (
        options.after is None or options.after.end in DEPENDENCY_ENDS
    )


def is_valid_outcome(outcome: Outcome) -> bool:
    """Whether this is the end of an attempt, with times and sizes in bounds."""
    times = (outcome.started_ms, outcome.ended_ms, outcome.duration_ms, outcome.cpu_ms)
    sizes = (outcome.stdout_bytes, outcome.stderr_bytes, outcome.memory_max_kb)
    return (
        not outcome.state.is_live  # An end that is none would hold its task for ever.
        and all(time is None or 0 <= time < TIME_MS_MAX for time in times)
        and all(size is None or 0 <= size < COUNTER_MAX for size in sizes)
    )


def is_valid_row(row: TaskRow) -> bool:
    """Whether a row could be joined from facts.

    An attempt and its outcome name the same state, and one that runs has no outcome.
    """
    record = row.record
    if record.spec is not None and record.spec.id != record.id:
        return False
    return all(map(is_valid_fact, facts_of(record))) and all(
        one.state is one.outcome.state if one.outcome else one.state.is_live
        for one in record.attempts
    )


def is_valid_vector(vector: VectorItems) -> bool:
    """Whether a log could hold this; streams that are unknown here are normal."""
    return len(vector) <= STREAMS_MAX and all(
        stream > 0 and 0 <= seq < COUNTER_MAX for stream, seq in vector
    )


def is_valid_node(node: NodeInfo | RosterEntry) -> bool:
    """Whether what a node says of itself is bounded.

    It is kept for each node, and told to all of them whenever one comes or goes.
    """
    words = (node.os, node.arch, *node.gpus, *chain.from_iterable(node.labels))
    hosts = tuple(one if isinstance(one, str) else one.host for one in node.addresses)
    titles = [node.name, node.version]
    name_chars = TITLE_CHARS_MAX
    if isinstance(node, NodeInfo):
        titles.append(node.boot)
        name_chars = NAME_CHARS_MAX
    return (
        len(node.labels) <= LABELS_MAX
        and len(node.gpus) <= GPUS_MAX
        and are_valid_hosts(hosts)
        and len(node.name) <= name_chars
        and all(len(word) <= WORD_CHARS_MAX for word in words)
        and all(len(text) <= TITLE_CHARS_MAX and text.isprintable() for text in titles)
        and all(0 <= n < COUNTER_MAX for n in (node.memory_mb, node.cpus))
    )


def are_valid_hosts(hosts: Collection[str]) -> bool:
    """Whether a node could be told to be at these addresses."""
    return len(hosts) <= HOSTS_MAX and all(
        host.isprintable() and len(host.encode()) <= HOST_BYTES_MAX for host in hosts
    )
