"""Laws of placement for any workers."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.model.ids import NodeId
from tests.support.placement import PlacementReason, WorkerView, place

PREFETCH = 6


#: a few workers with unique ids
WORKERS = st.lists(
    st.builds(
        WorkerView,
        node=st.sampled_from("abcdefgh").map(NodeId),
        slots=st.integers(1, 5),
        outstanding=st.integers(0, 8),
        credit=st.none() | st.integers(0, 12),
        cpu_percent=st.floats(0, 100),
    ),
    max_size=6,
    unique_by=lambda view: view.node,
)


def room(view: WorkerView) -> int:
    """Return how many more attempts a worker may get."""
    credit = view.slots if view.credit is None else view.credit
    return max(0, min(credit, view.slots + PREFETCH) - view.outstanding)


@given(WORKERS, st.integers(0, 60))
def test_no_worker_gets_more_than_its_credit_and_none_idles_while_work_waits(
    workers: list[WorkerView], wanted: int
) -> None:
    """The number of placed attempts is limited by work and room alone."""
    placed = Counter(
        item.node for item in place(workers, wanted, prefetch_max=PREFETCH)
    )

    assert all(placed[view.node] <= room(view) for view in workers)
    assert placed.total() == min(wanted, sum(room(view) for view in workers))


@given(WORKERS, st.integers(0, 60))
def test_shares_differ_by_one_attempt_at_most(
    workers: list[WorkerView], wanted: int
) -> None:
    """No worker that got work was further ahead per slot than one with room is."""
    placed = Counter(
        item.node for item in place(workers, wanted, prefetch_max=PREFETCH)
    )

    for winner in workers:
        if not placed[winner.node]:
            continue
        before_last = winner.outstanding + placed[winner.node] - 1
        for other in workers:
            if room(other) > placed[other.node]:
                now = other.outstanding + placed[other.node]
                assert before_last / winner.slots <= now / other.slots


@given(WORKERS, st.integers(0, 60))
def test_prefetch_starts_only_when_no_slot_is_free(
    workers: list[WorkerView], wanted: int
) -> None:
    """Once work is placed ahead, no later placement finds a free slot."""
    reasons = [item.why for item in place(workers, wanted, prefetch_max=PREFETCH)]

    assert reasons == sorted(reasons, key=lambda why: why is PlacementReason.PREFETCH)


@given(WORKERS, st.integers(0, 60))
def test_the_order_of_workers_does_not_matter(
    workers: list[WorkerView], wanted: int
) -> None:
    """Two dispatchers with the same view place alike."""
    shuffled = list(reversed(workers))

    assert place(workers, wanted, prefetch_max=PREFETCH) == place(
        shuffled, wanted, prefetch_max=PREFETCH
    )
