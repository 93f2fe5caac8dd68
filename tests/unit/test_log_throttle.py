"""Repeated log lines are counted instead of written."""

from __future__ import annotations

import pytest

from octaskly.core.effects import LogLine
from octaskly.system import log
from octaskly.system.log import ALIKE_MAX, LogThrottle


def followed(peer: str, term: int) -> LogLine:
    return LogLine("info", "dispatcher followed", (("peer", peer), ("term", term)))


async def test_the_first_and_the_last_line_of_a_kind_are_written() -> None:
    """The last has the count of dropped lines; lines about other peers are not held."""
    written: list[LogLine] = []
    throttle = LogThrottle(written.append)
    for term in range(1000):
        throttle.take(followed("ben", term))
    throttle.take(followed("cleo", 1))
    throttle.close()

    last = followed("ben", 999)
    assert written == [
        *(followed("ben", term) for term in range(ALIKE_MAX)),
        followed("cleo", 1),
        LogLine(last.level, last.event, (*last.fields, ("left_out", 999 - ALIKE_MAX))),
    ]


async def test_one_line_above_the_limit_is_written_unchanged_but_later() -> None:
    """At the latest when the agent stops."""
    written: list[LogLine] = []
    throttle = LogThrottle(written.append)
    lines = [followed("ben", term) for term in range(ALIKE_MAX + 1)]
    for line in lines:
        throttle.take(line)
    assert written == lines[:-1]
    throttle.close()

    assert written == lines


async def test_a_frequent_kind_has_one_line_a_second_until_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a second without a held line its lines are written at once again."""
    monkeypatch.setattr(log, "WINDOW_S", 3600.0)
    written: list[LogLine] = []
    throttle = LogThrottle(written.append)
    for term in range(ALIKE_MAX + 1):
        throttle.take(followed("ben", term))
    throttle._end_second()
    throttle.take(followed("ben", 100))
    throttle.take(followed("ben", 101))
    assert len(written) == ALIKE_MAX + 1
    throttle._end_second()
    assert written[-1].fields[-1] == ("left_out", 1)
    throttle._end_second()
    throttle.take(followed("ben", 102))
    assert written[-1] == followed("ben", 102)
    throttle.close()
