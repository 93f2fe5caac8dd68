"""Resources of a node for its attempts, over random mixes of requests and ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.task_options import Requirements, TaskOptions
from octaskly.core.model.tasks import TaskSpec
from octaskly.runner.pool.attempts import PoolAttempt, ResourceAllocator

SLOTS = 6
GPUS = ("0", "3", "GPU-a")

wishes = st.builds(
    Requirements, cpus=st.integers(0, SLOTS), gpus=st.integers(0, len(GPUS) + 1)
)
steps = st.lists(st.one_of(wishes, st.integers(0, 20)), max_size=40)


def item(key: int, requires: Requirements) -> PoolAttempt:
    spec = TaskSpec(
        id=TaskId(f"t{key}"), command="true", options=TaskOptions(requires=requires)
    )
    return PoolAttempt(key, AttemptId(1, StreamId(1), 1, 1), spec, 0.0)


@given(steps)
def test_no_gpu_is_allocated_twice_and_all_are_freed(
    steps: list[Requirements | int],
) -> None:
    """A request starts if it fits; a number ends one of the running attempts."""
    shares = ResourceAllocator(SLOTS, GPUS)
    running: list[PoolAttempt] = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            if running:
                shares.release(running.pop(step % len(running)))
            continue
        asked = item(number, step)
        assert shares.can_ever_fit(asked) == (step.gpus <= len(GPUS))
        # Plain ones may wait in a launcher, which the pool bounds.
        is_room = step.slots > 1 or len(running) < SLOTS
        if is_room and shares.fits_now(asked, len(running)):
            shares.allocate(asked)
            assert len(asked.gpus) == step.gpus
            running.append(asked)

        held = [gpu for each in running for gpu in each.gpus]
        assert len(held) == len(set(held))
        assert set(held) <= set(GPUS)
        assert sum(each.slots for each in running) <= SLOTS

    for each in running:
        shares.release(each)
    whole = item(-1, Requirements(cpus=SLOTS, gpus=len(GPUS)))
    assert shares.fits_now(whole, 0)
    shares.allocate(whole)
    assert whole.gpus == GPUS
