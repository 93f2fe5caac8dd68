"""What is noted again and again is counted, not written."""

from __future__ import annotations

from octaskly.core.effects import LogLine
from octaskly.system.log import ALIKE_MAX, Notes


def followed(peer: str, term: int) -> LogLine:
    return LogLine("info", "dispatcher followed", (("peer", peer), ("term", term)))


async def test_of_lines_that_are_alike_some_and_the_last_are_written() -> None:
    """With how many there were in between; those of other peers are not held."""
    written: list[LogLine] = []
    notes = Notes(written.append)
    for term in range(1000):
        notes.take(followed("ben", term))
    notes.take(followed("cleo", 1))
    notes.close()

    last = followed("ben", 999)
    assert written == [
        *(followed("ben", term) for term in range(ALIKE_MAX)),
        followed("cleo", 1),
        LogLine(last.level, last.event, (*last.fields, ("left_out", 999 - ALIKE_MAX))),
    ]


async def test_one_line_more_is_written_as_it_is() -> None:
    """Only later, at the latest when the agent stops."""
    written: list[LogLine] = []
    notes = Notes(written.append)
    lines = [followed("ben", term) for term in range(ALIKE_MAX + 1)]
    for line in lines:
        notes.take(line)
    assert written == lines[:-1]
    notes.close()

    assert written == lines
