"""Results that no dispatcher has acknowledged: kept, sent, sent again.

Owns which of them are on disk and when each is due again. It does not know how an
attempt came to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from msgspec.structs import replace

from octaskly.core.effects import Effect, Spool
from octaskly.core.model.backoff import backoff
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import AttemptState, TaskSpec
from octaskly.core.protocol.messages import Report

RESEND_S = 1.0  #: before the first repetition of a result: no link loses one
RESEND_MAX_S = 5.0  #: before any, and also before the first one to oneself
REPORT_BYTES = 512  #: what a report takes beyond output and envelope, roughly

AttemptKey = tuple[TaskId, AttemptId]


@dataclass(slots=True)
class PendingResult:
    """One result that no dispatcher has acknowledged."""

    report: Report  #: as news, which need no envelope
    spec: TaskSpec | None
    size_bytes: int  #: in bytes on the wire, roughly
    is_spooled: bool = False
    due_s: float = RESEND_S  #: when it is sent again
    send_count: int = 0  #: to the present dispatcher

    def report_with_spec(self) -> Report:
        """Return what is told again, for a dispatcher that may not know the task."""
        return replace(self.report, spec=self.spec)


class ResultOutbox:
    """Results in the order in which they were sent last; unsent ones come first."""

    def __init__(self, saved: Iterable[Report], message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._results: dict[AttemptKey, PendingResult] = {}
        self.size_bytes = 0
        """Bytes of all of them on the wire, roughly."""
        self._quiet_until_s = 0.0
        self._resent: set[AttemptKey] = set()
        """What was sent again last, and is not acknowledged."""
        self._resend_s = RESEND_S
        self._is_own_dispatcher = False
        for report in saved:
            new_report = replace(report, spec=None)
            self.add_result(new_report, report.spec).is_spooled = True

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._results

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, key: AttemptKey) -> PendingResult:
        return self._results[key]

    def add_result(self, report: Report, spec: TaskSpec | None) -> PendingResult:
        """Keep a result until `drop_acknowledged`, behind all others."""
        key = (report.task, report.attempt)
        size = REPORT_BYTES + len(report.outcome.stdout) + len(report.outcome.stderr)
        if spec is not None:
            size += spec.size_bytes
        before = self._results.pop(key, None)
        self.size_bytes += size - (0 if before is None else before.size_bytes)
        self._results[key] = result = PendingResult(report, spec, size)
        return result

    def drop_acknowledged(self, keys: Iterable[AttemptKey]) -> tuple[AttemptKey, ...]:
        """Drop acknowledged results; return those that are on disk.

        What the present dispatcher was not sent stays, whoever else has it: it was
        told that the attempt runs, and would wait for its end for ever.
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
            self._quiet_until_s = 0.0  # The dispatcher keeps up: the next may follow.
        return tuple(spooled)

    def mark_all_unsent(self, now_s: float, *, is_own_dispatcher: bool) -> None:
        """Count every result as unsent: there is a new dispatcher.

        What a node tells itself is not lost on the way, so that a disk with much to
        write is all that it waits for: to repeat it makes that longer. What it has not
        told itself yet waits for nothing, though: where no answer comes for want of a
        standby, that would be told as running for as long.
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
        """Return those that the present dispatcher was not sent."""
        return list(
            takewhile(lambda kept: kept.send_count == 0, self._results.values())
        )

    def deadline(self) -> float:
        """Return when one is due again."""
        if not self._results:
            return math.inf
        return self._due_s(next(iter(self._results.values())))

    def due_results(self, now_s: float) -> list[PendingResult]:
        """Return those to send again, and then stay quiet until it is acknowledged.

        One message at a time: a dispatcher that is slow is not helped by more. That
        may be lost, too, so after a while there is another one all the same.
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
        """Cut results so that each part fits into a frame; look at no more of them."""
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

    def mark_sent(self, result: PendingResult, now_s: float, *, is_new: bool) -> Report:
        """Note that a result is sent now; return what is said of it.

        All but news carry the envelope: their dispatcher may not know the task.
        """
        result.send_count += 1
        wait_s = backoff(result.send_count, base_s=self._resend_s, cap_s=RESEND_MAX_S)
        result.due_s = now_s + wait_s
        if is_new:
            return result.report  # It is the last one as it is.
        key = (result.report.task, result.report.attempt)
        del self._results[key]
        self._results[key] = result
        return result.report_with_spec()

    def spool_results(
        self, candidates: Iterable[PendingResult] | None = None
    ) -> list[Effect]:
        """Write results to disk that are not there; what was given back need not be."""
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
        """Whether this node reigns, and has not told itself of a result yet."""
        return self._is_own_dispatcher and result.send_count == 0
