"""Result outbox: stores, sends and resends unacknowledged results.

Owns the spool state and the next send time of each result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from msgspec import Struct
from msgspec.structs import replace

from octaskly.core.effects import Effect, Spool
from octaskly.core.model.arrays import MemberRange, RangeMembers
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import AttemptState, TaskSpec
from octaskly.core.model.timer_heap import backoff
from octaskly.core.protocol.messages import (
    MemberSuccess,
    RangeReport,
    Report,
    member_success,
)

RESEND_S = 1.0  #: delay before the first resend; live links lose no messages
RESEND_MAX_S = 5.0  #: upper bound of the delay; to this node itself, the only delay
REPORT_BYTES = 512  #: approximate size of a report without outcome and spec

AttemptKey = tuple[TaskId, AttemptId]
RangePlace = tuple[MemberRange, int]
"""The range that an attempt came with, and the attempt's place in it."""


class PendingResult(Struct, eq=False, gc=False):
    """One result that no dispatcher has acknowledged."""

    report: Report  #: without the spec, as in the first send
    spec: TaskSpec | None
    size_bytes: int  #: approximate size on the wire
    place: RangePlace | None = None  #: if the attempt came with a range
    is_spooled: bool = False
    due_s: float = RESEND_S  #: time of the next send
    send_count: int = 0  #: sends to the current dispatcher

    def report_with_spec(self) -> Report:
        """Return the report with its spec, for a dispatcher that may lack the task."""
        return replace(self.report, spec=self.spec)


class SuccessesByRange:
    """Successes of members of ranges, for one message."""

    def __init__(self) -> None:
        self._ends: dict[AttemptKey, tuple[MemberRange, dict[int, MemberSuccess]]] = {}

    def __bool__(self) -> bool:
        return bool(self._ends)

    def add_success(self, report: Report, place: RangePlace) -> bool:
        """Add a report about a member; return False if it is not about a success."""
        if report.outcome.state is not AttemptState.OK:
            return False
        success = member_success(report.outcome)
        if success is None:
            return False
        members, offset = place
        key = (members.array.id, members.attempt)
        self._ends.setdefault(key, (members, {}))[1][offset] = success
        return True

    def reports(self) -> tuple[RangeReport, ...]:
        """Return one report for each range."""
        return tuple(
            _range_report(members, sorted(ends.items()))
            for members, ends in self._ends.values()
        )


def _range_report(
    members: MemberRange, ends: Sequence[tuple[int, MemberSuccess]]
) -> RangeReport:
    array, part = members.array, members.array.array
    assert part is not None
    offsets = tuple(offset for offset, _ in ends)
    named = RangeMembers(array.id, part.first, part.step, members.attempt, offsets)
    return RangeReport(named, tuple(success for _, success in ends))


class ResultOutbox:
    """The unacknowledged results, ordered by latest send; unsent ones come first."""

    def __init__(self, saved: Iterable[Report], message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._results: dict[AttemptKey, PendingResult] = {}
        self.size_bytes = 0
        """Approximate size of all results on the wire, in bytes."""
        self._quiet_until_s = 0.0
        self._resent: set[AttemptKey] = set()
        """The results of the latest resend that are not acknowledged."""
        self._resend_s = RESEND_S
        self._is_own_dispatcher = False
        for report in saved:
            new_report = replace(report, spec=None)
            self.add_result(new_report, report.spec).is_spooled = True

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: AttemptKey) -> PendingResult | None:
        """Return the result of an attempt, if it is not acknowledged yet."""
        return self._results.get(key)

    def add_result(
        self, report: Report, spec: TaskSpec | None, place: RangePlace | None = None
    ) -> PendingResult:
        """Add a result at the end; it stays until `drop_acknowledged`."""
        key = (report.task, report.attempt)
        size = REPORT_BYTES + report.outcome.size_bytes
        if spec is not None:
            size += spec.size_bytes
        if (before := self._results.pop(key, None)) is not None:
            self.size_bytes -= before.size_bytes
        self.size_bytes += size
        self._results[key] = result = PendingResult(report, spec, size, place)
        return result

    def drop_acknowledged(self, keys: Iterable[AttemptKey]) -> tuple[AttemptKey, ...]:
        """Drop acknowledged results; return those that are on disk.

        A result that was not sent to the current dispatcher stays, even if another node
        has it. This node has listed the attempt as running, so that dispatcher would
        wait for its end forever.
        """
        spooled = []
        for key in keys:
            result = self._results.get(key)
            if result is None or not result.send_count:
                continue
            del self._results[key]
            self.size_bytes -= result.size_bytes
            if result.is_spooled:
                spooled.append(key)
        if self._resent and self._resent.isdisjoint(self._results):
            self._resent.clear()
            self._quiet_until_s = 0.0  # The dispatcher keeps up.
        return tuple(spooled)

    def mark_all_unsent(self, now_s: float, *, is_own_dispatcher: bool) -> None:
        """Mark every result unsent for a new dispatcher.

        Messages of a node to itself are never lost; only the disk can delay their
        acknowledgement, and a resend would delay it more. Hence the long resend delay.
        Unsent results to itself are due at once: without a standby, acknowledgements
        are late, and the attempts would be listed as running for that time.
        """
        self._is_own_dispatcher = is_own_dispatcher
        self._resend_s = RESEND_MAX_S if is_own_dispatcher else RESEND_S
        for result in self._results.values():
            result.send_count, result.due_s = (
                0,
                now_s + (0.0 if is_own_dispatcher else RESEND_S),
            )
        self._quiet_until_s = 0.0
        self._resent.clear()

    def unsent_results(self) -> list[PendingResult]:
        """Return the results that were not sent to the current dispatcher."""
        return list(
            takewhile(lambda kept: kept.send_count == 0, self._results.values())
        )

    def deadline(self) -> float:
        """Return the time at which the first result is due."""
        if not self._results:
            return math.inf
        return self._due_s(next(iter(self._results.values())))

    def due_results(self, now_s: float) -> list[PendingResult]:
        """Return the results of one message to resend, and delay further resends.

        One message at a time is in transit, because more would not help a slow
        dispatcher. The next one follows after an acknowledgement, or after a delay, as
        the message may be lost.
        """
        if self.deadline() > now_s:
            return []
        due = takewhile(lambda kept: self._due_s(kept) <= now_s, self._results.values())
        chunk = next(self.split_into_messages(due))
        if not self._is_unsent_to_self(chunk[0]):
            self._quiet_until_s = now_s + self._resend_s
            self._resent = {(k.report.task, k.report.attempt) for k in chunk}
        return chunk

    def split_into_messages(
        self, results: Iterable[PendingResult]
    ) -> Iterator[list[PendingResult]]:
        """Split results into chunks that fit into a frame, lazily."""
        chunk: list[PendingResult] = []
        size = 0
        for result in results:
            if chunk and size + result.size_bytes > self._message_bytes:
                yield chunk
                chunk, size = [], 0
            chunk.append(result)
            size += result.size_bytes
        if chunk:
            yield chunk

    def mark_sent(
        self, results: Sequence[PendingResult], now_s: float, *, is_new: bool
    ) -> list[Report]:
        """Record that results are sent; return the reports to send.

        A resent report includes the spec, because the dispatcher may lack the task.
        """
        waits_s: dict[int, float] = {}
        for result in results:
            result.send_count = count = result.send_count + 1
            if count not in waits_s:
                waits_s[count] = backoff(
                    count, base_s=self._resend_s, cap_s=RESEND_MAX_S
                )
            result.due_s = now_s + waits_s[count]
        if is_new:  # They are at the end of the order already.
            return [result.report for result in results]
        for result in results:
            key = (result.report.task, result.report.attempt)
            del self._results[key]
            self._results[key] = result
        return [result.report_with_spec() for result in results]

    def spool_results(
        self, candidates: Iterable[PendingResult] | None = None
    ) -> list[Effect]:
        """Spool results that are not on disk, except released attempts."""
        unspooled = [
            kept
            for kept in (self._results.values() if candidates is None else candidates)
            if not kept.is_spooled
            and kept.report.outcome.state is not AttemptState.RELEASED
        ]
        for result in unspooled:
            result.is_spooled = True
        if not unspooled:
            return []
        return [Spool(tuple(kept.report_with_spec() for kept in unspooled))]

    def _due_s(self, result: PendingResult) -> float:
        if self._is_unsent_to_self(result):
            return result.due_s
        return max(result.due_s, self._quiet_until_s)

    def _is_unsent_to_self(self, result: PendingResult) -> bool:
        """Return True if the result is unsent and this node is the dispatcher."""
        return self._is_own_dispatcher and result.send_count == 0
