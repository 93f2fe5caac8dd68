"""Worker choice: free slots first, then prefetch, fair, never above credit."""

from __future__ import annotations

from octaskly.core.model.ids import NodeId
from octaskly.core.scheduling.task_table import HeldAttempts
from octaskly.core.scheduling.worker_pool import WorkerPool
from tests.support.builders import node_id, node_info
from tests.support.placement import Placement, PlacementReason, WorkerView, place

A, B, C = node_id("a"), node_id("b"), node_id("c")


def nodes(placements: list[Placement]) -> str:
    """Return the chosen nodes as a word."""
    return "".join(placement.node for placement in placements)


def pool_of(**slots: int) -> WorkerPool:
    """Return a pool of attached workers with these slots."""
    pool = WorkerPool(prefetch_max=8)
    for name, count in slots.items():
        pool.add(node_info(name, count))
        pool.attach(NodeId(name))
        pool.set_held(NodeId(name), HeldAttempts())
    return pool


def test_equal_workers_take_turns() -> None:
    """The smaller id comes first."""
    views = [WorkerView(B, 2), WorkerView(A, 2)]

    assert nodes(place(views, 4, prefetch_max=8)) == "abab"


def test_a_large_worker_gets_its_share() -> None:
    """Fairness is per slot, not per node."""
    views = [WorkerView(A, 1), WorkerView(B, 3)]

    assert nodes(place(views, 4, prefetch_max=8)) == "abbb"


def test_free_slots_are_filled_before_anything_is_prefetched() -> None:
    """Credit beyond the slots is used only when no slot is free anywhere."""
    views = [WorkerView(A, 1, credit=9), WorkerView(B, 1, outstanding=0)]

    placements = place(views, 4, prefetch_max=8)

    assert placements == [
        Placement(A, PlacementReason.SLOT),
        Placement(B, PlacementReason.SLOT),
        Placement(A, PlacementReason.PREFETCH),
        Placement(A, PlacementReason.PREFETCH),
    ]


def test_an_idle_machine_is_preferred_among_equals() -> None:
    """Load decides where outstanding per slot does not."""
    views = [WorkerView(A, 2, cpu_percent=95.0), WorkerView(B, 2, cpu_percent=3.0)]

    assert nodes(place(views, 1, prefetch_max=8)) == "b"


def test_an_invalid_load_counts_as_idle() -> None:
    """A wrong value from a peer must not stop the dispatcher."""
    views = [WorkerView(A, 1, cpu_percent=float("nan"))]

    assert nodes(place(views, 1, prefetch_max=8)) == "a"


def test_no_worker_is_chosen_when_all_are_full() -> None:
    """The remaining tasks wait."""
    views = [WorkerView(A, 1, outstanding=1), WorkerView(B, 1, credit=0)]

    assert place(views, 3, prefetch_max=8) == []


def test_a_worker_cannot_claim_more_credit_than_is_allowed() -> None:
    """Credit comes from a peer, so it is bounded by slots plus prefetch."""
    views = [WorkerView(A, 1, credit=1_000_000)]

    assert len(place(views, 100, prefetch_max=8)) == 9


def test_a_worker_gets_nothing_before_it_attached() -> None:
    """Its running attempts are unknown before."""
    pool = WorkerPool(prefetch_max=8)
    pool.add(node_info(A, 2))

    assert pool.take_slot() is None
    assert pool.attached() == []

    pool.attach(A)
    pool.set_held(A, HeldAttempts(slots=1))

    assert [pool.take_slot(), pool.take_slot()] == [A, None]
    assert pool.is_attached(A)


def test_a_lost_worker_is_never_chosen() -> None:
    """Its entries in the heap are outdated."""
    pool = pool_of(a=1, b=1)

    pool.remove(A)

    assert [pool.take_slot(), pool.take_slot()] == [B, None]
    assert pool.slots(A) == 0


def test_excluded_workers_stay_available_for_others() -> None:
    """A task that cannot run on a worker does not use the worker up."""
    pool = pool_of(a=1, b=1)

    assert pool.take_slot({A}) == B
    assert pool.take_slot({A}) is None
    assert pool.take_slot() == A


def test_a_returned_attempt_makes_room_again() -> None:
    """The dispatcher's record frees the slot."""
    pool = pool_of(a=1)
    pool.take_slot()

    pool.set_held(A, HeldAttempts())

    assert [pool.take_slot(), pool.take_slot()] == [A, None]


def test_a_worker_that_refuses_gets_nothing_until_it_reports_credit() -> None:
    """One refused attempt could otherwise go back and forth without end."""
    pool = pool_of(a=2)

    pool.cap_credit(A, is_refusing=True)
    assert pool.take_slot() is None

    pool.set_credit(A, 2)
    assert pool.take_slot() == A


def test_a_worker_that_returns_tasks_gets_no_more_ahead() -> None:
    """Its credit is its slots until it reports another one."""
    pool = pool_of(a=1)
    pool.set_credit(A, 5)

    pool.cap_credit(A, is_refusing=False)

    assert [pool.take_slot(), pool.take_slot()] == [A, None]


def test_the_heap_stays_small() -> None:
    """Outdated entries are dropped in time."""
    pool = pool_of(a=2, b=2, c=2)

    for turn in range(5000):
        pool.set_load(A, turn % 2 * 50.0)
        node = pool.take_slot()
        assert node is not None
        pool.set_held(node, HeldAttempts())

    assert len(pool._heap) < 200
    assert pool.slots(C) == 2


def test_more_slots_are_used_at_once() -> None:
    """A worker that comes back bigger is offered again."""
    pool = pool_of(a=1)
    pool.add(node_info(A, 4))
    pool.set_credit(A, 4)

    assert [pool.take_slot() for _ in range(5)] == [A, A, A, A, None]


def test_calls_about_unknown_workers_change_nothing() -> None:
    """An event of a worker may follow its loss."""
    pool = WorkerPool(prefetch_max=8)

    pool.set_credit(A, 3)
    pool.set_load(A, 3.0)
    pool.set_held(A, HeldAttempts(slots=3))
    pool.cap_credit(A, is_refusing=True)
    pool.remove(A)

    assert pool.take_slot() is None
    assert pool.slots(A) == 0
