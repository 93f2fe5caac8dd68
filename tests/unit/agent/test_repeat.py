"""The submission that repeats an array."""

from __future__ import annotations

from typing import cast

import pytest

from octaskly.agent.gateway import rerun
from octaskly.agent.gateway.rerun import PositionRanges, build_retry
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import ArrayProgress
from octaskly.core.model.task_options import ArraySpec, TaskOptions
from octaskly.errors import NothingToRetry
from octaskly.store import Store
from tests.contract import log_kit as kit

GIVEN = ArraySpec(count=50, first=10, step=2)
RECORD = TaskRecord(
    id=kit.task_id(1),
    spec=kit.submitted(1, options=TaskOptions(array=GIVEN)).spec,
    progress=ArrayProgress(cancelled=50),
)


class Stored:
    """A log that holds one array, of which these members are not completed."""

    def __init__(self, *runs: tuple[int, int]) -> None:
        self._runs = runs

    async def incomplete_member_ranges(self, _array: str, limit: int) -> PositionRanges:
        return self._runs[:limit]

    async def read_tasks_by_name(self, names: list[str]) -> dict[str, list[TaskRecord]]:
        return {names[0]: [RECORD]}


async def repeated(*runs: tuple[int, int]) -> ArraySpec:
    """Return the array that is submitted."""
    asked = await build_retry(RECORD, cast("Store", Stored(*runs)), "ana")
    (draft,) = asked.drafts
    assert draft.options is not None
    assert draft.options.array is not None
    return draft.options.array


async def test_a_few_members_are_listed_one_by_one() -> None:
    """Consecutive members are listed, too."""
    assert await repeated((0, 1), (4, 4)) == ArraySpec(
        count=3, has_items=True, items=("10", "12", "18")
    )


async def test_many_consecutive_members_are_a_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two numbers describe it."""
    monkeypatch.setattr(rerun, "ITEMS_MAX", 3)

    assert await repeated((46, 49)) == ArraySpec(count=4, first=102, step=2)


async def test_many_members_with_gaps_are_refused_with_their_ranges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the largest ranges first, and the client can submit these."""
    monkeypatch.setattr(rerun, "ITEMS_MAX", 3)

    with pytest.raises(NothingToRetry) as refused:
        await repeated((0, 1), (4, 9))

    assert str(refused.value.hint).endswith("submit arrays of 18-28:2, 10-12:2")


async def test_the_largest_of_many_ranges_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most members are in them; the others are counted."""
    monkeypatch.setattr(rerun, "ITEMS_MAX", 19)
    singles = [(n, n) for n in range(0, 20, 2)]

    with pytest.raises(NothingToRetry) as refused:
        await repeated(*singles, (30, 49))

    *named, last = str(refused.value.hint).partition("arrays of ")[2].split(", ")
    assert [*named, last] == [
        "70-108:2",
        *(f"{n}-{n}:2" for n in range(10, 34, 4)),
        "34-34:2 and 3 more",
    ]
