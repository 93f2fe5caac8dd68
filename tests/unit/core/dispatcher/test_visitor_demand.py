"""How many queued tasks a visitor could run that is not there yet."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.effects import LoadQueued
from octaskly.core.model.settings import Limits
from octaskly.core.model.task_options import Requirements, VisitorRule
from octaskly.core.replies import VisitorDemand
from tests.support.builders import (
    STREAM,
    draft,
    epoch,
    load_reply,
    moment,
    node_info,
)
from tests.support.dispatcher import DispatcherWithJournal, submission
from tests.support.dispatcher_with_workers import (
    DispatcherWithWorkers,
    array_draft,
    draft_requiring,
)

VISITORS = Requirements(visitors=VisitorRule.ALLOWED)
GPU = ("gpu", "a100")


def waiting(
    mesh: DispatcherWithWorkers, label: tuple[str, str] | None = None
) -> VisitorDemand:
    return mesh.dispatch.count_visitor_demand(label)


@pytest.mark.parametrize(
    ("requires", "count"),
    [
        (Requirements(cpus=2), 0),
        (Requirements(visitors=VisitorRule.REFUSED), 0),
        (Requirements(visitors=VisitorRule.HAS_ENV), 0),
        (VISITORS, 1),
        (replace(VISITORS, cpus=64, memory_mb=9000, gpus=2, python="3.13"), 1),
        (replace(VISITORS, os="linux", arch="arm64", visitor_s=9000), 1),
        (replace(VISITORS, labels=(("site", "lab"),)), 0),
        (replace(VISITORS, node="ana"), 0),
    ],
)
def test_task_counts_if_a_visitor_of_any_size_could_run_it(
    requires: Requirements, count: int
) -> None:
    """Nobody knows yet what the next visitor has; it has no name and no label."""
    mesh = DispatcherWithWorkers()
    mesh.ask(draft_requiring("one", requires))

    assert waiting(mesh) == VisitorDemand(count, is_exact=True)


def test_plain_tasks_do_not_count() -> None:
    """Their submitters have not allowed visitors."""
    mesh = DispatcherWithWorkers()
    mesh.ask(draft("one"))

    assert waiting(mesh) == VisitorDemand(0, is_exact=True)


def test_with_a_label_only_tasks_that_require_it_count() -> None:
    """The visitors have this label, and no other."""
    mesh = DispatcherWithWorkers()
    both = (("disk", "ssd"), GPU)
    for name, labels in (("none", ()), ("one", (GPU,)), ("two", both)):
        mesh.ask(draft_requiring(name, replace(VISITORS, labels=labels)))

    assert waiting(mesh, GPU) == VisitorDemand(1, is_exact=True)


def test_running_tasks_do_not_count() -> None:
    """A member has them."""
    mesh = DispatcherWithWorkers(node_info("b", 1))
    placed = mesh.ask(*(draft_requiring(name, VISITORS) for name in "abcd"))

    assert placed
    assert waiting(mesh) == VisitorDemand(4 - len(placed), is_exact=True)


def test_members_of_an_array_count_until_a_worker_gets_them() -> None:
    """An array is one entry of the queue."""
    mesh = DispatcherWithWorkers(node_info("b", 1))
    placed = mesh.ask(array_draft("work", 1000, VISITORS))

    assert placed
    assert waiting(mesh) == VisitorDemand(1000 - len(placed), is_exact=True)


def test_part_of_a_long_queue_is_a_lower_bound() -> None:
    """The store has the rest."""
    limits = Limits(window_tasks=2, lane_tasks=2, load_tasks=2)
    world = DispatcherWithJournal(limits)
    world.dispatch.start_dispatching(epoch(), STREAM, moment())
    world.dispatch.on_queued_loaded(load_reply([], LoadQueued(1, -1, 2)), moment())
    for _ in range(9):
        drafts = submission(draft_requiring("one", VISITORS))
        world.dispatch.on_submitted(drafts, moment())
        world.commit()

    found = world.dispatch.count_visitor_demand(None)

    assert 0 < found.waiting < 9
    assert not found.is_exact
