"""The tasks of an idle dispatcher, from what it wrote lately: spares reading them.

On an idle node a task often ends before its client asks for it, and while that end is
on its way to the disk, reading the task would only hold it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

from octaskly.core import merge
from octaskly.core.facts import (
    ABOUT_NO_TASK,
    Entry,
    Finished,
    Floor,
    Submitted,
    TaskFact,
)
from octaskly.core.merge import TaskRecord
from octaskly.core.model import Epoch, StreamId, TaskId

TASKS_MAX: Final = 64
FEW_ENTRIES: Final = 4  #: of one append; of busy nodes nothing is remembered
FACTS_MAX: Final = 8  #: of one task
OUTPUT_BYTES_MAX: Final = 16 << 10  #: of one attempt


@dataclass(slots=True)
class Story:
    """Everything that was ever written of one task, in order."""

    facts: list[TaskFact]  #: begins with its submission
    is_told: bool = False  #: all of it is durable, and its end was announced

    @property
    def record(self) -> TaskRecord:
        """The task as it may be shown: an end only once it is durable."""
        shown = self.facts if self.is_told else self.facts[:1]
        return reduce(merge.apply, shown[1:], merge.record_of(shown[0]))


class Recent:
    """Stories of tasks that were accepted in this reign, newest last."""

    def __init__(self) -> None:
        self._stories: dict[TaskId, Story] = {}
        self._stream: StreamId | None = None
        self._epoch: Epoch | None = None

    def get(self, task: TaskId) -> Story | None:
        """Return what is known of a task, None if it has to be read."""
        return self._stories.get(task)

    def reigns(self, epoch: Epoch) -> None:
        """Forget what another reign than this one may have gone on with."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._stories.clear()

    def appended(self, entries: Sequence[Entry]) -> None:
        """Remember few entries of the own stream; by others, nothing is whole."""
        stories = self._stories
        if len(entries) > FEW_ENTRIES:
            stories.clear()
            self._stream = entries[-1].stream
            return
        for entry in entries:
            if entry.stream != self._stream:
                stories.clear()
                self._stream = entry.stream
            self._add(entry)
        while len(stories) > TASKS_MAX:
            del stories[next(iter(stories))]

    def announced(self, tasks: Sequence[TaskId]) -> None:
        """What was appended of these tasks is durable."""
        for task in tasks if self._stories else ():
            if (story := self._stories.get(task)) is not None:
                story.is_told = True

    def _add(self, entry: Entry) -> None:
        fact = entry.fact
        if isinstance(fact, Submitted):
            if fact.spec.options is None:
                self._stories[fact.task] = Story([fact])
            return
        if isinstance(fact, ABOUT_NO_TASK):
            if isinstance(fact, Floor):
                self._stories.clear()  # It may be the end of any of them.
        elif (story := self._stories.get(fact.task)) is not None:
            story.facts.append(fact)
            if len(story.facts) > FACTS_MAX or story.is_told or _is_large(fact):
                del self._stories[fact.task]


def _is_large(fact: TaskFact) -> bool:
    if not isinstance(fact, Finished):
        return False
    outcome = fact.outcome
    return len(outcome.stdout) + len(outcome.stderr) > OUTPUT_BYTES_MAX
