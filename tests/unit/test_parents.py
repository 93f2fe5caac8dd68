"""Tasks that come after others: the store is asked for each that came."""

from __future__ import annotations

from dataclasses import replace

from octaskly.core.effects import LoadRipe
from octaskly.core.events import Draft, RipeLoaded
from octaskly.core.options import After, TaskOptions
from octaskly.core.parents import RIPE_MAX
from tests.builders import draft, moment
from tests.desk import reigning, submit


def late() -> Draft:
    """Return a task that comes after another one."""
    return replace(draft(), options=TaskOptions(after=After(tasks=("p",))))


def test_a_late_task_that_comes_while_the_store_answers_is_asked_for() -> None:
    """The answer does not know it, so it does not say that nobody waits."""
    world = reigning()
    world.dispatch.on_submitted(submit(late()), moment())

    answer = RipeLoaded(2, (), are_left=False)
    effects = world.dispatch.on_read(answer, moment())
    effects += world.commit()

    assert LoadRipe(3, RIPE_MAX) in effects


def test_nobody_is_asked_about_where_no_task_is_late() -> None:
    """Each end of a task would cost a read."""
    world = reigning()
    world.dispatch.on_read(RipeLoaded(2, (), are_left=False), moment())
    effects = world.dispatch.on_submitted(submit(), moment()) + world.commit()

    assert not [effect for effect in effects if isinstance(effect, LoadRipe)]
