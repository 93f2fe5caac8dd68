"""Results that no dispatcher has acknowledged: kept, sent, sent again.

Owns which of them are on disk and when each is due again. It does not know how an
attempt came to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from octaskly.core.effects import Effect, Spool
from octaskly.core.model.backoff import backoff
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.tasks import AttemptState, TaskSpec
from octaskly.core.protocol.messages import Report

RESEND_S = 1.0  #: before the first repetition of a result: no link loses one
RESEND_MAX_S = 5.0  #: before any, and also before the first one to oneself
REPORT_BYTES = 512  #: what a report takes beyond output and envelope, roughly

Key = tuple[TaskId, AttemptId]


@dataclass(slots=True)
class KeptResult:
    """One result that no dispatcher has acknowledged."""

    report: Report  #: as news, which need no envelope
    spec: TaskSpec | None
    size: int  #: in bytes on the wire, roughly
    is_spooled: bool = False
    due_s: float = RESEND_S  #: when it is sent again
    sends: int = 0  #: to the present dispatcher

    def whole(self) -> Report:
        """Return what is told again, for a dispatcher that may not know the task."""
        return replace(self.report, spec=self.spec)


class KeptResults:
    """Results in the order in which they were sent last; unsent ones come first."""

    def __init__(self, saved: Iterable[Report], message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._kept: dict[Key, KeptResult] = {}
        self.size = 0
        """Bytes of all of them on the wire, roughly."""
        self._quiet_until_s = 0.0
        self._repeated: set[Key] = set()
        """What was sent again last, and is not acknowledged."""
        self._resend_s = RESEND_S
        self._is_own = False
        for report in saved:
            news = replace(report, spec=None)
            self.keep(news, report.spec).is_spooled = True

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, key: Key) -> KeptResult:
        return self._kept[key]

    def keep(self, report: Report, spec: TaskSpec | None) -> KeptResult:
        """Keep a result until `forget`, behind all others."""
        key = (report.task, report.attempt)
        size = REPORT_BYTES + len(report.outcome.stdout) + len(report.outcome.stderr)
        if spec is not None:
            size += spec.size_bytes
        before = self._kept.pop(key, None)
        self.size += size - (0 if before is None else before.size)
        self._kept[key] = kept = KeptResult(report, spec, size)
        return kept

    def forget(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        """Drop acknowledged results; return those that are on disk.

        What the present dispatcher was not sent stays, whoever else has it: it was
        told that the attempt runs, and would wait for its end for ever.
        """
        spooled = []
        for key in keys:
            kept = self._kept.get(key)
            if kept is None or not kept.sends:
                continue
            del self._kept[key]
            self.size -= kept.size
            if kept.is_spooled:
                spooled.append(key)
        if self._repeated and self._repeated.isdisjoint(self._kept):
            self._repeated.clear()
            self._quiet_until_s = 0.0  # The dispatcher keeps up: the next may follow.
        return tuple(spooled)

    def restart(self, now_s: float, *, is_own: bool) -> None:
        """Count every result as unsent: there is a new dispatcher.

        What a node tells itself is not lost on the way, so that a disk with much to
        write is all that it waits for: to repeat it makes that longer. What it has not
        told itself yet waits for nothing, though: where no answer comes for want of a
        standby, that would be told as running for as long.
        """
        self._is_own = is_own
        self._resend_s = RESEND_MAX_S if is_own else RESEND_S
        for kept in self._kept.values():
            kept.sends, kept.due_s = 0, now_s + (0.0 if is_own else RESEND_S)
        self._quiet_until_s = 0.0
        self._repeated.clear()

    def unsent(self) -> list[KeptResult]:
        """Return those that the present dispatcher was not sent."""
        return list(takewhile(lambda kept: kept.sends == 0, self._kept.values()))

    def deadline(self) -> float:
        """Return when one is due again."""
        if not self._kept:
            return math.inf
        return self._due_s(next(iter(self._kept.values())))

    def due(self, now_s: float) -> list[KeptResult]:
        """Return those to send again, and then stay quiet until it is acknowledged.

        One message at a time: a dispatcher that is slow is not helped by more. That
        may be lost, too, so after a while there is another one all the same.
        """
        if self.deadline() > now_s:
            return []
        due = takewhile(lambda kept: self._due_s(kept) <= now_s, self._kept.values())
        chunk = next(self.chunks(due))
        if not self._is_untold(chunk[0]):
            self._quiet_until_s = now_s + self._resend_s
            self._repeated = {(k.report.task, k.report.attempt) for k in chunk}
        return chunk

    def chunks(self, results: Iterable[KeptResult]) -> Iterator[list[KeptResult]]:
        """Cut results so that each part fits into a frame; look at no more of them."""
        chunk: list[KeptResult] = []
        size = 0
        for kept in results:
            if chunk and size + kept.size > self._message_bytes:
                yield chunk
                chunk, size = [], 0
            chunk.append(kept)
            size += kept.size
        if chunk:
            yield chunk

    def told(self, kept: KeptResult, now_s: float, *, is_news: bool) -> Report:
        """Note that a result is sent now; return what is said of it.

        All but news carry the envelope: their dispatcher may not know the task.
        """
        kept.sends += 1
        wait_s = backoff(kept.sends, base_s=self._resend_s, cap_s=RESEND_MAX_S)
        kept.due_s = now_s + wait_s
        if is_news:
            return kept.report  # It is the last one as it is.
        key = (kept.report.task, kept.report.attempt)
        del self._kept[key]
        self._kept[key] = kept
        return kept.whole()

    def spool(self, candidates: Iterable[KeptResult] | None = None) -> list[Effect]:
        """Write results to disk that are not there; what was given back need not be."""
        chosen = [
            kept
            for kept in (self._kept.values() if candidates is None else candidates)
            if not kept.is_spooled
            and kept.report.outcome.state is not AttemptState.RELEASED
        ]
        for kept in chosen:
            kept.is_spooled = True
        if not chosen:
            return []
        return [Spool(tuple(kept.whole() for kept in chosen))]

    def _due_s(self, kept: KeptResult) -> float:
        if self._is_untold(kept):
            return kept.due_s
        return max(kept.due_s, self._quiet_until_s)

    def _is_untold(self, kept: KeptResult) -> bool:
        """Whether this node reigns, and has not told itself of a result yet."""
        return self._is_own and kept.sends == 0
