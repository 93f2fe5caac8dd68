"""The contract of the runner of attempts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import Report
from octaskly.runner.pool.pool import Pool
from tests.support.pooling import MachineClock, archive_in, eventually, supply_in

Ended = Callable[[tuple[Report, ...]], None]


class Bench:
    """A runner under test and its reports."""

    def __init__(self, make: Callable[[Ended], Pool]) -> None:
        self.reports: list[Report] = []
        self.runner = make(self.reports.extend)

    async def ends(self, count: int) -> dict[str, Outcome]:
        """Wait for this many reports; return outcomes by task."""
        await eventually(lambda: len(self.reports) >= count)
        assert len(self.reports) == count
        return {report.task: report.outcome for report in self.reports}


def attempt(task: str, command: str, n: int = 1) -> tuple[AttemptId, TaskSpec]:
    return AttemptId(1, StreamId(5), n, n), TaskSpec(id=TaskId(task), command=command)


@pytest.fixture(params=["one launcher", "two launchers"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Return each kind of runner in turn, with room for four attempts."""

    def make(on_ended: Ended) -> Pool:
        return Pool(
            slots=4,
            workdir=tmp_path,
            scratch_dir=tmp_path / "scratch",
            archive=archive_in(tmp_path),
            blob_fetcher=supply_in(tmp_path),
            node_name="bench",
            clock=MachineClock(),
            on_ended=on_ended,
            launchers=1 if request.param == "one launcher" else 2,
        )

    made = Bench(make)
    yield made
    await made.runner.close()


async def test_each_attempt_is_reported_once(bench: Bench) -> None:
    """With its own exit code."""
    for first in range(0, 20, 4):
        some = range(first, first + 4)
        bench.runner.start_attempts(
            [attempt(f"t{code}", f"exit {code}") for code in some]
        )
        await bench.ends(first + 4)
    ends = await bench.ends(20)

    assert {task: end.exit_code for task, end in ends.items()} == {
        f"t{code}": code for code in range(20)
    }
    assert [end.state for end in ends.values()].count(AttemptState.OK) == 1


async def test_two_attempts_of_one_task_are_separate(bench: Bench) -> None:
    """Both run and are reported under their own names."""
    bench.runner.start_attempts([attempt("t", "exit 1", 1), attempt("t", "exit 1", 2)])
    await bench.ends(2)

    assert sorted(report.attempt.n for report in bench.reports) == [1, 2]


async def test_a_running_attempt_is_not_started_again(bench: Bench) -> None:
    """The dispatcher may repeat itself."""
    item = attempt("t", "sleep 60")
    bench.runner.start_attempts([item])
    bench.runner.start_attempts([item])
    bench.runner.stop_attempts([(item[1].id, item[0])])

    assert (await bench.ends(1))["t"].state == AttemptState.CANCELLED


async def test_a_stopped_attempt_is_cancelled_and_others_go_on(
    bench: Bench,
) -> None:
    """The reason is reported, and only the named attempt ends."""
    items = [attempt(f"t{n}", "sleep 60") for n in range(3)]
    bench.runner.start_attempts(items)
    bench.runner.stop_attempts([(TaskId("t1"), items[1][0])])
    ends = await bench.ends(1)

    assert ends["t1"].state == AttemptState.CANCELLED
    assert ends["t1"].reason == EndReason.CANCELLED


async def test_a_frozen_attempt_can_be_stopped(bench: Bench) -> None:
    """The process continues later."""
    items = [attempt(f"t{n}", "sleep 60") for n in range(2)]
    bench.runner.start_attempts(items)
    bench.runner.set_frozen(is_frozen=True)
    bench.runner.stop_attempts([(TaskId("t1"), items[1][0])])
    ends = await bench.ends(1)
    bench.runner.set_frozen(is_frozen=False)

    assert ends["t1"].state == AttemptState.CANCELLED


async def test_attempts_of_a_leaving_node_are_returned(bench: Bench) -> None:
    """Other nodes run them; this is not a cancel."""
    begin, wait = "echo > begun; sleep 60", "until [ -e begun ]; do sleep 0.02; done"
    items = [attempt("t", begin), attempt("u", wait)]
    bench.runner.start_attempts(items)
    await bench.ends(1)
    names = [(spec.id, name) for name, spec in items]
    bench.runner.stop_attempts(names, EndReason.DRAINING)
    ends = await bench.ends(2)

    assert (ends["t"].state, ends["t"].reason) == (
        AttemptState.RELEASED,
        EndReason.DRAINING,
    )
    assert ends["t"].started_ms is not None  # Else it may run again in any case.
    assert ends["u"].state == AttemptState.OK


async def test_only_attempts_that_wait_are_returned(bench: Bench) -> None:
    """An attempt that has started goes on, and its end counts."""
    items = [attempt(f"t{n}", "sleep 0.5") for n in range(6)]
    bench.runner.start_attempts(items)
    names = [(spec.id, name) for name, spec in items]
    bench.runner.stop_attempts(names, EndReason.RETURNED)
    ends = await bench.ends(6)

    assert {(end.state, end.reason) for end in ends.values()} <= {
        (AttemptState.OK, EndReason.EXIT),
        (AttemptState.RELEASED, EndReason.RETURNED),
    }
    assert ends["t5"].reason is EndReason.RETURNED


async def test_unknown_attempts_are_not_stopped(bench: Bench) -> None:
    """Nor is another attempt of the same task."""
    name, spec = attempt("t", "exit 0")
    bench.runner.stop_attempts([(TaskId("other"), name), (spec.id, replace(name, n=9))])
    bench.runner.start_attempts([(name, spec)])

    assert (await bench.ends(1))["t"].state == AttemptState.OK


async def test_closing_returns_running_and_new_attempts(bench: Bench) -> None:
    """Other nodes run them; closing twice is allowed."""
    bench.runner.start_attempts([attempt("t1", "sleep 60")])
    await bench.runner.close()
    bench.runner.start_attempts([attempt("t2", "exit 0")])
    ends = await bench.ends(2)
    await bench.runner.close()

    released = Outcome(state=AttemptState.RELEASED, reason=EndReason.DRAINING)
    assert {task: replace(end, detail="") for task, end in ends.items()} == {
        "t1": released,
        "t2": released,
    }
